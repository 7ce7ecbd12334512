"""attn_implementation="kvq": attention of transformers models on packed codes.

A KVQ cache's update() returns CachedRows in place of key and value tensors. The attention function
here appends the new rows and attends to codes where they lie. For everything else CachedRows stand in
for the dequantized tensors, made when somebody first looks at them.
"""
from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

if TYPE_CHECKING:
    from .hf_cache import KVQLayer

NAME = "kvq"

_warned = False


def _say_slow() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "kvq: the whole cache is dequantized at every step, the slow way: load the model with "
            f'attn_implementation="{NAME}" (or model.set_attn_implementation("{NAME}")) to attend on '
            "packed codes", stacklevel=3)


class Chunk:
    """New rows of one layer, [B, kv_heads, tokens, head_dim], until something reads the cache."""

    def __init__(self, layer: KVQLayer, key: torch.Tensor, value: torch.Tensor):
        self.layer, self.key, self.value = layer, key, value
        self._dense: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(self, query: torch.Tensor, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, tokens, query_heads, head_dim]; mask as kvq_mask() gives it."""
        return self.layer.attend(self, query, scale, mask)

    def dense(self, is_key: bool) -> torch.Tensor:
        if self._dense is None:
            _say_slow()
            self._dense = self.layer.dense(self)
        return self._dense[0 if is_key else 1]


class CachedRows:
    """The keys or the values of a layer, the newest chunk included: behaves like the dequantized
    tensor [B, kv_heads, tokens, head_dim]."""

    __slots__ = ("chunk", "is_key")

    def __init__(self, chunk: Chunk, is_key: bool):
        self.chunk, self.is_key = chunk, is_key

    def dense(self) -> torch.Tensor:
        """The dequantized tensor."""
        return self.chunk.dense(self.is_key)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [arg.dense() if isinstance(arg, cls) else arg for arg in args]
        kwargs = {name: arg.dense() if isinstance(arg, cls) else arg
                  for name, arg in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dense(), name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.dense()[index]


def _refuse(module: Any, options: dict[str, Any], dropout: float, kv_tokens: int) -> None:
    """What this attention does not do, as errors."""
    if dropout or module.training:
        raise ValueError("kvq attention is for inference: call model.eval()")
    if not getattr(module, "is_causal", True):
        raise ValueError("kvq attention is causal; this layer is not")
    if options.get("output_attentions"):
        raise ValueError('kvq attention has no weights to output: use attn_implementation="eager"')
    for name, meaning in (("softcap", "soft-capped scores"), ("s_aux", "learned attention sinks")):
        if options.get(name) is not None:
            raise ValueError(f'kvq attention lacks {meaning}: use attn_implementation="eager"')
    window = options.get("sliding_window")
    if window is not None and kv_tokens > window:
        raise ValueError(f"kvq attention has no sliding window: {kv_tokens} tokens exceed {window}")


def _plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float,
           mask: torch.Tensor | None) -> torch.Tensor:
    """Without a cache, or where a model has read its rows: [B, heads, tokens, head_dim]."""
    tokens, kv_tokens = query.shape[2], key.shape[2]
    visible = torch.ones(tokens, kv_tokens, dtype=torch.bool, device=query.device)
    visible = visible.tril(kv_tokens - tokens)[None, None]
    if mask is not None:
        visible = visible & mask[:, None, None, :]
        # A query of padding sees itself alone: a softmax over nothing is not a number.
        visible = visible | torch.eye(tokens, kv_tokens, dtype=torch.bool, device=query.device).roll(
            kv_tokens - tokens, 1)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=scale, enable_gqa=True).transpose(1, 2).contiguous()


@torch.compiler.disable
def kvq_attention(module: Any, query: torch.Tensor, key: Any, value: Any,
                  attention_mask: torch.Tensor | None, dropout: float = 0.0,
                  scaling: float | None = None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """The attention function of attn_implementation="kvq".

    Args:
        query: [B, query_heads, tokens, head_dim].
        key, value: what update() of a KVQ cache returned, or tensors [B, kv_heads, T, head_dim].
        attention_mask: None or bool [B, T], as kvq_mask() returns it.

    Returns:
        [B, tokens, query_heads, head_dim], None.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError("kvq attention: expected a mask of padding [batch, tokens], found one of "
                         f"{attention_mask.dim()} dimensions")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(key, CachedRows) and isinstance(value, CachedRows):
        chunk = key.chunk
        _refuse(module, kwargs, dropout, chunk.layer.get_seq_length())
        return chunk.attend(query.detach(), scale, attention_mask), None
    key = key.dense() if isinstance(key, CachedRows) else key
    value = value.dense() if isinstance(value, CachedRows) else value
    _refuse(module, kwargs, dropout, key.shape[2])
    return _plain(query, key, value, scale, attention_mask), None


def kvq_mask(batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
             mask_function: Any = causal_mask_function, attention_mask: torch.Tensor | None = None,
             local_size: int | None = None, **kwargs: Any) -> torch.Tensor | None:
    """The mask function of attn_implementation="kvq": bool [B, kv_length], False where a token is
    padding, or None where none is."""
    if mask_function is not causal_mask_function and (local_size is None or kv_length > local_size):
        raise ValueError("kvq attention is causal over all tokens: sliding windows, packed sequences and "
                         f'other patterns need another attn_implementation, such as "sdpa" '
                         f"({kv_length} tokens)")
    if attention_mask is None:
        return None
    host_mask = attention_mask.to("cpu", torch.bool)
    if bool(host_mask.all()):
        return None
    if attention_mask.shape[1] != kv_length:
        raise ValueError(f"attention_mask: expected {kv_length} tokens, cached ones included, found "
                         f"{attention_mask.shape[1]}")
    mask = attention_mask.to(torch.bool)
    mask.kvq_host_mask = host_mask
    return mask


def on_host(mask: torch.Tensor) -> torch.Tensor:
    """A mask in host memory: a copy from the device, made once for all layers, where kvq_mask()
    returned the mask."""
    return getattr(mask, "kvq_host_mask", mask).cpu()


def register() -> None:
    """Makes attn_implementation="kvq" known to transformers; importing KVQ does it."""
    AttentionInterface.register(NAME, kvq_attention)
    AttentionMaskInterface.register(NAME, kvq_mask)
