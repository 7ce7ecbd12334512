#!/usr/bin/env python3
"""Runs the code blocks of Markdown pages.

  ```sh     runs under `bash -eu`, in a scratch folder where build/ and models/ are those of the project.
            `make GOAL` lines are resolved with `make -n` only: some of the goals run this very test.
  ```cmake  is the CMakeLists.txt of the next ```cpp block, which is built against the installed package
            and run.
  ```json   is parsed.
  ```python runs in the same scratch folder with the package of build/python; passed over where that is
            not built or what the block imports is not installed.
  A block after the comment `<!-- not run: REASON -->` is passed over, and counted.
Other blocks (text) are not code. Links to files of the project must lead to a file.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command, folder):
    """None, or what the failing command printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}{done.stderr}"


class Runner:
    def __init__(self, build, prefix, folder):
        self.build, self.prefix, self.folder = build, prefix, folder
        self.cmake = None
        self.count = 0
        self.python = None  # an interpreter
        (folder / "build").symlink_to(build)
        (folder / "models").symlink_to(ROOT / "models")

    def sh(self, text):
        lines = text.splitlines()
        for line in lines:
            if line.startswith("make "):
                goals = line.split("#")[0].split()[1:]
                if error := run(["make", "-n", *goals], ROOT):
                    return error
        script = "\n".join(line for line in lines if not line.startswith("make "))
        return run(["bash", "-euo", "pipefail", "-c", script], self.folder)

    def cpp(self, text):
        if self.cmake is None:
            return "no ```cmake block before it"
        self.count += 1
        program = re.search(r"add_executable\((\w+)", self.cmake).group(1)
        source = self.folder / f"cpp{self.count}"
        source.mkdir()
        (source / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(snippet LANGUAGES CXX)\n" + self.cmake,
            encoding="utf-8")
        (source / "main.cc").write_text(text, encoding="utf-8")
        return run(["cmake", "-S", ".", "-B", "out", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={self.prefix}"],
                   source) \
            or run(["cmake", "--build", "out"], source) \
            or run([f"out/{program}"], source)

    def passes_over(self, language, text):
        """Whether what a block needs is not there."""
        if language != "python":
            return False
        names = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)) - {"kvq"}
        found = "; ".join(f"assert importlib.util.find_spec({name!r})" for name in sorted(names))
        return self.python is None or not (self.build / "python/kvq").exists() or \
            run([self.python, "-c", f"import importlib.util; {found}"], self.folder) is not None

    def block(self, language, text):
        """None, or why the block failed."""
        if language == "python":
            return run(["env", f"PYTHONPATH={self.build / 'python'}", "OMP_NUM_THREADS=1", self.python,
                        "-c", text], self.folder)
        if language == "cmake":
            self.cmake = text
            return None
        if language == "json":
            try:
                json.loads(text)
            except ValueError as error:
                return str(error)
            return None
        if language in ("sh", "cpp"):
            return getattr(self, language)(text)
        return f"unknown language {language}; use sh, cpp, cmake, json, python or text" \
            if language != "text" else None


def run_page(page, runner):
    """(blocks run, blocks passed over, failures) of a page."""
    text = page.read_text(encoding="utf-8")
    ran = skipped = failures = 0
    for match in LINK.finditer(text):
        if not (page.parent / match.group(1)).exists():
            line = text.count("\n", 0, match.start()) + 1
            print(f"{page}:{line}: the link leads nowhere: {match.group(1)}")
            failures += 1
    for match in BLOCK.finditer(text):
        if match.group(1) or runner.passes_over(match.group(2), match.group(3)):
            skipped += 1
            continue
        ran += 1
        if error := runner.block(match.group(2), match.group(3)):
            line = text.count("\n", 0, match.start(2)) + 1
            print(f"{page}:{line}: the {match.group(2)} block fails: {error}")
            failures += 1
    return ran, skipped, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="build folder with kvq")
    parser.add_argument("--prefix", type=pathlib.Path, required=True, help="where kvq is installed")
    parser.add_argument("--python", help="interpreter for python blocks")
    parser.add_argument("pages", nargs="+", help="Markdown files, from the root of the project")
    options = parser.parse_args()
    failed = 0
    for name in options.pages:
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(options.build.resolve(), options.prefix.resolve(), pathlib.Path(folder))
            runner.python = options.python
            ran, skipped, failures = run_page(ROOT / name, runner)
        print(f"{name}: {ran} blocks run, {skipped} not run, {failures} failed")
        failed += failures
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
