"""Tokens that a GiB of vLLM's cache holds, by format, as vLLM reports them.

    python bench/vllm/capacity.py --model MODEL --plan plan.json --json results.json

Each engine is started with 1 GiB for its cache; what kvq needs for 16-bit rows comes off it.
"""
import argparse
import json
import os
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # engines follow one another in this process

GIB = 2**30


def tokens(model, seqs, kvq, cache_dtype="auto"):
    from vllm import LLM
    llm = LLM(model, dtype="bfloat16", enforce_eager=True, block_size=64, max_num_seqs=seqs,
              kv_cache_memory_bytes=GIB, kv_cache_dtype=cache_dtype,
              additional_config={} if kvq is None else {"kvq": kvq})
    config = llm.llm_engine.vllm_config.cache_config
    found = config.num_gpu_blocks * config.block_size
    llm.llm_engine.engine_core.shutdown()
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="models/demo-llama")
    options.add_argument("--plan", help="a plan, measured as one format more")
    options.add_argument("--max-num-seqs", type=int, default=16)
    options.add_argument("--json", help="file for the results")
    given = options.parse_args()
    rows = [("vLLM bfloat16", None, "auto"), ("vLLM fp8", None, "fp8")]
    rows += [(f"kvq {kv}", {"kv": kv}, "auto") for kv in ("k8v4", "k4v4", "k4v2", "k3v2")]
    if given.plan:
        rows.append(("kvq plan", {"plan": given.plan}, "auto"))
    results = []
    for name, kvq, cache_dtype in rows:
        start = time.monotonic()
        try:
            found = tokens(given.model, given.max_num_seqs, kvq, cache_dtype)
        except Exception as error:  # what vLLM does not run is part of the result
            results.append({"name": name, "error": str(error).splitlines()[-1]})
        else:
            results.append({"name": name, "tokens_per_gib": found})
        print(results[-1], f"{time.monotonic() - start:.0f} s", flush=True)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"model": given.model, "max_num_seqs": given.max_num_seqs, "rows": results}, file,
                      indent=1)


if __name__ == "__main__":
    main()
