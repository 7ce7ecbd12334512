#include "kvq/model/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kvq/base/half.h"
#include "kvq/base/json_file.h"
#include "kvq/model/safetensors.h"

namespace kvq {
namespace {

constexpr std::string_view kWeightsFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

// The tensors of each file, as the index distributes them.
using Shards = std::map<std::string, std::vector<std::string>>;

Result<Shards> read_index(const std::filesystem::path& path) {
  KVQ_ASSIGN_OR_RETURN(const Json index, read_json_object(path));
  const JsonFields fields(index, path.string());
  KVQ_RETURN_IF_ERROR(fields.object("weight_map"));
  Shards shards;
  for (const auto& [tensor_name, file] : fields.find("weight_map")->items()) {
    // A file beside the index: no folders, so that nothing outside the checkpoint is read.
    const bool plain = file.is_string() && !file.get_ref<const std::string&>().empty() &&
                       file.get_ref<const std::string&>().find('/') == std::string::npos;
    if (!plain) {
      return fail("{}: weight_map: tensor {}: expected a file name, found {}", path.string(),
                  in_quotes(tensor_name), shown(file));
    }
    shards[file.get<std::string>()].push_back(tensor_name);
  }
  if (shards.empty()) return fail("{}: weight_map: expected tensors, found none", path.string());
  return shards;
}

template <typename Storage>
void widen(const std::byte* source, float* destination, std::size_t count) {
  // Through an aligned buffer: tensors stand at any byte offset.
  std::array<Storage, 4096> buffer;
  while (count > 0) {
    const std::size_t part = std::min(count, buffer.size());
    std::memcpy(buffer.data(), source, part * sizeof(Storage));
    to_float(buffer.data(), destination, part);
    source += part * sizeof(Storage);
    destination += part;
    count -= part;
  }
}

}  // namespace

std::string_view name(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return "F32";
    case DataType::kFloat16:
      return "F16";
    case DataType::kBFloat16:
      return "BF16";
  }
  return "unknown";
}

int bytes_of(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

std::int64_t TensorRef::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t extent : shape) product *= extent;
  return product;
}

void read_floats(const TensorRef& tensor, float* destination) {
  const auto count = static_cast<std::size_t>(tensor.elements());
  if (count == 0) return;
  switch (tensor.type) {
    case DataType::kFloat32:
      std::memcpy(destination, tensor.data, count * sizeof(float));
      return;
    case DataType::kFloat16:
      return widen<Half>(tensor.data, destination, count);
    case DataType::kBFloat16:
      return widen<BFloat16>(tensor.data, destination, count);
  }
}

Result<Checkpoint> Checkpoint::open(const std::filesystem::path& directory) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  std::error_code ignored;
  if (std::filesystem::exists(directory / kWeightsFile, ignored)) {
    KVQ_RETURN_IF_ERROR(checkpoint.add_file(directory / kWeightsFile, nullptr));
    return checkpoint;
  }
  const std::filesystem::path index = directory / kIndexFile;
  if (!std::filesystem::exists(index, ignored)) {
    return fail("{}: expected {} or {}, found neither", directory.string(), kWeightsFile,
                kIndexFile);
  }
  KVQ_ASSIGN_OR_RETURN(const Shards shards, read_index(index));
  for (const auto& [file, tensor_names] : shards) {
    if (!std::filesystem::exists(directory / file, ignored)) {
      return fail("{}: names {}, which does not exist", index.string(), in_quotes(file));
    }
    KVQ_RETURN_IF_ERROR(checkpoint.add_file(directory / file, &tensor_names));
  }
  return checkpoint;
}

Status Checkpoint::add_file(const std::filesystem::path& path,
                            const std::vector<std::string>* tensor_names) {
  KVQ_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  KVQ_ASSIGN_OR_RETURN(SafetensorsHeader header, parse_safetensors(file.bytes(), path.string()));
  const std::byte* data = file.bytes().data() + header.data_begin;
  std::map<std::string, SafetensorsEntry*, std::less<>> entries;
  for (SafetensorsEntry& entry : header.entries) entries.emplace(entry.tensor_name, &entry);

  const auto add = [&](SafetensorsEntry& entry) {
    if (entry.type) {
      tensors_.emplace(entry.tensor_name, TensorRef{.type = *entry.type,
                                                    .shape = std::move(entry.shape),
                                                    .data = data + entry.begin});
    } else {
      other_types_.emplace(entry.tensor_name, entry.type_name);
    }
    file_of_.emplace(entry.tensor_name, files_.size());
  };
  if (tensor_names == nullptr) {
    for (const auto& [tensor_name, entry] : entries) add(*entry);
  } else {
    for (const std::string& tensor_name : *tensor_names) {
      const auto found = entries.find(tensor_name);
      if (found == entries.end()) {
        return fail("{}: tensor {}: {} says it is here, it is not", path.string(),
                    in_quotes(tensor_name), kIndexFile);
      }
      add(*found->second);
    }
  }
  files_.push_back(std::move(file));
  paths_.push_back(path);
  return {};
}

Result<TensorRef> Checkpoint::tensor(std::string_view tensor_name,
                                     const std::vector<std::int64_t>& shape) const {
  const auto file = file_of_.find(tensor_name);
  if (file == file_of_.end()) {
    return fail("{}: tensor {} of shape {}: expected in the checkpoint, not found",
                directory_.string(), in_quotes(tensor_name), shown(Json(shape)));
  }
  const std::string path = paths_[file->second].string();
  const auto found = tensors_.find(tensor_name);
  if (found == tensors_.end()) {
    return fail("{}: tensor {}: expected type F32, F16 or BF16, found {}", path,
                in_quotes(tensor_name), in_quotes(other_types_.find(tensor_name)->second));
  }
  if (found->second.shape != shape) {
    return fail("{}: tensor {}: expected shape {}, found {}", path, in_quotes(tensor_name),
                shown(Json(shape)), shown(Json(found->second.shape)));
  }
  return found->second;
}

bool Checkpoint::contains(std::string_view tensor_name) const {
  return tensors_.find(tensor_name) != tensors_.end();
}

}  // namespace kvq
