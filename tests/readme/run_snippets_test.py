"""run_snippets.py on made-up pages: failing blocks are found, the others pass."""
import contextlib
import io
import pathlib
import tempfile
import unittest

import run_snippets


def run(text):
    """(blocks run, blocks passed over, failures) of a page with this text."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        page = pathlib.Path(folder, "page.md")
        page.write_text(text, encoding="utf-8")
        scratch = pathlib.Path(folder, "scratch")
        scratch.mkdir()
        return run_snippets.run_page(page, run_snippets.Runner(scratch, scratch, scratch))


class RunSnippets(unittest.TestCase):
    def test_sh(self):
        self.assertEqual(run("```sh\ntrue\n```\n"), (1, 0, 0))
        self.assertEqual(run("```sh\nfalse\ntrue\n```\n"), (1, 0, 1))
        self.assertEqual(run("```sh\nfalse | true\n```\n"), (1, 0, 1))

    def test_make_goals(self):
        self.assertEqual(run("```sh\nmake help   # lists them\n```\n"), (1, 0, 0))
        self.assertEqual(run("```sh\nmake nonsense\n```\n"), (1, 0, 1))

    def test_not_run(self):
        self.assertEqual(run("<!-- not run: needs a network -->\n```sh\nfalse\n```\n"), (0, 1, 0))

    def test_json_and_text(self):
        self.assertEqual(run('```json\n{"a": 1}\n```\n```text\nanything\n```\n'), (2, 0, 0))
        self.assertEqual(run("```json\n{a}\n```\n"), (1, 0, 1))

    def test_links(self):
        self.assertEqual(run("[here](page.md#part), [there](https://example.com)\n"), (0, 0, 0))
        self.assertEqual(run("[gone](gone.md)\n"), (0, 0, 1))

    def test_unknown_language(self):
        self.assertEqual(run("```rust\npass\n```\n"), (1, 0, 1))

    def test_python_is_passed_over_where_the_package_is_not_built(self):
        self.assertEqual(run("```python\nraise SystemExit(1)\n```\n"), (0, 1, 0))

    def test_cpp_without_cmake(self):
        self.assertEqual(run("```cpp\nint main() {}\n```\n"), (1, 0, 1))


if __name__ == "__main__":
    unittest.main()
