#!/usr/bin/env python3
"""A plan: each layer's keys and values get the format that suits them, within a number of bits.

usage: plan.py MODEL --budget BITS [--calibration FILE] [--norm frobenius|spectral] [-o plan.json]

Formats are tried on the model itself, on text like that which the cache will hold. With --norm nothing is
run: norms of the weights decide on widths, as published.
"""
import argparse

import kvq

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a directory or the id of a model in the local cache")
parser.add_argument("--budget", type=float, required=True,
                    help="bits of a number, scales included; with --norm those of the codes alone")
parser.add_argument("--calibration", help="a file of text [written by the model itself]")
parser.add_argument("--norm", choices=["frobenius", "spectral"])
parser.add_argument("-o", "--output", help="write the plan; KVQ(KVQConfig(plan=FILE)) and kvq --plan read it")
options = parser.parse_args()

plan = kvq.plan(options.model, budget=options.budget, calibration=options.calibration, norm=options.norm)
for layer, spec in enumerate(plan.specs):
    print(f"layer {layer:2}: {spec}")
print(f"{plan.effective_bits:.3f} stored bits a number, scales included: 4,096 tokens take "
      f"{plan.cache_bytes(4096) / 2**20:.2f} MiB instead of {plan.cache_bytes_16bit(4096) / 2**20:.2f}")
if plan.divergence is not None:
    print(f"KL divergence from 16 bits on the calibration text: {plan.divergence:.5f} nats")
if options.output:
    plan.save(options.output)
