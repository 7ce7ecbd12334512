#include "kvq/plan/format_lists.h"

#include <algorithm>

namespace kvq {
namespace {

// The entries of `text`, each one of `known`, in the order of `known`.
template <typename Value>
Result<std::vector<Value>> parse_list(const std::string& text, const std::vector<Value>& known,
                                      std::string (*name_of)(Value)) {
  std::vector<bool> seen(known.size());
  std::string allowed;
  for (const Value value : known) allowed += (allowed.empty() ? "" : ", ") + name_of(value);
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string entry = text.substr(begin, end - begin);
    const auto found = std::ranges::find(known, entry, name_of);
    if (found == known.end()) {
      return fail("expected a list of {}, found '{}' in '{}'", allowed, entry, text);
    }
    const auto index = static_cast<std::size_t>(found - known.begin());
    if (seen[index]) return fail("{} is repeated in '{}'", entry, text);
    seen[index] = true;
    begin = end + 1;
  }
  std::vector<Value> list;
  for (std::size_t i = 0; i < known.size(); ++i) {
    if (seen[i]) list.push_back(known[i]);
  }
  return list;
}

}  // namespace

Result<std::vector<Bits>> parse_widths(const std::string& text) {
  return parse_list<Bits>(text, packed_bits(), [](Bits bits) { return std::string(name(bits)); });
}

Result<std::vector<int>> parse_groups(const std::string& text) {
  return parse_list<int>(text, {16, 32, 64, 128, 256},
                         [](int group) { return std::to_string(group); });
}

}  // namespace kvq
