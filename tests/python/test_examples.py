"""The scripts of python/examples run."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import support


class ExampleTest(unittest.TestCase):
    def run_example(self, name, *arguments, model=support.DEMO_MODEL):
        done = subprocess.run(
            [sys.executable, support.SOURCE / "python/examples" / f"{name}.py", model, *arguments],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_plan(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "plan.json")
            self.assertIn("3.250 stored bits", self.run_example("plan", "--budget", "3", "--norm", "frobenius", "-o",
                                                                     file))
            self.assertTrue(file.exists())
            model = pathlib.Path(folder, "tiny")
            support.make_tiny_model(model)
            self.assertIn("on the calibration text: 0.", self.run_example("plan", "--budget", "7", model=model))

    @support.needs_transformers
    def test_generate(self):
        out = self.run_example("generate", "The quick brown fox jumps over the lazy dog.", "--tokens", "12")
        self.assertIn("The sun was setting", out)
        self.assertIn("KiB of k4v2", out)

    @support.needs_transformers
    def test_long_context(self):
        out = self.run_example("long_context", support.DEMO_MODEL / "prompts/story.txt", " She", " He",
                               "--tokens", "4")
        self.assertEqual([line[:3] for line in out.splitlines()[1:3]], [" Sh", " He"])

    @support.needs_transformers
    def test_batch(self):
        out = self.run_example("batch", "The sea", "Once upon a time there was", "--tokens", "6")
        self.assertEqual(len(out.splitlines()), 3)

    @support.needs_transformers
    def test_evaluate(self):
        out = self.run_example("evaluate", support.DEMO_MODEL / "prompts/arith.txt", "k4v2", "k2v2",
                               "--tokens", "200")
        divergences = [float(line.split()[2]) for line in out.splitlines()]
        self.assertLess(divergences[0], divergences[1])


if __name__ == "__main__":
    unittest.main()
