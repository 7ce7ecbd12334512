#include "kvq/analysis/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kvq/analysis/attention_error.h"
#include "kvq/analysis/calibration.h"
#include "kvq/analysis/output_error.h"
#include "kvq/base/progress.h"

namespace kvq {
namespace {

// Attention errors are looked at in one block of queries out of so many queries.
constexpr int kQueryStride = 64;
// Windows that attention errors are taken over. All candidates are tried on the first; what is then
// left within kFirstSlack of the best is tried on the others, and ranked with kSlack.
constexpr std::size_t kAttentionWindows = 3;
constexpr double kFirstSlack = 0.4;
constexpr double kSlack = 0.1;
// The formats that are measured for the others: the smallest, and the one nearest to so many bytes
// of the tensor's 16-bit ones.
constexpr double kSecondFormat = 3.0 / 16;

LayerSpec alone(int tensor, const TensorSpec& spec) {
  return tensor % 2 == 0 ? LayerSpec{spec, {}} : LayerSpec{{}, spec};
}

class Capture {
 public:
  static Result<Capture> read(Engine& engine, const TokenWindow& window, const CacheSpec& exact,
                              const std::shared_ptr<PagePool>& pool) {
    Capture capture(engine.config(), window);
    KVQ_ASSIGN_OR_RETURN(Sequence sequence,
                         engine.new_sequence(std::make_shared<const CacheSpec>(exact), pool));
    const Chunk chunk{&sequence, window};
    PassOptions pass;
    pass.tap = &capture.heads_;
    KVQ_RETURN_IF_ERROR(engine.forward({&chunk, 1}, LogitRows::kLast, pass));
    return capture;
  }
  const CapturedHeads& layer(int layer) const { return heads_.layer(layer); }

 private:
  Capture(const ModelConfig& config, const TokenWindow& window)
      : heads_(config, static_cast<int>(window.size())) {}
  HeadsTap heads_;
};

// Adds one window's attention errors to the candidates' costs.
Status add_attention_errors(Engine& engine, const TokenWindow& window,
                            const SensitivityOptions& options,
                            const std::shared_ptr<PagePool>& pool, CostTable& table,
                            Progress& progress) {
  const ModelConfig& config = engine.config();
  const CacheSpec exact = engine.cache_spec(LayerSpec{}, options.sinks, options.window);
  KVQ_ASSIGN_OR_RETURN(const Capture capture, Capture::read(engine, window, exact, pool));
  const auto blocks = query_blocks(exact, static_cast<int>(window.size()), kQueryStride);
  for (int layer = 0; layer < config.layers; ++layer) {
    KVQ_RETURN_IF_ERROR(engine.check_interrupt());
    KVQ_ASSIGN_OR_RETURN(AttentionError error,
                         AttentionError::create(config, capture.layer(layer), exact, blocks,
                                                options.isa, pool, engine.threads()));
    for (const int tensor : {2 * layer, 2 * layer + 1}) {
      for (Candidate& candidate : table.tensors[static_cast<std::size_t>(tensor)]) {
        KVQ_ASSIGN_OR_RETURN(const double square, error.mean_square(alone(tensor, candidate.spec)));
        candidate.cost += square;
      }
    }
    progress.advance();
  }
  return {};
}

void shorten(CostTable& table, double slack) {
  for (auto& candidates : table.tensors) candidates = shortlist(std::move(candidates), slack);
}

// Costs are attention errors; candidates that others beat are left out.
Result<CostTable> measure_attention_errors(Engine& engine, std::span<const TokenWindow> windows,
                                           const SensitivityOptions& options,
                                           const std::shared_ptr<PagePool>& pool) {
  const ModelConfig& config = engine.config();
  CostTable table;
  for (int tensor = 0; tensor < 2 * config.layers; ++tensor) {
    KVQ_ASSIGN_OR_RETURN(auto candidates, list_candidates(options.candidates, tensor % 2 == 0,
                                                          config.kv_heads, config.head_dim));
    table.tensors.push_back(std::move(candidates));
  }
  const std::size_t count = std::min(windows.size(), kAttentionWindows);
  Progress progress("attention error", static_cast<long>(count) * config.layers);
  for (std::size_t i = 0; i < count; ++i) {
    KVQ_RETURN_IF_ERROR(add_attention_errors(engine, windows[i], options, pool, table, progress));
    if (i == 0) shorten(table, kFirstSlack);
  }
  shorten(table, kSlack);
  return table;
}

// Which candidates of a tensor are measured to stand for all.
std::vector<std::size_t> anchors(const std::vector<Candidate>& candidates, double exact_bytes) {
  const auto nearest = std::ranges::min_element(candidates, {}, [&](const Candidate& candidate) {
    return std::abs(static_cast<double>(candidate.bytes) - kSecondFormat * exact_bytes);
  });
  const auto second = static_cast<std::size_t>(nearest - candidates.begin());
  return second == 0 ? std::vector<std::size_t>{0} : std::vector<std::size_t>{0, second};
}

struct Point {
  double error;  // of the attention output
  double cost;
};

// On the line through the points in logarithms; with one point, or one that says nothing, the cost
// is proportional to the error.
double interpolate(const std::vector<Point>& points, double error) {
  // A KL divergence grows with the square of a small error, that is in proportion to `error`, and
  // more slowly or faster where the error is large. Steeper or flatter lines are noise.
  constexpr double kFlattest = 0.5;
  constexpr double kSteepest = 2;
  const Point& first = points.front();
  const Point& last = points.back();
  if (!(error > 0) || !(last.error > 0)) return std::max(last.cost, 0.0);
  double exponent = 1;
  if (first.cost > 0 && last.cost > 0 && first.error > last.error) {
    exponent = std::log(first.cost / last.cost) / std::log(first.error / last.error);
    exponent = std::clamp(exponent, kFlattest, kSteepest);
  }
  // Below the better point, a small error.
  if (error < last.error) exponent = 1;
  return std::max(last.cost, 0.0) * std::pow(error / last.error, exponent);
}

}  // namespace

Result<CostTable> measure_sensitivity(Engine& engine, std::span<const TokenWindow> windows,
                                      const SensitivityOptions& options,
                                      const std::shared_ptr<PagePool>& pool) {
  KVQ_RETURN_IF_ERROR(check_calibration(windows, options.sinks, options.window));
  const ModelConfig& config = engine.config();
  KVQ_ASSIGN_OR_RETURN(CostTable table, measure_attention_errors(engine, windows, options, pool));
  const double exact_bytes = 2.0 * kPageTokens * config.kv_heads * config.head_dim;
  std::vector<FormatChange> changes;
  std::vector<std::vector<std::size_t>> measured;  // of each tensor, candidates
  for (std::size_t tensor = 0; tensor < table.tensors.size(); ++tensor) {
    const auto& candidates = table.tensors[tensor];
    std::vector<std::size_t>& list = measured.emplace_back();
    if (options.mode == SensitivityMode::kAttention) {
      list = anchors(candidates, exact_bytes);
    } else {
      list.resize(candidates.size());
      std::iota(list.begin(), list.end(), std::size_t{0});
    }
    for (const std::size_t i : list) {
      changes.push_back({static_cast<int>(tensor), candidates[i].spec});
    }
  }
  KVQ_ASSIGN_OR_RETURN(
      const std::vector<double> divergences,
      mean_output_errors(engine, windows,
                         engine.cache_spec(LayerSpec{}, options.sinks, options.window), changes,
                         pool));
  std::size_t next = 1;
  for (std::size_t tensor = 0; tensor < table.tensors.size(); ++tensor) {
    auto& candidates = table.tensors[tensor];
    std::vector<Point> points;
    for (const std::size_t i : measured[tensor]) {
      points.push_back({candidates[i].cost, divergences[next++]});
    }
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      candidates[i].cost = options.mode == SensitivityMode::kAttention
                               ? interpolate(points, candidates[i].cost)
                               : points[i].cost;
    }
  }
  return table;
}

}  // namespace kvq
