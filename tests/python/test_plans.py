"""Plans, and the norms that they are made from."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import kvq
import support


class PlanTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_a_budget_is_kept_and_given_out_by_norms(self):
        plan = kvq.plan(support.DEMO_MODEL, budget=2.5, norm="spectral")
        widths = [float(spec.split(",")[0].split(":")[0].split("v")[0][1:]) for spec in plan.specs]
        self.assertEqual(len(plan.specs), 8)
        self.assertLessEqual(plan.effective_bits, 2.5 + 0.25 + 1e-9)
        self.assertGreater(len(set(widths)), 1)
        self.assertEqual(plan.model["head_dim"], 64)

    def test_files(self):
        plan = kvq.plan(support.DEMO_MODEL, method="norm", budget=3, sinks=0, window=128)
        plan.save(self.folder / "plan.json")
        read = kvq.Plan.load(self.folder / "plan.json")
        self.assertEqual(read.to_json(), plan.to_json())
        self.assertEqual((read.sinks, read.window, read.specs), (0, 128, plan.specs))
        (self.folder / "bad.json").write_text('{"kvq_plan": 9}', encoding="utf-8")
        with self.assertRaisesRegex(ValueError, "kvq_plan"):
            kvq.Plan.load(self.folder / "bad.json")

    def test_bytes(self):
        plan = kvq.Plan.of_specs(["k4v2"] * 8, kv_heads=2, head_dim=64)
        self.assertLess(plan.cache_bytes(2048), 0.26 * plan.cache_bytes_16bit(2048))
        self.assertEqual(plan.cache_bytes_16bit(10), 10 * 8 * 2 * 2 * 64 * 2)

    def test_the_command_makes_the_same_plan(self):
        if support.command() is None:
            self.skipTest("the command is not built")
        file = self.folder / "plan.json"
        for arguments, options in (
                (("--budget", "2.5", "--group-budget", "96"), dict(budget=2.5, group_budget=96)),
                (("--memory", "4MiB", "--tokens", "2048", "--batch", "2", "--norm", "spectral"),
                 dict(memory=4 * 2**20, tokens=2048, batch=2, norm="spectral"))):
            subprocess.run([support.command(), "plan", "--method", "norm", *arguments, "-o", file], check=True,
                           capture_output=True)
            plan = kvq.plan(support.DEMO_MODEL, **options)
            self.assertEqual(plan.to_json(), file.read_text(encoding="utf-8"))

    def test_errors(self):
        for message, call in (
                ("expected budget, memory or group_budget", lambda: kvq.plan(support.DEMO_MODEL)),
                ("model or norms", lambda: kvq.plan(method="norm", budget=3)),
                ("found 7", lambda: kvq.plan(support.DEMO_MODEL, method="norm", budget=3, bits=[7])),
                ("frobenius or spectral", lambda: kvq.norms(support.DEMO_MODEL, "nuclear")),
                ("name no model", lambda: kvq.plan(norms=kvq.Norms.of_lists([1, 2], [1, 1]), budget=3))):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                call()


class NormsTest(unittest.TestCase):
    def test_table(self):
        table = kvq.norms(support.DEMO_MODEL)
        self.assertEqual(len(table.w_k), 8)
        self.assertEqual({"model", "norm", "w_k", "w_v"} - set(table.to_dict()), set())
        with tempfile.TemporaryDirectory() as folder:
            table.save(os.path.join(folder, "norms.json"))
            self.assertEqual(kvq.Norms.load(os.path.join(folder, "norms.json")).w_k, table.w_k)

    def test_given_norms_make_a_plan(self):
        table = kvq.Norms.of_lists([4.0, 2.0], [1.0, 1.0], kv_heads=8, head_dim=128)
        plan = kvq.plan(norms=table, budget=3, bits=[2, 4])
        self.assertEqual(plan.specs, ["k4v2", "k4v2"])

    @support.needs_transformers
    def test_a_loaded_model_has_the_norms_of_its_files(self):
        for norm in ("frobenius", "spectral"):
            files = kvq.norms(support.DEMO_MODEL, norm)
            loaded = kvq.norms(support.load(support.DEMO_MODEL), norm)
            for x, y in zip(files.w_k + files.w_v, loaded.w_k + loaded.w_v):
                self.assertAlmostEqual(x / y, 1, places=5)
        plans = [kvq.plan(model, method="norm", budget=3)
                 for model in (support.load(support.DEMO_MODEL), support.DEMO_MODEL)]
        self.assertEqual(plans[0].specs, plans[1].specs)


class ImportTest(unittest.TestCase):
    def test_the_package_needs_neither_torch_nor_transformers(self):
        code = ("import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
                "import kvq, json\n"
                f"print(json.dumps(kvq.plan({str(support.DEMO_MODEL)!r}, norm='spectral', budget=3).specs))")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(len(json.loads(done.stdout)), 8)

    def test_importing_does_not_import_torch(self):
        code = "import sys, kvq; print('torch' in sys.modules or 'transformers' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.strip(), "False")


if __name__ == "__main__":
    unittest.main()
