"""A program that uses the package is typed through and through."""
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import unittest

import kvq

PROGRAM = """import numpy as np

import kvq
from kvq import KVQCacheConfig, KVQConfig, LayerCache, Norms, Plan


def pack(key: np.ndarray, value: np.ndarray) -> int:
    pages = kvq.pack(key, value, "k4v2")
    stored_key, stored_value = kvq.unpack(pages, "k4v2", head_dim=64)
    cache = LayerCache("k4v2", kv_heads=2, head_dim=64)
    cache.append(stored_key[None], stored_value[None])
    lengths: list[int] = cache.lengths
    return sum(lengths) + kvq.page_bytes("k4v2", 64) + cache.nbytes


def choose(model: str) -> list[str]:
    norms: Norms = kvq.norms(model, "spectral")
    plan: Plan = kvq.plan(model, budget=2.5, norms=norms)
    specs: list[str] = plan.specs
    bits: float = plan.effective_bits + sum(norms.w_k)
    result = kvq.analyze(model, windows=1, report="page.html")
    print(bits, result["formats"], plan.divergence, kvq.__version__, kvq.PAGE_TOKENS)
    kvq.set_thread_count(kvq.thread_count())
    return specs


def configure(model: str) -> tuple[KVQConfig, KVQCacheConfig]:
    return KVQConfig(nbits={"k": 4, "v": 2}), KVQCacheConfig(nbits_k=4, backend="hqq", axis_key=1, axis_value=1)


def cache(config: KVQConfig) -> int:
    return kvq.KVQ(config).fork().nbytes
"""


@unittest.skipUnless(importlib.util.find_spec("mypy"), "mypy is not installed")
class TypesTest(unittest.TestCase):
    def check(self, program):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "program.py")
            file.write_text(program, encoding="utf-8")
            home = pathlib.Path(kvq.__file__).parents[1]
            installed = home.name == "site-packages"  # where mypy looks by itself
            return subprocess.run(
                # Generated stubs leave out what arrays and dictionaries hold.
                [sys.executable, "-m", "mypy", "--strict", "--allow-any-generics", "--follow-imports=silent",
                 "--cache-dir", folder, file],
                capture_output=True, text=True, check=False, cwd=folder,
                env={} if installed else {"MYPYPATH": str(home)})

    def test_strict(self):
        done = self.check(PROGRAM)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        # It looks at the package's types at all.
        done = self.check(PROGRAM.replace("specs: list[str]", "specs: list[int]"))
        self.assertIn("list[int]", done.stdout)


if __name__ == "__main__":
    unittest.main()
