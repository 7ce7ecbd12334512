"""Caches on a CUDA device: the tests of generate() once more with everything there, and the device's
caches against those in host memory. Skipped where there is no device, or a build without CUDA."""
import importlib.util
import unittest

import kvq
import support
from kvq import _core

HAS_TORCH = importlib.util.find_spec("torch") is not None
if HAS_TORCH:
    import torch

HAS_DEVICE = HAS_TORCH and torch.cuda.is_available()
REASON = "no CUDA device" if _core.has_cuda else "this build has no CUDA support"
# Kernels of the host round weights to 8 bits, those of the device to fp16.
TOLERANCE = 0.01
FORMATS = ("k16v16", "k4v2", "k3v1.58", "k4:g32:channel:affine:none,v2:g32:affine:none")
SUITES = ("test_assisted", "test_beams", "test_generate", "test_prefill")


def needs_device(test):
    return unittest.skipUnless(HAS_DEVICE and _core.has_cuda, REASON)(test)


def load_tests(loader, tests, pattern):
    if HAS_DEVICE and _core.has_cuda and support.HAS_TRANSFORMERS:
        support.use_device("cuda")
        tests.addTests(loader.loadTestsFromNames(SUITES))
    return tests


def rows(seed, *shape, dtype=None):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu").to(dtype or torch.float32)


@needs_device
class LayerTest(unittest.TestCase):
    """The same calls on a cache on the device and on one in host memory."""

    def pair(self, spec, kv_heads=2, head_dim=64, **options):
        return [kvq.LayerCache(spec, kv_heads, head_dim, **options) for _ in range(2)]

    def append(self, caches, key, value, kept=None):
        for cache, device in zip(caches, ("cpu", "cuda")):
            where = {} if kept is None else {"kept": kept.to(device)}
            cache.append(key.to(device), value.to(device), **where)

    def check(self, caches, query, kept=None, tolerance=TOLERANCE):
        found = []
        for cache, device in zip(caches, ("cpu", "cuda")):
            where = {} if kept is None else {"kept": kept.to(device)}
            found.append(cache.attend(query.to(device), **where).cpu().double())
        self.assertLess((found[1] - found[0]).norm() / found[0].norm(), tolerance)
        self.assertEqual(caches[0].lengths, caches[1].lengths)
        self.assertEqual(caches[0].nbytes, caches[1].nbytes)

    def check_read(self, caches):
        for expected, found in zip(caches[0].read(), caches[1].read()):
            torch.testing.assert_close(found.cpu(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)

    def test_chunks_of_all_sizes(self):
        for spec in FORMATS:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                for prefill in ("packed", "exact"):
                    with self.subTest(spec=spec, dtype=dtype, prefill=prefill):
                        caches = self.pair(spec, prefill=prefill)
                        for seed, tokens in enumerate((3, 200, 1, 1, 5, 70, 129, 400, 8, 1)):
                            key, value = (rows(2 * seed + i, 2, 2, tokens, 64, dtype=dtype) for i in (0, 1))
                            self.append(caches, key, value)
                            self.check(caches, rows(99 + seed, 2, 8, tokens, 64, dtype=dtype))
                        self.check_read(caches)

    def test_shapes(self):
        for heads, kv_heads, head_dim in ((1, 1, 16), (8, 1, 96), (6, 3, 256), (32, 8, 128)):
            with self.subTest(head_dim=head_dim):
                caches = self.pair("k4v4", kv_heads, head_dim)
                for tokens in (300, 3, 1):
                    self.append(caches, rows(1, 1, kv_heads, tokens, head_dim),
                                rows(2, 1, kv_heads, tokens, head_dim))
                    self.check(caches, rows(3, 1, heads, tokens, head_dim))
                self.check_read(caches)

    def test_padding_takes_no_place(self):
        caches = self.pair("k4v2")
        kept = torch.ones(3, 300, dtype=torch.bool, device="cpu")
        kept[1, :90] = False
        kept[2, ::7] = False
        self.append(caches, rows(1, 3, 2, 300, 64), rows(2, 3, 2, 300, 64), kept)
        self.check(caches, rows(3, 3, 4, 300, 64), kept)
        self.assertEqual(caches[1].lengths, [300, 210, 257])
        self.append(caches, rows(4, 3, 2, 1, 64), rows(5, 3, 2, 1, 64))
        self.check(caches, rows(6, 3, 4, 1, 64))
        self.check_read(caches)

    def test_forks_and_cuts(self):
        caches = self.pair("k4v2")
        self.append(caches, rows(1, 2, 2, 390, 64), rows(2, 2, 2, 390, 64))
        forks = [cache.fork() for cache in caches]
        self.check(forks, rows(3, 2, 4, 1, 64))
        self.append(forks, rows(4, 2, 2, 20, 64), rows(5, 2, 2, 20, 64))
        self.append(caches, rows(6, 2, 2, 3, 64), rows(7, 2, 2, 3, 64))
        for both in (caches, forks):
            self.check(both, rows(8, 2, 4, 1, 64))
            self.check_read(both)
        for length in (395, 324, 132, 100, 3):
            for cache in forks:
                cache.truncate(length)
            self.check_read(forks)
            self.append(forks, rows(9, 2, 2, 1, 64), rows(10, 2, 2, 1, 64))
            self.check(forks, rows(11, 2, 4, 1, 64))
        self.check_read(caches)

    def test_other_streams(self):
        caches = self.pair("k4v2")
        for seed in range(6):
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
                self.append(caches, rows(seed, 1, 2, 100, 64), rows(seed + 50, 1, 2, 100, 64))
                self.check(caches, rows(seed + 99, 1, 4, 1, 64))

    def test_what_is_wrong_is_said(self):
        good, bad = rows(1, 1, 2, 100, 64).cuda(), rows(2, 1, 2, 100, 64).cuda()
        bad[0, 1, 7, 3] = torch.inf
        cache = kvq.LayerCache("k4v2", 2, 64)
        cache.append(good, good)
        for message, array in (("batch of 1 sequences", rows(0, 2, 2, 1, 64).cuda()),
                               ("2 kv heads", rows(0, 1, 3, 1, 64).cuda()),
                               ("heads of 64 numbers", rows(0, 1, 2, 1, 32).cuda()),
                               ("found one on cpu", rows(0, 1, 2, 1, 64)),
                               ("found ndarray", rows(0, 1, 2, 1, 64).numpy()),
                               ("float64", good.double())):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                cache.append(array, array)
        with self.assertRaisesRegex(ValueError, "query heads"):
            kvq.attend(rows(0, 1, 3, 1, 64).cuda(), cache)
        with self.assertRaisesRegex(ValueError, "host memory"):
            kvq.pack(good[0], good[0])
        self.assertEqual(cache.lengths, [100])
        cache.append(bad, good)
        torch.cuda.synchronize()
        with self.assertRaisesRegex(ValueError, "kv head 1, token 7 of an earlier chunk: key channel 3 is inf"):
            cache.append(good, good)


@needs_device
@support.needs_transformers
class AgainstHostTest(unittest.TestCase):
    def models(self, **options):
        models = []
        for device in ("cpu", "cuda"):
            support.use_device(device)
            support.load.cache_clear()
            models.append(support.load(support.DEMO_MODEL, "kvq", **options))
        return models

    def test_greedy(self):
        from kvq import KVQ
        models = self.models()
        ids = support.long_prompt()
        for spec in ("k16v16", "k8v8", "k4v2"):
            found = []
            for model in models:
                support.use_device(model.device.type)
                found.append(support.generate(model, ids.to(model.device), KVQ(spec), 24))
            self.assertEqual(*found)

    def test_bfloat16(self):
        from kvq import KVQ
        models = self.models(dtype="bfloat16")
        ids = support.long_prompt(tokens=300)
        for spec in ("k16v16", "k4v2"):
            logits = []
            for model in models:
                support.use_device(model.device.type)
                cache = KVQ(spec)
                with torch.no_grad():
                    model(ids[:, :-1].to(model.device), past_key_values=cache)
                    logits.append(model(ids[:, -1:].to(model.device), past_key_values=cache).logits.cpu().float())
            self.assertLess((logits[1] - logits[0]).norm() / logits[0].norm(), 0.05)

    def test_memory_is_given_back(self):
        from kvq import KVQ
        model = self.models()[1]
        support.use_device("cuda")
        cache = KVQ("k4v2")
        support.generate(model, support.long_prompt(), cache, 4)
        used = torch.cuda.mem_get_info()[0]
        self.assertLess(cache.nbytes, cache.device_bytes)
        del cache
        torch.cuda.empty_cache()
        self.assertGreater(torch.cuda.mem_get_info()[0], used)


@needs_device
@support.needs_transformers
class GraphTest(unittest.TestCase):
    """Recorded steps against those that are not."""

    def setUp(self):
        support.use_device("cuda")
        support.load.cache_clear()
        self.model = support.load(support.DEMO_MODEL, "kvq")

    def both(self, ids, spec, **options):
        from kvq import KVQ
        expected = support.generate(self.model, ids, KVQ(spec), 40, eos_token_id=None, **options)
        cache = KVQ(spec)
        with kvq.cuda_graphs(self.model):
            found = support.generate(self.model, ids, cache, 40, eos_token_id=None, **options)
            self.assertIn("forward", self.model.__dict__)
        self.assertNotIn("forward", self.model.__dict__)
        self.assertEqual(found, expected)
        return cache

    def test_greedy(self):
        ids = support.long_prompt()
        for spec in ("k16v16", "k4v2"):
            self.assertEqual(self.both(ids, spec).get_seq_length(), ids.shape[1] + 39)

    def test_tables_grow(self):
        # The ninth page is packed when 4 + 9 * 64 + 64 tokens are there.
        self.both(support.long_prompt("story").repeat(1, 40)[:, :620], "k8v8")

    def test_beams(self):
        self.both(support.long_prompt(tokens=300), "k16v16", num_beams=3)

    def test_padded_batches(self):
        ids = torch.cat([support.long_prompt(tokens=200), support.long_prompt("arith", 200)])
        ids[1, :50] = 2
        mask = torch.ones_like(ids)
        mask[1, :50] = 0
        self.both(ids, "k16v16", attention_mask=mask)

    def test_steps_are_replayed(self):
        from kvq import KVQ
        ids, cache, calls = support.long_prompt(tokens=300), KVQ("k4v2"), []
        hook = self.model.model.layers[0].register_forward_hook(lambda *_: calls.append(0))
        self.addCleanup(hook.remove)
        with kvq.cuda_graphs(self.model), torch.no_grad():
            for token in ids.split([ids.shape[1] - 30] + [1] * 30, dim=1):
                logits = self.model(token, past_key_values=cache).logits
        self.assertEqual(len(calls), 4)  # the prompt, two steps, and the recording
        expected = self.model(ids, past_key_values=KVQ("k4v2")).logits[:, -1:]
        support.assert_same(logits, expected)


@unittest.skipUnless(HAS_TORCH and not _core.has_cuda, "this build has CUDA support")
class WithoutCudaTest(unittest.TestCase):
    def test_other_devices_are_refused(self):
        cache = kvq.LayerCache("k4v2", 2, 64)
        key = torch.zeros(1, 2, 3, 64, device="meta")
        with self.assertRaisesRegex(ValueError, "this build has no CUDA support"):
            cache.append(key, key)


if __name__ == "__main__":
    unittest.main()
