"""What runs whole models: plans by sensitivity and analyses, as the command makes them."""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import kvq
import support

WITHOUT_TORCH = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"


class MeasureTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model = self.folder / "tiny"
        support.make_tiny_model(self.model)
        self.text = self.folder / "text.txt"
        story = (support.DEMO_MODEL / "prompts/story.txt").read_text(encoding="utf-8")
        self.text.write_text(story * 100, encoding="utf-8")

    def command(self, *arguments):
        """What the command writes to the last argument."""
        if support.command() is None:
            self.skipTest("the command is not built")
        subprocess.run([support.command(), *map(str, arguments)], check=True, capture_output=True)
        return pathlib.Path(arguments[-1]).read_text(encoding="utf-8")


class PlanTest(MeasureTest):
    def test_the_command_makes_the_same_plan(self):
        file = self.folder / "plan.json"
        memory = dict(memory=2**20, tokens=2048, batch=2)
        for arguments, options in (
                (("--budget", 3), dict(budget=3)),
                (("--budget", "7", "--sensitivity", "kl", "--bits", "2,4", "--groups", "64", "--seed", 3,
                  "--sinks", 0, "--window", 128),
                 dict(budget=7, sensitivity="kl", bits=[2, 4], groups=[64], seed=3, sinks=0, window=128)),
                (("--memory", "1MiB", "--tokens", 2048, "--batch", 2, "--calibration", self.text,
                  "--windows", 1, "--copies", 1, "--rounds", 0),
                 dict(memory, calibration=self.text, windows=1, copies=1, rounds=0))):
            with self.subTest(arguments):
                plan = kvq.plan(self.model, **options)
                self.assertEqual((plan.method, len(plan.specs)), ("sensitivity", 2))
                self.assertGreater(plan.divergence, 0)
                expected = self.command("plan", self.model, "--method", "sensitivity", *arguments, "-o", file)
                self.assertEqual(plan.to_json(), expected)

    def test_calibration_is_a_file_or_a_text(self):
        options = dict(budget=3, windows=1, copies=0, rounds=0)
        by_file = kvq.plan(self.model, calibration=str(self.text), **options)
        by_text = kvq.plan(self.model, calibration=self.text.read_text(encoding="utf-8"), **options)
        self.assertEqual((by_file.to_json(), by_file.divergence), (by_text.to_json(), by_text.divergence))
        self.assertNotEqual(by_file.divergence, kvq.plan(self.model, **options).divergence)

    def test_plans_are_kept_and_read(self):
        plan = kvq.plan(self.model, budget=3, windows=1, copies=0)
        plan.save(self.folder / "plan.json")
        read = kvq.Plan.load(self.folder / "plan.json")
        self.assertEqual((read.specs, read.divergence), (plan.specs, None))
        self.assertLessEqual(read.effective_bits, 3)

    def test_errors(self):
        def call(**options):
            return lambda: kvq.plan(self.model, **options)
        for message, wrong in (
                ("expected budget, memory or group_budget", call()),
                ("one of budget and memory", call(budget=3, memory=1, tokens=1)),
                ("memory and tokens need each other", call(memory=1)),
                ("budget: expected more than 0", call(budget=-1)),
                ("method: expected one of", call(budget=3, method="guess")),
                ("rounds: goes with method 'sensitivity', found 'norm'", call(budget=3, norm="spectral", rounds=1)),
                ("spec: goes with method 'norm', found 'sensitivity'",
                 call(budget=3, method="sensitivity", spec="k4v2")),
                ("sensitivity: expected attention or kl, found 'all'", call(budget=3, sensitivity="all")),
                ("bits: expected a list of 1, .*, found '7'", call(budget=3, bits=[7])),
                ("windows: expected at least 1, found 0", call(budget=3, windows=0)),
                ("window: expected a multiple of 64 tokens, found 100", call(budget=3, window=100)),
                ("tokens 60: nothing of it is packed", call(memory=2**20, tokens=60)),
                ("memory: 10 bytes for each of 2 sequences", call(memory=20, tokens=2048, batch=2)),
                ("calibration: the text has 4 tokens, a window needs", call(budget=3, calibration="A few words.\n")),
                ("smallest plan takes", call(budget=0.5, windows=1)),
                ("expected a model", lambda: kvq.plan(budget=3, method="sensitivity"))):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                wrong()
        with self.assertRaises(FileNotFoundError):
            kvq.plan(self.model, budget=3, calibration="no such file")

    @support.needs_transformers
    def test_a_loaded_model_is_refused(self):
        with self.assertRaisesRegex(ValueError, "from its files: expected a directory or the id"):
            kvq.plan(support.load(support.DEMO_MODEL), budget=3)


class AnalyzeTest(MeasureTest):
    def test_the_command_measures_the_same(self):
        file, page = self.folder / "result.json", self.folder / "page.html"
        found = kvq.analyze(self.model, windows=1, report=page)
        self.assertEqual(found["kvq_analysis"], 1)
        self.assertEqual(len(found["plans"]), 10)
        other = self.folder / "other.html"
        expected = self.command("analyze", self.model, "--windows", 1, "-o", other, "--json", file)
        self.assertEqual(found, json.loads(expected))
        self.assertEqual(page.read_text(encoding="utf-8"), other.read_text(encoding="utf-8"))

    def test_options(self):
        found = kvq.analyze(self.model, text=self.text, windows=1, sensitivity=0, spec="k3:affine,v3",
                            sinks=0, window=0)
        self.assertEqual((found["text"]["file"], found["sensitivity"]), (str(self.text), None))
        self.assertEqual(found["widths"]["base"], "k3:affine,v3")

    def test_errors(self):
        missing = self.folder / "missing"
        for message, options in (
                ("spec: widths of 16 bits", dict(spec="k16v4")), ("k7", dict(spec="k7v2")),
                (f"{missing}: cannot open", dict(text=missing)), ("no directory", dict(report=missing / "x.html")),
                ("sensitivity: expected at least 0", dict(sensitivity=-1))):
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                kvq.analyze(self.model, **options)

    def test_without_torch_and_transformers(self):
        code = WITHOUT_TORCH + (f"import kvq; print(len(kvq.analyze({str(self.model)!r}, windows=1, "
                                "sensitivity=0)['formats']) > 36)")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual((done.stdout, done.stderr), ("True\n", ""))

    def test_an_interrupt_ends_it(self):
        code = f"import kvq; print('ready', flush=True); kvq.analyze({str(support.DEMO_MODEL)!r}, windows=8)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:
            self.assertEqual(process.stdout.readline(), "ready\n")
            while process.poll() is None:  # a busy machine may take one before the analysis begins
                time.sleep(1)
                process.send_signal(signal.SIGINT)
            self.assertIn("KeyboardInterrupt", process.stderr.read())


class ImportTest(unittest.TestCase):
    def test_importing_does_not_load_the_runtime(self):
        code = ("import kvq; maps = open('/proc/self/maps').read(); "
                "print('libdnnl' in maps or '_model' in maps)")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout, "False\n")


if __name__ == "__main__":
    unittest.main()
