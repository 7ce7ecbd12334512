"""kvq generate."""
import json
import signal
import subprocess
import time
import unittest

from harness import COMMAND, DEMO_MODEL, CommandTest

TYPES = {"outputs": [{"text": str, "tokens": [int]}], "prefill_tokens_per_s": float,
         "decode_tokens_per_s": float, "cache_bytes": int, "cache_bytes_16bit": int,
         "effective_bits": float, "kernel": str}
RECALL = DEMO_MODEL / "prompts/recall.txt"
# The numbers after the budget depend on how prompts are cut into pieces.
FULL = (r"no room for \d+ tokens behind token 0: the cache is full: budget 65536 bytes, \d+ in use, "
        r"\d+ more requested")
STORY = DEMO_MODEL / "prompts/story.txt"


def golden():
    """Greedy continuations that transformers made."""
    return json.loads((DEMO_MODEL / "golden.json").read_text())


class Text(CommandTest):
    def test_streamed_text_is_what_transformers_says(self):
        item = golden()[0]
        done = self.succeed("generate", "-p", item["text"], "-n", 24, "--kv", "k16v16")
        self.assertEqual(done.stdout, item["greedy_text"] + "\n")

    def test_summary(self):
        done = self.succeed("generate", "-f", RECALL, "-n", 3)
        self.assertRegex(done.stderr, r"""^
prompt    \d+ tokens, [\d,]+ tokens/s
new text  3 tokens, [\d,]+ tokens/s
cache     [\d.]+ [KM]iB instead of [\d.]+ MiB in 16 bits: [\d.]+ times smaller
format    k4v2, 3\.250 bits a packed number; the first 4 and the newest 64 tokens in 16 bits
kernel    .* k4 v2.*, \d+ threads?, weights in (bfloat16|float32)
$""")

    def test_recall_on_a_packed_cache(self):
        done = self.succeed("generate", "-f", RECALL, "-n", 4, "--kv", "k4v2")
        answer = json.loads((DEMO_MODEL / "tasks/recall.jsonl").open().readline())["answer"]
        self.assertTrue(done.stdout.startswith(answer), done.stdout)

    def test_seed(self):
        def text(seed):
            return self.succeed("generate", "-f", STORY, "-n", 20, "--temperature", 1, "--top-k",
                                50, "--top-p", 0.95, "--seed", seed).stdout
        self.assertEqual(text(1), text(1))
        self.assertNotEqual(text(1), text(2))

    def test_batch(self):
        texts = [item["text"] for item in golden()[:2]]
        lines = self.write("p.jsonl", "".join(json.dumps({"prompt": t}) + "\n" for t in texts))
        batch = self.succeed_json("generate", "--prompts", lines, "-n", 12, "--kv", "k16v16")
        repeated = self.succeed_json("generate", "-p", texts[0], "-p", texts[1], "-n", 12, "--kv",
                                     "k16v16")
        self.assertEqual(batch["outputs"], repeated["outputs"])
        for output, item in zip(batch["outputs"], golden()):
            self.assertEqual(output["tokens"], item["greedy"][:12])
        printed = self.succeed("generate", "--prompts", lines, "-n", 12, "--kv", "k16v16").stdout
        self.assertIn(f"--- prompt 2 of 2\n{texts[1]}{batch['outputs'][1]['text']}\n", printed)


class Json(CommandTest):
    def test_fields(self):
        value = self.succeed_json("generate", "-f", RECALL, "-n", 8, "--kv", "k4v2")
        self.assert_typed(value, TYPES)
        self.assertEqual(value["effective_bits"], 3.25)
        self.assertEqual(len(value["outputs"][0]["tokens"]), 8)
        self.assertLess(value["cache_bytes"], value["cache_bytes_16bit"] / 2)
        self.assertGreater(value["decode_tokens_per_s"], 0)

    def test_every_format_names_its_kernel(self):
        for spec in ("k16v16", "k8v4", "k4:g32:channel:affine:minmax:none,v2:g64:token", "k1v1.58"):
            value = self.succeed_json("generate", "-f", RECALL, "-n", 4, "--kv", spec)
            self.assertTrue(value["kernel"], spec)

    def test_instruction_set_is_the_one_asked_for(self):
        value = self.succeed_json("generate", "-p", "Hello", "-n", 2, "--isa", "portable")
        self.assertTrue(value["kernel"].startswith("portable"), value["kernel"])


class Refused(CommandTest):
    def test_empty_prompt_file(self):
        path = self.write("empty.txt", "")
        self.fail_with(f"{path}: the prompt is empty", "generate", "-f", path)

    def test_empty_prompt_line(self):
        path = self.write("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n')
        self.fail_with(f'{path}:2: expected a string "prompt" that is not empty', "generate",
                       "--prompts", path)

    def test_missing_prompt_file(self):
        self.fail_with("/no/file: cannot open: No such file or directory", "generate", "-f",
                       "/no/file")

    def test_prompt_longer_than_the_context(self):
        path = self.write("long.txt", "word " * 4000)
        self.fail_with("prompt 0: 4003 tokens exceed the model's context of 2048", "generate", "-f",
                       path)

    def test_pool_too_small(self):
        self.fail_matching(FULL, "generate", "-f", RECALL, "--memory", "64KiB")

    def test_cuda(self):
        self.fail_matching("--device cuda: (this build has no CUDA support|no CUDA device: .+)",
                           "generate", "-p", "a", "--device", "cuda", CUDA_VISIBLE_DEVICES="")

    def test_unwritable_json(self):
        self.fail_with("/no/dir/out.json: cannot write: there is no directory /no/dir", "generate",
                       "-p", "a", "--json", "/no/dir/out.json")
        self.fail_with(f"{self.folder}: is a directory", "generate", "-p", "a", "--json",
                       self.folder)

    def test_failed_run_writes_no_json(self):
        path = self.folder / "out.json"
        path.write_text("before")
        self.fail_matching(FULL, "generate", "-f", RECALL, "--memory", "64KiB", "--json", path)
        self.assertEqual(path.read_text(), "before")
        self.assertEqual(list(self.folder.iterdir()), [path])


class Interrupt(CommandTest):
    def test_summary_so_far(self):
        path = self.folder / "out.json"
        # A temperature keeps the model from falling silent; the text would take many seconds.
        process = subprocess.Popen(
            [COMMAND, "generate", "-f", STORY, "-n", "2000", "--temperature", "1", "--threads", "1",
             "--isa", "portable", "--json", path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        first = process.stdout.read(1)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        self.assertTrue((first + rest).endswith(b"\n"))
        self.assertRegex(errors.decode(), r"^\ninterrupted\nprompt +\d+ tokens")
        value = json.loads(path.read_text())
        self.assert_typed(value, {**TYPES, "interrupted": bool})
        self.assertTrue(value["interrupted"])
        self.assertLess(len(value["outputs"][0]["tokens"]), 2000)


if __name__ == "__main__":
    unittest.main()
