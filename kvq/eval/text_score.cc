#include "kvq/eval/text_score.h"

#include <algorithm>
#include <cmath>

#include "kvq/base/progress.h"
#include "kvq/eval/distribution.h"

namespace kvq {
namespace {

constexpr std::int64_t kLogitBytes = std::int64_t{64} << 20;

// A 16-bit pass over a piece of a window, kept while the formats are compared with it.
struct ReferenceRows {
  std::vector<float> logits;         // [rows, vocabulary]
  std::vector<float> probabilities;  // [rows, vocabulary]
  std::vector<double> log_sums;      // [rows]
  std::vector<int> picks;            // [rows], arg-max
};

struct RowScore {
  double nll = 0;
  double kl = 0;
  double same_pick = 0;
};

class TextScorer {
 public:
  TextScorer(Engine& engine, std::shared_ptr<PagePool> pool, std::size_t formats, long steps)
      : engine_(engine),
        pool_(std::move(pool)),
        vocabulary_(engine.config().vocabulary),
        sums_(formats),
        progress_("text", steps) {}

  // Adds one window, processed `piece` tokens at a time.
  Status add(const TokenWindow& window, const std::shared_ptr<const CacheSpec>& reference,
             std::span<const std::shared_ptr<const CacheSpec>> formats, std::size_t piece);
  TextScores scores() const;

 private:
  // `targets`: the token that follows each row's; one fewer than rows at the window's end.
  Status read_reference(Sequence& sequence, std::span<const int> tokens,
                        std::span<const int> targets);
  Status compare(Sequence& sequence, std::span<const int> tokens, std::span<const int> targets,
                 RowScore& total);

  Engine& engine_;
  std::shared_ptr<PagePool> pool_;
  int vocabulary_;
  ReferenceRows rows_;
  double reference_nll_ = 0;
  std::vector<RowScore> sums_;
  std::int64_t positions_ = 0;
  std::int64_t predicted_ = 0;
  Progress progress_;
};

Status TextScorer::read_reference(Sequence& sequence, std::span<const int> tokens,
                                  std::span<const int> targets) {
  const Chunk chunk{&sequence, tokens};
  KVQ_ASSIGN_OR_RETURN(const std::span<const float> logits,
                       engine_.forward({&chunk, 1}, LogitRows::kAll));
  rows_.logits.assign(logits.begin(), logits.end());
  rows_.probabilities.resize(logits.size());
  rows_.log_sums.resize(tokens.size());
  rows_.picks.resize(tokens.size());
  engine_.threads().run(static_cast<int>(tokens.size()), [&](int row, int) {
    const auto offset = static_cast<std::size_t>(row) * static_cast<std::size_t>(vocabulary_);
    const float* source = &rows_.logits[offset];
    const auto index = static_cast<std::size_t>(row);
    rows_.log_sums[index] = softmax(source, vocabulary_, &rows_.probabilities[offset]);
    rows_.picks[index] = arg_max(source, vocabulary_);
  });
  for (std::size_t row = 0; row < targets.size(); ++row) {
    const std::size_t target =
        row * static_cast<std::size_t>(vocabulary_) + static_cast<std::size_t>(targets[row]);
    reference_nll_ += rows_.log_sums[row] - static_cast<double>(rows_.logits[target]);
  }
  positions_ += static_cast<std::int64_t>(tokens.size());
  predicted_ += static_cast<std::int64_t>(targets.size());
  progress_.advance();
  return {};
}

Status TextScorer::compare(Sequence& sequence, std::span<const int> tokens,
                           std::span<const int> targets, RowScore& total) {
  const Chunk chunk{&sequence, tokens};
  KVQ_ASSIGN_OR_RETURN(const std::span<const float> logits,
                       engine_.forward({&chunk, 1}, LogitRows::kAll));
  std::vector<RowScore> scores(tokens.size());
  engine_.threads().run(static_cast<int>(tokens.size()), [&](int task, int) {
    const auto row = static_cast<std::size_t>(task);
    const std::size_t offset = row * static_cast<std::size_t>(vocabulary_);
    const float* actual = &logits[offset];
    const double log_sum = log_sum_exp(actual, vocabulary_);
    RowScore& score = scores[row];
    score.kl = expected_difference(&rows_.probabilities[offset], &rows_.logits[offset], actual,
                                   vocabulary_) -
               rows_.log_sums[row] + log_sum;
    score.same_pick = arg_max(actual, vocabulary_) == rows_.picks[row] ? 1 : 0;
    if (row < targets.size()) {
      score.nll = log_sum - static_cast<double>(actual[static_cast<std::size_t>(targets[row])]);
    }
  });
  for (const RowScore& score : scores) {
    total.nll += score.nll;
    total.kl += score.kl;
    total.same_pick += score.same_pick;
  }
  progress_.advance();
  return {};
}

Status TextScorer::add(const TokenWindow& window, const std::shared_ptr<const CacheSpec>& reference,
                       std::span<const std::shared_ptr<const CacheSpec>> formats,
                       std::size_t piece) {
  KVQ_ASSIGN_OR_RETURN(Sequence reference_sequence, engine_.new_sequence(reference, pool_));
  std::vector<Sequence> sequences;
  for (const auto& format : formats) {
    KVQ_ASSIGN_OR_RETURN(Sequence sequence, engine_.new_sequence(format, pool_));
    sequences.push_back(std::move(sequence));
  }
  const std::span<const int> all = window;
  for (std::size_t start = 0; start < all.size(); start += piece) {
    const auto tokens = all.subspan(start, std::min(piece, all.size() - start));
    const auto targets = all.subspan(start + 1, std::min(piece, all.size() - start - 1));
    KVQ_RETURN_IF_ERROR(read_reference(reference_sequence, tokens, targets));
    for (std::size_t i = 0; i < formats.size(); ++i) {
      KVQ_RETURN_IF_ERROR(compare(sequences[i], tokens, targets, sums_[i]));
    }
  }
  return {};
}

TextScores TextScorer::scores() const {
  const auto positions = static_cast<double>(positions_);
  const auto predicted = static_cast<double>(predicted_);
  TextScores result{.reference_nll = reference_nll_ / predicted, .formats = {}};
  for (const RowScore& sum : sums_) {
    result.formats.push_back({.nll = sum.nll / predicted,
                              .kl = sum.kl / positions,
                              .top1 = sum.same_pick / positions,
                              .positions = positions_});
  }
  return result;
}

}  // namespace

Result<TextScores> score_text(Engine& engine, std::span<const TokenWindow> windows,
                              const std::shared_ptr<const CacheSpec>& reference,
                              std::span<const std::shared_ptr<const CacheSpec>> formats,
                              const std::shared_ptr<PagePool>& pool) {
  const std::int64_t row_bytes = std::int64_t{4} * engine.config().vocabulary;
  const auto piece =
      static_cast<std::size_t>(std::max<std::int64_t>(kLogitBytes / row_bytes, kPageTokens));
  long steps = 0;
  for (const TokenWindow& window : windows) {
    if (window.size() < 2) return fail("a text window needs two tokens or more");
    const std::size_t pieces = (window.size() + piece - 1) / piece;
    steps += static_cast<long>(pieces * (formats.size() + 1));
  }
  if (steps == 0) return fail("no text windows to score");
  TextScorer scorer(engine, pool, formats.size(), steps);
  for (const TokenWindow& window : windows) {
    KVQ_RETURN_IF_ERROR(scorer.add(window, reference, formats, piece));
  }
  TextScores scores = scorer.scores();
  for (const TextScore& score : scores.formats) {
    if (!std::isfinite(score.nll) || !std::isfinite(score.kl)) {
      return fail("the model's logits are not finite numbers");
    }
  }
  return scores;
}

}  // namespace kvq
