// What all caches on one CUDA device share, and what those of one model and its forks share.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "kvq/attention/cuda/decode.h"
#include "kvq/attention/cuda/dequantize.h"
#include "kvq/attention/cuda/prefill.h"
#include "kvq/cache/cuda/device_arena.h"
#include "kvq/codec/cuda/packer.h"
#include "kvq/runtime/cuda/pass_tables.h"

namespace kvq::python {

// Makes a device the current one, and the one before current again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard();

 private:
  int before_ = 0;
  bool changed_ = false;
};

// What works on pages of one format for queries of one shape.
struct AttentionKernels {
  cuda::Decode decode;
  cuda::DeviceArray workspace;  // of `decode`
  int max_rows;                 // that `decode` takes
  cuda::Prefill prefill;
};

// Everything is called with the interpreter's lock held and the device current.
class CudaDevice {
 public:
  // Device number `index`, opened at the first call; never destroyed.
  static Result<CudaDevice*> get(int index);

  int index() const { return index_; }
  const std::shared_ptr<cuda::Device>& device() const { return device_; }
  cudaStream_t stream() const { return device_->stream(); }

  // Kernels for at least `rows` rows that decode. They stay: recordings hold their workspaces.
  Result<const AttentionKernels*> attention(const AttentionShape& shape, const PageFormat& format,
                                            const cuda::PrefillOptions& options, int rows);

  // Tables of a pass. There are many, so that a pass is described while those before still run;
  // `turn` tells whether they have been handed out again since.
  struct Tables {
    cuda::PassTables tables;
    std::int64_t turn = 0;
    cudaEvent_t copied = nullptr;  // to be recorded after the copy, unless null
  };
  Result<Tables*> next_tables(int rows);

 private:
  static constexpr int kRing = 64;
  // Passes of more rows have two tables of their own, since tables keep the room that they once
  // had.
  static constexpr int kRingRows = 4096;

  struct Kept {
    AttentionShape shape;
    LayerSpec spec;
    cuda::PrefillOptions options;
    AttentionKernels kernels;
  };

  explicit CudaDevice(int index) : index_(index) {}
  Status open();

  int index_;
  std::shared_ptr<cuda::Device> device_;
  std::vector<std::unique_ptr<Kept>> kept_;
  std::array<Tables, kRing> ring_;
  std::int64_t turn_ = 0;
  std::array<cudaEvent_t, 2> copied_{};  // the tables of a half of the ring
  std::array<Tables, 2> large_;
  std::int64_t large_turn_ = 0;
};

// Of a cache's layers and of its forks.
class CudaMemory {
 public:
  static Result<std::shared_ptr<CudaMemory>> create(int device);
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  ~CudaMemory();

  CudaDevice& device() const { return *device_; }
  const std::shared_ptr<cuda::DeviceArena>& arena() const { return arena_; }
  // A number for every layer that is asked for.
  int next_layer() { return layers_++; }

  // Where kernels leave what they find; the device reaches it as the host does.
  cuda::BadNumber* bad() const { return bad_.as<cuda::BadNumber>(); }
  // An error once a number was found that is not finite in fp16: the caches hold it by now.
  Status check_numbers() const;

 private:
  explicit CudaMemory(CudaDevice* device) : device_(device) {}

  CudaDevice* device_;
  std::shared_ptr<cuda::DeviceArena> arena_;
  cuda::PinnedArray bad_;  // BadNumber
  int layers_ = 0;
};

}  // namespace kvq::python
