// kvq report: a page from what kvq analyze measured.
#include "apps/kvq/command.h"
#include "apps/kvq/output.h"
#include "kvq/base/file.h"
#include "kvq/report/document.h"
#include "kvq/report/page.h"

namespace kvq {
namespace {

struct ReportOptions {
  std::vector<std::string> files;
  std::string output;
};

Result<int> run_report(const ReportOptions& options) {
  KVQ_RETURN_IF_ERROR(check_writable(options.output));
  std::vector<Document> documents;
  for (const std::string& file : options.files) {
    KVQ_ASSIGN_OR_RETURN(documents.emplace_back(), read_document(file));
  }
  KVQ_RETURN_IF_ERROR(write_file(options.output, make_page(std::move(documents))));
  return 0;
}

}  // namespace

Command add_report(CLI::App& root) {
  constexpr int kMostFiles = 6;  // colours that tell runs apart
  CLI::App* app = root.add_subcommand("report", "Make a page from results of analyze, or compare");
  auto options = std::make_shared<ReportOptions>();
  app->add_option("FILES", options->files, "What kvq analyze --json wrote; several are compared")
      ->required()
      ->expected(1, kMostFiles)
      ->type_name("FILE.json");
  app->add_option("-o,--output", options->output, "The page, one self-contained HTML file")
      ->required()
      ->type_name("FILE.html");
  return {app, [options] { return run_report(*options); }};
}

}  // namespace kvq
