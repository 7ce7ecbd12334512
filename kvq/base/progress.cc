#include "kvq/base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace kvq {
namespace {

constexpr int kBarColumns = 24;
constexpr std::chrono::milliseconds kRedraw{100};

}  // namespace

Progress::Progress(std::string label, long total)
    : label_(std::move(label)),
      total_(std::max(total, 1L)),
      visible_(::isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      drawn_(start_) {
  if (visible_) draw();
}

Progress::~Progress() {
  if (visible_) fmt::print(stderr, "\r\x1b[K");
}

void Progress::advance(long steps) {
  done_ = std::min(done_ + steps, total_);
  const auto now = std::chrono::steady_clock::now();
  if (!visible_ || now - drawn_ < kRedraw) return;
  drawn_ = now;
  draw();
}

void Progress::draw() {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const auto filled = static_cast<int>(kBarColumns * done_ / total_);
  const double left = done_ > 0 ? seconds * static_cast<double>(total_ - done_) / done_ : 0;
  fmt::print(stderr, "\r\x1b[K{} [{:#<{}}{:.<{}}] {}/{} {:.0f} s left", label_, "", filled, "",
             kBarColumns - filled, done_, total_, left);
  std::fflush(stderr);
}

}  // namespace kvq
