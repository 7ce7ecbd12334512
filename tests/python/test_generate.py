"""generate() of transformers with a KVQ cache: greedy, sampling, batches, refusals."""
import copy
import json
import subprocess
import unittest
import warnings

import kvq
import support

if support.HAS_TRANSFORMERS:
    import torch
    from kvq import KVQ, KVQConfig
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM


@support.needs_transformers
class GreedyTest(unittest.TestCase):
    def test_golden_prompts_at_sixteen_bits(self):
        fused, plain = support.load(support.DEMO_MODEL, "kvq"), support.load(support.DEMO_MODEL)
        equal = 0
        for item in support.golden():
            ids, expected = torch.tensor([item["ids"]]), item["greedy"]
            self.assertEqual(support.generate(plain, ids, DynamicCache(), 24), expected)
            found = support.generate(fused, ids, KVQ("k16v16"), 24)
            equal += found == expected
            if found == expected:
                continue
            # Rows are fp16 in one cache and float32 in the other: of two nearly equal tokens either wins.
            first = next(i for i, (x, y) in enumerate(zip(found, expected)) if x != y)
            with torch.no_grad():
                logits = plain(torch.tensor([item["ids"] + expected[:first]])).logits[0, -1]
            self.assertLess(logits[expected[first]] - logits[found[first]], 0.02)
        self.assertGreaterEqual(equal, len(support.golden()) - 1)

    def test_every_attention_sees_the_same_sixteen_bits(self):
        ids = support.long_prompt()
        expected = support.generate(support.load(support.DEMO_MODEL), ids, DynamicCache())
        for attention in ("kvq", "sdpa", "eager"):
            with self.subTest(attention), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = support.load(support.DEMO_MODEL, attention)
                self.assertEqual(support.generate(model, ids, KVQ("k16v16")), expected)
        self.assertEqual(support.generate(support.load(support.DEMO_MODEL, "kvq"), ids, None), expected)

    def test_packed_codes_as_the_command_reads_them(self):
        if support.command() is None:
            self.skipTest("the command is not built")
        prompt = support.DEMO_MODEL / "prompts/recall.txt"
        for spec in ("k4v2", "k2v2"):
            done = subprocess.run([support.command(), "generate", "-f", prompt, "-n", "24", "--kv", spec,
                                   "--json", "-"], check=True, capture_output=True, text=True)
            expected = json.loads(done.stdout)["outputs"][0]["tokens"]
            model = support.load(support.DEMO_MODEL, "kvq")
            self.assertEqual(support.generate(model, support.long_prompt(), KVQ(spec), 24), expected)

    def test_a_small_cache_is_small(self):
        cache = KVQ("k4v2")
        ids = support.long_prompt()
        support.generate(support.load(support.DEMO_MODEL, "kvq"), ids, cache, 4)
        plan = kvq.Plan.of_specs(["k4v2"] * 8, kv_heads=2, head_dim=64)
        self.assertEqual(cache.nbytes, plan.cache_bytes(cache.get_seq_length()))
        self.assertLess(cache.nbytes, 0.35 * plan.cache_bytes_16bit(cache.get_seq_length()))

    def test_plans(self):
        ids = support.long_prompt()
        model = support.load(support.DEMO_MODEL, "kvq")
        specs = ["k16v16"] * 7 + ["k8v8"]
        self.assertEqual(support.generate(model, ids, KVQ(KVQConfig(plan=specs))),
                         support.generate(model, ids, KVQ("k16v16")))
        for wrong, message in ((kvq.Plan.of_specs(["k4v2"] * 2, 2, 64), "made for 2 layers"),
                               (kvq.Plan.of_specs(["k4v2"] * 8, 4, 64), "4 kv heads of 64")):
            with self.assertRaisesRegex(ValueError, message):
                support.generate(model, ids, KVQ(wrong))
        budget = KVQ(KVQConfig(budget=3, model=model, score=1))
        support.generate(model, ids, budget, 2)
        self.assertEqual(len(budget.layers), 8)

    def test_bfloat16(self):
        ids = support.long_prompt(tokens=200)
        model = support.load(support.DEMO_MODEL, "kvq", "bfloat16")
        with torch.no_grad():
            exact = support.load(support.DEMO_MODEL)(ids).logits
            plain = support.load(support.DEMO_MODEL, "sdpa", "bfloat16")(ids).logits
            packed = model(ids, past_key_values=KVQ("k16v16")).logits
        self.assertEqual(packed.dtype, torch.bfloat16)
        self.assertLess((packed - exact).norm(), 1.2 * (plain - exact).norm())

    def test_slow_way_is_said_once(self):
        import kvq.hf_attention
        kvq.hf_attention._warned = False
        ids = support.long_prompt(tokens=20)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                support.generate(support.load(support.DEMO_MODEL), ids, KVQ("k4v2"), 3)
        said = [str(w.message) for w in caught if "slow way" in str(w.message)]
        self.assertEqual(len(said), 1)
        self.assertIn('attn_implementation="kvq"', said[0])


@support.needs_transformers
class ArchitectureTest(unittest.TestCase):
    """Random checkpoints: head sizes, q/k norms, biases, one kv head."""

    def check(self, fused, plain, vocabulary):
        generator = torch.Generator("cpu").manual_seed(1)
        ids = torch.randint(3, vocabulary, (1, 200), generator=generator, device="cpu").to(support.device())
        with torch.no_grad():
            expected = plain(ids).logits
            cache = KVQ("k16v16")
            fused(ids[:, :150], past_key_values=cache)
            found = fused(ids[:, 150:], past_key_values=cache).logits
        expected = expected[:, 150:]
        self.assertLess((found - expected).norm() / expected.norm(), 2e-3)

    def test_checkpoints(self):
        for name in ("llama3.1-tiny", "llama3.2-tiny", "llama-bias-tiny", "qwen3-tiny"):
            with self.subTest(name):
                folder = support.CHECKPOINTS / name
                fused, plain = support.load(folder, "kvq"), support.load(folder)
                self.check(fused, plain, fused.config.vocab_size)

    def test_random_models(self):
        shape = dict(vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, head_dim=128)
        for config, kind in ((LlamaConfig(**shape), LlamaForCausalLM), (Qwen3Config(**shape), Qwen3ForCausalLM)):
            with self.subTest(kind.__name__):
                torch.manual_seed(0)
                plain = kind(config).eval()
                fused = kind(copy.deepcopy(config)).eval()
                fused.load_state_dict(plain.state_dict())
                fused.set_attn_implementation("kvq")
                self.check(fused, plain, 100)


@support.needs_transformers
class BatchTest(unittest.TestCase):
    def setUp(self):
        self.model = support.load(support.DEMO_MODEL, "kvq")
        prompts = [support.long_prompt(), support.long_prompt("arith")[:, :150], support.long_prompt("story")]
        self.prompts = prompts
        longest = max(ids.shape[1] for ids in prompts)
        self.ids = torch.cat([torch.nn.functional.pad(ids, (longest - ids.shape[1], 0), value=2)
                              for ids in prompts])
        self.mask = torch.cat([torch.nn.functional.pad(torch.ones_like(ids), (longest - ids.shape[1], 0))
                               for ids in prompts])

    def outputs(self, cache, **options):
        output = self.model.generate(self.ids, attention_mask=self.mask, past_key_values=cache,
                                     max_new_tokens=8, do_sample=False, pad_token_id=2,
                                     eos_token_id=None, **options)
        return output[:, self.ids.shape[1]:].tolist()

    def test_padded_sequences_are_as_they_are_alone(self):
        for spec in ("k16v16", "k4v2"):
            cache = KVQ(spec)
            outputs = self.outputs(cache)
            alone = [support.generate(self.model, ids, KVQ(spec), 8, eos_token_id=None)
                     for ids in self.prompts]
            self.assertEqual(outputs, alone)
            self.assertEqual(cache.layers[0].core.lengths, [ids.shape[1] + 7 for ids in self.prompts])

    def test_dequantized_padding(self):
        cache = KVQ("k16v16")
        expected = self.outputs(cache)
        plain = support.load(support.DEMO_MODEL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = plain.generate(self.ids, attention_mask=self.mask, past_key_values=KVQ("k16v16"),
                                    max_new_tokens=8, do_sample=False, pad_token_id=2, eos_token_id=None)
        self.assertEqual(output[:, self.ids.shape[1]:].tolist(), expected)

    def test_sampling_is_reproducible(self):
        results = []
        for cache in (KVQ("k16v16"), DynamicCache()):
            torch.manual_seed(7)
            model = self.model if isinstance(cache, KVQ) else support.load(support.DEMO_MODEL)
            results.append(support.generate(model, self.prompts[2], cache, 12, do_sample=True, top_k=20))
        self.assertEqual(*results)

    def test_masks_that_change_are_refused(self):
        cache = KVQ("k4v2")
        with torch.no_grad():
            self.model(self.ids, attention_mask=self.mask, past_key_values=cache)
            step = self.ids[:, :1]
            with self.assertRaisesRegex(ValueError, "differs from the one"):
                mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
                mask[0, :3] = 0
                self.model(step, attention_mask=mask, past_key_values=cache)


@support.needs_transformers
class RefusalTest(unittest.TestCase):
    def setUp(self):
        self.model = support.load(support.DEMO_MODEL, "kvq")
        self.ids = support.long_prompt(tokens=20)

    def refused(self, error, message, call):
        with self.assertRaisesRegex(error, message):
            call()

    def test_what_is_not_supported(self):
        ids, model = self.ids, self.model
        self.refused(ValueError, "four|dimensions", lambda: model(
            ids, attention_mask=torch.ones(1, 1, 20, 20, dtype=torch.bool), past_key_values=KVQ("k4v2")))
        self.refused(ValueError, "weights to output", lambda: model(
            ids, output_attentions=True, past_key_values=KVQ("k4v2")))
        self.refused(TypeError, "legacy", lambda: tuple(KVQ("k4v2")))
        self.refused(ValueError, "cache_implementation", lambda: support.generate(
            model, ids, KVQ("k4v2"), 2, cache_implementation="static"))

    def test_training(self):
        self.model.train()
        self.addCleanup(self.model.eval)
        self.refused(ValueError, "inference", lambda: self.model(self.ids, past_key_values=KVQ("k4v2")))

    def test_sliding_windows(self):
        from transformers import MistralConfig, MistralForCausalLM
        config = MistralConfig(vocab_size=8192, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                               num_attention_heads=2, num_key_value_heads=1, sliding_window=8)
        model = MistralForCausalLM(config).eval()
        model.set_attn_implementation("kvq")
        self.refused(ValueError, "sliding window", lambda: model(self.ids, past_key_values=KVQ("k4v2")))
        model(self.ids[:, :6], past_key_values=KVQ("k4v2"))


if __name__ == "__main__":
    unittest.main()
