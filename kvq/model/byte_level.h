// The byte-level alphabet of GPT-2: each byte is written as one printable character, so that any
// bytes form a readable vocabulary. Printable Latin-1 bytes stand for themselves, the other 68 for
// U+0100 and up, in order: the space is U+0120.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvq {

// The bytes that `token` spells; nothing if it has a character outside the alphabet.
std::optional<std::string> bytes_of_token(std::string_view token);

// The character of a byte, as UTF-8.
std::string token_of_byte(unsigned char byte);

}  // namespace kvq
