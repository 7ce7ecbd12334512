"""Programs written for the package kvq 0.0 and 0.1 run as they stand: default attention, nothing of this
package's own spelling."""
import unittest
import warnings

import support

if support.HAS_TRANSFORMERS:
    import kvq.hf_attention
    import torch
    from kvq import KVQ, KVQCacheConfig, KVQConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

# Logits that are computed in another order differ by as much.
TIE = 0.03


@support.needs_transformers
class SeedTest(unittest.TestCase):
    def setUp(self):
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(support.DEMO_MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(support.DEMO_MODEL, dtype=torch.float32)
        self.prompt = (support.DEMO_MODEL / "prompts/recall.txt").read_text(encoding="utf-8")
        kvq.hf_attention._warned = False

    def tokens(self, outputs, inputs):
        return outputs[0, inputs["input_ids"].shape[1]:].tolist()

    def check(self, inputs, tokens, config):
        """That `tokens` are the likeliest, up to ties, when attention reads the packed codes themselves."""
        cache = KVQ(config)
        fused = support.load(support.DEMO_MODEL, "kvq")
        with torch.no_grad():
            # A prompt of dequantized rows reads them inside its window too; what follows does not.
            logits = [self.model(**inputs, past_key_values=cache).logits[0, -1]]
            for token in tokens[:-1]:
                logits.append(fused(torch.tensor([[token]]), past_key_values=cache).logits[0, -1])
        for token, row in zip(tokens, logits):
            self.assertLess(row.max() - row[token], TIE)

    def test_cache_config(self):
        tokenizer, model = self.tokenizer, self.model
        for backend in ("quanto", "hqq"):
            with self.subTest(backend), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                kvq.hf_attention._warned = False
                config = KVQCacheConfig(
                    nbits_k=4,
                    nbits_v=2,
                    axis_key=0,
                    axis_value=0,
                    q_group_size=64,
                    residual_length=128,
                    compute_dtype=torch.bfloat16,
                    backend=backend,
                    device=model.device,
                )
                kvq_dict = {
                    "nbits_k": 4,
                    "nbits_v": 2,
                    "axis_key": 0,
                    "axis_value": 0,
                    "q_group_size": 64,
                    "residual_length": 128,
                    "compute_dtype": torch.bfloat16,
                    "backend": backend,
                    "device": model.device,
                }
                inputs = tokenizer(self.prompt, return_tensors="pt").to(model.device)
                found = []
                for cache in (KVQ(config), KVQ(kvq_dict)):
                    outputs = model.generate(
                        **inputs,
                        max_new_tokens=16,
                        use_cache=True,
                        past_key_values=cache,
                    )
                    found.append(self.tokens(outputs, inputs))
                self.assertEqual(found[0], found[1])
                self.check(inputs, found[0], config)
                self.assertIn("181", tokenizer.decode(found[0]))  # what the prompt asks for
            self.assert_said_once(caught)

    def assert_said_once(self, caught):
        self.assertEqual([w.category for w in caught if "slow way" in str(w.message)], [UserWarning])

    def test_config(self):
        tokenizer, model = self.tokenizer, self.model
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = KVQConfig(
                budget=4,
                model=str(support.DEMO_MODEL),
                residual_length=32,
                group_size={"k": 64, "v": 64},
                axis={"k": 0, "v": 0},
            )
            kv_cache = KVQ(config)
            text = "What is the meaning of life?"
            inputs = tokenizer(text, return_tensors="pt").to(model.device)
            outputs = model.generate(
                **inputs,
                max_new_tokens=128,
                past_key_values=kv_cache,
                use_cache=True,
                pad_token_id=tokenizer.eos_token_id,
            )
        tokens = self.tokens(outputs, inputs)
        self.assertGreater(len(tokens), 64)
        self.check(inputs, tokens, config)
        self.assert_said_once(caught)

    def test_one_line_makes_them_fast(self):
        inputs = self.tokenizer(self.prompt, return_tensors="pt")
        self.model.set_attn_implementation("kvq")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outputs = self.model.generate(**inputs, past_key_values=KVQ({"nbits_k": 4, "nbits_v": 2}),
                                          max_new_tokens=8)
        self.assertIn("181", self.tokenizer.decode(self.tokens(outputs, inputs)))
        self.assertFalse([w for w in caught if "slow way" in str(w.message)])


if __name__ == "__main__":
    unittest.main()
