#include "kvq/runtime/cuda/cuda_attention.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "kvq/attention/cuda/decode.h"
#include "kvq/attention/cuda/prefill.h"
#include "kvq/cache/cuda/bad_number.h"
#include "kvq/codec/cuda/packer.h"
#include "kvq/runtime/cuda/describe_caches.h"
#include "kvq/runtime/cuda/pass_tables.h"

namespace kvq::cuda {
namespace {

// What works on pages of one format.
struct FormatKernels {
  Decode decode;
  Packer packer;
  DeviceArray workspace;  // of `decode`
};

// Items of more tokens than this are prefilled, shorter ones decoded token by token.
constexpr int kMaxDecodeTokens = 8;

// What the layers of a cache spec share.
struct SpecKernels {
  std::shared_ptr<const CacheSpec> spec;
  std::shared_ptr<const DeviceLayout> layout;
  std::vector<std::shared_ptr<FormatKernels>> formats;
  std::vector<Prefill> prefills;  // likewise
  std::vector<int> groups;        // of every layer, its index in both

  std::size_t group(int layer) const {
    return static_cast<std::size_t>(groups[static_cast<std::size_t>(layer)]);
  }
  const FormatKernels& of(int layer) const { return *formats[group(layer)]; }
};

class CudaAttention final : public CachedAttention {
 public:
  CudaAttention(std::shared_ptr<Device> device, const AttentionShape& shape,
                const CudaAttentionOptions& options)
      : device_(std::move(device)), shape_(shape), options_(options) {}

  Status initialize() {
    KVQ_RETURN_IF_ERROR(bad_.reserve(sizeof(BadNumber)));
    KVQ_RETURN_IF_ERROR(found_.reserve(sizeof(BadNumber)));
    return clear_bad();
  }

  Result<Sequence> new_sequence(std::shared_ptr<const CacheSpec> spec,
                                std::shared_ptr<PagePool> pool) override;
  Status begin(std::span<const PassItem> items) override;
  bool add_to_key(RecordingKey& key) const override;
  Status append(int layer, const float* key, const float* value) override;
  Status attend(int layer, bool only_wanted, const float* query, float* output) override;
  Status finish() override;
  std::string kernel_name(const PageFormat& format, bool decode) const override;

 private:
  Result<const SpecKernels*> kernels_for(const std::shared_ptr<const CacheSpec>& spec);
  Result<std::shared_ptr<FormatKernels>> format_kernels(const LayerSpec& layer);
  Status pack(const FormatKernels& kernels, const PackRange& range) const;
  // All rows of the pass attend, whether one by one or as chunks.
  bool prefills() const;
  Status attend_all(int layer, const float* query, float* output) const;
  // The last logit_rows rows of an item attend; `query` and `output` are those of the first.
  Status prefill_wanted(int layer, std::size_t item, const float* query, float* output) const;
  // Rows [first, first + count) of the pass attend, each by itself.
  Status decode(int layer, int first, int count, const float* query, float* output) const;
  template <typename Batch>
  void describe_layer(int layer, Batch& batch) const {
    describe_caches(*kernels_->layout, arena_->base(), layer, tables_, batch);
  }
  Error bad_number(BadNumber number) const;
  Status clear_bad();

  cudaStream_t stream() const { return device_->stream(); }

  std::shared_ptr<Device> device_;
  AttentionShape shape_;
  CudaAttentionOptions options_;
  std::shared_ptr<DeviceArena> arena_;  // made for the first sequence
  std::map<const CacheSpec*, SpecKernels> specs_;
  std::map<std::string, std::shared_ptr<FormatKernels>> formats_;

  // Of the running pass.
  std::span<const PassItem> items_;
  const SpecKernels* kernels_ = nullptr;
  PassTables tables_;

  DeviceArray bad_;    // BadNumber
  PinnedArray found_;  // its copy
};

Result<Sequence> CudaAttention::new_sequence(std::shared_ptr<const CacheSpec> spec,
                                             std::shared_ptr<PagePool> pool) {
  KVQ_RETURN_IF_ERROR(validate(*spec));
  KVQ_ASSIGN_OR_RETURN(const SpecKernels* kernels, kernels_for(spec));
  if (arena_ == nullptr) {
    KVQ_ASSIGN_OR_RETURN(arena_, DeviceArena::create());
  }
  return Sequence(std::make_unique<DeviceSequence>(std::move(spec), kernels->layout,
                                                   std::move(pool), DeviceMemory{device_, arena_}));
}

Result<const SpecKernels*> CudaAttention::kernels_for(
    const std::shared_ptr<const CacheSpec>& spec) {
  const auto found = specs_.find(spec.get());
  if (found != specs_.end()) return &found->second;
  SpecKernels kernels;
  kernels.spec = spec;
  kernels.layout = std::make_shared<const DeviceLayout>(*spec);
  for (const LayerSpec& layer : spec->layers) {
    KVQ_ASSIGN_OR_RETURN(const auto format, format_kernels(layer));
    const auto at = std::ranges::find(kernels.formats, format);
    kernels.groups.push_back(static_cast<int>(at - kernels.formats.begin()));
    if (at != kernels.formats.end()) continue;
    const PageFormat& page = kernels.layout->format(static_cast<int>(kernels.groups.size()) - 1);
    KVQ_ASSIGN_OR_RETURN(
        Prefill prefill,
        Prefill::create(shape_, page, {spec->sinks, spec->window, options_.exact_prefill}));
    kernels.prefills.push_back(std::move(prefill));
    kernels.formats.push_back(format);
  }
  return &specs_.emplace(spec.get(), std::move(kernels)).first->second;
}

Result<std::shared_ptr<FormatKernels>> CudaAttention::format_kernels(const LayerSpec& layer) {
  std::shared_ptr<FormatKernels>& kernels = formats_[to_string(layer)];
  if (kernels != nullptr) return kernels;
  KVQ_ASSIGN_OR_RETURN(const PageFormat format, PageFormat::create(layer, shape_.head_dim));
  KVQ_ASSIGN_OR_RETURN(Decode decode,
                       Decode::create(shape_, format, {.max_sequences = options_.max_rows}));
  KVQ_ASSIGN_OR_RETURN(const Packer packer, Packer::create(format, shape_.kv_heads));
  KVQ_ASSIGN_OR_RETURN(DeviceArray workspace, DeviceArray::create(decode.workspace_bytes()));
  KVQ_RETURN_IF_ERROR(decode.initialize(workspace.as<void>(), stream()));
  kernels = std::make_shared<FormatKernels>(
      FormatKernels{std::move(decode), packer, std::move(workspace)});
  return kernels;
}

Status CudaAttention::begin(std::span<const PassItem> items) {
  items_ = items;
  kernels_ = nullptr;
  for (const PassItem& item : items) {
    const auto* sequence = dynamic_cast<const DeviceSequence*>(&item.sequence->state());
    if (sequence == nullptr) return fail("forward: expected sequences of this engine's device");
    const auto found = specs_.find(&sequence->spec());
    if (found == specs_.end() || (kernels_ != nullptr && kernels_ != &found->second)) {
      return fail("forward: expected sequences of this engine with one cache spec");
    }
    kernels_ = &found->second;
  }
  KVQ_RETURN_IF_ERROR(device_->synchronize());  // done with the tables of a pass that failed
  KVQ_RETURN_IF_ERROR(tables_.build(items, *kernels_->layout, arena_->base(), kernels_->groups,
                                    static_cast<int>(kernels_->formats.size())));
  if (tables_.rows() > options_.max_rows && !options_.exact_prefill) {
    return fail("forward: a pass of {} tokens: expected at most {}", tables_.rows(),
                options_.max_rows);
  }
  KVQ_RETURN_IF_ERROR(tables_.copy_to_device(stream()));
  for (std::size_t group = 0; group < kernels_->formats.size(); ++group) {
    KVQ_RETURN_IF_ERROR(pack(*kernels_->formats[group], tables_.early(static_cast<int>(group))));
  }
  return {};
}

bool CudaAttention::add_to_key(RecordingKey& key) const {
  if (!tables_.decodes()) return false;
  key.push_back(reinterpret_cast<std::uintptr_t>(kernels_));
  tables_.add_to_key(key);
  return true;
}

Status CudaAttention::pack(const FormatKernels& kernels, const PackRange& range) const {
  if (range.count == 0) return {};
  PackBatch batch;
  batch.jobs = tables_.jobs() + range.first;
  batch.max_jobs = range.count;
  return kernels.packer.run(batch, stream());
}

Status CudaAttention::append(int layer, const float* key, const float* value) {
  const DeviceLayout& layout = *kernels_->layout;
  AppendRows batch{};
  batch.key = key;
  batch.value = value;
  batch.type = NumberType::kFloat32;
  batch.key_strides = {0, std::int64_t{layout.kv_heads()} * layout.head_dim(), layout.head_dim()};
  batch.value_strides = batch.key_strides;
  batch.tokens = tables_.rows();
  batch.places = tables_.places();
  batch.base = arena_->base();
  batch.bad = bad_.as<BadNumber>();
  batch.row_offset = layout.row_offset(layer);
  batch.sink_offset = layout.sink_offset(layer);
  batch.rows = tables_.rows();
  batch.kv_heads = layout.kv_heads();
  batch.head_dim = layout.head_dim();
  batch.sinks = layout.sinks();
  batch.layer = layer;
  KVQ_RETURN_IF_ERROR(check(append_rows(batch, stream()), "append"));
  KVQ_RETURN_IF_ERROR(pack(kernels_->of(layer), tables_.late(layer)));
  if (layer + 1 < layout.layers()) return {};
  return check(cudaMemcpyAsync(found_.as<void>(), bad_.as<void>(), sizeof(BadNumber),
                               cudaMemcpyDeviceToHost, stream()),
               "append");
}

Status CudaAttention::attend(int layer, bool only_wanted, const float* query, float* output) {
  const std::ptrdiff_t width = std::ptrdiff_t{shape_.query_heads} * shape_.head_dim;
  const auto wanted = [](const PassItem& item) {
    return item.logit_rows == static_cast<int>(item.tokens.size());
  };
  if (!only_wanted || std::ranges::all_of(items_, wanted)) {
    return attend_all(layer, query, output);
  }
  int end = 0;
  for (std::size_t i = 0; i < items_.size(); ++i) {
    const int rows = items_[i].logit_rows;
    end += static_cast<int>(items_[i].tokens.size());
    if (rows == 0) continue;
    KVQ_RETURN_IF_ERROR(options_.exact_prefill
                            ? prefill_wanted(layer, i, query + (end - rows) * width, output)
                            : decode(layer, end - rows, rows, query, output));
    output += rows * width;
  }
  return {};
}

// A chunk of one token reads the same rows either way.
bool CudaAttention::prefills() const {
  return tables_.longest_chunk() > (options_.exact_prefill ? 1 : kMaxDecodeTokens);
}

Status CudaAttention::decode(int layer, int first, int count, const float* query,
                             float* output) const {
  const FormatKernels& kernels = kernels_->of(layer);
  DecodeBatch batch;
  describe_layer(layer, batch);
  batch.sequences = count;
  batch.query = query + std::ptrdiff_t{first} * shape_.query_heads * shape_.head_dim;
  batch.output = output;
  batch.lengths = tables_.lengths() + first;
  // Other pages were packed before the layer's matrix products, which overlap nothing.
  batch.pages_settled = tables_.late(layer).count == 0;
  batch.tables = tables_.decodes() ? nullptr : tables_.tables() + first;
  return kernels.decode.run(batch, kernels.workspace.as<void>(), stream());
}

Status CudaAttention::attend_all(int layer, const float* query, float* output) const {
  if (!prefills()) return decode(layer, 0, tables_.rows(), query, output);
  PrefillBatch batch;
  describe_layer(layer, batch);
  batch.sequences = static_cast<int>(items_.size());
  batch.tokens = tables_.rows();
  batch.query = query;
  batch.output = output;
  batch.query_starts = tables_.starts();
  batch.lengths = tables_.chunks();
  return kernels_->prefills[kernels_->group(layer)].run(batch, stream());
}

Status CudaAttention::prefill_wanted(int layer, std::size_t item, const float* query,
                                     float* output) const {
  const auto index = static_cast<std::ptrdiff_t>(item);
  PrefillBatch batch;
  describe_layer(layer, batch);
  batch.sequences = 1;
  batch.tokens = items_[item].logit_rows;
  batch.query = query;
  batch.output = output;
  batch.query_starts = tables_.wanted() + 2 * index;
  batch.lengths = tables_.chunks() + index;
  batch.page_table += index * batch.table_stride;
  batch.row_blocks += index * batch.row_blocks_stride;
  return kernels_->prefills[kernels_->group(layer)].run(batch, stream());
}

Status CudaAttention::finish() {
  if (const BadNumber found = *found_.as<BadNumber>(); found != kNoBadNumber) {
    KVQ_RETURN_IF_ERROR(clear_bad());
    return tl::unexpected(bad_number(found));
  }
  for (const PassItem& item : items_) device_sequence(item).finish_chunk();
  return {};
}

Error CudaAttention::bad_number(BadNumber number) const {
  const BadNumberPlace place = describe(number);
  std::size_t item = 0;
  int row = place.row;
  while (row >= static_cast<int>(items_[item].tokens.size())) {
    row -= static_cast<int>(items_[item].tokens.size());
    ++item;
  }
  std::string text = fmt::format("layer {}, kv head {}, token {}: {}", place.layer, place.kv_head,
                                 items_[item].sequence->length() + row, place.what);
  if (items_.size() > 1) text = fmt::format("sequence {}: {}", item, text);
  return {std::move(text)};
}

Status CudaAttention::clear_bad() {
  *found_.as<BadNumber>() = kNoBadNumber;
  KVQ_RETURN_IF_ERROR(check(cudaMemcpyAsync(bad_.as<void>(), found_.as<void>(), sizeof(BadNumber),
                                            cudaMemcpyHostToDevice, stream()),
                            "append"));
  return device_->synchronize();
}

std::string CudaAttention::kernel_name(const PageFormat& format, bool decode) const {
  if (!decode) {
    const auto kernel = Prefill::create(shape_, format, {.exact_prefill = options_.exact_prefill});
    return kernel ? kernel->kernel_name() : kernel.error().message;
  }
  const auto kernel = Decode::create(shape_, format, {.max_sequences = 1});
  return kernel ? kernel->kernel_name() : kernel.error().message;
}

}  // namespace

Result<std::unique_ptr<CachedAttention>> create_cuda_attention(
    std::shared_ptr<Device> device, const AttentionShape& shape,
    const CudaAttentionOptions& options) {
  auto attention = std::make_unique<CudaAttention>(std::move(device), shape, options);
  KVQ_RETURN_IF_ERROR(attention->initialize());
  return attention;
}

}  // namespace kvq::cuda
