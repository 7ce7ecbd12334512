"""What the tests of the Python package share.

Environment: KVQ_SOURCE = the source tree; KVQ_COMMAND = the built command, where there is one. kvq is
imported from wherever Python finds it.
"""
import functools
import importlib.util
import json
import os
import pathlib
import unittest

import numpy as np

SOURCE = pathlib.Path(os.environ.get("KVQ_SOURCE", pathlib.Path(__file__).resolve().parents[2]))
DEMO_MODEL = SOURCE / "models/demo-llama"
CHECKPOINTS = SOURCE / "tests/fixtures/checkpoints"

HAS_TRANSFORMERS = all(map(importlib.util.find_spec, ("torch", "transformers")))


def command():
    """The built command, or None."""
    path = os.environ.get("KVQ_COMMAND")
    return path if path and os.access(path, os.X_OK) else None


def needs_transformers(test):
    return unittest.skipUnless(HAS_TRANSFORMERS, "torch and transformers are not installed")(test)


@functools.cache
def load(folder, attention="sdpa", dtype="float32"):
    """A model of transformers, kept for the tests of a file."""
    import torch
    from kvq import KVQ  # noqa: F401  makes attn_implementation="kvq" known
    from transformers import AutoModelForCausalLM
    # On a busy machine torch's threads wait for each other most of the time.
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=getattr(torch, dtype)).eval()


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


@functools.cache
def golden():
    """[{"text", "ids", "greedy": [24 tokens], ...}] made by transformers alone."""
    return json.loads((DEMO_MODEL / "golden.json").read_text(encoding="utf-8"))


def long_prompt(name="recall", tokens=None):
    """Ids [1, n] of a prompt that fills several pages."""
    import torch
    text = (DEMO_MODEL / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return torch.tensor([tokenizer()(text)["input_ids"][:tokens]])


def generate(model, ids, cache=None, tokens=16, **options):
    """The new ids of the first output."""
    import torch
    options.setdefault("do_sample", False)
    options.setdefault("attention_mask", torch.ones_like(ids))
    output = model.generate(ids, past_key_values=cache, max_new_tokens=tokens, pad_token_id=2, **options)
    return output[0, ids.shape[1]:].tolist()


def softmax_attention(query, key, value, scale):
    """Causal attention in double precision.

    query [heads, tokens, head_dim], the newest tokens of key, value [kv_heads, length, head_dim];
    result [tokens, heads, head_dim].
    """
    group = query.shape[0] // key.shape[0]
    key, value = (np.repeat(x.astype(np.float64), group, axis=0) for x in (key, value))
    scores = scale * query.astype(np.float64) @ key.transpose(0, 2, 1)
    tokens, length = scores.shape[1:]
    future = np.arange(length)[None] > np.arange(length - tokens, length)[:, None]
    scores[:, future] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ value).transpose(1, 0, 2)
