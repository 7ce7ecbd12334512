// Where a model lives on this machine. Hugging Face's cache of "org/name" is
//
//   <hub>/models--org--name/refs/main              the text of a commit hash
//   <hub>/models--org--name/snapshots/<hash>/...   the files
#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "kvq/base/file.h"
#include "kvq/base/json_file.h"
#include "kvq/model/checkpoint.h"

namespace kvq {
namespace {

std::filesystem::path hub_directory() {
  const auto variable = [](const char* variable_name) {
    const char* value = std::getenv(variable_name);
    return std::filesystem::path(value == nullptr ? "" : value);
  };
  if (auto hub = variable("HF_HUB_CACHE"); !hub.empty()) return hub;
  if (const auto home = variable("HF_HOME"); !home.empty()) return home / "hub";
  if (const auto cache = variable("XDG_CACHE_HOME"); !cache.empty()) {
    return cache / "huggingface" / "hub";
  }
  return variable("HOME") / ".cache" / "huggingface" / "hub";
}

// One part of a model id, or a commit hash: a plain file name.
bool is_plain(std::string_view text) {
  return !text.empty() && text.front() != '.' && std::ranges::all_of(text, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
  });
}

// "org/name" or "name" as the cache spells it; empty where it is no model id.
std::string cache_folder(std::string_view model) {
  const std::size_t slash = model.find('/');
  if (slash == std::string_view::npos)
    return is_plain(model) ? fmt::format("models--{}", model) : "";
  const std::string_view organization = model.substr(0, slash);
  const std::string_view model_name = model.substr(slash + 1);
  if (!is_plain(organization) || !is_plain(model_name)) return "";
  return fmt::format("models--{}--{}", organization, model_name);
}

}  // namespace

Result<std::filesystem::path> find_model(std::string_view model) {
  std::error_code ignored;
  const std::filesystem::path typed(model);
  if (std::filesystem::is_directory(typed, ignored)) return typed;
  if (std::filesystem::exists(typed, ignored)) {
    return fail("{}: expected a model's directory, found a file", in_quotes(model));
  }
  const std::string folder = cache_folder(model);
  if (folder.empty()) return fail("{}: neither a directory nor a model id", in_quotes(model));
  const std::filesystem::path cached = hub_directory() / folder;
  if (!std::filesystem::is_directory(cached, ignored)) {
    return fail("{}: no such directory, and {} is not in the Hugging Face cache either",
                in_quotes(model), cached.string());
  }
  const std::filesystem::path reference = cached / "refs" / "main";
  KVQ_ASSIGN_OR_RETURN(std::string commit, read_file(reference));
  commit.erase(commit.find_last_not_of(" \r\n") + 1);
  if (!is_plain(commit)) {
    return fail("{}: expected a commit hash, found {}", reference.string(), in_quotes(commit));
  }
  const std::filesystem::path snapshot = cached / "snapshots" / commit;
  if (std::filesystem::is_directory(snapshot, ignored)) return snapshot;
  return fail("{}: names {}, which is not a directory", reference.string(), snapshot.string());
}

}  // namespace kvq
