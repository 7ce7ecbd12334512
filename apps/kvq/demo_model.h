// Where the embedded demo model lies.
#pragma once

#include <filesystem>

#include "kvq/base/status.h"

namespace kvq {

// $KVQ_DEMO_MODEL, else the installed model (share/kvq/models/demo-llama beside the command's bin),
// else the source tree's, as seen from the command in its build directory.
Result<std::filesystem::path> find_demo_model();

}  // namespace kvq
