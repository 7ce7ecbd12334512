#include "kvq/model/rope_config.h"

namespace kvq {
namespace {

Status check_rotates_whole_heads(const JsonFields& fields) {
  KVQ_ASSIGN_OR_RETURN(const double part, fields.positive("partial_rotary_factor", 1.0));
  if (part != 1.0) return fields.wrong("partial_rotary_factor", "1 (whole heads rotate)");
  return {};
}

Result<std::string> read_type(const JsonFields& rope) {
  KVQ_ASSIGN_OR_RETURN(const std::string older, rope.text("type", ""));
  KVQ_ASSIGN_OR_RETURN(std::string type, rope.text("rope_type", older));
  if (!older.empty() && older != type) {
    return rope.wrong("type", fmt::format("rope_type's value, \"{}\"", type));
  }
  if (type != "default" && type != "llama3") {
    return rope.wrong(rope.has("type") ? "type" : "rope_type", "\"default\" or \"llama3\"");
  }
  return type;
}

Result<Llama3RopeScaling> read_llama3(const JsonFields& rope) {
  Llama3RopeScaling scaling;
  scaling.enabled = true;
  KVQ_ASSIGN_OR_RETURN(scaling.factor, rope.positive("factor"));
  KVQ_ASSIGN_OR_RETURN(scaling.low_frequency_factor, rope.positive("low_freq_factor"));
  KVQ_ASSIGN_OR_RETURN(scaling.high_frequency_factor, rope.positive("high_freq_factor"));
  KVQ_ASSIGN_OR_RETURN(scaling.original_context, rope.positive("original_max_position_embeddings"));
  if (scaling.factor < 1) return rope.wrong("factor", "1 or more");
  if (scaling.high_frequency_factor <= scaling.low_frequency_factor) {
    return rope.wrong("high_freq_factor",
                      fmt::format("more than low_freq_factor ({})", scaling.low_frequency_factor));
  }
  return scaling;
}

}  // namespace

Status read_rope(const JsonFields& fields, ModelConfig& config) {
  KVQ_RETURN_IF_ERROR(check_rotates_whole_heads(fields));
  KVQ_ASSIGN_OR_RETURN(config.rope_theta, fields.positive("rope_theta", config.rope_theta));
  if (fields.has("rope_scaling") && fields.has("rope_parameters")) {
    return fields.wrong("rope_scaling", "none beside rope_parameters");
  }
  const char* spelling = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!fields.has(spelling)) return {};

  KVQ_ASSIGN_OR_RETURN(const JsonFields rope, fields.object(spelling));
  KVQ_RETURN_IF_ERROR(check_rotates_whole_heads(rope));
  KVQ_ASSIGN_OR_RETURN(const double theta, rope.positive("rope_theta", config.rope_theta));
  if (fields.has("rope_theta") && theta != config.rope_theta) {
    return rope.wrong("rope_theta", fmt::format("the other rope_theta, {}", config.rope_theta));
  }
  config.rope_theta = theta;
  KVQ_ASSIGN_OR_RETURN(const std::string type, read_type(rope));
  if (type == "llama3") {
    KVQ_ASSIGN_OR_RETURN(config.rope_scaling, read_llama3(rope));
  }
  return {};
}

}  // namespace kvq
