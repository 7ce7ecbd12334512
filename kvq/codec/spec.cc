#include "kvq/codec/spec.h"

#include <array>
#include <charconv>
#include <optional>
#include <utility>

namespace kvq {
namespace {

constexpr std::string_view kWidthsText = "1, 1.58, 2, 3, 4, 5, 6, 8 or 16";
constexpr std::string_view kOptionsText =
    "g16, g32, g64, g128 or g256; token or channel; symmetric or affine; minmax, mse or hqq; none "
    "or hadamard";

constexpr std::array<std::pair<Bits, std::string_view>, 9> kWidths{{{Bits::k1, "1"},
                                                                    {Bits::kTernary, "1.58"},
                                                                    {Bits::k2, "2"},
                                                                    {Bits::k3, "3"},
                                                                    {Bits::k4, "4"},
                                                                    {Bits::k5, "5"},
                                                                    {Bits::k6, "6"},
                                                                    {Bits::k8, "8"},
                                                                    {Bits::k16, "16"}}};

// What an option sets; two options of one kind exclude each other.
enum Kind { kGroup, kAxis, kParameters, kFit, kRotation, kKinds };

struct Option {
  std::string_view text;
  Kind kind;
  int value;  // of the kind's enumeration, or the group
};

constexpr std::array<Option, 14> kOptions{{
    {"g16", kGroup, 16},
    {"g32", kGroup, 32},
    {"g64", kGroup, 64},
    {"g128", kGroup, 128},
    {"g256", kGroup, 256},
    {"token", kAxis, static_cast<int>(Axis::kToken)},
    {"channel", kAxis, static_cast<int>(Axis::kChannel)},
    {"symmetric", kParameters, static_cast<int>(Parameters::kSymmetric)},
    {"affine", kParameters, static_cast<int>(Parameters::kAffine)},
    {"minmax", kFit, static_cast<int>(Fit::kMinMax)},
    {"mse", kFit, static_cast<int>(Fit::kMeanSquare)},
    {"hqq", kFit, static_cast<int>(Fit::kHqq)},
    {"none", kRotation, static_cast<int>(Rotation::kNone)},
    {"hadamard", kRotation, static_cast<int>(Rotation::kHadamard)},
}};

int option_value(const TensorSpec& spec, Kind kind) {
  switch (kind) {
    case kGroup:
      return spec.group;
    case kAxis:
      return static_cast<int>(spec.axis);
    case kParameters:
      return static_cast<int>(spec.parameters);
    case kFit:
      return static_cast<int>(spec.fit);
    default:
      return static_cast<int>(spec.rotation);
  }
}

void apply(const Option& option, TensorSpec& spec) {
  switch (option.kind) {
    case kGroup:
      spec.group = option.value;
      break;
    case kAxis:
      spec.axis = static_cast<Axis>(option.value);
      break;
    case kParameters:
      spec.parameters = static_cast<Parameters>(option.value);
      break;
    case kFit:
      spec.fit = static_cast<Fit>(option.value);
      break;
    default:
      spec.rotation = static_cast<Rotation>(option.value);
      break;
  }
}

const Option* find_option(std::string_view text) {
  for (const Option& option : kOptions) {
    if (option.text == text) return &option;
  }
  return nullptr;
}

Result<Bits> parse_bits(std::string_view whole, char tensor, std::string_view text) {
  for (const auto& [bits, width] : kWidths) {
    if (text == width) return bits;
  }
  return fail("cache format '{}': unknown width '{}{}', expected {} followed by {}", whole, tensor,
              text, tensor, kWidthsText);
}

// Cuts the text before the first `separator` off `rest`.
std::string_view take_until(std::string_view& rest, char separator) {
  const std::size_t end = rest.find(separator);
  const std::string_view piece = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
  return piece;
}

// "k4:g32:channel" for tensor 'k'.
Result<TensorSpec> parse_tensor(std::string_view whole, char tensor, std::string_view text) {
  if (text.empty() || text.front() != tensor) {
    return fail("cache format '{}': expected {}<width>, found '{}'", whole, tensor, text);
  }
  const bool has_options = text.find(':') != std::string_view::npos;
  std::string_view rest = text.substr(1);
  TensorSpec spec;
  KVQ_ASSIGN_OR_RETURN(spec.bits, parse_bits(whole, tensor, take_until(rest, ':')));
  if (!has_options) return spec;
  if (spec.bits == Bits::k16) {
    return fail("cache format '{}': {}16 is unquantized and takes no options, found '{}'", whole,
                tensor, rest);
  }
  std::array<const Option*, kKinds> seen{};
  do {
    const std::string_view piece = take_until(rest, ':');
    const Option* option = find_option(piece);
    if (option == nullptr) {
      return fail("cache format '{}': unknown option '{}' of {}, expected {}", whole, piece, tensor,
                  kOptionsText);
    }
    const Option*& earlier = seen[option->kind];
    if (earlier == option) {
      return fail("cache format '{}': option '{}' of {} is repeated", whole, piece, tensor);
    }
    if (earlier != nullptr) {
      return fail("cache format '{}': options '{}' and '{}' of {} contradict each other", whole,
                  earlier->text, piece, tensor);
    }
    earlier = option;
    apply(*option, spec);
  } while (!rest.empty());
  if (spec.fit == Fit::kHqq && spec.parameters != Parameters::kAffine) {
    return fail(
        "cache format '{}': option 'hqq' of {} optimizes a center, expected 'affine' beside it",
        whole, tensor);
  }
  if (text.back() == ':') return fail("cache format '{}': '{}' ends with ':'", whole, text);
  return spec;
}

bool is_default(const TensorSpec& spec) {
  TensorSpec bare;
  bare.bits = spec.bits;
  return spec.bits == Bits::k16 || spec == bare;
}

}  // namespace

std::string_view name(Bits bits) {
  for (const auto& [width, text] : kWidths) {
    if (width == bits) return text;
  }
  return "unknown";
}

double code_bits(Bits bits) {
  const std::string_view text = name(bits);
  double number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

const std::vector<Bits>& packed_bits() {
  static const std::vector<Bits> kPacked{Bits::k1, Bits::kTernary, Bits::k2, Bits::k3,
                                         Bits::k4, Bits::k5,       Bits::k6, Bits::k8};
  return kPacked;
}

Result<LayerSpec> parse_layer_spec(std::string_view text) {
  const std::size_t comma = text.find(',');
  const std::size_t split = comma == std::string_view::npos ? text.find('v') : comma;
  if (split == std::string_view::npos) {
    return fail(
        "cache format '{}': expected keys and values, for example k4v2 or k4:g32:channel,v2", text);
  }
  const std::string_view key = text.substr(0, split);
  const std::string_view value = text.substr(comma == std::string_view::npos ? split : split + 1);
  if (comma == std::string_view::npos && text.find(':') != std::string_view::npos) {
    return fail("cache format '{}': options need the long form, for example k4:g32:channel,v2:g64",
                text);
  }
  LayerSpec spec;
  KVQ_ASSIGN_OR_RETURN(spec.key, parse_tensor(text, 'k', key));
  KVQ_ASSIGN_OR_RETURN(spec.value, parse_tensor(text, 'v', value));
  return spec;
}

std::string to_string(const TensorSpec& spec, bool is_key) {
  std::string text(1, is_key ? 'k' : 'v');
  text += name(spec.bits);
  if (is_default(spec)) return text;
  const TensorSpec bare;
  for (const Option& option : kOptions) {
    if (option_value(spec, option.kind) == option.value &&
        option_value(bare, option.kind) != option.value) {
      text += ':';
      text += option.text;
    }
  }
  return text;
}

std::string to_string(const LayerSpec& spec) {
  const char* separator = is_default(spec.key) && is_default(spec.value) ? "" : ",";
  return to_string(spec.key, true) + separator + to_string(spec.value, false);
}

int hadamard_block(int head_dim) { return head_dim & -head_dim; }

}  // namespace kvq
