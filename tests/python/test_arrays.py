"""Packing and attention on numpy arrays and torch tensors."""
import unittest

import numpy as np

import kvq
import support


def rows(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def relative_error(expected, found):
    return np.linalg.norm(expected - found) / np.linalg.norm(expected)


class PackTest(unittest.TestCase):
    def setUp(self):
        self.key, self.value = rows(1, 3, 128, 64), rows(2, 3, 128, 64)

    def error(self, spec):
        pages = kvq.pack(self.key, self.value, spec)
        self.assertEqual(pages.shape, (3, 2, kvq.page_bytes(spec, 64)))
        self.assertEqual(pages.dtype, np.uint8)
        found = kvq.unpack(pages, spec, 64)
        return [relative_error(x, y) for x, y in zip((self.key, self.value), found)]

    def test_sixteen_bits_are_fp16(self):
        pages = kvq.pack(self.key, self.value, "k16v16")
        key, value = kvq.unpack(pages, "k16v16", 64)
        np.testing.assert_array_equal(key, self.key.astype(np.float16).astype(np.float32))
        np.testing.assert_array_equal(value, self.value.astype(np.float16).astype(np.float32))

    def test_error_falls_with_the_width(self):
        errors = [self.error(f"k{bits}v{bits}")[0] for bits in ("1", "1.58", "2", "3", "4", "5", "6", "8")]
        self.assertEqual(errors, sorted(errors, reverse=True))
        self.assertLess(errors[-1], 0.01)

    def test_keys_and_values_have_their_own_width(self):
        key, value = self.error("k8v2")
        self.assertLess(key, 0.01)
        self.assertGreater(value, 0.2)

    def test_half_precision_and_strides(self):
        expected = kvq.pack(self.key.astype(np.float16).astype(np.float32), self.value, "k4v2")
        wide = np.zeros((3, 256, 80), np.float16)
        wide[:, ::2, :64] = self.key
        np.testing.assert_array_equal(kvq.pack(wide[:, ::2, :64], self.value, "k4v2"), expected)

    def test_effective_bits(self):
        self.assertEqual(kvq.effective_bits("k4v2", 128), 3.25)

    def test_errors_name_what_is_wrong(self):
        for message, call in (
                ("multiple of 64 tokens, found 65", lambda: kvq.pack(rows(0, 1, 65, 64), rows(0, 1, 65, 64))),
                ("shape of key", lambda: kvq.pack(self.key, self.value[:2])),
                ("head_dim", lambda: kvq.pack(rows(0, 1, 64, 20), rows(0, 1, 64, 20))),
                ("float64", lambda: kvq.pack(self.key.astype(np.float64), self.value)),
                ("finite", lambda: kvq.pack(np.full_like(self.key, np.nan), self.value)),
                ("k7v2", lambda: kvq.pack(self.key, self.value, "k7v2")),
                ("pages of 3328 bytes", lambda: kvq.unpack(np.zeros((1, 1, 128), np.uint8), "k4v2", 64))):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                call()


class AttendTest(unittest.TestCase):
    def check(self, spec, tolerance, batch=2, heads=4, kv_heads=2, length=300, tokens=1, head_dim=64):
        key, value = rows(3, batch, kv_heads, length, head_dim), rows(4, batch, kv_heads, length, head_dim)
        query = rows(5, batch, heads, tokens, head_dim)
        cache = kvq.LayerCache(spec, kv_heads, head_dim)
        cache.append(key[:, :, :-tokens], value[:, :, :-tokens])
        cache.append(key[:, :, -tokens:], value[:, :, -tokens:])
        self.assertEqual(cache.lengths, [length] * batch)
        found = kvq.attend(query, cache)
        stored_key, stored_value = cache.read()
        self.assertEqual(found.shape, (batch, tokens, heads, head_dim))
        for i in range(batch):
            expected = support.softmax_attention(query[i], stored_key[i], stored_value[i], head_dim ** -0.5)
            self.assertLess(relative_error(expected, found[i]), tolerance)

    def test_reads_what_is_stored(self):
        for spec in ("k16v16", "k8v8", "k4v2", "k3v3", "k1.58v1.58", "k4:g32:channel:affine:none,v2:affine"):
            with self.subTest(spec):
                self.check(spec, 0.01)

    def test_shapes(self):
        for heads, kv_heads, head_dim, tokens in ((1, 1, 16, 1), (8, 1, 96, 3), (6, 3, 256, 20)):
            with self.subTest(head_dim=head_dim):
                self.check("k4v4", 0.01, 1, heads, kv_heads, 190, tokens, head_dim)

    def test_chunks_leave_no_trace(self):
        key, value = rows(6, 1, 2, 500, 64), rows(7, 1, 2, 500, 64)
        whole, pieces = (kvq.LayerCache("k3v2", 2, 64) for _ in range(2))
        whole.append(key, value)
        for start, end in ((0, 1), (1, 130), (130, 133), (133, 500)):
            pieces.append(key[:, :, start:end], value[:, :, start:end])
        query = rows(8, 1, 4, 1, 64)
        np.testing.assert_array_equal(kvq.attend(query, whole), kvq.attend(query, pieces))
        for x, y in zip(whole.read(), pieces.read()):
            np.testing.assert_array_equal(x, y)

    def test_padding_takes_no_place(self):
        key, value, query = rows(9, 2, 2, 300, 64), rows(10, 2, 2, 300, 64), rows(11, 2, 4, 300, 64)
        kept = np.ones((2, 300), np.bool_)
        kept[1, :90] = False
        padded = kvq.LayerCache("k4v2", 2, 64)
        padded.append(key, value, kept)
        self.assertEqual(padded.lengths, [300, 210])
        alone = kvq.LayerCache("k4v2", 2, 64)
        alone.append(key[1:, :, 90:], value[1:, :, 90:])
        found = padded.attend(query, kept=kept)
        np.testing.assert_array_equal(found[1, 90:], alone.attend(query[1:, :, 90:])[0])
        self.assertFalse(found[1, :90].any())

    def test_forks_share_and_truncation_keeps_the_start(self):
        key, value = rows(12, 1, 2, 400, 64), rows(13, 1, 2, 400, 64)
        cache = kvq.LayerCache("k4v2", 2, 64)
        cache.append(key[:, :, :390], value[:, :, :390])
        fork = cache.fork()
        fork.append(key[:, :, 390:], value[:, :, 390:])
        self.assertEqual((cache.lengths, fork.lengths), ([390], [400]))
        fork.truncate(390)
        for x, y in zip(cache.read(), fork.read()):
            np.testing.assert_array_equal(x, y)
        self.assertEqual(cache.nbytes, fork.nbytes)

    def test_a_failed_append_changes_nothing(self):
        cache = kvq.LayerCache("k4v2", 2, 64)
        good, bad = rows(14, 1, 2, 100, 64), rows(15, 1, 2, 100, 64)
        bad[0, 1, 7, 3] = np.inf
        cache.append(good, good)
        with self.assertRaisesRegex(ValueError, "kv head 1, token 107: key channel 3 is inf"):
            cache.append(bad, good)
        self.assertEqual(cache.lengths, [100])
        cache.append(good, good)
        for message, array in (("batch of 1 sequences", rows(0, 2, 2, 1, 64)), ("2 kv heads", rows(0, 1, 3, 1, 64)),
                               ("heads of 64 numbers", rows(0, 1, 2, 1, 32))):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                cache.append(array, array)
        with self.assertRaisesRegex(ValueError, "query heads"):
            kvq.attend(rows(0, 1, 3, 1, 64), cache)

    def test_threads_do_not_change_the_result(self):
        before = kvq.thread_count()
        self.addCleanup(kvq.set_thread_count, before)
        key, value, query = rows(16, 1, 8, 2000, 64), rows(17, 1, 8, 2000, 64), rows(18, 1, 32, 1, 64)
        results = []
        for threads in (1, 3):
            kvq.set_thread_count(threads)
            cache = kvq.LayerCache("k4v2", 8, 64)
            cache.append(key, value)
            results.append(kvq.attend(query, cache))
        np.testing.assert_array_equal(*results)
        with self.assertRaises(ValueError):
            kvq.set_thread_count(0)


@unittest.skipUnless(support.HAS_TRANSFORMERS, "torch is not installed")
class TorchTest(unittest.TestCase):
    def test_tensors_in_tensors_out(self):
        import torch
        key, value = (torch.from_numpy(rows(seed, 2, 128, 64)) for seed in (1, 2))
        expected = kvq.pack(key.numpy(), value.numpy(), "k4v2")
        pages = kvq.pack(key.requires_grad_(), value, "k4v2")
        self.assertIsInstance(pages, torch.Tensor)
        np.testing.assert_array_equal(pages.numpy(), expected)
        self.assertEqual([x.dtype for x in kvq.unpack(pages, "k4v2", 64)], [torch.float32] * 2)

    def test_bfloat16_and_transposed_rows(self):
        import torch
        rows16 = torch.from_numpy(rows(3, 1, 300, 2, 64)).to(torch.bfloat16).transpose(1, 2)
        query = torch.from_numpy(rows(4, 1, 1, 4, 64)).to(torch.bfloat16).transpose(1, 2)
        caches = [kvq.LayerCache("k8v8", 2, 64) for _ in range(2)]
        caches[0].append(rows16, rows16)
        caches[1].append(rows16.float().contiguous(), rows16.float())
        found, expected = kvq.attend(query, caches[0]), kvq.attend(query.float(), caches[1])
        self.assertEqual(found.dtype, torch.bfloat16)
        self.assertTrue(torch.equal(found, expected.to(torch.bfloat16)))


if __name__ == "__main__":
    unittest.main()
