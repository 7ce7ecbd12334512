// LayerCache in the memory of a CUDA device, for arrays there. Work is given to the caller's stream
// and not waited for: numbers that are not finite are told by a later call.
//
//   call      tables of the pass: one copy to the device
//    append   rows to fp16, pages that are complete packed
//    attend   decode up to 8 tokens a sequence, else prefill
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvq/cache/sequence.h"
#include "python/bindings/cuda_device.h"
#include "python/bindings/layer_cache.h"

namespace kvq::python {

class CudaLayerCache {
 public:
  static Result<CudaLayerCache> create(std::shared_ptr<CudaMemory> memory, const LayerSpec& spec,
                                       int kv_heads, int head_dim,
                                       const LayerCacheOptions& options);
  CudaLayerCache(CudaLayerCache&&) = default;
  CudaLayerCache& operator=(CudaLayerCache&&) = delete;
  int batch() const { return static_cast<int>(sequences_.size()); }
  int device() const { return memory_->device().index(); }
  const CacheSpec& spec() const { return *spec_; }
  std::vector<std::int64_t> lengths() const;
  ByteCount bytes() const;

  // Rows lie in device memory. With `counts`, one number of tokens a sequence, those of all
  // sequences follow each other in a batch of one.
  //   key, value  [batch, kv_heads, tokens, head_dim]
  Status append(const Rows& key, const Rows& value, const std::vector<int>& counts,
                cudaStream_t stream);
  // Queries of the newest tokens; rows of all heads side by side.
  //   query, output  [batch, tokens, query_heads, head_dim]
  Status attend(const Rows& query, std::byte* output, float scale, const std::vector<int>& counts,
                cudaStream_t stream);

  // A step of one token a sequence in two parts, so that the second can be recorded as a CUDA graph
  // and replayed for later steps: begin_step() writes the tables that the kernels of attend_step()
  // read. A recording stands for all steps with the same key.
  //   key, value, query, output  as above, one token
  using StepKey = std::array<std::uintptr_t, 3>;
  Result<StepKey> begin_step(cudaStream_t stream);
  Status attend_step(const Rows& key, const Rows& value, const Rows& query, std::byte* output,
                     float scale, cudaStream_t stream) const;

  // Lets rows go that only the newest chunk's queries needed, if they are many.
  void forget_long_chunk();
  //   key, value  [batch, kv_heads, tokens, head_dim] of one stride
  Status read(const Rows& key, const Rows& value, cudaStream_t stream);

  Result<CudaLayerCache> select(std::span<const int> source, cudaStream_t stream);
  Status reorder(std::span<const int> source, cudaStream_t stream);
  Status truncate(std::span<const std::int64_t> lengths, cudaStream_t stream);

  // Of decode attention for so many query heads.
  Result<std::string> kernel_name(int query_heads) const;

 private:
  using Counts = std::vector<int>;

  explicit CudaLayerCache(std::shared_ptr<CudaMemory> memory) : memory_(std::move(memory)) {}
  Status use(cudaStream_t stream) const;
  Status check(const Rows& rows, const Counts& counts, const char* name) const;
  Status check_appended(const Rows& key, const Rows& value, const Counts& counts) const;
  Status check_query(const Rows& query, const Counts& counts) const;
  Status add_sequences(int count);
  cuda::DeviceSequence& sequence(std::size_t index) const;
  const PageFormat& format() const { return layout_->format(0); }
  int tokens_of(std::size_t sequence, int tokens, const Counts& counts) const;
  Status begin_chunks(int tokens, const Counts& counts);
  // The newest tokens' tables, if those at hand are not theirs.
  Status describe_newest(int tokens, const Counts& counts);
  // Of the open chunks.
  Status describe_pass();
  Status describe_pass(CudaDevice::Tables* tables);
  Status pack(const cuda::PackRange& range, cudaStream_t stream) const;
  Status write_rows(const Rows& key, const Rows& value, cudaStream_t stream) const;
  Status attend_newest(const Rows& query, std::byte* output, float scale,
                       cudaStream_t stream) const;
  void finish();
  void abort();
  template <typename Batch>
  Batch batch_of_tables() const;

  std::shared_ptr<CudaMemory> memory_;
  std::shared_ptr<const CacheSpec> spec_;  // of one layer
  std::shared_ptr<const cuda::DeviceLayout> layout_;
  std::shared_ptr<PagePool> pool_;
  std::optional<cuda::Packer> packer_;
  bool exact_prefill_ = false;
  int layer_ = 0;
  std::vector<Sequence> sequences_;

  // The pass that was described last.
  std::vector<PassItem> items_;
  CudaDevice::Tables* tables_ = nullptr;
  std::int64_t turn_ = 0;
  Counts described_;  // tokens of every sequence

  // Of begin_step(): tables that stay where they are, and when they were copied last.
  struct StepTables {
    StepTables();
    ~StepTables();
    CudaDevice::Tables tables;
    cudaEvent_t copied = nullptr;
  };
  std::unique_ptr<StepTables> step_;
};

}  // namespace kvq::python
