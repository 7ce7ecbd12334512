"""What the tests of the Python package share.

Environment: KVQ_SOURCE = the source tree; KVQ_COMMAND = the built command, where there is one. kvq is
imported from wherever Python finds it.
"""
import functools
import importlib.util
import json
import os
import pathlib
import struct
import unittest

import numpy as np

SOURCE = pathlib.Path(os.environ.get("KVQ_SOURCE", pathlib.Path(__file__).resolve().parents[2]))
DEMO_MODEL = SOURCE / "models/demo-llama"
CHECKPOINTS = SOURCE / "tests/fixtures/checkpoints"

HAS_TRANSFORMERS = all(map(importlib.util.find_spec, ("torch", "transformers")))

_device = "cpu"


def use_device(name):
    """Where the tests of this process have their models and tensors."""
    import torch
    global _device
    _device = name
    torch.set_default_device(name)


def device():
    return _device


def make_tiny_model(folder):
    """The two random layers of a checkpoint of 96 tokens, with the demo model's tokenizer and tokens."""
    source = CHECKPOINTS / "llama3.2-tiny"
    folder.mkdir()
    for file in (source / "generation_config.json", *DEMO_MODEL.glob("tokenizer*.json")):
        (folder / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = 8192
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    data = (source / "model.safetensors").read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header, tensors = json.loads(data[8:8 + size]), data[8 + size:]
    begin, old = header["model.embed_tokens.weight"]["data_offsets"]
    assert begin == 0
    rows = np.random.default_rng(0).standard_normal((8192, config["hidden_size"]), dtype=np.float32) / 8
    header["model.embed_tokens.weight"].update(shape=rows.shape, data_offsets=[0, old])
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            entry["data_offsets"] = [start and start + rows.nbytes - old, end + rows.nbytes - old]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + rows.tobytes() + tensors[old:])


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
        folder, attn_implementation=attention, dtype=getattr(torch, dtype)).eval().to(_device)


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


def assert_same(found, expected, **tolerance):
    """Two ways to the same numbers. On a GPU the order of sums depends on the shape of a product, and
    on which warp gets to a page first: now and then a number is packed to the code beside."""
    import torch
    if _device == "cpu":
        torch.testing.assert_close(found, expected, **tolerance)
    else:
        assert (found - expected).norm() < 0.03 * expected.norm()


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
