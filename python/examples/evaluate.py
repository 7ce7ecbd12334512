#!/usr/bin/env python3
"""What packing does to a model's predictions: mean divergence from a 16-bit cache over a text.

usage: evaluate.py MODEL FILE FORMAT... [--tokens N]
"""
import argparse
import pathlib

import torch
from kvq import KVQ
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", help="a directory or the id of a model")
parser.add_argument("file", type=pathlib.Path)
parser.add_argument("format", nargs="+", help='such as k4v2 or "k4:g32:channel:affine:none,v2"')
parser.add_argument("--tokens", type=int, default=1024, help="of the text [1024]")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="kvq", dtype=torch.float32)
text = tokenizer(options.file.read_text(encoding="utf-8"), return_tensors="pt")
ids = text.input_ids[:, :options.tokens]


def predictions(spec):
    with torch.no_grad():
        return model(ids, past_key_values=KVQ(spec)).logits[0].log_softmax(dim=-1)


exact = predictions("k16v16")
for spec in options.format:
    packed = predictions(spec)
    divergence = (exact.exp() * (exact - packed)).sum(dim=-1).mean()
    same = (packed.argmax(dim=-1) == exact.argmax(dim=-1)).float().mean()
    print(f"{spec:12} KL {divergence:.5f} nats, same top token {100 * same:.1f} %")
