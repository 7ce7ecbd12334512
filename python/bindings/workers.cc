#include "python/bindings/workers.h"

#include <sched.h>

#include <algorithm>
#include <vector>

namespace kvq::python {
namespace {

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

// Never destroyed: at the end of the process Python may have stopped the threads already.
Workers& Workers::instance() {
  static auto* workers = new Workers;
  return *workers;
}

int Workers::thread_count() {
  const auto held = lock();
  return thread_count_ > 0 ? thread_count_ : usable_processors();
}

void Workers::set_thread_count(int count) {
  const auto held = lock();
  if (count == thread_count_) return;
  thread_count_ = count;
  threads_.reset();
}

ThreadPool& Workers::threads() {
  if (threads_ == nullptr) {
    threads_ =
        std::make_unique<ThreadPool>(thread_count_ > 0 ? thread_count_ : usable_processors());
  }
  return *threads_;
}

Result<Attention*> Workers::attention(const AttentionShape& shape, bool exact_prefill) {
  const auto same = [&](const auto& kept) {
    return kept->shape.query_heads == shape.query_heads && kept->shape.kv_heads == shape.kv_heads &&
           kept->shape.head_dim == shape.head_dim && kept->shape.scale == shape.scale &&
           kept->exact_prefill == exact_prefill;
  };
  const auto found = std::ranges::find_if(attentions_, same);
  if (found != attentions_.end()) return &(*found)->attention;
  AttentionOptions options;
  KVQ_ASSIGN_OR_RETURN(options.isa, default_isa());
  options.exact_prefill = exact_prefill;
  KVQ_ASSIGN_OR_RETURN(Attention attention, Attention::create(shape, options));
  attentions_.push_back(std::make_unique<Kept>(Kept{shape, exact_prefill, std::move(attention)}));
  return &attentions_.back()->attention;
}

}  // namespace kvq::python
