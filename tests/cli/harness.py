"""Runs the built command, and makes models that are broken in one place.

Environment: KVQ_COMMAND = the command, KVQ_SOURCE = the source tree; CTest sets both.
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest

COMMAND = os.environ["KVQ_COMMAND"]
SOURCE = pathlib.Path(os.environ["KVQ_SOURCE"])
DEMO_MODEL = SOURCE / "models/demo-llama"
GOLDEN = pathlib.Path(__file__).parent / "golden"


def run(*arguments, **environment):
    """The finished process; stdout and stderr are texts."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment}, check=False)


class CommandTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvq-cli-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def succeed(self, *arguments, **environment):
        done = run(*arguments, **environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def succeed_json(self, *arguments):
        """The object that --json - writes; nothing else may be on stdout."""
        return json.loads(self.succeed(*arguments, "--json", "-").stdout)

    def fail_with(self, line, *arguments, status=1, **environment):
        """The command fails with exactly this line on stderr and leaves nothing on stdout."""
        done = run(*arguments, **environment)
        self.assertEqual(done.stderr, f"kvq: {line}\n")
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.returncode, status)

    def fail_matching(self, pattern, *arguments, **environment):
        """Likewise, with one line that matches the whole pattern."""
        done = run(*arguments, **environment)
        self.assertRegex(done.stderr, rf"\Akvq: {pattern}\n\Z")
        self.assertEqual((done.stdout, done.returncode), ("", 1))

    def assert_typed(self, value, types):
        """`types` is a type, a tuple of types, [element types] or {field: types}; fields that it
        does not name may be there."""
        if isinstance(types, dict):
            self.assertIsInstance(value, dict)
            for field, field_types in types.items():
                self.assertIn(field, value)
                self.assert_typed(value[field], field_types)
        elif isinstance(types, list):
            self.assertIsInstance(value, list)
            self.assertTrue(value)
            for element in value:
                self.assert_typed(element, types[0])
        else:
            self.assertIsInstance(value, types)
            if types is not bool:
                self.assertNotIsInstance(value, bool)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def model(self, replaced):
        """A directory like the demo model's in which files are replaced: {name: content (str or
        bytes), or None for no such file}."""
        directory = self.folder / "model"
        directory.mkdir()
        for file in DEMO_MODEL.iterdir():
            if file.is_file() and file.name not in replaced:
                (directory / file.name).symlink_to(file)
        for name, content in replaced.items():
            if isinstance(content, str):
                content = content.encode()
            if content is not None:
                (directory / name).write_bytes(content)
        return directory

    def model_with_config(self, **fields):
        """The demo model with other fields in config.json."""
        config = json.loads((DEMO_MODEL / "config.json").read_text())
        return self.model({"config.json": json.dumps({**config, **fields})})


class Safetensors:
    """A safetensors file taken apart: `header`, a dictionary, and `data`, the bytes after it."""

    def __init__(self, path=DEMO_MODEL / "model.safetensors"):
        content = path.read_bytes()
        length = struct.unpack_from("<Q", content)[0]
        self.header = json.loads(content[8:8 + length])
        self.data = bytearray(content[8 + length:])

    def bytes(self):
        header = json.dumps(self.header).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header + bytes(self.data)
