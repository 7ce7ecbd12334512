#!/usr/bin/env python3
"""Renders report pages in headless Chromium, in both colour schemes, on a desktop and at 360 pixels:
no script error, no empty figure, no text outside its figure or on top of other text, nothing that makes
the page scroll sideways.

Environment: KVQ_COMMAND = the command, KVQ_SOURCE = the source tree. Where there is no Chromium (or
$KVQ_BROWSER), says so and exits with 77. KVQ_SCREENSHOTS names a folder that keeps a picture of each page.
"""
import html
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BROWSER = os.environ.get("KVQ_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
SOURCE = pathlib.Path(os.environ["KVQ_SOURCE"])
PROBE = pathlib.Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
LIGHT, DARK = 1, 0  # Blink's values of preferredColorScheme
DESKTOP, TELEPHONE = 1200, 360
FIGURES = 10


def kvq(*arguments):
    subprocess.run([os.environ["KVQ_COMMAND"], *map(str, arguments)], check=True, timeout=120,
                   stdout=subprocess.DEVNULL)


def browse(page, scheme, *options):
    """The finished process of one headless look at a page."""
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=8000",
             f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={scheme}", *options,
             page.as_uri()],
            capture_output=True, text=True, timeout=300, check=True)


def enlarged(value, layers, head_dim):
    """The analysis of a made-up model of this size, with numbers that differ by layer."""
    value = json.loads(json.dumps(value))
    value["model"].update(name=f"made-up {layers} layers", layers=layers, head_dim=head_dim)

    def tensor(like, layer):
        size = (1 + layer % 7) * like["rms"][0]
        spectrum = [4 * size / math.sqrt(1 + i) for i in range(head_dim)]
        return {**like, "rms": [size, 0.8 * size, 1.3 * size],
                "spectrum": {"mean": spectrum, "low": [0.7 * x for x in spectrum],
                             "high": [1.4 * x for x in spectrum]}}

    like = value["activations"]["layers"][0]
    value["activations"]["layers"] = [
        {name: tensor(like[name], layer) for name in ("key", "value")} for layer in range(layers)]
    for norms in value["weight_norms"].values():
        for name in norms:
            norms[name] = [norms[name][0] * (1 + 0.01 * layer) for layer in range(layers)]
    for name in ("key", "value"):
        row = value["sensitivity"][name][0]
        value["sensitivity"][name] = [[x / (1 + layer % 9) for x in row] for layer in range(layers)]
    for plan in value["plans"]:
        plan["layers"] = (plan["layers"] * layers)[:layers]
    return value


class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvq-report-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        model = cls.folder / "model"
        model.mkdir()
        tiny = SOURCE / "tests/fixtures/checkpoints/llama3.2-tiny"
        for file in [*tiny.iterdir(), *(SOURCE / "models/demo-llama").glob("tokenizer*.json")]:
            (model / file.name).symlink_to(file)
        small, one, large = (cls.folder / f"{name}.json" for name in ("small", "one", "large"))
        kvq("analyze", model, "--windows", 1, "--sensitivity", 1, "--json", small)
        value = json.loads(small.read_text())
        one.write_text(json.dumps(enlarged(value, 1, 16)))
        large.write_text(json.dumps(enlarged(value, 80, 128)))
        cls.pages = {}
        for name, files in (("small", [small]), ("one", [one]), ("large", [large]),
                            ("compared", [small, large])):
            cls.pages[name] = cls.folder / f"{name}.html"
            kvq("report", *files, "-o", cls.pages[name])

    def look(self, name, scheme, width):
        """What the probe says about a page in a frame of this width."""
        page = self.pages[name].read_text(encoding="utf-8").replace(
            "</body>", f"<script>{PROBE}</script></body>")
        self.folder.joinpath("probed.html").write_text(page, encoding="utf-8")
        frame = self.folder / "frame.html"
        # The probe's answer goes to the frame's page, whose elements are printed. A window itself is
        # never narrower than 500 pixels.
        frame.write_text(f"""<!doctype html><meta name="color-scheme" content="light dark">
<body style="margin:0"><iframe src="probed.html" style="border:0;width:{width}px;height:2400px">
</iframe><pre id="answer"></pre><script>
addEventListener("message", (event) => {{ document.getElementById("answer").textContent = event.data; }});
</script>""", encoding="utf-8")
        done = browse(frame, scheme, "--dump-dom", f"--window-size={max(width, 500)},2400")
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        self.assertEqual(console, [])
        answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL).group(1)
        self.assertTrue(answer, "the probe did not answer")
        if folder := os.environ.get("KVQ_SCREENSHOTS"):
            picture = pathlib.Path(folder).resolve() / f"{name}-{scheme}-{width}.png"
            browse(frame, scheme, f"--screenshot={picture}", f"--window-size={max(width, 500)},2400")
        return json.loads(html.unescape(answer))

    def check(self, name, scheme, width, figures=FIGURES):
        with self.subTest(page=name, scheme=scheme, width=width):
            seen = self.look(name, scheme, width)
            self.assertEqual(seen["errors"], [])
            self.assertEqual(seen["figures"], figures)
            self.assertEqual(seen["empty"], [])
            self.assertEqual(seen["outside"], [])
            self.assertEqual(seen["overlapping"], [])
            self.assertLessEqual(seen["pageWidth"], width)
            return seen

    def test_pages(self):
        for name in self.pages:
            self.check(name, LIGHT, DESKTOP)
            self.check(name, DARK, TELEPHONE)

    def test_schemes_and_button(self):
        light = self.check("small", LIGHT, TELEPHONE)
        dark = self.check("small", DARK, DESKTOP)
        self.assertEqual((light["theme"], dark["theme"]), ("light", "dark"))
        # The button turns each into the other.
        self.assertEqual((light["themeAfterClick"], dark["themeAfterClick"]), ("dark", "light"))
        for seen in (light, dark):
            self.assertGreater(seen["contrast"], 4.5)
            self.assertGreater(seen["contrastAfterClick"], 4.5)
            self.assertEqual(len(set(seen["steps"])), 9)
            self.assertNotEqual(seen["tip"], "")

    def test_size(self):
        self.assertLess(self.pages["large"].stat().st_size, 2_000_000)


if __name__ == "__main__":
    if not BROWSER:
        print("skipped: there is no Chromium here (the package `chromium`, or $KVQ_BROWSER)")
        sys.exit(77)
    unittest.main()
