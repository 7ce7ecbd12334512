#include "kvq/attention/cpu/prefill.h"

#include <algorithm>
#include <vector>

#include "kvq/attention/cpu/prefill_worker.h"

namespace kvq {
namespace {

// Query rows of a block: the expansion of a strip costs about as much as its products with ten
// rows, and the queries and outputs of 192 rows stay in L2.
constexpr int kMaxRows = 192;
// Strips of a unit. Few rows make cheap strips and small results: smaller units to share out.
constexpr int kFewRows = 32;
constexpr int kFewRowsStrips = 16;
constexpr int kManyRowsStrips = 64;

struct Block : QueryBlock {
  StripList strips;
  int units;
  int first_result;  // of its units; blocks of one unit have none
};

struct Unit {
  int block;
  int first_strip;
  int strips;
  int result;
};

}  // namespace

struct Prefill::State {
  AttentionShape shape;
  Isa isa;
  bool exact_prefill;
  int group;  // query heads per kv head

  std::vector<std::unique_ptr<PagePlan>> plans;
  std::vector<std::unique_ptr<PrefillWorker>> workers;
  std::vector<Block> blocks;
  std::vector<Unit> units;
  std::vector<int> merged;  // blocks of several units
  std::vector<FloatLine> results;
  std::vector<Partial> plain;  // of every result, in `results`
  std::vector<Partial> rotated;

  const PagePlan& plan_of(const PageFormat& format);
  void cut(const AttentionItem& item);
  void add_block(const QueryBlock& block);
  void reserve(int worker_count);
  void run_unit(const Unit& unit, PrefillWorker& worker);
  void finish(const Block& block, std::span<const Partial> plain_parts,
              std::span<const Partial> rotated_parts) const;
};

const PagePlan& Prefill::State::plan_of(const PageFormat& format) {
  for (const auto& plan : plans) {
    if (plan->format.spec() == format.spec()) return *plan;
  }
  return *plans.emplace_back(std::make_unique<PagePlan>(format));
}

// Blocks of nearly equal size; the last tokens, which see most, first.
void Prefill::State::cut(const AttentionItem& item) {
  const int limit = std::max(1, kMaxRows / group);
  const std::int64_t count = (item.tokens + limit - 1) / limit;
  const PagePlan& plan = plan_of(*item.view->format);
  for (std::int64_t i = count - 1; i >= 0; --i) {
    const int first = static_cast<int>(item.tokens * i / count);
    const int end = static_cast<int>(item.tokens * (i + 1) / count);
    for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      add_block({&item, &plan, kv_head, first, end - first});
    }
  }
}

void Prefill::State::add_block(const QueryBlock& block) {
  const LayerView& view = *block.item->view;
  const std::int64_t position = view.length - block.item->tokens + block.first_token;
  const StripList strips(view, position, block.tokens, exact_prefill);
  const int limit = block.tokens * group <= kFewRows ? kFewRowsStrips : kManyRowsStrips;
  const int count = (strips.size() + limit - 1) / limit;
  const int index = static_cast<int>(blocks.size());
  const int first_result = static_cast<int>(plain.size());
  for (int i = 0; i < count; ++i) {
    units.push_back(
        {index, i * limit, std::min(limit, strips.size() - i * limit), first_result + i});
  }
  blocks.push_back({block, strips, count, first_result});
  if (count == 1) return;
  merged.push_back(index);
  plain.resize(plain.size() + count);
  rotated.resize(plain.size());
}

// Memory for the workers and for the results of units that are to be merged.
void Prefill::State::reserve(int worker_count) {
  while (static_cast<int>(workers.size()) < worker_count) {
    workers.push_back(std::make_unique<PrefillWorker>(shape, isa, std::max(kMaxRows, group)));
  }
  std::size_t lines = 0;
  for (const int index : merged) {
    const Block& block = blocks[index];
    lines += 2 * block.units * Partial::lines(block.tokens * group, shape.head_dim);
  }
  if (results.size() < lines) results.resize(lines);
  FloatLine* at = results.data();
  for (const int index : merged) {
    const Block& block = blocks[index];
    const int rows = block.tokens * group;
    for (int i = block.first_result; i < block.first_result + block.units; ++i) {
      plain[i] = Partial::make(at, rows);
      at += Partial::lines(rows, shape.head_dim);
      rotated[i] = Partial::make(at, rows);
      at += Partial::lines(rows, shape.head_dim);
    }
  }
}

void Prefill::State::run_unit(const Unit& unit, PrefillWorker& worker) {
  const Block& block = blocks[unit.block];
  if (block.units > 1) {
    worker.run(block, block.strips, unit.first_strip, unit.strips, plain[unit.result],
               rotated[unit.result]);
    return;
  }
  worker.run(block, block.strips, unit.first_strip, unit.strips, worker.plain(), worker.rotated());
  finish(block, {&worker.plain(), 1}, {&worker.rotated(), 1});
}

void Prefill::State::finish(const Block& block, std::span<const Partial> plain_parts,
                            std::span<const Partial> rotated_parts) const {
  if (!is_rotated(block.plan->value.format)) rotated_parts = {};
  for (int token = 0; token < block.tokens; ++token) {
    const std::size_t row = std::size_t(block.first_token + token) * shape.query_heads +
                            std::size_t(block.kv_head) * group;
    write_output(plain_parts, rotated_parts, token * group, group, shape.head_dim, isa,
                 block.item->output + row * shape.head_dim);
  }
}

Prefill::Prefill(const AttentionShape& shape, Isa isa, bool exact_prefill)
    : state_(std::make_unique<State>()) {
  state_->shape = shape;
  state_->isa = isa;
  state_->exact_prefill = exact_prefill;
  state_->group = shape.query_heads / shape.kv_heads;
}

Prefill::~Prefill() = default;

void Prefill::run(std::span<const AttentionItem* const> items, ThreadPool& threads) {
  State& state = *state_;
  state.blocks.clear();
  state.units.clear();
  state.merged.clear();
  state.plain.clear();
  state.rotated.clear();
  for (const AttentionItem* item : items) state.cut(*item);
  state.reserve(threads.size());
  threads.run(static_cast<int>(state.units.size()), [&state](int task, int worker) {
    state.run_unit(state.units[task], *state.workers[worker]);
  });
  threads.run(static_cast<int>(state.merged.size()), [&state](int task, int) {
    const Block& block = state.blocks[state.merged[task]];
    const auto part = [&block](const std::vector<Partial>& results) {
      return std::span(results).subspan(block.first_result, block.units);
    };
    state.finish(block, part(state.plain), part(state.rotated));
  });
}

}  // namespace kvq
