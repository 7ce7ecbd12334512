"""kvq plan --method sensitivity."""
import json
import unittest

from harness import DEMO_MODEL, CommandTest

RECALL = DEMO_MODEL / "tasks/recall.jsonl"
QUICK = ("--windows", 1, "--copies", 0, "--rounds", 0, "--bits", "2,4", "--groups", "64")


class SensitivityPlan(CommandTest):
    def test_plan_fits_the_budget_and_runs(self):
        path = self.folder / "plan.json"
        done = self.succeed("plan", "--budget", 2.75, *QUICK, "-o", path)
        plan = json.loads(path.read_text())
        self.assertEqual(plan["method"], "sensitivity")
        self.assertEqual(plan["budget"], 2.75)
        self.assertEqual(len(plan["layers"]), 8)
        self.assertLessEqual(plan["effective_bits"], 2.75)
        self.assertGreater(plan["effective_bits"], 2.6)
        # The layer of the demo model whose keys look things up.
        self.assertEqual(plan["layers"][6]["key"]["bits"], 4)
        self.assertRegex(done.stdout, r"\nKL to 16 bits 0\.\d+ on 1 windows of text that the model "
                                      r"wrote \(seed 0\), 0 of repeated tokens\n$")
        self.assertEqual(done.stderr, "")
        value = self.succeed_json("eval", "--plan", path, "--kv", "k3v2", "--windows", 1)
        by_name = {entry["name"]: entry["kl"] for entry in value["formats"]}
        self.assertLess(by_name[str(path)], by_name["k3v2"])

    def test_calibration_reads_a_file(self):
        lines = RECALL.read_text(encoding="utf-8").splitlines()
        text = self.write("text.txt", json.loads(lines[0])["prompt"] * 3)
        plan = self.succeed_json("plan", "--budget", 3, "--sensitivity", "kl", "--calibration",
                                 text, *QUICK)
        self.assertLessEqual(plan["effective_bits"], 3)


class Refused(CommandTest):
    def test_short_calibration(self):
        text = self.write("text.txt", "A few words.")
        self.fail_with(f"{text}: the text has 4 tokens, a window needs 1023",
                       "plan", "--budget", 2, "--calibration", text)

    def test_budget_below_the_smallest_plan(self):
        self.fail_matching(r"the smallest plan takes \d+ bytes for each 64 tokens, the budget is "
                           r"\d+", "plan", "--budget", 1.1, *QUICK)


if __name__ == "__main__":
    unittest.main()
