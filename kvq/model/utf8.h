// UTF-8, one character at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvq {

enum class Utf8Kind : std::uint8_t {
  kCharacter,   // `size` bytes are one character
  kInvalid,     // `size` bytes can never begin a character: one U+FFFD stands for them
  kIncomplete,  // all bytes that are left, `size`, begin a character that goes on
};

struct Utf8Step {
  Utf8Kind kind = Utf8Kind::kInvalid;
  std::size_t size = 0;
};

// What stands at the start of `bytes`, which must not be empty. Invalid bytes are taken as Unicode
// recommends and Python's errors="replace" does: the longest prefix of a well-formed character, or
// one byte.
Utf8Step next_utf8(std::string_view bytes);

// Where the first byte that is not part of a character stands; bytes.size() if there is none.
std::size_t first_invalid_utf8(std::string_view bytes);

// The character's code point; `bytes` must be exactly one character.
char32_t code_point(std::string_view bytes);

void append_utf8(std::string& text, char32_t character);

}  // namespace kvq
