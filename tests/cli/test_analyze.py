"""kvq analyze and kvq report."""
import json
import math
import struct
import unittest

from harness import DEMO_MODEL, SOURCE, CommandTest, Safetensors

TINY = SOURCE / "tests/fixtures/checkpoints/llama3.2-tiny"


class ReportTest(CommandTest):
    def tiny_model(self):
        """A model of two layers with the demo model's tokenizer: a run takes a second."""
        directory = self.folder / "tiny"
        directory.mkdir()
        for file in [*TINY.iterdir(), *DEMO_MODEL.glob("tokenizer*.json")]:
            (directory / file.name).symlink_to(file)
        return directory

    def analyze(self, *arguments):
        page, result = self.folder / "page.html", self.folder / "result.json"
        done = self.succeed("analyze", self.tiny_model(), "--windows", 1, "-o", page, "--json",
                            result, *arguments)
        return done, page.read_text(encoding="utf-8"), json.loads(result.read_text())


class Analyze(ReportTest):
    def test_page_table_and_json(self):
        done, page, value = self.analyze()
        self.assertEqual(done.stderr, "")
        lines = done.stdout.splitlines()
        self.assertRegex(lines[0], r"^goal +KL below +format +bits +size +KL +top-1$")
        self.assertRegex(lines[1], r"^nearly exact +0\.001 +")
        self.assertEqual(lines[-1], f"report  {self.folder / 'page.html'}")
        self.assertTrue(page.startswith("<!doctype html>"))
        self.assertEqual(page.count("<figure "), 10)
        numbers = (int, float)
        self.assert_typed(value, {
            "kvq_analysis": int, "program": str, "command": str,
            "model": {"layers": int, "head_dim": int},
            "weight_norms": {"frobenius": {"w_k": [numbers], "w_v": [numbers]}},
            "activations": {"tokens": int, "layers": [
                {"key": {"rms": [numbers], "mse": [numbers]}, "value": {"rms": [numbers]}}]},
            "formats": [{"name": str, "effective_bits": numbers, "kl": numbers, "top1": numbers}],
            "widths": {"cells": [[str]]}, "rotations": {"cells": [[str]]},
            "groups": {"cells": [[str]]},
            "sensitivity": {"widths": [str], "key": [[numbers]], "value": [[numbers]]},
            "plans": [{"method": str, "budget": numbers, "layers": [str],
                       "score": {"effective_bits": numbers, "kl": numbers}}]})
        for plan in value["plans"]:
            self.assertLessEqual(plan["score"]["effective_bits"], plan["budget"] + 1e-9)
        names = [entry["name"] for entry in value["formats"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(value["activations"]["tokens"], 508)
        # Fewer bits, larger errors.
        for layer in value["activations"]["layers"]:
            for tensor in layer.values():
                self.assertEqual(tensor["mse"], sorted(tensor["mse"], reverse=True))

    def test_norms_are_those_of_the_weights(self):
        _, _, value = self.analyze()
        file = Safetensors(TINY / "model.safetensors")
        entry = file.header["model.layers.1.self_attn.k_proj.weight"]
        self.assertEqual(entry["dtype"], "F32")
        data = file.data[slice(*entry["data_offsets"])]
        norm = math.hypot(*(number for number, in struct.iter_unpack("<f", data)))
        self.assertAlmostEqual(value["weight_norms"]["frobenius"]["w_k"][1] / norm, 1, places=5)

    def test_base_format(self):
        _, _, value = self.analyze("--kv", "k3:affine,v3", "--sinks", 0, "--window", 0,
                                   "--sensitivity", 0)
        self.assertEqual(value["groups"]["base"], "k3:affine,v3")
        self.assertIn("k8:affine,v2", [entry["name"] for entry in value["formats"]])
        self.assertTrue(value["command"].endswith(
            "--windows 1 --sensitivity 0 --seed 0 --kv k3:affine,v3 --sinks 0 --window 0"))
        self.assertIsNone(value["sensitivity"])
        self.assertEqual(value["plans"], [])

    def test_report_makes_the_same_page(self):
        _, page, _ = self.analyze()
        again = self.folder / "again.html"
        done = self.succeed("report", self.folder / "result.json", "-o", again)
        self.assertEqual((done.stdout, done.stderr), ("", ""))
        self.assertEqual(again.read_text(encoding="utf-8"), page)

    def test_report_compares(self):
        self.analyze()
        result, page = self.folder / "result.json", self.folder / "both.html"
        self.succeed("report", result, result, "-o", page)
        self.assertIn("Best measured formats of each run", page.read_text(encoding="utf-8"))


class Refused(ReportTest):
    def test_short_text(self):
        text = self.write("text.txt", "A few words.")
        self.fail_with(f"{text}: the text has 4 tokens, a window needs 1023", "analyze", "--text",
                       text, "-o", self.folder / "page.html")

    def test_outputs(self):
        folder = self.folder / "missing"
        line = f"{folder / 'page.html'}: cannot write: there is no directory {folder}"
        self.fail_with(line, "analyze", "-o", folder / "page.html")
        self.fail_with(line, "report", "x.json", "-o", folder / "page.html")
        self.fail_with("analyze: nothing to write: give -o FILE, --json FILE or both", "analyze",
                       status=2)

    def test_unquantized_base(self):
        self.fail_with("--kv: widths of 16 bits have no rotation or groups to compare", "analyze",
                       "-o", "x.html", "--kv", "k16v4", status=2)

    def test_files_of_other_kinds(self):
        page = self.folder / "page.html"
        for text, message in (
                ("{}", 'not written by kvq analyze: there is no field "kvq_analysis"'),
                ('{"kvq_analysis": 2}', "kvq_analysis: expected version 1, found 2"),
                ("[1]", "expected a JSON object, found [1]"),
                ('{"kvq_analysis": 1}', "program: expected a string, found nothing")):
            path = self.write("other.json", text)
            self.fail_with(f"{path}: {message}", "report", path, "-o", page)
        missing = self.folder / "none.json"
        self.fail_with(f"{missing}: cannot open: No such file or directory", "report", missing, "-o",
                       page)
        self.fail_matching(r".*other\.json: not valid JSON: .*", "report",
                           self.write("other.json", "{"), "-o", page)
        self.assertFalse(page.exists())


if __name__ == "__main__":
    unittest.main()
