// The version of the file that keeps a Document.
#pragma once

namespace kvq {

inline constexpr int kDocumentVersion = 1;

}  // namespace kvq
