"""kvq norms, kvq plan, and plans where other commands take them."""
import json
import unittest

from harness import SOURCE, CommandTest, Safetensors, run

QWEN = SOURCE / "tests/fixtures/checkpoints/qwen3-tiny"
KEYS = "model.layers.2.self_attn.k_proj.weight"
TENSOR = {"bits": (int, float), "axis": str, "group": int, "params": str, "fit": str,
          "rotation": str}
PLAN = {"kvq_plan": int, "model": {"identity": str, "layers": int, "kv_heads": int, "head_dim": int},
        "method": str, "budget": float, "sinks": int, "window": int,
        "layers": [{"key": TENSOR, "value": TENSOR}], "effective_bits": float}


class Norms(CommandTest):
    def test_table_and_file(self):
        path = self.folder / "norms.json"
        done = self.succeed("norms", "--norm", "spectral", "-o", path)
        value = json.loads(path.read_text())
        self.assert_typed(value, {"model": str, "norm": str, "w_k": [float], "w_v": [float],
                                  "identity": str, "heads_k": [[float]], "heads_v": [[float]]})
        self.assertEqual(value, self.succeed_json("norms", "--norm", "spectral"))
        self.assertEqual((value["norm"], len(value["w_k"]), len(value["heads_k"][0])),
                         ("spectral", 8, 2))
        lines = done.stdout.splitlines()
        self.assertRegex(lines[2], r"^layer +W_K +W_V +W_K / W_V +W_K by head +W_V by head$")
        self.assertRegex(lines[3], r"^0 +9\.910 +1\.117 +8\.870 ")
        self.assertEqual(len(lines), 3 + 8)
        self.assertEqual(done.stderr, "")

    def test_keys_below_values(self):
        self.assertRegex(self.succeed("norms").stderr,
                         r"\Awarning: W_K is below W_V in 4 of 8 layers: .*\n\Z")

    def test_normalized_keys(self):
        self.assertRegex(self.succeed("norms", QWEN, "--norm", "spectral").stderr,
                         r"warning: this model normalizes its keys .*: the norm of W_K says nothing")

    def test_bad_weights(self):
        file = Safetensors()
        start, stop = file.header[KEYS]["data_offsets"]
        good = bytes(file.data[start:stop])
        for content, message in (
                (good[:514] + b"\xc0\x7f" + good[516:],
                 r"row 0, column 257: expected a finite number, found nan"),
                (bytes(len(good)), r"expected weights, found zeros only.*")):
            file.data[start:stop] = content
            with self.subTest(message):
                path = self.folder / "bad"
                path.mkdir(exist_ok=True)
                for name in ("config.json", "model.safetensors"):
                    (path / name).write_bytes(
                        file.bytes() if name != "config.json"
                        else (SOURCE / "models/demo-llama/config.json").read_bytes())
                self.fail_matching(rf"{path}: key projection of layer 2: {message}", "norms", path)
                self.fail_matching(rf"{path}: key projection of layer 2: {message}", "plan", path,
                                   "--method", "norm", "--budget", 3)


class PlanCommand(CommandTest):
    def plan(self, *arguments, name="plan.json"):
        path = self.folder / name
        self.succeed("plan", "--method", "norm", *arguments, "-o", path)
        return path, json.loads(path.read_text())

    def test_plan_runs(self):
        path, plan = self.plan("--budget", 2.5, "--norm", "spectral")
        self.assert_typed(plan, PLAN)
        self.assertEqual((plan["kvq_plan"], plan["method"], plan["budget"]), (1, "norm", 2.5))
        widths = [layer[tensor]["bits"] for layer in plan["layers"] for tensor in ("key", "value")]
        self.assertEqual(sum(widths), 2.5 * 16)
        self.assertGreater(len(set(widths)), 2)
        self.assertEqual(plan["effective_bits"], 2.75)
        value = self.succeed_json("generate", "-p", "Once", "-n", 140, "--plan", path)
        self.assertEqual((value["effective_bits"], value["format"]), (2.75, str(path)))
        self.assertLess(value["cache_bytes"], value["cache_bytes_16bit"])
        value = self.succeed_json("info", "--kv", "k4v2", "--plan", path)
        self.assertEqual(list(value["bytes_per_token"]), ["k4v2", str(path)])
        # 2 tensors of 8 layers, 2 heads of 64 channels.
        self.assertEqual(value["bytes_per_token"][str(path)], 2.75 * 2 * 8 * 2 * 64 / 8)
        value = self.succeed_json("bench", "generate", "--prompt-tokens", 150, "--new-tokens", 2,
                                  "--rounds", 1, "--plan", path)
        self.assertEqual([entry["effective_bits"] for entry in value["formats"]], [2.75])

    def test_eval_tells_plans_apart(self):
        wide, _ = self.plan("--budget", 6, name="wide.json")
        narrow, _ = self.plan("--budget", 2, name="narrow.json")
        value = self.succeed_json("eval", "--windows", 1, "--plan", wide, "--plan", narrow)
        self.assertEqual([entry["name"] for entry in value["formats"]], [str(wide), str(narrow)])
        self.assertLess(value["formats"][0]["kl"], value["formats"][1]["kl"])

    def test_a_uniform_plan_is_the_format(self):
        path, _ = self.plan("--budget", 3, "--bits", "3")
        value = self.succeed_json("eval", "--windows", 1, "--kv", "k3v3", "--plan", path)
        self.assertEqual(value["formats"][0]["kl"], value["formats"][1]["kl"])

    def test_groups_and_base(self):
        _, plan = self.plan("--group-budget", 64, "--norm", "spectral", "--kv",
                            "k4:affine,v2:channel:none", "--window", 128, "--sinks", 0)
        self.assertIsNone(plan["budget"])
        self.assertEqual((plan["window"], plan["sinks"]), (128, 0))
        sizes = [layer[tensor]["group"] for layer in plan["layers"] for tensor in ("key", "value")]
        self.assertAlmostEqual(sum(1 / size for size in sizes), 16 / 64, places=2)
        self.assertGreater(len(set(sizes)), 1)
        self.assertEqual({layer["key"]["params"] for layer in plan["layers"]}, {"affine"})
        self.assertEqual({layer["value"]["axis"] for layer in plan["layers"]}, {"channel"})

    def test_memory(self):
        path, plan = self.plan("--memory", "4MiB", "--tokens", 2048, "--batch", 2)
        self.assertIsNone(plan["budget"])
        value = self.succeed_json("info", "--plan", path, "--memory", "4MiB", "--batch", 2)
        self.assertGreaterEqual(value["longest_context"][str(path)], 2048)
        _, more = self.plan("--memory", "5MiB", "--tokens", 2048, "--batch", 2)
        self.assertGreater(more["effective_bits"], plan["effective_bits"])

    def test_table_without_a_model(self):
        table = self.write("norms.json", json.dumps({"w_k": [3, 2, 1], "w_v": [0.3, 0.2, 0.1]}))
        done = self.succeed("plan", "--norms", table, "--budget", 3, "--json", "-")
        plan = json.loads(done.stdout)
        self.assertEqual(plan["model"],
                         {"identity": None, "layers": 3, "kv_heads": 8, "head_dim": 128})
        self.assertIn(f"warning: {table} names no model: the plan is for one of 8 kv heads of 128 "
                      "channels", done.stderr)

    def test_own_table_again(self):
        table = self.folder / "norms.json"
        self.succeed("norms", "-o", table)
        _, direct = self.plan("--budget", 2.25)
        _, stored = self.plan("--budget", 2.25, "--norms", table)
        self.assertEqual(direct, stored)

    def test_budget_above_the_largest(self):
        done = self.succeed("plan", "--budget", 9, "--norm", "spectral")
        self.assertEqual(done.stderr, "warning: the codes take 8.0000 bits on average, the budget "
                                      "is 9.0000: no step fits\n")

    def test_refused(self):
        spectral = ("--norm", "spectral")
        for arguments, line in (
                (("--budget", 0.5, *spectral),
                 "--budget: expected at least 1 bits, the narrowest widths, found 0.5"),
                (("--group-budget", 300, *spectral),
                 "--group-budget: expected at most 256, the largest groups, found 300"),
                (("--memory", "600KiB", "--tokens", 2048, *spectral),
                 "--memory: the smallest plan takes 20480 bytes for each 64 tokens, the budget is "
                 "3003"),
                (("--memory", "600KiB", "--tokens", 60, *spectral),
                 "--tokens 60: nothing of it is packed: the first 4 and the newest 64 tokens stay "
                 "in 16 bits")):
            with self.subTest(arguments):
                self.fail_with(line, "plan", *arguments)

    def test_wrong_command_lines(self):
        for arguments, line in (
                ((), "plan: expected --budget, --memory or --group-budget"),
                (("--budget", 2, "--bits", ""),
                 "--bits: expected a list of 1, 1.58, 2, 3, 4, 5, 6, 8, found '' in ''"),
                (("--budget", 2, "--bits", "2,7"),
                 "--bits: expected a list of 1, 1.58, 2, 3, 4, 5, 6, 8, found '7' in '2,7'"),
                (("--budget", 2, "--bits", "2,2"), "--bits: 2 is repeated in '2,2'"),
                (("--group-budget", 64, "--groups", "64,100"),
                 "--groups: expected a list of 16, 32, 64, 128, 256, found '100' in '64,100'"),
                (("--method", "norm", "--budget", 2, "--groups", "64"),
                 "--groups: needs --group-budget"),
                (("--group-budget", 64, "--bits", "2"), "--bits: needs --budget or --memory"),
                (("--memory", "1MiB"), "plan: --memory and --tokens need each other"),
                (("--budget", 2, "--memory", "1MiB", "--tokens", 9),
                 "plan: expected one of --budget and --memory")):
            with self.subTest(arguments):
                self.fail_with(line, "plan", *arguments, status=2)

    def test_table_of_another_model(self):
        table = self.write("norms.json", json.dumps({"w_k": [3, 2], "w_v": [1, 1]}))
        model = SOURCE / "models/demo-llama"
        self.fail_with(f"{table}: w_k: expected 8 norms, one for each layer of the model, found 2",
                       "plan", model, "--norms", table, "--method", "norm", "--budget", 3)
        table.write_text(json.dumps({"identity": "0" * 16, "w_k": [1] * 8, "w_v": [1] * 8}))
        self.fail_matching(rf"{table}: identity: expected [0-9a-f]{{16}}, the model's, found 0{{16}}",
                           "plan", model, "--norms", table, "--method", "norm", "--budget", 3)
        table.write_text(json.dumps({"w_k": [3, 0], "w_v": [1, 1]}))
        self.fail_with(f"{table}: w_k[1]: expected a positive number, found 0", "plan", "--norms",
                       table, "--method", "norm", "--budget", 3)

    def test_edited_plans(self):
        path, plan = self.plan("--budget", 2.5, "--norm", "spectral")

        def refused(message, **fields):
            path.write_text(json.dumps({**plan, **fields}))
            self.fail_matching(f"{path}: {message}", "generate", "-p", "a", "--plan", path)

        refused(r"kvq_plan: expected 1, the version that this build reads, found 2", kvq_plan=2)
        refused(r"layers: expected 8 as the model has, found 7", layers=plan["layers"][1:])
        refused(r"effective_bits: expected 2\.75, what the layers take, found 2", effective_bits=2)
        refused(r"model: layers: .* another model: expected 8, found 9",
                model={**plan["model"], "layers": 9}, layers=plan["layers"] + [plan["layers"][1]])
        refused(r"model: identity: the plan is for another model of this shape: .*",
                model={**plan["model"], "identity": "0123456789abcdef"})
        layers = json.loads(json.dumps(plan["layers"]))
        layers[3]["key"]["bits"] = 7
        refused(r"layers\[3\]: key: bits: expected 1, 1\.58, .* or 16, found 7", layers=layers)
        layers[3]["key"]["bits"] = 3
        layers[3]["value"]["group"] = 48
        refused(r"layers\[3\]: group of the values: expected 16, .*, found 48", layers=layers)

    def test_window_beside_a_plan(self):
        path, _ = self.plan("--budget", 2.5)
        self.fail_with("--window: the plan says how many tokens stay in 16 bits; make one with other "
                       "numbers", "generate", "-p", "a", "--plan", path, "--window", 128)
        other, _ = self.plan("--budget", 2.5, "--window", 128, name="other.json")
        self.fail_with(f"{other}: sinks, window: expected 4, 64 as the other formats have, found 4, "
                       "128", "eval", "--windows", 1, "--plan", path, "--plan", other)
        done = run("generate", "-p", "a", "--plan", path, "--kv", "k4v2")
        self.assertEqual(done.returncode, 2)


if __name__ == "__main__":
    unittest.main()
