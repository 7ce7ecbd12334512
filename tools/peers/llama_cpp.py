#!/usr/bin/env python3
"""Measures llama.cpp beside kvq: the included model, the same prompt length, the same threads, the
programs taking turns in every round.

Needs build/kvq and the Python packages xllamacpp, gguf and numpy (pip install xllamacpp gguf numpy).
llama.cpp runs with flash attention, which its quantized caches need; weights are fp16.
"""
import argparse
import importlib.metadata
import json
import pathlib
import random
import statistics
import subprocess
import tempfile

import xllamacpp

import export_gguf

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "demo-llama"


class LlamaCpp:
    """llama.cpp with both caches of one ggml type."""

    def __init__(self, cache_type, gguf_path, options):
        self.name = f"llama.cpp {cache_type}"
        self.options = options
        parameters = xllamacpp.CommonParams()
        parameters.model.path = gguf_path
        parameters.n_ctx = options.prompt_tokens + options.new_tokens
        parameters.n_gpu_layers = 0
        parameters.n_parallel = 1
        parameters.verbosity = 0
        parameters.cpuparams.n_threads = options.threads
        parameters.cpuparams_batch.n_threads = options.threads
        ggml_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache_type}")
        parameters.cache_type_k = ggml_type
        parameters.cache_type_v = ggml_type
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.server = xllamacpp.Server(parameters)
        vocabulary = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        draw = random.Random(0)
        # Ids below 3 are special tokens.
        self.prompt = [draw.randrange(3, vocabulary) for _ in range(options.prompt_tokens)]

    def run(self):
        """(prompt tokens/s, decode tokens/s)"""
        answer = self.server.handle_completions({
            "prompt": self.prompt, "n_predict": self.options.new_tokens, "temperature": 0.0,
            "top_k": 1, "ignore_eos": True, "cache_prompt": False})
        timings = answer["timings"]
        if timings["prompt_n"] != len(self.prompt) or timings["predicted_n"] != self.options.new_tokens:
            raise RuntimeError(f"{self.name} ran {timings['prompt_n']} + {timings['predicted_n']} tokens")
        return timings["prompt_per_second"], timings["predicted_per_second"]


class Kvq:
    """build/kvq with one cache format."""

    def __init__(self, spec, options):
        self.name = f"kvq {spec}"
        self.command = [
            str(ROOT / "build" / "kvq"), "bench", "generate", "--kv", spec, "--rounds", "1",
            "--threads", str(options.threads), "--prompt-tokens", str(options.prompt_tokens),
            "--new-tokens", str(options.new_tokens), "--json", "-"]

    def run(self):
        """(prompt tokens/s, decode tokens/s)"""
        done = subprocess.run(self.command, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)["formats"][0]
        return result["prefill_tokens_per_s"], result["decode_tokens_per_s"]


def measure(programs, rounds):
    """One entry a program: medians over `rounds`, after one round that is not counted."""
    runs = {program.name: [] for program in programs}
    for round_index in range(rounds + 1):
        for program in programs:
            speeds = program.run()
            if round_index > 0:
                runs[program.name].append(speeds)
    entries = []
    for name, speeds in runs.items():
        prompt, decode = zip(*speeds)
        entries.append({
            "name": name,
            "prompt_tokens_per_s": statistics.median(prompt),
            "prompt_tokens_per_s_best": max(prompt),
            "decode_tokens_per_s": statistics.median(decode),
            "decode_tokens_per_s_best": max(decode)})
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=1500)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--types", nargs="*", default=["F16", "Q8_0", "Q4_0"],
                        help="llama.cpp cache types")
    parser.add_argument("--kv", nargs="*", default=["k16v16", "k8v8", "k4v4", "k4v2"],
                        help="kvq formats")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        gguf_path = str(pathlib.Path(folder, "demo-llama.gguf"))
        export_gguf.export(MODEL, gguf_path)
        programs = [LlamaCpp(cache_type, gguf_path, options) for cache_type in options.types]
        programs += [Kvq(spec, options) for spec in options.kv]
        entries = measure(programs, options.rounds)

    print(f"{'':20} {'prompt tokens/s':>16} {'best':>7} {'decode tokens/s':>16} {'best':>7}")
    for entry in entries:
        print(f"{entry['name']:20} {entry['prompt_tokens_per_s']:16,.0f} "
              f"{entry['prompt_tokens_per_s_best']:7,.0f} {entry['decode_tokens_per_s']:16,.0f} "
              f"{entry['decode_tokens_per_s_best']:7,.0f}")
    if options.json:
        result = {"model": MODEL.name, "threads": options.threads,
                  "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens,
                  "rounds": options.rounds,
                  "xllamacpp": importlib.metadata.version("xllamacpp"), "programs": entries}
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
