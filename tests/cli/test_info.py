"""kvq info."""
import json
import unittest

from harness import DEMO_MODEL, GOLDEN, SOURCE, CommandTest, run

TYPES = {"layers": int, "kv_heads": int, "head_dim": int, "query_heads": int,
         "bytes_per_token": {"k16v16": int, "k4v2": int, "k2v2": int},
         "parameters": int, "longest_context": {"k16v16": int}}


class Info(CommandTest):
    def test_golden_text(self):
        self.assertEqual(self.succeed("info").stdout, (GOLDEN / "info.txt").read_text())

    def test_options_change_the_table(self):
        done = self.succeed("info", DEMO_MODEL, "--kv", "k3:g32:channel:affine,v3:affine", "--memory", "1GiB",
                            "--batch", "4", "--sinks", "0", "--window", "128")
        expected = (GOLDEN / "info_options.txt").read_text()
        self.assertEqual(done.stdout.replace(str(DEMO_MODEL), "MODEL"), expected)

    def test_json(self):
        value = self.succeed_json("info")
        self.assert_typed(value, TYPES)
        self.assertEqual((value["layers"], value["kv_heads"], value["head_dim"],
                          value["query_heads"]), (8, 2, 64, 8))
        # 8 layers, 2 heads, 64 channels, K and V, 2 bytes; k4v2: 3.25 bits a number.
        self.assertEqual(value["bytes_per_token"]["k16v16"], 8 * 2 * 64 * 2 * 2)
        self.assertEqual(value["bytes_per_token"]["k4v2"], 8 * 2 * 64 * 2 * 3.25 / 8)
        self.assertEqual(value["longest_context"]["k16v16"], 2 ** 31 // 4096)

    def test_json_file_and_stdout_agree(self):
        path = self.folder / "info.json"
        table = self.succeed("info", "--json", path).stdout
        self.assertEqual(table, (GOLDEN / "info.txt").read_text())
        done = self.succeed("info", "--json", "-")
        self.assertEqual(path.read_text(), done.stdout)
        self.assertEqual(done.stderr, table)

    def test_sharded_and_other_architectures(self):
        for name in ("llama3.1-tiny", "llama3.2-tiny", "qwen3-tiny", "llama-bias-tiny"):
            directory = SOURCE / "tests/fixtures/checkpoints" / name
            config = json.loads((directory / "config.json").read_text())
            value = self.succeed_json("info", directory)
            self.assertEqual(value["layers"], config["num_hidden_layers"])
            self.assertEqual(value["kv_heads"], config["num_key_value_heads"])

    def test_demo_model_from_the_environment(self):
        self.assertEqual(run("info", KVQ_DEMO_MODEL=str(DEMO_MODEL)).stdout,
                         (GOLDEN / "info.txt").read_text())
        self.fail_with("/nowhere/config.json: cannot open: No such file or directory", "info",
                       KVQ_DEMO_MODEL="/nowhere")


if __name__ == "__main__":
    unittest.main()
