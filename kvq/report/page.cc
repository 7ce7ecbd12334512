#include "kvq/report/page.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "kvq/report/figures.h"
#include "kvq/report/findings.h"
#include "kvq/report/heat_map.h"
#include "kvq/report/scale.h"
#include "kvq/report/svg.h"

namespace kvq {

// resources/page.css and resources/page.js, embedded by CMake.
extern const char* const kPageStyle;
extern const char* const kPageScript;

namespace {

struct Section {
  std::string id;
  std::string title;
  std::string introduction;
  std::vector<Figure> figures;
};

std::string text_source(const TextSummary& text) {
  const std::string source = text.file.empty()
                                 ? fmt::format("written by the model itself (seed {})", text.seed)
                                 : text.file;
  return fmt::format("{}: {} windows of {} tokens, perplexity {:.3f} in 16 bits", source,
                     text.windows, text.tokens_per_window, std::exp(text.nll_16bit));
}

std::string facts(const Run& run) {
  const Document& document = run.document;
  const ModelSummary& model = document.model;
  const auto row = [](std::string_view name, const std::string& value) {
    return fmt::format("<dt>{}<dd>{}\n", name, escape(value));
  };
  std::string html = "<dl class=\"facts\">\n";
  html += row("Model", fmt::format("{}, architecture {}", model.name, model.type));
  html += row("Shape", fmt::format("{} layers, {} query heads, {} kv heads of {} channels, context "
                                   "of {} tokens",
                                   model.layers, model.query_heads, model.kv_heads, model.head_dim,
                                   model.context));
  html += row("Text", text_source(document.text));
  html += row("Cache", fmt::format("first {} and newest {} tokens in 16 bits, all others packed",
                                   document.sinks, document.window));
  html += fmt::format("<dt>Command<dd><code>{}</code>\n", escape(document.command));
  return html + "</dl>\n";
}

std::string score_cells(const MeasuredFormat& format) {
  return fmt::format("<td>{}<td>{:.0f} %<td>{}<td>{:.1f} %\n", short_number(format.effective_bits),
                     100 * format.cache_share, divergence_text(format.kl), 100 * format.top1);
}

std::string plan_row(const MeasuredFormat& plan) {
  return fmt::format(
      "<tr><th scope=\"row\"><small>or by layer</small><td><code>kvq plan --method sensitivity "
      "--budget {}</code>{}",
      short_number(plan.effective_bits, 3), score_cells(plan));
}

std::string advice_table(const Document& document) {
  std::string html =
      "<div class=\"scroll\" tabindex=\"0\"><table class=\"advice\"><thead><tr><th "
      "scope=\"col\">goal<th scope=\"col\">format<th scope=\"col\">bits<th scope=\"col\">"
      "size<th scope=\"col\">KL, nats<th scope=\"col\">top-1</thead><tbody>\n";
  for (const Advice& advice : advise(document)) {
    html += fmt::format("<tr><th scope=\"row\">{} <small>KL below {}</small>", advice.goal,
                        short_number(advice.limit));
    if (advice.format == nullptr) {
      html += "<td colspan=\"5\">no measured format\n";
      if (advice.plan != nullptr) html += plan_row(*advice.plan);
      continue;
    }
    html += fmt::format("<td><code>--kv {}</code>{}", escape(advice.format->name),
                        score_cells(*advice.format));
    if (advice.plan != nullptr) html += plan_row(*advice.plan);
  }
  return html + "</tbody></table></div>\n";
}

// Text in which `commands` stand between backquotes.
std::string with_code(std::string_view text) {
  std::string html;
  bool inside = false;
  for (const char c : escape(text)) {
    if (c != '`') {
      html += c;
      continue;
    }
    html += inside ? "</code>" : "<code>";
    inside = !inside;
  }
  return html;
}

std::string summary(const Run& run) {
  std::string html;
  if (!run.label.empty()) {
    html += fmt::format("<h3>Run {}: {}</h3>\n", run.label, escape(run.document.model.name));
    html += facts(run);
  }
  html += advice_table(run.document);
  html += "<ul class=\"findings\">\n";
  for (const std::string& finding : findings(run.document)) {
    html += "<li>" + with_code(finding) + "\n";
  }
  return html + "</ul>\n";
}

std::string summary_section(std::span<const Run> runs) {
  std::string html = "<section id=\"summary\">\n<h2>What to use</h2>\n";
  html +=
      "<p>The smallest measured format below each limit of the mean KL divergence from a 16-bit "
      "cache. A mean over text hardly sees the rare token that copies a number from far back: "
      "before you rely on a format, try it on your own task with <code>kvq eval --kv FORMAT "
      "--tasks "
      "FILE.jsonl</code>.\n";
  for (const Run& run : runs) html += summary(run);
  return html + "</section>\n";
}

std::vector<Section> make_sections(std::span<const Run> runs) {
  std::vector<Section> sections;
  sections.push_back(
      {"formats",
       "What formats cost",
       "Each format reads the same text; its next-token distributions are compared "
       "with those of a 16-bit cache.",
       {quality_figure(runs), width_figure(runs), rotation_figure(runs), group_figure(runs)}});
  Section plans{"planning",
                "What layers need",
                "Layers differ by far more than formats do. A plan gives each the format it needs.",
                {}};
  if (auto figure = plan_figure(runs)) plans.figures.push_back(std::move(*figure));
  if (auto figure = sensitivity_figure(runs)) plans.figures.push_back(std::move(*figure));
  if (!plans.figures.empty()) sections.push_back(std::move(plans));
  Section layers{"layers",
                 "Keys and values of the layers",
                 "What is stored, before any effect on the output.",
                 {}};
  if (auto figure = weight_norm_figure(runs)) layers.figures.push_back(std::move(*figure));
  layers.figures.push_back(activation_figure(runs));
  layers.figures.push_back(spectrum_figure(runs));
  layers.figures.push_back(error_figure(runs));
  sections.push_back(std::move(layers));
  return sections;
}

std::string to_html(const Section& section) {
  std::string html = fmt::format("<section id=\"{}\">\n<h2>{}</h2>\n<p>{}\n", section.id,
                                 section.title, section.introduction);
  for (const Figure& figure : section.figures) html += to_html(figure);
  return html + "</section>\n";
}

std::string navigation(const std::vector<Section>& sections) {
  std::string html = "<nav aria-label=\"Figures\"><a href=\"#summary\">Summary</a>\n";
  for (const Section& section : sections) {
    for (const Figure& figure : section.figures) {
      html += fmt::format("<a href=\"#{}\">{}</a>\n", figure.id, escape(figure.short_title));
    }
  }
  return html + "</nav>\n";
}

std::string page_title(std::span<const Run> runs) {
  if (runs.size() == 1) return "KV cache of " + runs.front().document.model.name;
  return fmt::format("KV caches of {} runs", runs.size());
}

}  // namespace

std::string make_page(std::vector<Document> documents) {
  std::vector<Run> runs;
  for (Document& document : documents) {
    const auto letter = static_cast<char>('A' + runs.size() % 26);
    runs.push_back(
        {documents.size() > 1 ? std::string(1, letter) : std::string(), std::move(document)});
  }
  const std::string title = escape(page_title(runs));
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n"
      "<style>\n{}</style>\n</head>\n<body>\n<header>\n<p class=\"brand\">kvq "
      "analyze\n<h1>{}</h1>\n",
      title, kPageStyle, title);
  html += "<button type=\"button\" id=\"theme\" hidden>Theme</button>\n</header>\n<main>\n";
  if (runs.size() == 1) html += facts(runs.front());
  const std::vector<Section> sections = make_sections(runs);
  html += navigation(sections);
  html += summary_section(runs);
  for (const Section& section : sections) html += to_html(section);
  html +=
      fmt::format("</main>\n<footer>{}</footer>\n<div id=\"tip\" role=\"status\" hidden></div>\n",
                  escape(runs.front().document.program));
  html += fmt::format("<script>\n{}</script>\n</body>\n</html>\n", kPageScript);
  return html;
}

}  // namespace kvq
