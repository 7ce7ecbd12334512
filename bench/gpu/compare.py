#!/usr/bin/env python3
"""Times decode attention over packed pages beside torch's attention over bf16, on one CUDA device.

usage: compare.py DECODE_BENCH [--json FILE] [--quick]

DECODE_BENCH is the program decode_bench_cuda. The peer is the fastest of torch's flash and cuDNN
backends of scaled_dot_product_attention, each as it is and with the query heads of a kv head folded
into the length of the query, contiguous keys and values, replayed as a CUDA graph and timed by
events around a loop. Needs torch.
"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from device_program import device, run_cases

SHAPES = [  # sequences, query heads, kv heads, tokens, head_dim
    (1, 32, 8, 131072, 128),
    (8, 32, 8, 32768, 128),
    (32, 32, 8, 8192, 128),
    (64, 32, 8, 4096, 128),
    (1, 64, 8, 131072, 128),
    (1, 32, 8, 32768, 128),
    (16, 32, 32, 8192, 128),
]
CENTRAL = (8, 32, 8, 32768, 128)
SMALL_HEADS = (16, 32, 8, 32768, 64)
WIDTHS = ["k16v16", "k8v8", "k8v4", "k6v6", "k5v5", "k4v4", "k3v3", "k3v2", "k2v2", "k1.58v1.58", "k1v1"]
OPTIONS = ["k4:affine,v2:affine", "k4:channel:affine:none,v2:affine:none", "k4:g32,v2:g32"]


def cases():
    """(format, shape, modes) of every line of the table."""
    yield from (("k4v2", shape, "") for shape in SHAPES + [SMALL_HEADS])
    yield from (("k4v2", shape, mode) for shape in SHAPES for mode in ("window", "window append"))
    yield from (("k4v2", SHAPES[i], "deterministic") for i in (0, 1, 3, 5))
    yield from ((spec, CENTRAL, "") for spec in WIDTHS + OPTIONS)


def median_time(run, launches):
    """Microseconds of one launch; run() enqueues `launches`."""
    times = []
    for i in range(13):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(1e3 * begin.elapsed_time(end) / launches)
    return statistics.median(times)


def peer_times(shape):
    """{name: microseconds} of every way through torch that runs."""
    sequences, query_heads, kv_heads, tokens, dim = shape
    buffer_bytes = 4 * sequences * kv_heads * tokens * dim
    count = max(2, (300 << 20) // buffer_bytes + 1)
    make = lambda *size: torch.randn(*size, device="cuda", dtype=torch.bfloat16)
    buffers = [(make(sequences, kv_heads, tokens, dim), make(sequences, kv_heads, tokens, dim)) for _ in range(count)]
    plain = make(sequences, query_heads, 1, dim)
    folded = plain.view(sequences, kv_heads, query_heads // kv_heads, dim)
    launches = -(-8 // count) * count
    result = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        for name, query, gqa in (("plain", plain, query_heads != kv_heads), ("folded", folded, False)):
            if name == "folded" and query_heads == kv_heads:
                continue

            def run():
                for i in range(launches):
                    key, value = buffers[i % count]
                    functional.scaled_dot_product_attention(query, key, value, enable_gqa=gqa)

            try:
                with sdpa_kernel(backend):
                    run()
                    torch.cuda.synchronize()
                    label = f"{backend.name.split('_')[0].lower()} {name}"
                    result[label + " loop"] = median_time(run, launches)
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        run()
                    result[label + " graph"] = median_time(graph.replay, launches)
                    del graph
            except RuntimeError as error:
                print(f"{backend.name} {name}: {str(error).splitlines()[0]}", file=sys.stderr)
    return result


def copy_bandwidth():
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / median_time(lambda: target.copy_(source), 1) * 1e-3


def clocks():
    return device("name,clocks.sm,clocks.mem,driver_version")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="k4v2 only, without modes")
    options = parser.parse_args()

    chosen = [case for case in cases() if not options.quick or (case[0] == "k4v2" and not case[2])]
    lines = [" ".join(map(str, (spec, *shape, modes))) for spec, shape, modes in chosen]
    ours = []

    peers = {}
    for shape in dict.fromkeys(shape for _, shape, _ in chosen):
        peers[shape] = peer_times(shape)
        torch.cuda.empty_cache()
    copy = copy_bandwidth()
    torch.cuda.empty_cache()
    for _ in range(2):
        ours.append(run_cases(options.program, lines))

    print(f"{clocks()}; copy {copy:.0f} GB/s; microseconds of a launch")
    print(f"{'format':40} {'shape':28} {'bf16':>7} {'kvq':>7} {'again':>7} {'GB/s':>5} {'%copy':>6} {'x':>5}  best peer")
    for first, second in zip(*ours):
        shape = tuple(first["shape"])
        best = min(peers[shape], key=peers[shape].get)
        mean = (first["microseconds"] + second["microseconds"]) / 2
        bandwidth = (first["gigabytes_per_second"] + second["gigabytes_per_second"]) / 2
        name = first["spec"] + "".join(f" {mode}" for mode in ("deterministic", "window", "append") if first[mode])
        print(f"{name:40} {str(shape):28} {peers[shape][best]:7.1f} {first['microseconds']:7.2f} {second['microseconds']:7.2f} "
              f"{bandwidth:5.0f} {100 * bandwidth / copy:6.1f} {peers[shape][best] / mean:5.2f}  {best}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": clocks(), "copy_gigabytes_per_second": copy, "runs": ours,
                       "peers": [{"shape": shape, "microseconds": times} for shape, times in peers.items()]}, file, indent=1)


if __name__ == "__main__":
    main()
