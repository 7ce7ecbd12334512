#include "kvq/base/cuda/growing_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kvq/base/cuda/memory.h"

namespace kvq::cuda {
namespace {

// The driver's functions, asked for by name: the library is not linked, so that programs start
// where there is no driver.
struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free_addresses = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  cudaError_t error = cudaSuccess;

  template <typename Function>
  void find(const char* name, Function& function) {
    [[maybe_unused]] constexpr unsigned kVersion = 12000;  // of the functions' interface
    cudaDriverEntryPointQueryResult found{};
    void* address = nullptr;
#if CUDART_VERSION >= 12050
    const cudaError_t result =
        cudaGetDriverEntryPointByVersion(name, &address, kVersion, cudaEnableDefault, &found);
#else
    const cudaError_t result = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found);
#endif
    if (result != cudaSuccess) error = result;
    if (address == nullptr && error == cudaSuccess) error = cudaErrorNotSupported;
    function = reinterpret_cast<Function>(address);
  }

  Driver() {
    find("cuMemGetAllocationGranularity", granularity);
    find("cuMemAddressReserve", reserve);
    find("cuMemAddressFree", free_addresses);
    find("cuMemCreate", create);
    find("cuMemRelease", release);
    find("cuMemMap", map);
    find("cuMemUnmap", unmap);
    find("cuMemSetAccess", set_access);
  }
};

const Driver& driver() {
  static const Driver kDriver;
  return kDriver;
}

CUmemAllocationProp properties_of(int device) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  return properties;
}

std::size_t rounded(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

Status expect(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return {};
  return fail("CUDA: {}: error {}", what, static_cast<int>(result));
}

}  // namespace

Result<std::unique_ptr<GrowingMemory>> GrowingMemory::create(int device) {
  KVQ_RETURN_IF_ERROR(check(driver().error, "memory that grows"));
  std::size_t available = 0;
  std::size_t total = 0;
  KVQ_RETURN_IF_ERROR(check(cudaMemGetInfo(&available, &total), "memory of the device"));
  std::unique_ptr<GrowingMemory> memory(new GrowingMemory);
  memory->device_ = device;
  const CUmemAllocationProp properties = properties_of(device);
  KVQ_RETURN_IF_ERROR(expect(
      driver().granularity(&memory->unit_, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
      "size of memory pieces"));
  const std::size_t size = rounded(total, memory->unit_);
  KVQ_RETURN_IF_ERROR(
      expect(driver().reserve(&memory->start_, size, 0, 0, 0), "addresses of cache memory"));
  memory->reserved_ = size;
  return memory;
}

GrowingMemory::~GrowingMemory() {
  if (bytes_ > 0) driver().unmap(start_, static_cast<std::size_t>(bytes_));
  for (const Piece& piece : pieces_) driver().release(piece.handle);
  if (reserved_ > 0) driver().free_addresses(start_, reserved_);
}

Status GrowingMemory::grow(std::int64_t bytes) {
  const std::size_t size = rounded(static_cast<std::size_t>(bytes), unit_);
  const auto used = static_cast<std::size_t>(bytes_);
  if (used + size > reserved_) {
    return fail("the device has no memory for caches of {} bytes, it has {}", used + size,
                reserved_);
  }
  const CUmemAllocationProp properties = properties_of(device_);
  CUmemGenericAllocationHandle handle = 0;
  if (driver().create(&handle, size, &properties, 0) != CUDA_SUCCESS) {
    std::size_t available = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&available, &total);
    return fail("the device has no memory for {} more bytes of caches: {} of {} are free", size,
                available, total);
  }
  Status status = expect(driver().map(start_ + used, size, 0, handle, 0), "cache memory");
  if (!status) {
    driver().release(handle);
    return status;
  }
  CUmemAccessDesc access{};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  status = expect(driver().set_access(start_ + used, size, &access, 1), "cache memory");
  if (!status) {
    driver().unmap(start_ + used, size);
    driver().release(handle);
    return status;
  }
  pieces_.push_back({handle, size});
  bytes_ += static_cast<std::int64_t>(size);
  return {};
}

}  // namespace kvq::cuda
