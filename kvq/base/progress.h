// A progress bar on stderr, shown only where stderr is a terminal.
#pragma once

#include <chrono>
#include <string>

namespace kvq {

class Progress {
 public:
  // `total` steps in all; `label` is shown before the bar.
  Progress(std::string label, long total);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // clears the line

  void advance(long steps = 1);

 private:
  void draw();

  std::string label_;
  long total_;
  long done_ = 0;
  bool visible_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point drawn_;
};

}  // namespace kvq
