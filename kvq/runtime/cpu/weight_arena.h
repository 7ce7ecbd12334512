// Memory for a model's weights, on huge pages where the system gives them: a decode step reads all
// weights once, and with pages of 4 KiB a good part of that time goes into address translation.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace kvq {

class WeightArena {
 public:
  // Memory at a cache-line boundary, not initialized, that lives as long as the arena. Throws
  // std::bad_alloc.
  std::byte* take(std::size_t bytes);

 private:
  struct Deleter {
    void operator()(std::byte* block) const;
  };

  std::vector<std::unique_ptr<std::byte, Deleter>> blocks_;
  std::byte* next_ = nullptr;  // in the last block
  std::size_t left_ = 0;       // bytes from there to its end
};

}  // namespace kvq
