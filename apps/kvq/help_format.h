// How --help lists options: the name and its argument, then the text, wrapped to 80 columns.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace kvq {

class HelpFormat : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
};

}  // namespace kvq
