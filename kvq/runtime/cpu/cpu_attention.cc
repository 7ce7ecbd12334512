#include "kvq/runtime/cpu/cpu_attention.h"

#include <utility>
#include <vector>

namespace kvq {
namespace {

class CpuAttention final : public CachedAttention {
 public:
  CpuAttention(const AttentionShape& shape, Isa isa, Attention attention, ThreadPool& threads)
      : shape_(shape), isa_(isa), attention_(std::move(attention)), threads_(threads) {}

  Result<Sequence> new_sequence(std::shared_ptr<const CacheSpec> spec,
                                std::shared_ptr<PagePool> pool) override {
    return Sequence::create(std::move(spec), std::move(pool), isa_);
  }

  Status begin(std::span<const PassItem> items) override {
    items_ = items;
    return {};
  }

  bool add_to_key(RecordingKey& /*key*/) const override { return false; }

  Status append(int layer, const float* key, const float* value) override {
    const std::ptrdiff_t width = std::ptrdiff_t{shape_.kv_heads} * shape_.head_dim;
    append_items_.clear();
    std::ptrdiff_t row = 0;
    for (const PassItem& item : items_) {
      append_items_.push_back({item.sequence, key + row * width, value + row * width});
      row += static_cast<std::ptrdiff_t>(item.tokens.size());
    }
    return kvq::append(append_items_, layer, threads_);
  }

  Status attend(int layer, bool only_wanted, const float* query, float* output) override {
    const std::ptrdiff_t width = std::ptrdiff_t{shape_.query_heads} * shape_.head_dim;
    views_.clear();
    attention_items_.clear();
    for (const PassItem& item : items_) views_.push_back(item.sequence->view(layer));
    std::ptrdiff_t end = 0;
    std::ptrdiff_t output_row = 0;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const auto tokens = static_cast<int>(items_[i].tokens.size());
      const int queries = only_wanted ? items_[i].logit_rows : tokens;
      end += tokens;
      if (queries == 0) continue;
      attention_items_.push_back(
          {&views_[i], query + (end - queries) * width, output + output_row * width, queries});
      output_row += queries;
    }
    return attention_.run(attention_items_, threads_);
  }

  Status finish() override { return {}; }

  std::string kernel_name(const PageFormat& format, bool decode) const override {
    return attention_.kernel_name(format, decode);
  }

 private:
  AttentionShape shape_;
  Isa isa_;
  Attention attention_;
  ThreadPool& threads_;
  std::span<const PassItem> items_;  // of the running pass
  // Kept for their memory.
  std::vector<AppendItem> append_items_;
  std::vector<LayerView> views_;
  std::vector<AttentionItem> attention_items_;
};

}  // namespace

Result<std::unique_ptr<CachedAttention>> create_cpu_attention(const AttentionShape& shape,
                                                              const AttentionOptions& options,
                                                              ThreadPool& threads) {
  KVQ_ASSIGN_OR_RETURN(Attention attention, Attention::create(shape, options));
  return std::make_unique<CpuAttention>(shape, options.isa, std::move(attention), threads);
}

}  // namespace kvq
