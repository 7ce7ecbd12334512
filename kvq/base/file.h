// Files: mapped for reading, written whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "kvq/base/status.h"

namespace kvq {

// A read-only memory mapping of a whole file; movable, unmapped on destruction.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::filesystem::path& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The whole file as text.
Result<std::string> read_file(const std::filesystem::path& path);

// Writes a temporary file beside `path`, then renames it: a reader sees the old or the new content,
// never a part. On an error `path` is untouched and the temporary file is removed.
Status write_file(const std::filesystem::path& path, std::string_view content);

}  // namespace kvq
