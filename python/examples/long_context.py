#!/usr/bin/env python3
"""One long text, several questions: the text is read once, and its packed cache is forked.

usage: long_context.py MODEL FILE QUESTION... [--kv FORMAT] [--tokens N]
"""
import argparse
import pathlib

import torch
from kvq import KVQ
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a directory or the id of a model")
parser.add_argument("file", type=pathlib.Path, help="the text that all questions share")
parser.add_argument("question", nargs="+", help="each continues the text")
parser.add_argument("--kv", default="k4v2")
parser.add_argument("--tokens", type=int, default=20)
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="kvq")
text = tokenizer(options.file.read_text(encoding="utf-8"), return_tensors="pt").input_ids

cache = KVQ(options.kv)
with torch.no_grad():
    for chunk in text.split(2048, dim=1):  # in pieces: how a prompt is cut leaves no trace
        model(chunk, past_key_values=cache, logits_to_keep=1)
print(f"{cache.get_seq_length()} tokens in {cache.nbytes / 1024:.0f} KiB")

for question in options.question:
    ids = tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids
    ids = torch.cat([text, ids], dim=1)
    outputs = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache.fork(),
                             max_new_tokens=options.tokens, do_sample=False,
                             pad_token_id=tokenizer.eos_token_id)
    print(f"{question}{tokenizer.decode(outputs[0, ids.shape[1]:], skip_special_tokens=True)}")
