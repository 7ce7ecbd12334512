#include "kvq/report/figure.h"

#include <fmt/format.h>

#include <algorithm>

#include "kvq/report/svg.h"

namespace kvq {
namespace {

std::string panels_html(const std::vector<std::string>& panels) {
  // Two or four stand in pairs, others in rows as wide as the page.
  const bool pairs = panels.size() == 2 || panels.size() == 4;
  std::string html = fmt::format("<div class=\"panels{}\">\n", pairs ? " pairs" : "");
  for (const std::string& panel : panels) html += panel + "\n";
  return html + "</div>\n";
}

}  // namespace

// Closing tags of rows and cells are optional in HTML; a table of 80 layers saves a third.
std::string to_html(const DataTable& table) {
  std::string html = "<div class=\"scroll\" tabindex=\"0\"><table><thead><tr>";
  for (const std::string& cell : table.header) html += "<th scope=\"col\">" + escape(cell);
  html += "</thead><tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (std::size_t i = 0; i < row.size(); ++i) {
      html += (i == 0 ? "<th scope=\"row\">" : "<td>") + escape(row[i]);
    }
    html += '\n';
  }
  return html + "</tbody></table></div>\n";
}

std::string to_html(const Figure& figure) {
  std::string html =
      fmt::format("<figure id=\"{}\"{}>\n<h3>{}</h3>\n", figure.id,
                  figure.panels.size() == 1 ? " class=\"single\"" : "", escape(figure.title));
  html += panels_html(figure.panels);
  html += fmt::format("<figcaption>{}", escape(figure.caption));
  for (const std::string& command : figure.commands) {
    html += fmt::format("<span class=\"command\">Measured with <code>{}</code></span>",
                        escape(command));
  }
  html += "</figcaption>\n";
  if (!figure.more.empty()) {
    html += fmt::format("<details><summary>{}</summary>\n", escape(figure.more_title));
    html += panels_html(figure.more) + "</details>\n";
  }
  html += "<details><summary>Numbers</summary>\n" + to_html(figure.table) + "</details>\n";
  return html + "</figure>\n";
}

std::string titled(const Run& run, const std::string& title) {
  return run.label.empty() ? title : run.label + ": " + title;
}

std::vector<std::string> commands_of(std::span<const Run> runs) {
  std::vector<std::string> commands;
  for (const Run& run : runs) {
    const std::string& command = run.document.command;
    if (std::ranges::find(commands, command) == commands.end()) commands.push_back(command);
  }
  return commands;
}

}  // namespace kvq
