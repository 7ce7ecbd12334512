#include "kvq/model/byte_level.h"

#include <array>
#include <cstdint>

#include "kvq/model/utf8.h"

namespace kvq {
namespace {

constexpr char32_t kFirstStandIn = 0x100;
constexpr char32_t kAlphabetEnd = kFirstStandIn + 68;

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<std::int16_t, kAlphabetEnd> byte{};  // -1: not in the alphabet
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte.fill(-1);
  char32_t stand_in = kFirstStandIn;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t character = stands_for_itself(byte) ? static_cast<char32_t>(byte) : stand_in++;
    alphabet.character[static_cast<std::size_t>(byte)] = character;
    alphabet.byte[character] = static_cast<std::int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();
static_assert(kAlphabet.character[' '] == 0x120);
static_assert(kAlphabet.character[0xAD] == kAlphabetEnd - 1);

}  // namespace

std::optional<std::string> bytes_of_token(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const Utf8Step step = next_utf8(token);
    if (step.kind != Utf8Kind::kCharacter) return {};
    const char32_t character = code_point(token.substr(0, step.size));
    if (character >= kAlphabetEnd || kAlphabet.byte[character] < 0) return {};
    bytes += static_cast<char>(kAlphabet.byte[character]);
    token.remove_prefix(step.size);
  }
  return bytes;
}

std::string token_of_byte(unsigned char byte) {
  std::string token;
  append_utf8(token, kAlphabet.character[byte]);
  return token;
}

}  // namespace kvq
