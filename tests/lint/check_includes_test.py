"""tools/check_includes.py on made-up trees: every rule fires where it should, and only there."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECK = pathlib.Path(__file__).parents[2] / "tools" / "check_includes.py"

GOOD = {
    "kvq/base/status.h": "#pragma once\n#include <string>\n",
    "kvq/codec/pack.h": '#pragma once\n#include "kvq/base/status.h"\n',
    "kvq/codec/pack.cc": '#include "kvq/codec/pack.h"\n',
    "kvq/attention/reference/attention.h": '#include "kvq/codec/pack.h"\n',
    "kvq/attention/attention_test.cc":
        '#include <gtest/gtest.h>\n#include "kvq/attention/reference/attention.h"\n',
    "kvq/attention/CMakeLists.txt":
        "add_library(kvq_attention_reference reference/attention.cc)  # for tests (only)\n"
        "target_link_libraries(kvq_attention_reference PUBLIC kvq::cache)\n"
        "kvq_stage(attention\n  SOURCES attention.cc\n  USES cache\n"
        "  TESTS attention_test.cc\n  TEST_LIBRARIES kvq_attention_reference)\n",
    "apps/kvq/main.cc":
        '#include "kvq/codec/pack.h"\n#include "apps/kvq/commands.h"\n#include "bench/bandwidth.h"\n',
    "bench/bandwidth.h": "#pragma once\n",
    "apps/kvq/commands.h": "#pragma once\n",
    "build/generated.h": '#include "nowhere.h"\n',
}

# (added or replaced files, the line that the check must print)
BAD = {
    "wrong way": ({"kvq/base/file.cc": '\n\n#include "kvq/codec/pack.h"\n'},
                  "kvq/base/file.cc:3: [direction] base includes "),
    "side branch": ({"kvq/model/config.h": '#include "kvq/codec/pack.h"\n'},
                    "kvq/model/config.h:1: [direction] "),
    "application": ({"kvq/codec/pack.cc": '#include "apps/kvq/commands.h"\n'},
                    "kvq/codec/pack.cc:1: [direction] "),
    "measurement": ({"bench/append.cc": '#include "apps/kvq/commands.h"\n'},
                    "bench/append.cc:1: [direction] bench includes "),
    "unknown stage": ({"kvq/extra/extra.cc": "int x;\n"}, "kvq/extra/extra.cc:1: [direction] "),
    "cycle": ({"kvq/codec/a.h": '#include "kvq/codec/b.h"\n',
               "kvq/codec/b.h": '\n#include "kvq/codec/a.h"\n'},
              "kvq/codec/a.h:1: [cycle] kvq/codec/a.h -> kvq/codec/b.h -> kvq/codec/a.h"),
    "relative": ({"kvq/codec/pack.cc": '#include "pack.h"\n'}, "kvq/codec/pack.cc:1: [spelling] "),
    "missing": ({"kvq/codec/pack.cc": '#include "kvq/codec/gone.h"\n'},
                "kvq/codec/pack.cc:1: [spelling] "),
    "reference header": (
        {"kvq/attention/attention.cc": '#include "kvq/attention/reference/attention.h"\n'},
        "kvq/attention/attention.cc:1: [test-only] "),
    "GoogleTest": ({"kvq/codec/pack.cc": "\n#include <gtest/gtest.h>\n"},
                   "kvq/codec/pack.cc:2: [test-only] "),
    "linked reference": (
        {"kvq/attention/CMakeLists.txt":
             "kvq_stage(attention\n  SOURCES a.cc\n  LIBRARIES kvq_attention_reference)\n"},
        "kvq/attention/CMakeLists.txt:3: [test-only] "),
    "linked by the command": (
        {"apps/kvq/CMakeLists.txt":
             "add_executable(kvq main.cc)\n"
             "target_link_libraries(kvq PRIVATE kvq::codec\n  kvq_attention_reference)\n"},
        "apps/kvq/CMakeLists.txt:3: [test-only] kvq links kvq_attention_reference"),
    "uses": ({"kvq/cache/CMakeLists.txt": "kvq_stage(cache\n  SOURCES a.cc\n  USES runtime)\n"},
             "kvq/cache/CMakeLists.txt:3: [uses] cache uses runtime"),
    "length": ({"kvq/codec/long.cc": "int x;\n" * 601}, "kvq/codec/long.cc:601: [length] 601 "),
}


def run(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return subprocess.run([sys.executable, CHECK, folder], capture_output=True, text=True,
                              check=False)


class CheckIncludes(unittest.TestCase):
    def test_good_tree_passes(self):
        result = run(GOOD)
        self.assertEqual((result.stdout, result.stderr, result.returncode), ("", "", 0))

    def test_longest_allowed_file_passes(self):
        self.assertEqual(run(GOOD | {"kvq/codec/long.cc": "int x;\n" * 600}).returncode, 0)

    def test_every_rule_fires_once(self):
        for name, (files, expected) in BAD.items():
            with self.subTest(name):
                result = run(GOOD | files)
                lines = result.stdout.splitlines()
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertTrue(lines[0].startswith(expected), lines)
                self.assertEqual(lines[1:], ["check_includes: 1 violation"])


if __name__ == "__main__":
    unittest.main()
