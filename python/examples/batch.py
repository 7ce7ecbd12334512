#!/usr/bin/env python3
"""Prompts of different lengths as one batch: padding takes no room, and changes nothing.

usage: batch.py MODEL PROMPT... [--kv FORMAT] [--tokens N]
"""
import argparse

from kvq import KVQ
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a directory or the id of a model")
parser.add_argument("prompt", nargs="+")
parser.add_argument("--kv", default="k4v2")
parser.add_argument("--tokens", type=int, default=30)
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="kvq")
inputs = tokenizer(options.prompt, return_tensors="pt", padding=True)

cache = KVQ(options.kv)
outputs = model.generate(**inputs, past_key_values=cache, max_new_tokens=options.tokens, do_sample=False,
                         pad_token_id=tokenizer.pad_token_id)
for prompt, output in zip(options.prompt, outputs):
    print(f"{prompt}|{tokenizer.decode(output[inputs.input_ids.shape[1]:], skip_special_tokens=True)}")
print(f"{cache.nbytes / 1024:.0f} KiB for {len(options.prompt)} sequences")
