#!/usr/bin/env python3
"""Scores of the offline lm-eval tasks on packed caches.

usage: lm_eval_tasks.py --tasks DIR [--gsm8k DIR] [--limit N] [--kv FORMAT...] --json FILE

DIR holds recall.jsonl and arith.jsonl, or gsm8k-test.jsonl (its first 200 questions are taken).
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--tasks", type=pathlib.Path, required=True)
parser.add_argument("--gsm8k", type=pathlib.Path)
parser.add_argument("--limit", type=int, default=400)
parser.add_argument("--kv", nargs="+", default=["k16v16", "k4v2", "k2v4"])
parser.add_argument("--json", type=pathlib.Path, required=True)
options = parser.parse_args()


def score(spec, tasks, data, limit):
    """{task: exact} of one run of lm-eval."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "kvq.lm_eval", "run", "--model", "kvq-hf", "--model_args",
             f"pretrained={ROOT / 'models/demo-llama'},dtype=float32,kvq={spec}", "--device", "cpu",
             "--batch_size", "8", "--task-data", str(data), "--tasks", tasks, "--limit", str(limit),
             "--output_path", folder],
            check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
        file = next(pathlib.Path(folder).rglob("results*.json"))
        results = json.loads(file.read_text(encoding="utf-8"))
    return {task.removeprefix("kvq_"): {"accuracy": values["exact,none"], "n": results["n-samples"][task]["effective"]}
            for task, values in results["results"].items()}


formats = []
for spec in options.kv:
    tasks = score(spec, "kvq_recall,kvq_arith", options.tasks, options.limit)
    if options.gsm8k:
        tasks |= score(spec, "kvq_gsm8k", options.gsm8k, min(options.limit, 200))
    formats.append({"name": spec, "tasks": tasks})
options.json.write_text(json.dumps({"formats": formats}, indent=1) + "\n", encoding="utf-8")
