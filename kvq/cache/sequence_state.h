// What a Sequence stands on: one implementation for each kind of memory that caches live in. The
// functions are those of Sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kvq/cache/sequence.h"

namespace kvq {

class SequenceState {
 public:
  virtual ~SequenceState() = default;

  virtual std::int64_t length() const = 0;
  virtual const CacheSpec& spec() const = 0;

  virtual Status begin_chunk(int tokens) = 0;
  virtual void abort_chunk() = 0;
  // The items' sequences have the same kind of memory. Without a thread pool: in the calling
  // thread.
  virtual Status append(std::span<const AppendItem> items, int layer, ThreadPool* threads) = 0;
  virtual LayerView view(int layer) const = 0;

  virtual Result<std::unique_ptr<SequenceState>> fork() const = 0;
  virtual Status truncate(std::int64_t length) = 0;
  virtual void reset() = 0;
  virtual ByteCount bytes(int layer) const = 0;
};

}  // namespace kvq
