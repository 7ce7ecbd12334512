// Where a device keeps caches, and how the layers of a pass append to them and attend to them.
//
//   begin(items)            the items' chunks are open
//   for each layer:
//     append(layer, ...)    all rows of the pass
//     attend(layer, ...)    all rows of the pass, or those wanted
//   finish()                the chunks are part of their sequences
//
// After an error the caller aborts the chunks that are still open.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "kvq/base/status.h"
#include "kvq/cache/sequence.h"
#include "kvq/runtime/ops.h"
#include "kvq/runtime/pass_item.h"

namespace kvq {

class CachedAttention {
 public:
  virtual ~CachedAttention() = default;

  // An empty sequence whose caches this attends to.
  virtual Result<Sequence> new_sequence(std::shared_ptr<const CacheSpec> spec,
                                        std::shared_ptr<PagePool> pool) = 0;

  // Layers below are those of the sequences. `items` stays as it is until finish().
  virtual Status begin(std::span<const PassItem> items) = 0;
  // Adds what append() and attend() depend on; false if a recording would not stand for them.
  virtual bool add_to_key(RecordingKey& key) const = 0;

  //   key, value  device [rows of the pass, kv_heads, head_dim]
  virtual Status append(int layer, const float* key, const float* value) = 0;
  // Where `only_wanted`, for the last logit_rows tokens of every item alone.
  //   query   device [rows of the pass, query_heads, head_dim]
  //   output  device [rows asked for, query_heads, head_dim]
  virtual Status attend(int layer, bool only_wanted, const float* query, float* output) = 0;

  // After Ops::finish(). What append() could not say before: rows that are not finite in fp16.
  virtual Status finish() = 0;

  // As Attention::kernel_name().
  virtual std::string kernel_name(const PageFormat& format, bool decode) const = 0;
};

}  // namespace kvq
