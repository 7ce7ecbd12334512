"""Requests a second of vLLM with its own cache and with kvq's.

    python bench/vllm/throughput.py --kv k4v2
    python bench/vllm/throughput.py --kv k4v2 --hold 4     memory in which 4 requests fit at 16 bits

All engines are started first, then take turns; the best of the rounds counts.
"""
import argparse
import json
import os
import random
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def parse():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="models/demo-llama")
    options.add_argument("--kv", action="append", default=[], help="a format of kvq, beside vLLM's own")
    options.add_argument("--requests", type=int, default=16)
    options.add_argument("--prompt", type=int, default=1500, help="tokens of a prompt")
    options.add_argument("--tokens", type=int, default=128, help="new tokens of a request")
    options.add_argument("--hold", type=int, default=0, help="requests that fit at 16 bits; 0: all")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--json", help="file for the results")
    return options.parse_args()


def cache_bytes(given, config):
    if not given.hold:
        return 2**30
    blocks = given.hold * -(-(given.prompt + given.tokens) // 64) + 1  # vLLM keeps one to itself
    return blocks * 64 * 4 * config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"]


class Engine:
    def __init__(self, given, config, kv):
        from vllm import LLM
        self.name = f"kvq {kv}" if kv else "vLLM bfloat16"
        self.given = given
        self.llm = LLM(given.model, dtype="bfloat16", block_size=64, max_num_seqs=given.requests,
                       enforce_eager=True, enable_prefix_caching=False, disable_log_stats=False,
                       max_model_len=given.prompt + given.tokens,
                       kv_cache_memory_bytes=cache_bytes(given, config),
                       additional_config={"kvq": {"kv": kv}} if kv else {})
        self.seconds = {}

    def run(self, prompts, tokens):
        from vllm import SamplingParams
        options = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        self.llm.generate(prompts, options, use_tqdm=False)
        seconds = time.perf_counter() - start
        self.seconds[tokens] = min(seconds, self.seconds.get(tokens, seconds))

    def result(self):
        cache = self.llm.llm_engine.vllm_config.cache_config
        whole, prompts = self.seconds[self.given.tokens], self.seconds[1]
        new = self.given.requests * (self.given.tokens - 1)
        return {"name": self.name, "cache_tokens": cache.num_gpu_blocks * cache.block_size,
                "requests_per_s": self.given.requests / whole,
                "prompt_tokens_per_s": self.given.requests * self.given.prompt / prompts,
                "decode_tokens_per_s": new / (whole - prompts),
                "preemptions": sum(found.value for found in self.llm.get_metrics()
                                   if found.name == "vllm:num_preemptions")}


def main():
    given = parse()
    import torch
    import vllm
    with open(os.path.join(given.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    engines = [Engine(given, config, kv) for kv in [None, *given.kv]]
    source = random.Random(0)
    prompts = [{"prompt_token_ids": [source.randrange(10, config["vocab_size"]) for _ in range(given.prompt)]}
               for _ in range(given.requests)]
    for engine in engines:
        engine.run(prompts[:1], 2)  # warms up
    for _ in range(given.rounds):
        for engine in engines:
            engine.run(prompts, 1)
            engine.run(prompts, given.tokens)
    results = [engine.result() for engine in engines]
    for result in results:
        print(json.dumps(result), flush=True)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"vllm": vllm.__version__, "torch": torch.__version__,
                       "threads": torch.get_num_threads(), "requests": given.requests,
                       "prompt": given.prompt, "tokens": given.tokens, "hold": given.hold,
                       "engines": results}, file, indent=1)


if __name__ == "__main__":
    main()
