// The "post_processor" of tokenizer.json: the special tokens around a text.
#pragma once

#include <vector>

#include "kvq/base/json_file.h"
#include "kvq/base/status.h"

namespace kvq {

// TemplateProcessing, ByteLevel (which touches offsets only), or a Sequence of them.
class PostProcessor {
 public:
  // `tokenizer`: the whole file's object.
  static Result<PostProcessor> read(const JsonFields& tokenizer);

  // Every id must be below `size`.
  Status check_ids(int size) const;

  void apply(std::vector<int>& tokens) const;

 private:
  Status add(const JsonFields& step);
  Status add_template(const JsonFields& step);
  Result<std::vector<int>> special_token_ids(const JsonFields& step, const Json& item) const;

  std::string where_;
  std::vector<int> before_;
  std::vector<int> after_;
};

}  // namespace kvq
