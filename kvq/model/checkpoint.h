// Weights of a checkpoint: one or many safetensors files, memory-mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvq/base/file.h"
#include "kvq/base/status.h"

namespace kvq {

enum class DataType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

std::string_view name(DataType type);  // "F32", "F16", "BF16"
int bytes_of(DataType type);

// A tensor inside a mapped file; row-major. Valid as long as its Checkpoint.
struct TensorRef {
  DataType type = DataType::kFloat32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;  // not necessarily aligned to the type

  std::int64_t elements() const;
};

// The tensor as float32, [elements].
void read_floats(const TensorRef& tensor, float* destination);

class Checkpoint {
 public:
  // Maps model.safetensors, or every file that model.safetensors.index.json names. Headers are
  // checked whole: offsets in range, covering the data without holes or overlaps, sizes that agree
  // with type and shape.
  static Result<Checkpoint> open(const std::filesystem::path& directory);

  // The tensor, which must have `shape`; the error names file, tensor, expected and actual.
  Result<TensorRef> tensor(std::string_view tensor_name,
                           const std::vector<std::int64_t>& shape) const;
  bool contains(std::string_view tensor_name) const;

  // Tensors of other types (integers, fp8) stand in the file but are not listed.
  const std::map<std::string, TensorRef, std::less<>>& tensors() const { return tensors_; }
  const std::filesystem::path& directory() const { return directory_; }

 private:
  // Adds the tensors of one file: those named, or all where `tensor_names` is null.
  Status add_file(const std::filesystem::path& path, const std::vector<std::string>* tensor_names);

  std::filesystem::path directory_;
  std::vector<MappedFile> files_;
  std::vector<std::filesystem::path> paths_;  // of files_
  std::map<std::string, TensorRef, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> other_types_;  // type of each unlisted tensor
  std::map<std::string, std::size_t, std::less<>> file_of_;      // index into files_
};

// The directory of MODEL as a user types it: a directory, or a Hugging Face id ("org/name") found
// in the local cache ($HF_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub or
// ~/.cache/huggingface/hub). Nothing is downloaded.
Result<std::filesystem::path> find_model(std::string_view model);

}  // namespace kvq
