"""Requests a second of vLLM with kvq's caches and with its own.

    python bench/vllm/throughput.py --kv k4v2                 vLLM's own bfloat16 cache without --kv
    python bench/vllm/throughput.py --kv k4v2 --hold 4        memory in which 4 requests' bfloat16 caches fit
"""
import argparse
import json
import os
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def engine_memory(given, config):
    """Bytes of the cache: of `--hold` requests at 16 bits, else plenty."""
    if not given.hold:
        return 2**30
    heads, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    blocks = given.hold * -(-(given.prompt + given.tokens) // 64) + 1
    return blocks * 64 * 4 * heads * config["head_dim"] * layers


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="models/demo-llama")
    options.add_argument("--kv", help="kvq's format; vLLM's own cache without it")
    options.add_argument("--requests", type=int, default=16)
    options.add_argument("--prompt", type=int, default=1500)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--hold", type=int, default=0)
    options.add_argument("--eager", action="store_true")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--json", help="file to add the result to, one line a run")
    given = options.parse_args()

    import random
    from vllm import LLM, SamplingParams
    with open(os.path.join(given.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    llm = LLM(given.model, dtype="bfloat16", block_size=64, max_num_seqs=given.requests,
              enforce_eager=given.eager, enable_prefix_caching=False, disable_log_stats=False,
              max_model_len=given.prompt + given.tokens, kv_cache_memory_bytes=engine_memory(given, config),
              additional_config={"kvq": {"kv": given.kv}} if given.kv else {})
    source = random.Random(0)
    prompts = [{"prompt_token_ids": [source.randrange(10, config["vocab_size"]) for _ in range(given.prompt)]}
               for _ in range(given.requests)]

    def run(tokens):
        start = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
        return time.perf_counter() - start

    run(2)
    prefill = min(run(1) for _ in range(given.rounds))
    whole = min(run(given.tokens) for _ in range(given.rounds))
    preempted = sum(found.value for found in llm.get_metrics() if found.name == "vllm:num_preemptions")
    cache = llm.llm_engine.vllm_config.cache_config
    result = {"format": f"kvq {given.kv}" if given.kv else "vLLM bfloat16", "requests": given.requests,
              "prompt": given.prompt, "tokens": given.tokens, "hold": given.hold, "eager": given.eager,
              "cache_tokens": cache.num_gpu_blocks * cache.block_size, "seconds": round(whole, 3),
              "prefill_seconds": round(prefill, 3), "requests_per_s": round(given.requests / whole, 3),
              "preemptions": preempted}
    print(json.dumps(result), flush=True)
    if given.json:
        with open(given.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
