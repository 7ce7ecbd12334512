// Memory at cache-line boundaries that grows on demand.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace kvq {

class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  // Room for `bytes`; what was in it is lost when it grows, and then zero. Throws std::bad_alloc.
  std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      data_.reset();
      data_.reset(new (std::align_val_t{kAlignment}) std::byte[bytes]());
      size_ = bytes;
    }
    return data_.get();
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Deleter {
    void operator()(std::byte* data) const {
      ::operator delete[](data, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<std::byte[], Deleter> data_;
  std::size_t size_ = 0;
};

}  // namespace kvq
