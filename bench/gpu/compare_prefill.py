#!/usr/bin/env python3
"""Times prefill attention over packed pages beside torch's causal attention over bf16, on one CUDA device.

usage: compare_prefill.py PREFILL_BENCH [--json FILE]

PREFILL_BENCH is the program prefill_bench_cuda. The peer is the fastest of torch's flash and cuDNN
backends of scaled_dot_product_attention over contiguous tensors. Needs torch.
"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from device_program import device, run_cases

SHAPES = [  # sequences, query heads, kv heads, tokens, newest tokens that attend, head_dim
    (1, 32, 8, 8192, 8192, 128),
    (1, 32, 8, 32768 + 2048, 2048, 128),
    (8, 32, 8, 2048, 2048, 128),
    (1, 32, 8, 8192, 8192, 64),
    (1, 16, 8, 8192, 8192, 256),
]
OTHERS = ["k8v8", "k4v4", "k2v2", "k3v3", "k1.58v1.58", "k16v16", "k4:channel:affine:none,v4:affine:none"]


def median_time(run):
    """Microseconds of a call."""
    times = []
    for i in range(13):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def peer_times(shape):
    """{backend: microseconds} of every backend that runs."""
    sequences, query_heads, kv_heads, tokens, chunk, dim = shape
    make = lambda heads, rows: torch.randn(sequences, heads, rows, dim, device="cuda", dtype=torch.bfloat16)
    query, key, value = make(query_heads, chunk), make(kv_heads, tokens), make(kv_heads, tokens)
    mask = {"is_causal": True} if chunk == tokens else {"attn_mask": causal_lower_right(chunk, tokens)}
    if "attn_mask" in mask:  # which torch does not combine with fewer kv heads
        key, value = (x.repeat_interleave(query_heads // kv_heads, 1) for x in (key, value))
    result = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        gqa = key.shape[1] != query_heads
        run = lambda: functional.scaled_dot_product_attention(query, key, value, enable_gqa=gqa, **mask)
        try:
            with sdpa_kernel(backend):
                run()
                torch.cuda.synchronize()
                result[backend.name.split("_")[0].lower()] = median_time(run)
        except RuntimeError as error:
            print(f"{backend.name} {shape}: {str(error).splitlines()[0]}", file=sys.stderr)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--json")
    options = parser.parse_args()

    cases = [("k4v2", shape, "") for shape in SHAPES] + [(spec, SHAPES[0], "") for spec in OTHERS]
    cases += [("k4v2", SHAPES[0], "exact"), ("k4v2", (8, 32, 8, 32768, 8, 128), "")]
    peers = {}
    for shape in dict.fromkeys(shape for _, shape, _ in cases):
        peers[shape] = peer_times(shape)
        torch.cuda.empty_cache()
    ours = run_cases(options.program, [" ".join(map(str, (spec, *shape, mode))).strip() for spec, shape, mode in cases])

    place = device()
    print(f"{place}; microseconds of a launch")
    print(f"{'format':40} {'shape':34} {'bf16':>8} {'kvq':>8} {'TFLOP/s':>8} {'x':>5}  best peer")
    for case in ours:
        times = peers[tuple(case["shape"])]
        best = min(times, key=times.get, default=None)
        peer = times.get(best, float("nan"))
        name = case["spec"] + (" exact" if case["exact"] else "")
        print(f"{name:40} {str(tuple(case['shape'])):34} {peer:8.1f} {case['microseconds']:8.1f} "
              f"{case['teraflops']:8.0f} {peer / case['microseconds']:5.2f}  {best}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": place, "runs": ours,
                       "peers": [{"shape": shape, "microseconds": times} for shape, times in peers.items()]}, file, indent=1)


if __name__ == "__main__":
    main()
