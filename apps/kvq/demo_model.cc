#include "apps/kvq/demo_model.h"

#include <cstdlib>
#include <system_error>

namespace kvq {

Result<std::filesystem::path> find_demo_model() {
  const char* named = std::getenv("KVQ_DEMO_MODEL");
  if (named != nullptr && *named != '\0') return std::filesystem::path(named);
  std::error_code error;
  const auto command = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return fail("/proc/self/exe: {}", error.message());
  const auto directory = command.parent_path();
  for (const char* relative : {KVQ_INSTALLED_DEMO_MODEL, KVQ_SOURCE_DEMO_MODEL}) {
    const auto model = (directory / relative).lexically_normal();
    if (std::filesystem::exists(model / "config.json", error)) return model;
  }
  return fail("the demo model was not found in {}; name a MODEL or set KVQ_DEMO_MODEL",
              (directory / KVQ_INSTALLED_DEMO_MODEL).lexically_normal().string());
}

}  // namespace kvq
