#!/usr/bin/env python3
"""Text from a transformers model on a packed cache, and what the cache takes.

usage: generate.py MODEL [PROMPT] [--kv FORMAT] [--tokens N]
"""
import argparse

from kvq import KVQ
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a directory or the id of a model")
parser.add_argument("prompt", nargs="?", default="Once upon a time")
parser.add_argument("--kv", default="k4v2", help="format of keys and values [k4v2]")
parser.add_argument("--tokens", type=int, default=100)
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="kvq")
inputs = tokenizer(options.prompt, return_tensors="pt")

cache = KVQ(options.kv)
outputs = model.generate(**inputs, past_key_values=cache, max_new_tokens=options.tokens, do_sample=False,
                         pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
print(f"\n{cache.get_seq_length()} tokens in {cache.nbytes / 1024:.0f} KiB of {options.kv}")
