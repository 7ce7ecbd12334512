"""kvq bench: small runs; the numbers are not looked at, only what they are numbers of."""
import unittest

from harness import CommandTest

ATTENTION = {"formats": [{"name": str, "kernel": str, "seconds": float, "packed_bytes": int,
                          "gb_per_s": float, "read_gb_per_s": float,
                          "fraction_of_bandwidth": float}]}
APPEND = {"formats": [{"name": str, "kernel": str, "seconds": float, "packed_bytes": int,
                       "gb_per_s": float, "read_gb_per_s": float,
                       "fraction_of_bandwidth": float, "share_of_decode_step": float}]}
GENERATE = {"formats": [{"name": str, "kernel": str, "prefill_tokens_per_s": float,
                         "decode_tokens_per_s": float, "cache_bytes": int}]}

EVAL = {"formats": [{"name": str, "kernel": str, "tokens_per_s": float}]}


class Bench(CommandTest):
    def test_append(self):
        value = self.succeed_json("bench", "append", "--tokens", 256, "--rounds", 1, "--kv-heads",
                                  1, "--query-heads", 2, "--kv", "k4v2", "--kv", "k16v16")
        self.assert_typed(value, APPEND)
        self.assertEqual([entry["name"] for entry in value["formats"]], ["k4v2", "k16v16"])

    def test_generate(self):
        value = self.succeed_json("bench", "generate", "--prompt-tokens", 100, "--new-tokens", 4,
                                  "--rounds", 2, "--batch", 2, "--kv", "k4v2", "--kv", "k2v2")
        self.assert_typed(value, GENERATE)
        self.assertEqual([entry["name"] for entry in value["formats"]], ["k4v2", "k2v2"])

    def test_generate_from_filled_caches(self):
        value = self.succeed_json("bench", "generate", "--fill", "--prompt-tokens", 100,
                                  "--new-tokens", 4, "--rounds", 1, "--kv", "k4v2")
        self.assert_typed(value, GENERATE)
        entry = value["formats"][0]
        self.assertEqual(entry["prefill_tokens_per_s"], 0)
        self.assertGreater(entry["decode_tokens_per_s"], 0)
        self.assertNotIn("largest_batch", entry)

    def test_largest_batch(self):
        value = self.succeed_json("bench", "generate", "--fill", "--largest-batch", "--memory",
                                  "16MB", "--prompt-tokens", 500, "--new-tokens", 2, "--rounds", 1,
                                  "--kv", "k16v16", "--kv", "k4v2")
        exact, packed = [entry["largest_batch"] for entry in value["formats"]]
        self.assertGreaterEqual(exact, 1)
        self.assertGreater(packed, exact)

    def test_largest_batch_without_a_bound(self):
        self.fail_with("--largest-batch: expected --memory, or --device cuda, whose memory is the "
                       "limit", "bench", "generate", "--largest-batch")

    def test_random_model(self):
        self.fail_with("a model of random weights: expected --device cuda", "bench", "generate",
                       "--random-model", "llama-8b")

    def test_attention(self):
        value = self.succeed_json("bench", "attention", "--tokens", 512, "--rounds", 2,
                                  "--kv-heads", 1, "--query-heads", 4, "--kv", "k4v2", "--kv",
                                  "k16v16", "--threads", 1)
        self.assert_typed(value, ATTENTION)
        self.assertEqual([entry["name"] for entry in value["formats"]], ["k4v2", "k16v16"])
        for entry in value["formats"]:
            for data in entry["accuracy"].values():
                self.assertLess(data["relative_error"], 0.02)

    def test_attention_of_a_batch(self):
        arguments = ("bench", "attention", "--tokens", 512, "--rounds", 1, "--kv-heads", 1,
                     "--query-heads", 4, "--kv", "k4v2", "--precision", "fast")
        one = self.succeed_json(*arguments)["formats"][0]
        three = self.succeed_json(*arguments, "--batch", 3)["formats"][0]
        self.assertEqual(three["packed_bytes"], 3 * one["packed_bytes"])

    def test_eval(self):
        value = self.succeed_json("bench", "eval", "--tokens", 100, "--windows", 1, "--rounds", 1,
                                  "--kv", "k4v2", "--kv", "k2v2")
        self.assert_typed(value, EVAL)
        self.assertEqual([entry["name"] for entry in value["formats"]], ["k4v2", "k2v2"])

    def test_beyond_the_context(self):
        self.fail_with("4096 tokens exceed the model's context of 2048", "bench", "eval",
                       "--tokens", 4096)
        self.fail_with("2000 + 100 tokens exceed the model's context of 2048", "bench", "generate",
                       "--prompt-tokens", 2000, "--new-tokens", 100)


if __name__ == "__main__":
    unittest.main()
