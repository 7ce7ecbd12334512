"""Beams, forks and continued caches."""
import copy
import pickle
import unittest

import support

if support.HAS_TRANSFORMERS:
    import torch
    from kvq import KVQ
    from transformers import DynamicCache


@support.needs_transformers
class BeamTest(unittest.TestCase):
    def test_beams_as_without_packing(self):
        ids = support.long_prompt()
        options = dict(tokens=12, num_beams=3)
        expected = support.generate(support.load(support.DEMO_MODEL), ids, DynamicCache(), **options)
        fused = support.load(support.DEMO_MODEL, "kvq")
        self.assertEqual(support.generate(fused, ids, KVQ("k16v16"), **options), expected)

    def test_reorder(self):
        fused = support.load(support.DEMO_MODEL, "kvq")
        ids = torch.cat([support.long_prompt(tokens=200), support.long_prompt("arith", 200)])
        step = torch.tensor([[5], [9]])
        order = torch.tensor([1, 1])
        with torch.no_grad():
            cache = KVQ("k3v2")
            fused(ids, past_key_values=cache)
            cache.reorder_cache(order)
            found = fused(step, past_key_values=cache).logits
            ordered = KVQ("k3v2")
            fused(ids[order], past_key_values=ordered)
            expected = fused(step, past_key_values=ordered).logits
        support.assert_same(found, expected)


@support.needs_transformers
class ReuseTest(unittest.TestCase):
    def setUp(self):
        self.model = support.load(support.DEMO_MODEL, "kvq")
        self.ids = support.long_prompt()

    def prefilled(self, spec, tokens):
        cache = KVQ(spec)
        with torch.no_grad():
            self.model(self.ids[:, :tokens], past_key_values=cache)
        return cache

    def test_a_prefilled_cache_continues(self):
        for spec in ("k16v16", "k4v2"):
            whole = support.generate(self.model, self.ids, KVQ(spec))
            cache = self.prefilled(spec, self.ids.shape[1] - 30)
            self.assertEqual(support.generate(self.model, self.ids, cache), whole)

    def test_forks(self):
        cache = self.prefilled("k4v2", self.ids.shape[1] - 1)
        alone = support.generate(self.model, self.ids, cache.fork())
        for fork in (copy.deepcopy(cache), cache.fork(), cache):
            self.assertEqual(support.generate(self.model, self.ids, fork), alone)

    def test_turns(self):
        turns = [self.ids[:, :100], self.ids[:, 100:170], self.ids[:, 170:]]
        for spec in ("k16v16", "k4v2"):
            cache, text = KVQ(spec), self.ids[:, :0]
            for turn in turns:
                text = torch.cat([text, turn], dim=1)
                answer = support.generate(self.model, text, cache, 6, eos_token_id=None)
                text = torch.cat([text, torch.tensor([answer])], dim=1)
            self.assertEqual(cache.get_seq_length(), text.shape[1] - 1)
            again = support.generate(self.model, text[:, :-6], KVQ(spec), 6, eos_token_id=None)
            self.assertEqual(again, answer)

    def test_reset_and_selection(self):
        cache = self.prefilled("k4v2", 100)
        cache.batch_repeat_interleave(3)
        self.assertEqual(cache.layers[0].core.lengths, [100] * 3)
        cache.batch_select_indices(torch.tensor([0, 2]))
        self.assertEqual(cache.layers[0].core.lengths, [100] * 2)
        cache.reset()
        self.assertEqual((cache.get_seq_length(), cache.nbytes), (0, 0))
        self.assertEqual(support.generate(self.model, self.ids, cache),
                         support.generate(self.model, self.ids, KVQ("k4v2")))

    def test_pickling_is_refused(self):
        with self.assertRaisesRegex(TypeError, "deepcopy"):
            pickle.dumps(self.prefilled("k4v2", 10))


if __name__ == "__main__":
    unittest.main()
