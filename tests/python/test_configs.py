"""How caches are asked for."""
import unittest

import kvq
from kvq.configs import as_config
import support


class CacheConfigTest(unittest.TestCase):
    def test_backends(self):
        for backend, axis, spec in (
                ("quanto", 0, "k4:g64:token:affine:minmax:none,v2:g64:token:affine:minmax:none"),
                ("quanto", -1, "k4:g64:channel:affine:minmax:none,v2:g64:channel:affine:minmax:none"),
                ("hqq", 1, "k4:g64:token:affine:hqq:none,v2:g64:token:affine:hqq:none"),
                ("hqq", 0, "k4:g64:channel:affine:hqq:none,v2:g64:channel:affine:hqq:none"),
                ("kvq", 0, "k4:g64:token,v2:g64:token")):
            config = kvq.KVQCacheConfig(backend=backend, axis_key=axis, axis_value=axis)
            self.assertEqual(config.spec, spec)
            self.assertEqual(config.resolve().specs, [spec])

    def test_residual_is_rounded_up_to_pages(self):
        for length, window in ((0, 0), (1, 64), (128, 128), (129, 192)):
            self.assertEqual(kvq.KVQCacheConfig(residual_length=length).window, window)

    def test_errors(self):
        for message, options in (("backend", {"backend": "fp8"}), ("axis_key", {"axis_key": 2}),
                                 ("k7", {"nbits_k": 7}), ("prefill", {"prefill": "fast"})):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                kvq.KVQCacheConfig(**options)


class ConfigTest(unittest.TestCase):
    def specs(self, **options):
        return kvq.KVQConfig(**options).resolve().specs

    def test_one_format(self):
        self.assertEqual(self.specs(nbits={"k": 4, "v": 2}), ["k4:g64:token,v2:g64:token"])
        self.assertEqual(self.specs(nbits=3, group_size={"k": 32, "v": 128}), ["k3:g32:token,v3:g128:token"])
        self.assertEqual(self.specs(nbits=2, axis={"k": 1, "v": 0}),
                         ["k2:g64:channel:affine:none,v2:g64:token"])
        self.assertEqual(self.specs(nbits=16), ["k16,v16"])
        self.assertEqual(self.specs(spec="k4v2"), ["k4v2"])

    def test_budgets(self):
        model = str(support.DEMO_MODEL)
        for score, norm in ((0, "frobenius"), (1, "spectral")):
            resolved = kvq.KVQConfig(budget=3, model=model, score=score).resolve()
            self.assertEqual(resolved.specs, kvq.plan(model, budget=3, norm=norm).specs)
        narrow = kvq.KVQConfig(budget=3, model=model, bit_range=[2, 4]).resolve().specs
        self.assertEqual({spec[1] for spec in narrow} | {spec.split("v")[1][0] for spec in narrow}, {"2", "4"})
        groups = kvq.KVQConfig(group_budget=96, group_range=[64, 128], nbits=4, model=model).resolve()
        self.assertEqual(len(groups.specs), 8)

    def test_plans(self):
        plan = kvq.Plan.of_specs(["k4v2", "k2v2"], kv_heads=2, head_dim=64, sinks=0, window=128)
        resolved = as_config(plan).resolve()
        self.assertEqual((resolved.specs, resolved.sinks, resolved.window), (["k4v2", "k2v2"], 0, 128))
        self.assertEqual(self.specs(plan=["k4v2", "k8v8"]), ["k4v2", "k8v8"])
        with self.assertRaisesRegex(ValueError, "made for 2 layers"):
            resolved.spec(2)

    def test_dictionaries(self):
        self.assertIsInstance(as_config({"nbits_k": 4, "nbits_v": 2, "backend": "hqq", "axis_key": 1,
                                         "axis_value": 1}), kvq.KVQCacheConfig)
        self.assertIsInstance(as_config({"nbits": {"k": 4, "v": 2}}), kvq.KVQConfig)
        self.assertEqual(as_config("k4v2").spec, "k4v2")
        with self.assertRaisesRegex(ValueError, "nbits_w"):
            as_config({"nbits_k": 4, "nbits_w": 2})
        with self.assertRaises(TypeError):
            as_config(4)

    def test_errors(self):
        for message, options in (("one of nbits", {}), ("one of nbits", {"nbits": 4, "budget": 3}),
                                 ("model", {"budget": 3}), ("score", {"nbits": 4, "score": 2}),
                                 ("'k' and 'v'", {"nbits": {"k": 4}}), ("axis", {"nbits": 4, "axis": 3}),
                                 ("residual_length", {"nbits": 4, "residual_length": -1})):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                kvq.KVQConfig(**options).resolve()


if __name__ == "__main__":
    unittest.main()
