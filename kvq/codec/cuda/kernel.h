// The kernel that was compiled, to be launched by address with PackParams.
#pragma once

namespace kvq::cuda {

const void* pack_kernel();

}  // namespace kvq::cuda
