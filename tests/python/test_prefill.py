"""What the queries of a prompt read: packed rows, or their own exact ones."""
import unittest
import warnings

import support

if support.HAS_TRANSFORMERS:
    import torch
    from kvq import KVQ, KVQConfig


@support.needs_transformers
class PrefillTest(unittest.TestCase):
    def logits(self, attention, prefill, pieces, spec="k2v1"):
        """Of all tokens of a prompt that is given in pieces."""
        ids = support.long_prompt(tokens=400)
        cache = KVQ(KVQConfig(spec=spec, prefill=prefill))
        model = support.load(support.DEMO_MODEL, attention)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.cat([model(piece, past_key_values=cache).logits
                              for piece in ids.split(pieces, dim=1)], dim=1)

    def test_exact_prompts_are_not_quantized(self):
        expected = self.logits("sdpa", "packed", 400, "k16v16")
        for attention in ("kvq", "sdpa"):
            found = self.logits(attention, "exact", 400)
            torch.testing.assert_close(found, expected, rtol=5e-3, atol=3e-2)

    def test_packed_prompts_are(self):
        exact = self.logits("kvq", "packed", 400, "k16v16")
        packed = self.logits("kvq", "packed", 400)
        self.assertLess((packed - exact)[:, :60].abs().max(), 3e-2)  # within the window
        self.assertGreater((packed - exact)[:, 200:].abs().max(), 0.5)

    def test_pieces_leave_no_trace_in_packed_prompts(self):
        support.assert_same(self.logits("kvq", "packed", 37), self.logits("kvq", "packed", 400),
                            rtol=5e-3, atol=3e-2)

    def test_later_pieces_read_packed_rows(self):
        for attention in ("kvq", "sdpa"):
            with self.subTest(attention):
                whole = self.logits(attention, "exact", 400)
                pieces = self.logits(attention, "exact", 200)
                self.assertGreater((whole - pieces)[:, 200:].abs().max(), 0.5)


if __name__ == "__main__":
    unittest.main()
