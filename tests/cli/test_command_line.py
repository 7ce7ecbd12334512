"""--help, --version, and command lines that are wrong."""
import unittest

from harness import CommandTest

COMMANDS = ["info", "generate", "eval", "norms", "plan", "analyze", "report", "bench append",
            "bench attention", "bench eval", "bench generate"]


class Help(CommandTest):
    def test_every_command_explains_itself(self):
        for command in COMMANDS:
            with self.subTest(command):
                done = self.succeed(*command.split(), "--help")
                self.assertIn(f"Usage: kvq {command} [OPTIONS]", done.stdout)
                if command != "report":  # which reads JSON
                    self.assertIn("--json FILE", done.stdout)
                self.assertEqual(done.stderr, "")
                for line in done.stdout.splitlines():
                    self.assertLessEqual(len(line), 80, line)

    def test_every_command_is_listed(self):
        listed = self.succeed("--help").stdout + self.succeed("bench", "--help").stdout
        for command in COMMANDS:
            self.assertRegex(listed, rf"(?m)^  {command.split()[-1]} +[A-Z]")

    def test_defaults_are_stated(self):
        text = self.succeed("generate", "--help").stdout
        self.assertIn("The default format is k4v2 (--window 64 --sinks 4).", text)

    def test_version(self):
        self.assertRegex(self.succeed("--version").stdout, r"^kvq \d+\.\d+\.\d+\n$")


class WrongCommandLine(CommandTest):
    def wrong(self, line, *arguments):
        self.fail_with(line, *arguments, status=2)

    def test_no_command(self):
        line = "expected a command: " + ", ".join(COMMANDS)
        self.wrong(line)
        self.wrong(line, "bench")

    def test_unknown_words(self):
        self.wrong("The following argument was not expected: foo", "foo")
        self.wrong("The following argument was not expected: --nope", "info", "--nope")

    def test_unknown_width(self):
        self.wrong("--kv: cache format 'k9v2': unknown width 'k9', expected k followed by 1, 1.58, "
                   "2, 3, 4, 5, 6, 8 or 16", "info", "--kv", "k9v2")

    def test_bad_group(self):
        for command in (["info"], ["generate", "-p", "x"], ["eval"], ["bench", "append"]):
            self.wrong("--kv: cache format 'k4:g48,v2': unknown option 'g48' of k, expected g16, "
                       "g32, g64, g128 or g256; token or channel; symmetric or affine; minmax, "
                       "mse or hqq; none or hadamard", *command, "--kv", "k4:g48,v2")

    def test_window(self):
        for window in ("63", "-64", "x"):
            self.wrong(f"--window: expected a multiple of 64 tokens, found '{window}'",
                       "info", "--window", window)

    def test_prompts(self):
        self.wrong("--prompt: the prompt is empty", "generate", "-p", "")
        line = "generate: expected exactly one of -p, -f and --prompts"
        self.wrong(line, "generate")
        self.wrong(line, "generate", "-p", "a", "-f", "b")

    def test_one_format_to_generate_with(self):
        self.wrong("--kv: At Most 1 required but received 2",
                   "generate", "-p", "a", "--kv", "k4v2", "--kv", "k2v2")

    def test_nothing_to_evaluate(self):
        self.wrong("eval: nothing to measure: no text windows and no --tasks",
                   "eval", "--windows", "0")
        self.wrong("--prefill exact: a text window is one prefill, which would read nothing packed; "
                   "give --tasks alone", "eval", "--prefill", "exact", "--windows", "2")

    def test_choices(self):
        self.wrong("--isa: sse not in {portable,avx2,avx512}", "generate", "-p", "a", "--isa", "sse")
        self.wrong("--prefill: all not in {packed,exact}", "generate", "-p", "a",
                   "--prefill", "all")


if __name__ == "__main__":
    unittest.main()
