"""Decode steps of a model as CUDA graphs.

A step of one token is hundreds of kernels of a few microseconds each; Python takes several times as long
to start them. Recorded once and replayed, a step takes what its kernels take:

    with kvq.cuda_graphs(model):
        model.generate(**inputs, past_key_values=KVQ("k4v2"))

Only what kernels read differs between steps: the new tokens, their positions and, where they lie in the
caches, tables that each layer copies to the device before a replay.
"""
from __future__ import annotations

import contextlib
import functools
import weakref
from typing import Any, Iterator

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from .cuda import CudaCore
from .hf_attention import NAME, kvq_mask
from .hf_cache import KVQ

__all__ = ["cuda_graphs"]

# Steps of a cache before the first recording: what is allocated once is there by then.
_EAGER_STEPS = 2
# Arguments of forward() that may have any value, and those that are used.
_IGNORED = {"use_cache", "return_dict", "logits_to_keep", "cache_position"}
_USED = {"input_ids", "attention_mask", "position_ids", "past_key_values"}


class _Recording:
    """A recorded step and the tensors that it reads and writes."""

    def __init__(self, forward: Any, cache: KVQ, ids: torch.Tensor, positions: torch.Tensor):
        with torch.inference_mode(False):  # later steps may be of either mode
            self.ids, self.positions = torch.zeros_like(ids), torch.zeros_like(positions)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = forward(input_ids=self.ids, position_ids=self.positions, past_key_values=cache,
                                  use_cache=True, return_dict=True).logits

    def replay(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        return self.logits.clone()


class _Steps:
    """forward() of a model, with recordings for each cache."""

    def __init__(self, model: Any, forward: Any):
        self.model, self.forward = model, forward
        self.recordings: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self.eager: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if len(args) == 1 and "input_ids" not in kwargs:
            args, kwargs = (), {"input_ids": args[0], **kwargs}
        if args or not self._is_step(cache, kwargs):
            return self.forward(*args, **kwargs)
        mask = self._mask(cache, kwargs)
        count = self.eager.get(cache, 0)
        if count < _EAGER_STEPS or (mask is not None and not bool(mask[:, -1].all())):
            self.eager[cache] = count + 1
            return self.forward(**kwargs)
        logits = self._step(cache, kwargs["input_ids"], self._positions(cache, kwargs), mask)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)

    def _is_step(self, cache: Any, kwargs: dict[str, Any]) -> bool:
        ids = kwargs.get("input_ids")
        if not isinstance(cache, KVQ) or ids is None or ids.shape[1] != 1 or self.model.training:
            return False
        rest = [name for name, value in kwargs.items()
                if name not in _IGNORED | _USED and value is not None and value is not False]
        ready = cache.layers and all(isinstance(layer.core, CudaCore) and layer.core.batch == ids.shape[0]
                                     and not layer.is_waiting for layer in cache.layers)
        return bool(not rest and ready and self.model.config._attn_implementation == NAME
                    and not torch.is_grad_enabled())

    def _mask(self, cache: KVQ, kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of padding, in host memory, as the layers remember it."""
        mask = kwargs.get("attention_mask")
        tokens = cache.get_seq_length() + 1
        found = kvq_mask(kwargs["input_ids"].shape[0], 1, tokens, attention_mask=mask)
        return None if found is None else found.kvq_host_mask

    def _positions(self, cache: KVQ, kwargs: dict[str, Any]) -> torch.Tensor:
        ids, positions = kwargs["input_ids"], kwargs.get("position_ids")
        if positions is None:
            return torch.full_like(ids, cache.get_seq_length())
        return positions.expand(ids.shape)

    def _step(self, cache: KVQ, ids: torch.Tensor, positions: torch.Tensor,
              mask: torch.Tensor | None) -> torch.Tensor:
        key = tuple(layer.begin_step(mask) for layer in cache.layers)
        try:
            recordings = self.recordings.setdefault(cache, {})
            if key not in recordings:
                recordings[key] = _Recording(self.forward, cache, ids, positions)
            return recordings[key].replay(ids, positions)
        finally:
            for layer in cache.layers:
                layer.end_step()


@contextlib.contextmanager
def cuda_graphs(model: Any) -> Iterator[Any]:
    """Within it, forward() and generate() of `model` replay recorded steps where they decode one token a
    sequence on a KVQ cache on a CUDA device, with attn_implementation="kvq". Everything else runs as ever.

    A recording is made for each cache, and once more whenever a cache's tables outgrow their room (after
    512 tokens, 1,024, 2,048, ...). The model's forward pass must not wait for the device, nor depend on
    what it did before but for the cache.
    """
    steps = _Steps(model, model.forward)
    before = model.__dict__.get("forward")

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return steps(*args, **kwargs)

    model.forward = forward
    try:
        yield model
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before
