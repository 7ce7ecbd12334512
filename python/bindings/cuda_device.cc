#include "python/bindings/cuda_device.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "kvq/cache/cuda/bad_number.h"

namespace kvq::python {
namespace {

constexpr int kLeastRows = 64;

bool same(const AttentionShape& a, const AttentionShape& b) {
  return a.query_heads == b.query_heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
         a.scale == b.scale;
}

bool same(const cuda::PrefillOptions& a, const cuda::PrefillOptions& b) {
  return a.sinks == b.sinks && a.window == b.window && a.exact_prefill == b.exact_prefill;
}

Result<AttentionKernels> make_kernels(const AttentionShape& shape, const PageFormat& format,
                                      const cuda::PrefillOptions& options, int rows,
                                      cudaStream_t stream) {
  const int max_rows = std::max(kLeastRows, static_cast<int>(std::bit_ceil(unsigned(rows))));
  KVQ_ASSIGN_OR_RETURN(cuda::Decode decode,
                       cuda::Decode::create(shape, format, {.max_sequences = max_rows}));
  KVQ_ASSIGN_OR_RETURN(cuda::Prefill prefill, cuda::Prefill::create(shape, format, options));
  KVQ_ASSIGN_OR_RETURN(cuda::DeviceArray workspace,
                       cuda::DeviceArray::create(decode.workspace_bytes()));
  KVQ_RETURN_IF_ERROR(decode.initialize(workspace.as<void>(), stream));
  return AttentionKernels{std::move(decode), std::move(workspace), max_rows, std::move(prefill)};
}

}  // namespace

DeviceGuard::DeviceGuard(int index) {
  cudaGetDevice(&before_);
  changed_ = before_ != index;
  if (changed_) cudaSetDevice(index);
}

DeviceGuard::~DeviceGuard() {
  if (changed_) cudaSetDevice(before_);
}

Result<CudaDevice*> CudaDevice::get(int index) {
  static auto* devices = new std::map<int, std::unique_ptr<CudaDevice>>;
  std::unique_ptr<CudaDevice>& device = (*devices)[index];
  if (device == nullptr) {
    std::unique_ptr<CudaDevice> opened(new CudaDevice(index));
    KVQ_RETURN_IF_ERROR(opened->open());
    device = std::move(opened);
  }
  return device.get();
}

Status CudaDevice::open() {
  KVQ_ASSIGN_OR_RETURN(device_, cuda::Device::of_caller(index_));
  for (cudaEvent_t* event : {&copied_[0], &copied_[1], &large_[0].copied, &large_[1].copied}) {
    KVQ_RETURN_IF_ERROR(
        cuda::check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "event"));
  }
  return {};
}

Result<const AttentionKernels*> CudaDevice::attention(const AttentionShape& shape,
                                                      const PageFormat& format,
                                                      const cuda::PrefillOptions& options,
                                                      int rows) {
  const auto found = std::ranges::find_if(kept_, [&](const auto& kept) {
    return same(kept->shape, shape) && kept->spec == format.spec() &&
           same(kept->options, options) && kept->kernels.max_rows >= rows;
  });
  if (found != kept_.end()) return &(*found)->kernels;
  KVQ_ASSIGN_OR_RETURN(AttentionKernels kernels,
                       make_kernels(shape, format, options, rows, stream()));
  kept_.push_back(std::make_unique<Kept>(Kept{shape, format.spec(), options, std::move(kernels)}));
  return &kept_.back()->kernels;
}

Result<CudaDevice::Tables*> CudaDevice::next_tables(int rows) {
  if (rows > kRingRows) {
    Tables& tables = large_[static_cast<std::size_t>(large_turn_ % 2)];
    KVQ_RETURN_IF_ERROR(cuda::check(cudaEventSynchronize(tables.copied), "device work"));
    tables.turn = ++large_turn_;
    return &tables;
  }
  const auto half = [](std::int64_t turn) {
    return static_cast<std::size_t>(turn % kRing / (kRing / 2));
  };
  if (turn_ > 0 && half(turn_) != half(turn_ - 1)) {
    KVQ_RETURN_IF_ERROR(cuda::check(cudaEventRecord(copied_[half(turn_ - 1)], stream()), "event"));
    KVQ_RETURN_IF_ERROR(cuda::check(cudaEventSynchronize(copied_[half(turn_)]), "device work"));
  }
  Tables& tables = ring_[static_cast<std::size_t>(turn_ % kRing)];
  tables.turn = ++turn_;
  return &tables;
}

Result<std::shared_ptr<CudaMemory>> CudaMemory::create(int device) {
  KVQ_ASSIGN_OR_RETURN(CudaDevice * shared, CudaDevice::get(device));
  std::shared_ptr<CudaMemory> memory(new CudaMemory(shared));
  KVQ_ASSIGN_OR_RETURN(memory->arena_, cuda::DeviceArena::create_growing(device));
  KVQ_RETURN_IF_ERROR(memory->bad_.reserve(sizeof(cuda::BadNumber)));
  *memory->bad() = cuda::kNoBadNumber;
  return memory;
}

CudaMemory::~CudaMemory() {
  const DeviceGuard guard(device_->index());
  std::ignore = device_->device()->synchronize();
  arena_.reset();
}

Status CudaMemory::check_numbers() const {
  const cuda::BadNumber found = *static_cast<volatile cuda::BadNumber*>(bad());
  if (found == cuda::kNoBadNumber) return {};
  const cuda::BadNumberPlace place = cuda::describe(found);
  return fail("layer {}, kv head {}, token {} of an earlier chunk: {}", place.layer, place.kv_head,
              place.row, place.what);
}

}  // namespace kvq::python
