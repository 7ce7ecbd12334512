#include "kvq/report/measure.h"

#include <array>
#include <utility>

#include "kvq/analysis/activations.h"
#include "kvq/analysis/calibration.h"
#include "kvq/analysis/format_grid.h"
#include "kvq/analysis/norms.h"
#include "kvq/analysis/plan_curve.h"
#include "kvq/analysis/sensitivity.h"
#include "kvq/eval/evaluate.h"

namespace kvq {
namespace {

constexpr std::array kWidths = {Bits::k2, Bits::k3, Bits::k4, Bits::k5, Bits::k6, Bits::k8};
constexpr std::array kWidthNumbers = {2.0, 3.0, 4.0, 5.0, 6.0, 8.0};
constexpr std::array kSensitivityWidths = {Bits::k1, Bits::k2, Bits::k3, Bits::k4,
                                           Bits::k5, Bits::k6, Bits::k8};
// Mean code bits of the plans that are compared.
constexpr std::array kPlanBits = {1.5, 2.0, 2.5, 3.0, 4.0};

// A command line that measures the same.
std::string command_line(const MeasureOptions& options) {
  const auto quoted = [](const std::string& text) {
    return text.find_first_of(" '\"$&();|<>*?\\") == std::string::npos ? text : "'" + text + "'";
  };
  std::string command = "kvq analyze";
  if (!options.model.empty()) command += " " + quoted(options.model);
  if (!options.text_file.empty()) command += " --text " + quoted(options.text_file);
  command += fmt::format(" --windows {}", options.windows);
  command += fmt::format(" --sensitivity {} --seed {}", options.sensitivity_windows, options.seed);
  return command + fmt::format(" --kv {} --sinks {} --window {}", to_string(options.base),
                               options.sinks, options.window);
}

MeasuredGrid named(const FormatGrid& grid, const LayerSpec& base) {
  MeasuredGrid result{to_string(base), grid.rows, grid.columns, {}};
  for (const auto& row : grid.cells) {
    auto& names = result.cells.emplace_back();
    for (const LayerSpec& spec : row) names.push_back(to_string(spec));
  }
  return result;
}

MeasuredFormat measured(const FormatResult& format) {
  return {.name = format.name,
          .effective_bits = format.effective_bits,
          .cache_share = static_cast<double>(format.cache_bytes) /
                         static_cast<double>(format.cache_bytes_16bit),
          .nll = format.text->nll,
          .kl = format.text->kl,
          .top1 = format.text->top1};
}

struct WeightNormTables {
  NormTable frobenius;
  NormTable spectral;
};

class Measurement {
 public:
  Measurement(Engine& engine, const Tokenizer& tokenizer, const MeasureOptions& options,
              std::shared_ptr<PagePool> pool)
      : engine_(engine), tokenizer_(tokenizer), options_(options), pool_(std::move(pool)) {}

  Result<Document> run(const std::filesystem::path& directory) {
    KVQ_ASSIGN_OR_RETURN(windows_, read_windows(engine_, tokenizer_, options_.text_file,
                                                options_.windows, options_.seed, pool_));
    describe();
    KVQ_ASSIGN_OR_RETURN(const WeightNormTables norms, measure_weights(directory));
    document_.weight_norms = WeightNorms{norms.frobenius.keys, norms.frobenius.values,
                                         norms.spectral.keys, norms.spectral.values};
    KVQ_RETURN_IF_ERROR(measure_layers());
    std::vector<SizedPlan> plans;
    if (options_.sensitivity_windows > 0) {
      KVQ_ASSIGN_OR_RETURN(plans, plan_layers(norms.frobenius));
    }
    KVQ_RETURN_IF_ERROR(measure_formats(plans));
    return std::move(document_);
  }

 private:
  void describe() {
    const ModelConfig& config = engine_.config();
    document_.program = options_.program;
    document_.command = command_line(options_);
    document_.model = {.name = options_.label,
                       .type = config.model_type,
                       .layers = config.layers,
                       .query_heads = config.query_heads,
                       .kv_heads = config.kv_heads,
                       .head_dim = config.head_dim,
                       .context = config.context};
    document_.text = {.file = options_.text_file,
                      .seed = options_.seed,
                      .windows = static_cast<int>(windows_.size()),
                      .tokens_per_window = static_cast<int>(windows_.front().size())};
    document_.sinks = options_.sinks;
    document_.window = options_.window;
  }

  // Reads the projections from the files; the engine keeps them in another form.
  Result<WeightNormTables> measure_weights(const std::filesystem::path& directory) {
    KVQ_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(directory));
    const ModelConfig& config = engine_.config();
    WeightNormTables tables;
    KVQ_ASSIGN_OR_RETURN(tables.frobenius,
                         measure_norms(config, checkpoint, Norm::kFrobenius, engine_.threads()));
    KVQ_ASSIGN_OR_RETURN(tables.spectral,
                         measure_norms(config, checkpoint, Norm::kSpectral, engine_.threads()));
    return tables;
  }

  Status measure_layers() {
    std::vector<LayerSpec> formats;
    for (const Bits bits : kWidths) {
      LayerSpec spec = options_.base;
      spec.key.bits = bits;
      spec.value.bits = bits;
      formats.push_back(spec);
    }
    document_.error_bits.assign(kWidthNumbers.begin(), kWidthNumbers.end());
    KVQ_ASSIGN_OR_RETURN(
        document_.activations,
        measure_activations(engine_, windows_, formats, options_.sinks, options_.isa, pool_));
    return {};
  }

  // What every tensor is worth, and plans that follow from it and from norms. Measured on text of
  // the model's own with another seed, so that plans are judged on text that they have not seen.
  Result<std::vector<SizedPlan>> plan_layers(const NormTable& norms) {
    CalibrationOptions calibration;
    calibration.windows = options_.sensitivity_windows;
    calibration.copies = 0;
    calibration.seed = options_.seed + 1;
    KVQ_ASSIGN_OR_RETURN(const std::vector<TokenWindow> windows,
                         calibration_windows(engine_, tokenizer_, calibration, pool_));
    const LayerSpec& base = options_.base;
    const std::vector<Bits> widths(kSensitivityWidths.begin(), kSensitivityWidths.end());
    KVQ_ASSIGN_OR_RETURN(const CostTable alone,
                         measure_width_costs(engine_, windows, base, widths, options_.sinks,
                                             options_.window, pool_));
    describe_sensitivity(alone, widths, calibration.seed);
    document_.sensitivity->windows = static_cast<int>(windows.size());
    SensitivityOptions choice;
    choice.sinks = options_.sinks;
    choice.window = options_.window;
    choice.isa = options_.isa;
    KVQ_ASSIGN_OR_RETURN(const CostTable costs,
                         measure_sensitivity(engine_, windows, choice, pool_));
    KVQ_ASSIGN_OR_RETURN(const CostTable norm_costs, width_costs(norms, base, widths));
    const ModelConfig& config = engine_.config();
    return make_plans(norm_costs, costs, base, config.kv_heads, config.head_dim, kPlanBits);
  }

  // `alone`: measure_width_costs() of these widths.
  void describe_sensitivity(const CostTable& alone, const std::vector<Bits>& widths,
                            std::uint64_t seed) {
    TensorSensitivity& sensitivity = document_.sensitivity.emplace();
    sensitivity.base = to_string(options_.base);
    sensitivity.seed = seed;
    for (const Bits bits : widths) sensitivity.widths.emplace_back(name(bits));
    for (std::size_t tensor = 0; tensor < alone.tensors.size(); ++tensor) {
      auto& rows = tensor % 2 == 0 ? sensitivity.key : sensitivity.value;
      auto& row = rows.emplace_back();
      for (const Candidate& candidate : alone.tensors[tensor]) row.push_back(candidate.cost);
    }
  }

  // Everything that is compared on the text: the formats of the grids, then the plans.
  Result<std::vector<NamedSpec>> list_formats(const std::vector<SizedPlan>& plans) {
    const LayerSpec& base = options_.base;
    const std::array grids = {width_grid(base, kWidths), rotation_grid(base), group_grid(base)};
    document_.widths = named(grids[0], base);
    document_.rotations = named(grids[1], base);
    document_.groups = named(grids[2], base);
    std::vector<NamedSpec> formats;
    for (const LayerSpec& layer : distinct_formats(base, grids)) {
      CacheSpec spec = engine_.cache_spec(layer, options_.sinks, options_.window);
      KVQ_RETURN_IF_ERROR(validate(spec));
      formats.push_back({to_string(layer), std::make_shared<const CacheSpec>(std::move(spec))});
    }
    for (const SizedPlan& plan : plans) {
      CacheSpec spec = *formats.front().spec;
      spec.layers = plan.layers;
      formats.push_back({fmt::format("{} {}", plan.method, plan.budget),
                         std::make_shared<const CacheSpec>(std::move(spec))});
    }
    return formats;
  }

  Status measure_formats(const std::vector<SizedPlan>& plans) {
    KVQ_ASSIGN_OR_RETURN(const std::vector<NamedSpec> formats, list_formats(plans));
    EvaluationInput input;
    input.windows = windows_;
    KVQ_ASSIGN_OR_RETURN(const Evaluation evaluation, evaluate(engine_, formats, input, pool_));
    document_.text.nll_16bit = *evaluation.reference_nll;
    const std::size_t uniform = formats.size() - plans.size();
    for (std::size_t i = 0; i < uniform; ++i) {
      document_.formats.push_back(measured(evaluation.formats[i]));
    }
    for (std::size_t i = 0; i < plans.size(); ++i) {
      MeasuredPlan& plan = document_.plans.emplace_back(MeasuredPlan{
          plans[i].method, plans[i].budget, {}, measured(evaluation.formats[uniform + i])});
      for (const LayerSpec& layer : plans[i].layers) plan.layers.push_back(to_string(layer));
    }
    return {};
  }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const MeasureOptions& options_;
  std::shared_ptr<PagePool> pool_;
  std::vector<TokenWindow> windows_;
  Document document_;
};

}  // namespace

Result<Document> measure_document(Engine& engine, const Tokenizer& tokenizer,
                                  const std::filesystem::path& directory,
                                  const MeasureOptions& options,
                                  const std::shared_ptr<PagePool>& pool) {
  if (options.base.key.bits == Bits::k16 || options.base.value.bits == Bits::k16) {
    return fail("spec: widths of 16 bits have no rotation or groups to compare, found {}",
                to_string(options.base));
  }
  return Measurement(engine, tokenizer, options, pool).run(directory);
}

}  // namespace kvq
