"""Engines of vLLM with kvq's caches against transformers, the command, and each other."""
import pathlib
import tempfile
import unittest

import kvq
from support import (MODEL, PAGE_BYTES, SLOT_BYTES, command_tokens, compare, engine, golden, greedy, metric,
                     prompts, tasks)

TOKENS = 32
ANSWER_TOKENS = 64  # no answer of a task is longer


class OfflineTest(unittest.TestCase):
    def run_engine(self, use, options, **engine_options):
        llm = engine(options, **engine_options)
        try:
            return use(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()

    def test_unquantized_is_what_transformers_gives(self):
        texts = [{"prompt_token_ids": entry["ids"]} for entry in golden()]
        outputs = self.run_engine(lambda llm: greedy(llm, texts, 24), {"kv": "k16v16"})
        compare(self, outputs, [entry["greedy"] for entry in golden()], "k16v16, golden")

    def test_eager_and_compiled_are_what_the_command_gives(self):
        expected = command_tokens(prompts(), TOKENS, "--kv", "k4v2", "--sinks", "0", "--window", "0")
        for eager in (True, False):
            outputs = self.run_engine(lambda llm: greedy(llm, prompts(), TOKENS), {"kv": "k4v2"},
                                      enforce_eager=eager)
            compare(self, outputs, expected, f"k4v2, {'eager' if eager else 'compiled'}")

    def test_a_plan_of_several_widths_with_a_window(self):
        with tempfile.TemporaryDirectory() as folder:
            plan = str(pathlib.Path(folder) / "plan.json")
            kvq.Plan.of_specs(["k4v2", "k2v2", "k8v4", "k3v2"] * 2, 2, 64, sinks=0).save(plan)
            expected = command_tokens(prompts(), TOKENS, "--plan", plan)
            outputs = self.run_engine(lambda llm: greedy(llm, prompts(), TOKENS), {"plan": plan, "window": 64})
        compare(self, outputs, expected, "a plan, window 64")

    def test_shared_prefixes_chunks_and_preemption_change_nothing(self):
        """Few blocks, prompts longer than a chunk, and every prompt several times."""
        items = [item for name in ("recall", "arith") for item in tasks(name, 12)]
        items = [item for item in items for _ in range(2)]
        texts = [item["prompt"] for item in items]
        blocks = 36
        found = {}

        def use(llm):
            outputs = greedy(llm, texts, ANSWER_TOKENS)
            found["hits"] = metric(llm, "vllm:prefix_cache_hits")
            found["preempted"] = metric(llm, "vllm:num_preemptions")
            return outputs

        plain = self.run_engine(lambda llm: greedy(llm, texts, ANSWER_TOKENS), {"kv": "k4v2"})
        tight = self.run_engine(use, {"kv": "k4v2"}, enable_prefix_caching=True, max_num_batched_tokens=192,
                                kv_cache_memory_bytes=blocks * PAGE_BYTES + 8 * SLOT_BYTES)
        print(f"{found['hits']} prompt tokens reused, {found['preempted']} preemptions")
        self.assertGreater(found["hits"], 5000)
        self.assertGreater(found["preempted"], 0)
        compare(self, tight, [list(output.token_ids) for output in plain], "shared prefixes")
        for outputs in (plain, tight):
            right = sum(output.text.startswith(item["answer"]) for output, item in zip(outputs, items))
            self.assertEqual(right, len(texts))

    def test_samples_of_one_prompt(self):
        from vllm import SamplingParams
        text = tasks("recall", 1)[0]["prompt"]
        options = SamplingParams(n=4, temperature=0.9, max_tokens=TOKENS, seed=7)

        def use(llm):
            return [[list(sample.token_ids) for sample in llm.generate([text], options)[0].outputs]
                    for _ in range(2)]

        first, again = self.run_engine(use, {"kv": "k4v2"}, enable_prefix_caching=True)
        self.assertEqual(first, again)
        self.assertEqual(len(first), 4)


class RefusedTest(unittest.TestCase):
    def test_what_kvq_cannot_serve_is_refused_before_the_model_loads(self):
        for message, options, more in (
                ("--block-size: expected 64, found 16", {"kv": "k4v2"}, {"block_size": 16}),
                ("--kv-cache-dtype: expected auto, found fp8", {"kv": "k4v2"}, {"kv_cache_dtype": "fp8"}),
                ("window: expected 0 or 64, found 63", {"kv": "k4v2", "window": 63}, {}),
                ("plan: expected a file", {"plan": "/none.json"}, {})):
            with self.subTest(message):
                with self.assertRaisesRegex(Exception, message):
                    engine(options, **more)

    def test_vllm_is_as_it_was_without_configuration(self):
        llm = engine(None)
        try:
            outputs = greedy(llm, [{"prompt_token_ids": golden()[0]["ids"]}], 24)
        finally:
            llm.llm_engine.engine_core.shutdown()
        self.assertEqual(list(outputs[0].token_ids), golden()[0]["greedy"])


if __name__ == "__main__":
    assert MODEL.is_dir()
    unittest.main()
