#include "kvq/model/utf8.h"

#include <algorithm>

#include "kvq/model/tokenizer.h"

namespace kvq {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct LeadByte {
  std::size_t size = 0;  // of the character; 0: no character begins so
  // The second byte's range: excludes overlong forms, surrogates and what is above U+10FFFF. All
  // further bytes are 80..BF.
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
};

LeadByte read_lead(unsigned char byte) {
  if (byte < 0x80) return {.size = 1};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.size = 2};
  if (byte == 0xE0) return {.size = 3, .second_min = 0xA0};
  if (byte == 0xED) return {.size = 3, .second_max = 0x9F};
  if (byte < 0xF0) return {.size = 3};
  if (byte == 0xF0) return {.size = 4, .second_min = 0x90};
  if (byte < 0xF4) return {.size = 4};
  if (byte == 0xF4) return {.size = 4, .second_max = 0x8F};
  return {};
}

}  // namespace

Utf8Step next_utf8(std::string_view bytes) {
  const LeadByte lead = read_lead(static_cast<unsigned char>(bytes[0]));
  if (lead.size == 0) return {Utf8Kind::kInvalid, 1};
  const std::size_t available = std::min(lead.size, bytes.size());
  for (std::size_t i = 1; i < available; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    const unsigned char min = i == 1 ? lead.second_min : 0x80;
    const unsigned char max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Kind::kInvalid, i};
  }
  if (available < lead.size) return {Utf8Kind::kIncomplete, available};
  return {Utf8Kind::kCharacter, lead.size};
}

std::size_t first_invalid_utf8(std::string_view bytes) {
  std::size_t position = 0;
  while (position < bytes.size()) {
    const Utf8Step step = next_utf8(bytes.substr(position));
    if (step.kind != Utf8Kind::kCharacter) return position;
    position += step.size;
  }
  return position;
}

char32_t code_point(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  if (bytes.size() == 1) return first;
  // The lead byte of an n-byte character keeps 7 - n payload bits, the others 6 each.
  char32_t value = first & (0x7FU >> bytes.size());
  for (const char byte : bytes.substr(1)) {
    value = value << 6U | (static_cast<unsigned char>(byte) & 0x3FU);
  }
  return value;
}

void append_utf8(std::string& text, char32_t character) {
  const auto byte = [&](char32_t value) { text += static_cast<char>(value); };
  const auto following = [&](int shift) { byte(0x80U | (character >> shift & 0x3FU)); };
  if (character < 0x80) {
    byte(character);
  } else if (character < 0x800) {
    byte(0xC0U | character >> 6U);
    following(0);
  } else if (character < 0x10000) {
    byte(0xE0U | character >> 12U);
    following(6);
    following(0);
  } else {
    byte(0xF0U | character >> 18U);
    following(12);
    following(6);
    following(0);
  }
}

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  const std::string_view text = pending_;
  std::string shown;
  std::size_t position = 0;
  while (position < text.size()) {
    const Utf8Step step = next_utf8(text.substr(position));
    if (step.kind == Utf8Kind::kIncomplete) break;
    shown += step.kind == Utf8Kind::kCharacter ? text.substr(position, step.size) : kReplacement;
    position += step.size;
  }
  pending_.erase(0, position);
  return shown;
}

std::string Utf8Stream::finish() {
  // At most one character's beginning is pending: one replacement.
  std::string shown(pending_.empty() ? "" : kReplacement);
  pending_.clear();
  return shown;
}

}  // namespace kvq
