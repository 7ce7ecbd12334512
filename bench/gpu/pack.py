#!/usr/bin/env python3
"""Times packing on a CUDA device.

usage: pack.py PACK_BENCH [--json FILE]

PACK_BENCH is the program pack_bench_cuda. A sequence packs a page of each layer and head every 64 steps, so
that N pages are what N sequences pack, on average, in 64 steps of one layer.
"""
import argparse
import json

from device_program import device, run_cases

SPECS = ["k16v16", "k8v8", "k8v4", "k4v4", "k4v2", "k3v3", "k2v2", "k1.58v1.58", "k4:affine,v2:affine",
         "k4:channel:affine:mse,v2:affine:mse", "k4:affine:hqq,v2:affine:hqq"]
SHAPES = [(64, 8, 128), (512, 8, 128)]  # pages, kv heads, head_dim
# k4v2 alone: pages of the batches that compare.py times.
BATCHES = [(1, 8, 128), (8, 8, 128), (32, 8, 128), (16, 32, 128)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--json")
    options = parser.parse_args()
    cases = [("k4v2", shape) for shape in BATCHES] + [(spec, shape) for shape in SHAPES for spec in SPECS]
    runs = run_cases(options.program, [f"{spec} {' '.join(map(str, shape))}" for spec, shape in cases])
    name = device()
    print(f"{name}; microseconds of a launch\n{'format':40} {'pages':>5} {'us':>8} {'GB/s':>6}")
    for run in runs:
        print(f"{run['spec']:40} {run['shape'][0]:5} {run['microseconds']:8.2f} {run['gigabytes_per_second']:6.0f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"device": name, "runs": runs}, file, indent=1)


if __name__ == "__main__":
    main()
