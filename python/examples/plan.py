#!/usr/bin/env python3
"""A plan: each layer's keys and values get the bits that the norms of the weights give them.

usage: plan.py MODEL --budget BITS [--norm frobenius|spectral] [-o plan.json]
"""
import argparse

import kvq

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a directory or the id of a model in the local cache")
parser.add_argument("--budget", type=float, required=True, help="average bits of the codes")
parser.add_argument("--norm", default="frobenius", choices=["frobenius", "spectral"])
parser.add_argument("-o", "--output", help="write the plan; KVQ(KVQConfig(plan=FILE)) and kvq --plan read it")
options = parser.parse_args()

norms = kvq.norms(options.model, options.norm)
plan = kvq.plan(options.model, budget=options.budget, norms=norms)
for layer, (w_k, w_v, spec) in enumerate(zip(norms.w_k, norms.w_v, plan.specs)):
    print(f"layer {layer:2}: |W_K| {w_k:8.3f}  |W_V| {w_v:8.3f}  {spec}")
print(f"{plan.effective_bits:.3f} stored bits a number, scales included: 4,096 tokens take "
      f"{plan.cache_bytes(4096) / 2**20:.2f} MiB instead of {plan.cache_bytes_16bit(4096) / 2**20:.2f}")
if options.output:
    plan.save(options.output)
