"""Assisted decoding, and the crop that it rests on."""
import unittest

import support

if support.HAS_TRANSFORMERS:
    import torch
    from kvq import KVQ


@support.needs_transformers
class AssistedTest(unittest.TestCase):
    def setUp(self):
        self.model = support.load(support.DEMO_MODEL, "kvq")
        self.ids = support.long_prompt()

    def test_prompt_lookup(self):
        expected = support.generate(self.model, self.ids, KVQ("k16v16"), 24)
        self.assertEqual(support.generate(self.model, self.ids, KVQ("k16v16"), 24,
                                          prompt_lookup_num_tokens=5), expected)

    def test_assistant(self):
        assistant = support.load(support.DEMO_MODEL, "sdpa", "bfloat16")
        for spec in ("k16v16", "k4v2"):
            expected = support.generate(self.model, self.ids, KVQ(spec), 24)
            self.assertEqual(support.generate(self.model, self.ids, KVQ(spec), 24,
                                              assistant_model=assistant), expected)

    def test_crop_leaves_no_trace(self):
        for spec in ("k16v16", "k3v2"):
            caches = [KVQ(spec), KVQ(spec)]
            with torch.no_grad():
                for cache, tokens in zip(caches, (230, 200)):
                    self.model(self.ids[:, :tokens], past_key_values=cache)
                caches[0].crop(-30)
                caches[0].crop(0)
                logits = [self.model(self.ids[:, 200:210], past_key_values=cache).logits for cache in caches]
            self.assertEqual([cache.get_seq_length() for cache in caches], [210, 210])
            support.assert_same(*logits)

    def test_a_positive_crop_is_refused(self):
        with self.assertRaisesRegex(ValueError, "negative"):
            cache = KVQ("k4v2")
            with torch.no_grad():
                self.model(self.ids[:, :10], past_key_values=cache)
            cache.crop(5)


if __name__ == "__main__":
    unittest.main()
