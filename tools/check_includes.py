#!/usr/bin/env python3
"""Checks that the sources keep to the chain of stages.

usage: check_includes.py [ROOT]        (default: the repository that holds this script)

Prints `file:line: [rule] what is wrong` for every violation and exits 1 if there is one. Rules:
  spelling   a quoted include is written from the root of the tree and names a file that exists
  direction  a stage includes headers of the stages it may use, and of itself
  cycle      no file includes itself through others
  test-only  reference implementations, test headers and GoogleTest serve only tests
  uses       USES in a stage's CMakeLists.txt names stages that it may use
  length     no source file is longer than 600 lines
"""
import pathlib
import re
import sys

# What each stage may use; a line only uses lines above it.
STAGES = {
    "base": (),
    "codec": ("base",),
    "plan": ("base", "codec"),
    "cache": ("base", "codec", "plan"),
    "attention": ("base", "codec", "plan", "cache"),
    "model": ("base",),
    "runtime": ("base", "codec", "plan", "cache", "attention", "model"),
    "eval": ("base", "codec", "plan", "cache", "attention", "model", "runtime"),
    "analysis": ("base", "codec", "plan", "cache", "attention", "model", "runtime", "eval"),
    "report": ("base", "codec", "plan", "cache", "attention", "model", "runtime", "eval", "analysis"),
}
# Folders outside the chain: they may include every stage, themselves, and these folders.
CALLERS = {"bench": (), "apps": ("bench",), "fuzz": (), "python": (), "tests": ()}

MAX_LINES = 600
SOURCES = (".h", ".inl", ".cc", ".cpp", ".cu", ".cuh")
COUNTED = SOURCES + (".py", ".sh", ".cmake")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
# Keywords of kvq_stage().
SECTIONS = ("HEADERS", "SOURCES", "USES", "LIBRARIES", "PRIVATE_LIBRARIES", "TESTS", "TEST_LIBRARIES")
TEST_LIBRARY = re.compile(r"reference|gtest|gmock", re.IGNORECASE)


def source_files(root, suffixes):
    """Files of the tree with these suffixes, build folders and hidden folders left out."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(p.startswith((".", "build")) for p in parts[:-1])
        if path.is_file() and not hidden and (path.suffix in suffixes or path.name in suffixes):
            yield path


def stage_of(name):
    """The stage of kvq/<stage>/..., or the top folder of other files."""
    parts = name.split("/")
    return parts[1] if parts[0] == "kvq" and len(parts) > 2 else parts[0]


def is_test_only(name):
    """Tests, their helpers, and the plain reference implementations."""
    parts = name.split("/")
    words = re.split(r"[_.]", parts[-1])
    return parts[0] in ("tests", "fuzz") or "reference" in parts or "reference" in words \
        or "test" in words


def includes(path):
    """(line number, name, is quoted) of every include in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match.group(1) or match.group(2), match.group(1) is not None


def check_include(root, name, included, quoted):
    """What is wrong with `name` including `included`: (rule, text), or None."""
    if not quoted:
        if included.startswith("gtest/") and not is_test_only(name):
            return "test-only", f"<{included}> outside a test"
        return None
    if included.split("/")[0] not in ("kvq", *CALLERS) or not (root / included).is_file():
        return "spelling", f'"{included}" is no file of the tree; write "kvq/<stage>/<file>.h"'
    here, there = stage_of(name), stage_of(included)
    if here in STAGES and there != here and there not in STAGES[here]:
        allowed = ", ".join(STAGES[here]) or "no other stage"
        return "direction", f'{here} includes "{included}"; it may use {allowed}'
    if here in CALLERS and there not in (*STAGES, *CALLERS[here], here):
        allowed = ", ".join(("the stages", *CALLERS[here]))
        return "direction", f'{here} includes "{included}"; it may use {allowed}'
    if is_test_only(included) and not is_test_only(name):
        return "test-only", f'"{included}" outside a test'
    return None


def find_cycle(graph):
    """A list of files, each including the next and the last the first; empty if there is none."""
    state = {}  # absent: not seen, 1: on the path, 2: done

    def visit(node, path):
        state[node] = 1
        for neighbour in graph.get(node, ()):
            if state.get(neighbour) == 1:
                return path[path.index(neighbour):]
            if neighbour not in state and (cycle := visit(neighbour, path + [neighbour])):
                return cycle
        state[node] = 2
        return []

    for node in graph:
        if node not in state and (cycle := visit(node, [node])):
            return cycle
    return []


def check_sources(root):
    graph, lines = {}, {}
    for path in source_files(root, SOURCES):
        name = path.relative_to(root).as_posix()
        if name.startswith("kvq/") and stage_of(name) not in STAGES:
            yield name, 1, "direction", f"{stage_of(name)} is not a stage of check_includes.py"
            continue
        for number, included, quoted in includes(path):
            if wrong := check_include(root, name, included, quoted):
                yield name, number, *wrong
            if quoted:
                graph.setdefault(name, []).append(included)
                lines[name, included] = number
    if cycle := find_cycle(graph):
        following = cycle[1:] + cycle[:1]
        yield cycle[0], lines[cycle[0], following[0]], "cycle", " -> ".join(cycle + cycle[:1])


def cmake_commands(text):
    """(line number, command, arguments with their line numbers) of a CMake file."""
    text = re.sub(r"#[^\n]*", "", text)
    for match in re.finditer(r"(\w+)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text):
        first = text.count("\n", 0, match.start()) + 1
        words = [(text.count("\n", 0, match.start(2) + w.start()) + 1, w.group())
                 for w in re.finditer(r"\S+", match.group(2))]
        yield first, match.group(1).lower(), words


def check_stage_command(name, words):
    """Violations in the arguments of one kvq_stage(...)."""
    stage = words[0][1]
    section = ""
    for number, word in words[1:]:
        if word in SECTIONS:
            section = word
        elif section == "USES" and word not in STAGES.get(stage, ()):
            allowed = ", ".join(STAGES.get(stage, ())) or "no other stage"
            yield name, number, "uses", f"{stage} uses {word}; it may use {allowed}"
        elif not section.startswith("TEST") and TEST_LIBRARY.search(word):
            yield name, number, "test-only", f"{word} in {section} of stage {stage}"


def check_cmake(root):
    for path in source_files(root, ("CMakeLists.txt",)):
        name = path.relative_to(root).as_posix()
        for _, command, words in cmake_commands(path.read_text(encoding="utf-8")):
            if command == "kvq_stage" and words:
                yield from check_stage_command(name, words)
            elif command == "target_link_libraries" and words:
                target = words[0][1]
                if is_test_only(name) or re.search(r"test|reference", target):
                    continue
                for number, word in words[1:]:
                    if TEST_LIBRARY.search(word):
                        yield name, number, "test-only", f"{target} links {word}"


def check_lengths(root):
    for path in source_files(root, COUNTED):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MAX_LINES:
            name = path.relative_to(root).as_posix()
            yield name, MAX_LINES + 1, "length", f"{count} lines; at most {MAX_LINES}"


def main(arguments):
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 2
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parents[1]).resolve()
    count = 0
    for check in (check_sources, check_cmake, check_lengths):
        for name, number, rule, text in check(root):
            print(f"{name}:{number}: [{rule}] {text}")
            count += 1
    if count:
        print(f"check_includes: {count} violation{'s' if count > 1 else ''}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
