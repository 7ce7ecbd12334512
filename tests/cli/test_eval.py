"""kvq eval."""
import json
import unittest

from harness import DEMO_MODEL, CommandTest

RECALL = DEMO_MODEL / "tasks/recall.jsonl"
ARITH = DEMO_MODEL / "tasks/arith.jsonl"
TYPES = {"formats": [{"name": str, "effective_bits": float, "nll": float, "kl": float,
                      "top1": float, "tasks": dict}]}


class Eval(CommandTest):
    def test_table_and_json(self):
        path = self.folder / "eval.json"
        done = self.succeed("eval", "--kv", "k16v16", "--kv", "k2v2", "--windows", 1, "--tasks",
                            RECALL, "--tasks", ARITH, "--limit", 4, "--json", path)
        value = json.loads(path.read_text())
        self.assert_typed(value, TYPES)
        exact, packed = value["formats"]
        self.assertEqual((exact["name"], packed["name"]), ("k16v16", "k2v2"))
        self.assertLess(abs(exact["kl"]), 1e-6)
        self.assertEqual(exact["top1"], 1)
        self.assertGreater(packed["kl"], 0.001)
        for entry in value["formats"]:
            for task in ("recall", "arith"):
                self.assert_typed(entry["tasks"][task], {"accuracy": (int, float), "n": int})
                self.assertEqual(entry["tasks"][task]["n"], 4)
        lines = done.stdout.splitlines()
        self.assertRegex(lines[0], r"^text   written by the model itself \(seed 0\): 1 windows of "
                                   r"1,024 tokens, perplexity in 16 bits \d+\.\d+$")
        self.assertEqual(lines[1], "task   recall: 4 items, exact match")
        self.assertRegex(lines[5], r"^format +bits +cache +size +perplexity +KL +top-1 +"
                                   r"recall +arith$")
        self.assertRegex(lines[6], r"^k16v16 +16\.000 +8\.00 MiB +100 % .* 100\.0 % +100\.0 %$")
        self.assertRegex(lines[7], r"^k2v2 +2\.250 ")
        self.assertEqual(len(lines), 8)
        self.assertEqual(done.stderr, "")

    def test_text_file(self):
        text = self.write("text.txt", json.loads(RECALL.open().readline())["prompt"] * 3)
        value = self.succeed_json("eval", "--text", text, "--windows", 5)
        self.assertEqual(value["text"]["file"], str(text))
        self.assertLess(value["text"]["windows"], 5)
        self.assertEqual([entry["name"] for entry in value["formats"]], ["k4v2"])

    def test_free_running_agrees_with_teacher_forcing(self):
        arguments = ("eval", "--windows", 0, "--tasks", RECALL, "--limit", 20, "--kv", "k2v2")
        forced = self.succeed_json(*arguments)["formats"][0]
        self.assertIsNone(forced["kl"])
        self.assertEqual(forced, self.succeed_json(*arguments, "--generate")["formats"][0])

    def test_exact_prefill_measures_tasks(self):
        value = self.succeed_json("eval", "--prefill", "exact", "--tasks", RECALL, "--limit", 4)
        self.assertIsNone(value["text"])
        self.assertIn("recall", value["formats"][0]["tasks"])

    def test_same_seed_same_numbers(self):
        arguments = ("eval", "--windows", 1, "--kv", "k3v2", "--threads", 1)
        first = self.succeed_json(*arguments, "--seed", 3)
        self.assertEqual(first, self.succeed_json(*arguments, "--seed", 3))
        self.assertNotEqual(first["formats"][0]["kl"],
                            self.succeed_json(*arguments, "--seed", 4)["formats"][0]["kl"])


class Refused(CommandTest):
    def test_short_text(self):
        text = self.write("text.txt", "A few words.")
        self.fail_with(f"{text}: the text has 4 tokens, a window needs 1023", "eval", "--text", text)

    def test_task_lines(self):
        for line, message in (("{", "expected a JSON object"),
                              ('{"prompt": "a"}',
                               'expected a string "answer" that is not empty')):
            path = self.write("task.jsonl", '{"prompt": "a", "answer": "b"}\n' + line)
            self.fail_with(f"{path}:2: {message}", "eval", "--tasks", path)

    def test_item_longer_than_the_context(self):
        path = self.write("task.jsonl", json.dumps({"prompt": "word " * 4000, "answer": " b"}))
        self.fail_with(f"{path}:1: the item has 4004 tokens, the model's context is 2048",
                       "eval", "--tasks", path)

    def test_two_tasks_of_one_name(self):
        path = self.write("recall.jsonl", '{"prompt": "a", "answer": "b"}')
        self.fail_with(f"{path}: another task file is called recall too", "eval", "--tasks", RECALL,
                       "--limit", 1, "--tasks", path)

    def test_memory(self):
        self.fail_matching(
            r"no room for \d+ tokens behind token \d+: the cache is full: budget 100000 bytes, \d+ "
            r"in use, \d+ more requested", "eval", "--windows", 1, "--memory", "100KB")


if __name__ == "__main__":
    unittest.main()
