// One self-contained HTML page about one run, or comparing several.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kvq/report/document.h"

namespace kvq {

// At least one document. No network access: style, script and figures are inside.
std::string make_page(std::vector<Document> documents);

}  // namespace kvq
