#include "kvq/report/page.h"

#include <gtest/gtest.h>

#include "kvq/report/figures.h"
#include "kvq/report/findings.h"
#include "kvq/report/test_documents.h"

namespace kvq {
namespace {

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

// Elements that must be closed are, and nothing is fetched from elsewhere.
void expect_whole(const std::string& page) {
  for (const char* element : {"svg", "figure", "section", "details", "table", "text", "code"}) {
    EXPECT_EQ(count(page, std::string("<") + element + ">") +
                  count(page, std::string("<") + element + " "),
              count(page, std::string("</") + element + ">"))
        << element;
  }
  for (const char* fetched : {"http:", "https:", "src=", "@import", "url(", "<link"}) {
    EXPECT_EQ(page.find(fetched), std::string::npos) << fetched;
  }
  EXPECT_EQ(count(page, "nan"), 0U);
  EXPECT_EQ(page.find("made <up>"), std::string::npos) << "names are escaped";
}

TEST(PageTest, EveryFigureHasItsParts) {
  for (const int layers : {1, 2, 8}) {
    const std::string page = make_page({make_document(layers, 64)});
    expect_whole(page);
    EXPECT_EQ(count(page, "<figure "), 10U);
    EXPECT_EQ(count(page, "<figcaption>"), 10U);
    EXPECT_EQ(count(page, "<summary>Numbers</summary>"), 10U);
    // quality, widths 2, rotation, groups, plans 2, sensitivity 2, norms 2, activations 2, errors
    // 4, a spectrum a layer
    EXPECT_EQ(count(page, "<svg "), 17U + static_cast<std::size_t>(layers));
    EXPECT_EQ(count(page, "nothing was measured"), 0U);
  }
}

TEST(PageTest, NoLayersAndNoFormats) {
  Document document = make_document(0, 64);
  document.weight_norms.reset();
  document.sensitivity.reset();
  document.plans.clear();
  document.formats.clear();
  document.widths = document.rotations = document.groups = {};
  const std::string page = make_page({document});
  expect_whole(page);
  EXPECT_EQ(count(page, "<figure "), 7U);
  EXPECT_EQ(count(page, "no measured format"), 3U);
}

TEST(PageTest, CommandsInFindingsAreCode) {
  EXPECT_EQ(count(make_page({make_document(2, 64)}),
                  "by 0.14: <code>kvq plan --method sensitivity --budget 2.25</code>."),
            1U);
}

TEST(PageTest, LargeModelsStaySmall) {
  const std::string page = make_page({make_document(80, 128)});
  expect_whole(page);
  EXPECT_LT(page.size(), 2'000'000U);
}

TEST(PageTest, RunsAreCompared) {
  const std::string page =
      make_page({make_document(2, 64), make_document(8, 128), make_document(80, 64)});
  expect_whole(page);
  EXPECT_EQ(count(page, "Best measured formats of each run"), 2U) << "title and label";
  for (const char* run : {"Run A", "Run B", "Run C"}) EXPECT_EQ(count(page, run), 1U);
  EXPECT_EQ(count(page, ">B: KL divergence</text>"), 2U) << "widths and rotation";
}

TEST(PageTest, ThePageIsAFunctionOfTheDocument) {
  const auto stored = [](const Document& document) {
    return parse_document(nlohmann::json::parse(to_json(document).dump()), "test").value();
  };
  const Document once = stored(make_document(3, 64));
  EXPECT_EQ(make_page({stored(once)}), make_page({once}));
}

TEST(FindingsTest, AdviceIsTheSmallestBelowEachLimit) {
  const Document document = make_document(2, 64);
  for (const Advice& advice : advise(document)) {
    ASSERT_NE(advice.format, nullptr);
    EXPECT_LT(advice.format->kl, advice.limit);
    if (advice.plan != nullptr) {
      EXPECT_LT(advice.plan->kl, advice.limit);
      EXPECT_LT(advice.plan->effective_bits, advice.format->effective_bits);
    }
    for (const MeasuredFormat& format : document.formats) {
      if (format.kl < advice.limit) {
        EXPECT_GE(format.effective_bits, advice.format->effective_bits) << format.name;
      }
    }
  }
}

TEST(FindingsTest, NothingBeatsTheFront) {
  const Document document = make_document(2, 64);
  const auto front = pareto_front(document);
  ASSERT_FALSE(front.empty());
  for (const MeasuredFormat* best : front) {
    for (const MeasuredFormat& format : document.formats) {
      EXPECT_FALSE(format.effective_bits <= best->effective_bits && format.kl < best->kl)
          << format.name << " beats " << best->name;
    }
  }
}

TEST(FindingsTest, SentencesFollowTheNumbers) {
  Document document = make_document(2, 64);
  // K4V2: 2/256 + .2/16; K2V4: 2/16 + .2/256.
  EXPECT_EQ(findings(document)[0],
            "Bits are worth more in keys: 4-bit keys with 2-bit values diverge by 0.020 nats a "
            "token, 2-bit keys with 4-bit values, in the same bytes, by 0.13: 6.2 times as much.");
  EXPECT_EQ(
      findings(document)[2],
      "A plan by sensitivity of 2.25 bits diverges by 0.0044 nats, the best uniform format of "
      "at most its size (k2v2) by 0.14: `kvq plan --method sensitivity --budget 2.25`.");
  EXPECT_EQ(findings(document)[3],
            "Of all tensors in 2 bits, one at a time, the keys of layer 0 do 53 % of the damage.");
  EXPECT_EQ(findings(document)[4],
            "The key projection has the larger Frobenius norm in 2 of 2 layers, the larger "
            "spectral norm in 2.");
  document.formats.clear();
  document.plans.clear();
  document.sensitivity.reset();
  document.widths = document.rotations = {};
  document.weight_norms.reset();
  EXPECT_EQ(findings(document), std::vector<std::string>{
                                    "Cached keys are larger than cached values in 2 of 2 layers."});
}

}  // namespace
}  // namespace kvq
