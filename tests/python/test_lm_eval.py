"""python -m kvq.lm_eval: both kinds of tasks read packed keys and values, as `kvq eval` does."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import support

HAS_LM_EVAL = support.HAS_TRANSFORMERS and importlib.util.find_spec("lm_eval") is not None
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@unittest.skipUnless(HAS_LM_EVAL, "lm_eval is not installed")
class LmEvalTest(unittest.TestCase):
    def run_tasks(self, tasks, kvq, limit, *more):
        """{task: {metric: score}}, or what a failed run wrote to stderr."""
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "kvq.lm_eval", "run", "--model", "kvq-hf", "--model_args",
                 f"pretrained={support.DEMO_MODEL},dtype=float32", "--kvq", kvq, "--device", "cpu",
                 "--task-data", support.DEMO_MODEL / "tasks", "--tasks", tasks, "--limit", str(limit),
                 "--output_path", folder, *more],
                capture_output=True, text=True, check=False, env={**os.environ, **OFFLINE})
            if done.returncode != 0:
                return done.stderr
            file = next(pathlib.Path(folder).rglob("results*.json"))
            return json.loads(file.read_text(encoding="utf-8"))["results"]

    def succeed(self, *arguments):
        results = self.run_tasks(*arguments)
        self.assertIsInstance(results, dict, results)
        return results

    def test_generated_and_scored_tasks_read_packed_rows(self):
        for kvq, low, high in (("k16v16", 1.0, 1.0), ("k1v1", 0.0, 0.5)):
            results = self.succeed("kvq_recall,kvq_recall_choice", kvq, 6)
            for task, metric in (("kvq_recall", "exact,none"), ("kvq_recall_choice", "acc,none")):
                self.assertGreaterEqual(results[task][metric], low, (kvq, task))
                self.assertLessEqual(results[task][metric], high, (kvq, task))

    def test_scores_are_those_of_the_command(self):
        if support.command() is None:
            self.skipTest("the command is not built")
        tasks = support.DEMO_MODEL / "tasks"
        done = subprocess.run(
            [support.command(), "eval", "--generate", "--kv", "k2v2", "--limit", "12", "--windows", "1",
             "--tasks", tasks / "recall.jsonl", "--tasks", tasks / "arith.jsonl", "--json", "-"],
            capture_output=True, text=True, check=True)
        expected = json.loads(done.stdout)["formats"][0]["tasks"]
        results = self.succeed("kvq_recall,kvq_arith", "k2v2", 12, "--batch_size", "4")
        for task in ("recall", "arith"):
            self.assertAlmostEqual(results[f"kvq_{task}"]["exact,none"], expected[task]["accuracy"])

    def test_the_seeds_object_and_what_is_refused(self):
        results = self.succeed("kvq_recall", '{"nbits_k": 4, "nbits_v": 2, "backend": "quanto"}', 2)
        self.assertIn("exact,none", results["kvq_recall"])
        self.assertIn("never reads the packed cache",
                      self.run_tasks("kvq_recall", '{"spec": "k4v2", "prefill": "exact"}', 2))


if __name__ == "__main__":
    unittest.main()
