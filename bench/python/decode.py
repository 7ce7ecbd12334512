#!/usr/bin/env python3
"""Decode speed and size of transformers' caches and of kvq's, through generate() and forward().

usage: decode.py [--threads N] [--rounds N] [--only demo|long] [--device cpu|cuda] --json FILE

demo  the included model in float32, 1,500 tokens of prompt and 256 new ones, generate(): what a step of
      Python and of a small model costs.
long  4 random layers in the shape of Llama-3-8B's (32 query heads, 8 kv heads of 128), bfloat16, on
      caches that are filled with 16,384 tokens of random rows: what reading a long cache costs.

--device cuda takes another case instead: 16 random layers in the shape of Llama-3.2-1B's (32 query heads, 8
kv heads of 64), bfloat16, on caches of 32,768 tokens of random rows for each of 1, 8 and 32 sequences.

Caches take turns within a round; a figure is the median over rounds.
"""
import argparse
import contextlib
import gc
import json
import os
import pathlib
import statistics
import time
import warnings

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--only", choices=["demo", "long"])
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--json", type=pathlib.Path, required=True)
options = parser.parse_args()
os.environ.update(OMP_NUM_THREADS=str(options.threads), HF_HUB_OFFLINE="1")
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from kvq import KVQ, cuda_graphs  # noqa: E402
from transformers import (AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM,  # noqa: E402
                          QuantizedCache, StoppingCriteria)

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "models/demo-llama"
START = time.perf_counter()
LONG_TOKENS = 16384
GPU_TOKENS = 32768
GPU_BATCHES = (1, 8, 32)
UNTIMED_STEPS = 4  # two, one that is recorded, one that is replayed
WARM_UP = "warm-up"
RECORDED = "kvq k4v2, CUDA graphs"


def tensor_bytes(value):
    """Bytes of all tensors in a value, those inside quantized tensors included."""
    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):
            return sum(tensor_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (tuple, list)) else 0


def cache_bytes(cache):
    if isinstance(cache, KVQ):
        return cache.nbytes
    fields = ("keys", "values", "_quantized_keys", "_quantized_values")
    return sum(tensor_bytes(getattr(layer, field, None)) for layer in cache.layers for field in fields)


def caches(config):
    """Name -> (attention, new cache)."""
    kvq = {
        "kvq k16v16": ("kvq", lambda: KVQ("k16v16")),
        "kvq k4v2": ("kvq", lambda: KVQ("k4v2")),
        "kvq k4v2, dequantized": ("sdpa", lambda: KVQ("k4v2")),
    }
    if options.device == "cuda":
        kvq[RECORDED] = ("kvq", lambda: KVQ("k4v2"))
    return {
        "DynamicCache": ("sdpa", DynamicCache),
        "QuantizedCache quanto, 4 bits": (
            "sdpa", lambda: QuantizedCache("quanto", config, nbits=4)),
        "QuantizedCache hqq, 4 bits": (
            "sdpa", lambda: QuantizedCache("hqq", config, nbits=4, axis_key=1, axis_value=1)),
        **kvq,
    }


class Clock(StoppingCriteria):
    """When each new token was there."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def run_demo(model, cache, ids, tokens):
    """(prompt tokens/s, decode tokens/s)."""
    clock = Clock()
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=tokens,
                   min_new_tokens=tokens, do_sample=False, pad_token_id=2, stopping_criteria=[clock])
    first, last = clock.times[0], clock.times[-1]
    return ids.shape[1] / (first - start), (len(clock.times) - 1) / (last - first)


def fill(cache, config, tokens, batch=1):
    """Random rows in every layer."""
    generator = torch.Generator(options.device).manual_seed(1)
    for layer in range(config.num_hidden_layers):
        shape = (batch, config.num_key_value_heads, tokens, config.head_dim)
        key, value = (torch.randn(shape, generator=generator, device=options.device).to(torch.bfloat16)
                      for _ in range(2))
        cache.update(key, value, layer)
    return cache


def synchronize():
    if options.device == "cuda":
        torch.cuda.synchronize()


def run_long(model, cache, steps, batch=1, untimed=1):
    """(None, decode tokens/s of all sequences) on a filled cache; the first steps are not timed."""
    token = torch.full((batch, 1), 5, device=options.device)
    with torch.no_grad():
        for step in range(steps + untimed):
            if step == untimed:
                synchronize()
                start = time.perf_counter()
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(dim=-1)
        synchronize()
    return None, batch * steps / (time.perf_counter() - start)


def measure(model, run, new_cache):
    """One figure for each cache, in the order of caches()."""
    figures = {}
    for attention, make in caches(model.config).values():  # compiles, allocates
        model.set_attn_implementation(attention)
        run(model, new_cache(make), WARM_UP)
    for round_number in range(options.rounds):
        for name, (attention, make) in caches(model.config).items():
            model.set_attn_implementation(attention)
            cache = new_cache(make)
            prompt, decode = run(model, cache, name)
            figures.setdefault(name, []).append((prompt, decode, cache_bytes(cache)))
            del cache
            print(f"round {round_number}: {name}: {decode:.1f} tokens/s, {time.perf_counter() - START:.0f} s",
                  flush=True)
    return [{"name": name,
             "prompt_tokens_per_s": rounds[0][0] and statistics.median(r[0] for r in rounds),
             "decode_tokens_per_s": statistics.median(r[1] for r in rounds),
             "cache_bytes": rounds[0][2]} for name, rounds in figures.items()]


def demo():
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    ids = torch.randint(3, model.config.vocab_size, (1, 1500), generator=torch.Generator().manual_seed(0))

    def run(model, cache, name):
        return run_demo(model, cache, ids, 3 if name == WARM_UP else 256)

    return measure(model, run, lambda make: make())


def long():
    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=4,
                         num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                         max_position_embeddings=2 * LONG_TOKENS)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    slow = (WARM_UP, "QuantizedCache", "dequantized")

    def run(model, cache, name):
        return run_long(model, cache, 2 if any(word in name for word in slow) else 16)

    return measure(model, run, lambda make: fill(make(), config, LONG_TOKENS))


def gpu():
    config = LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                         num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                         max_position_embeddings=2 * GPU_TOKENS)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    result = {"device": torch.cuda.get_device_name(), "tokens": GPU_TOKENS, "batches": []}
    for batch in GPU_BATCHES:
        kernels = {}

        def run(model, cache, name):
            gc.collect()
            slow = "QuantizedCache" in name or "dequantized" in name
            steps = 1 if name == WARM_UP else 6 if slow else 32
            with cuda_graphs(model) if name == RECORDED else contextlib.nullcontext():
                figures = run_long(model, cache, steps, batch, UNTIMED_STEPS)
            if isinstance(cache, KVQ):
                kernels[name] = cache.layers[0].core.kernel_name(config.num_attention_heads)
            return figures

        rows = measure(model, run, lambda make: fill(make(), config, GPU_TOKENS, batch))
        for row in rows:
            row["kernel"] = kernels.get(row["name"])
            print(f"batch {batch}: {row}", flush=True)
        result["batches"].append({"batch": batch, "caches": rows})
    return result


result = {"threads": options.threads, "torch": torch.__version__, "transformers": transformers.__version__}
if options.device == "cuda":
    result["gpu"] = gpu()
else:
    for name, function in (("demo", demo), ("long", long)):
        if options.only in (None, name):
            result[name] = function()
options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
