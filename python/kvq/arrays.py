"""Packed pages and attention over them, on numpy arrays and torch tensors (anything with DLPack).

Shapes: B sequences, H heads, T tokens, D = head_dim numbers a head (a multiple of 16 from 16 to
256). Numbers are float32, float16 or bfloat16; results are of the kind of array that came in.
"""
from __future__ import annotations

import math
import sys
from typing import Any, Sequence

import numpy as np

from . import _core
from ._core import effective_bits, page_bytes

__all__ = ["LayerCache", "attend", "effective_bits", "pack", "page_bytes", "unpack"]

Array = Any  # numpy.ndarray or torch.Tensor


def _is_torch(array: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _on_device(array: Array) -> bool:
    return _is_torch(array) and array.device.type != "cpu"


def _readable(array: Array) -> Array:
    """An array that DLPack hands out: without gradient, its rows of D numbers side by side."""
    if _is_torch(array):
        array = array.detach()
        if array.device.type != "cpu":
            raise ValueError(f"kvq: expected an array in host memory, found a tensor on {array.device}")
        return array if array.stride(-1) == 1 else array.contiguous()
    array = np.asarray(array)
    if array.dtype == np.float64:
        raise ValueError("kvq: expected float32 or float16 numbers, found float64")
    return array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)


def _like(reference: Array, array: np.ndarray) -> Array:
    if _is_torch(reference):
        return sys.modules["torch"].from_dlpack(array)
    return array


def _empty_like(reference: Array, shape: Sequence[int]) -> Array:
    if _is_torch(reference):
        return sys.modules["torch"].empty(tuple(shape), dtype=reference.dtype, device=reference.device)
    return np.empty(tuple(shape), dtype=reference.dtype)


def pack(key: Array, value: Array, spec: str = "k4v2") -> Array:
    """Quantizes keys and values into packed pages of 64 tokens.

    Args:
        key, value: [kv_heads, tokens, head_dim]; tokens is a multiple of 64. Keys after RoPE.
        spec: format, such as "k4v2" or "k4:g32:channel:affine,v2:g64".

    Returns:
        uint8 [kv_heads, tokens / 64, page_bytes(spec, head_dim)]: pages as docs/page_format.md
        defines them, keys and values in one.
    """
    return _like(key, _core.pack(_readable(key), _readable(value), spec))


def unpack(pages: Array, spec: str, head_dim: int) -> tuple[Array, Array]:
    """The numbers that pages stand for.

    Args:
        pages: uint8 [kv_heads, n, page_bytes(spec, head_dim)], as pack() gives it.

    Returns:
        key, value: float32 [kv_heads, 64 * n, head_dim].
    """
    source = pages.contiguous() if _is_torch(pages) else np.ascontiguousarray(pages)
    key, value = _core.unpack(source, spec, head_dim)
    return _like(pages, key), _like(pages, value)


class LayerCache:
    """The packed keys and values of one layer for a batch of sequences.

    The first `sinks` tokens and the newest `window` tokens (a multiple of 64) of a sequence stay in
    fp16. What leaves the window is packed once, 64 tokens at a time. The cache lies where the tensors
    lie that are appended first: in host memory or, torch tensors, on a CUDA device. There, work is
    given to torch's current stream, and numbers that are not finite in fp16 are told by a later call.

    Args:
        spec: format, such as "k4v2".
        prefill: "packed": every query reads what the format makes of the tokens behind its window;
            "exact": queries of a chunk read the chunk's own rows unquantized.
    """

    def __init__(self, spec: str, kv_heads: int, head_dim: int, *, sinks: int = 4, window: int = 64,
                 prefill: str = "packed"):
        if prefill not in ("packed", "exact"):
            raise ValueError(f"prefill: expected 'packed' or 'exact', found {prefill!r}")
        self._arguments = (spec, kv_heads, head_dim, sinks, window, prefill == "exact")
        self._core: Any = _core.LayerCache.create(*self._arguments)

    def _accepted(self, array: Array) -> Array:
        """The array as the cache takes it."""
        if _on_device(array) and self._core.batch == 0 and not self._on_device:
            from .cuda import CudaCore, Memory
            self._core = CudaCore.create(Memory(), array.device, *self._arguments)
        if not self._on_device:
            return _readable(array)
        if not _is_torch(array):
            raise ValueError("kvq: expected a torch tensor on the device of the cache, found "
                             f"{type(array).__name__}")
        return array.detach()

    @property
    def _on_device(self) -> bool:
        return not isinstance(self._core, _core.LayerCache)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sequence; empty before the first append()."""
        return self._core.lengths

    @property
    def nbytes(self) -> int:
        """Bytes of packed pages and exact rows of all sequences, scales and padding included."""
        count = self._core.bytes()
        return count["pages"] + count["exact"]

    def append(self, key: Array, value: Array, kept: Array | None = None) -> None:
        """Adds tokens to every sequence; the first call decides their number.

        Args:
            key, value: [B, kv_heads, tokens, head_dim], keys after RoPE; numbers within fp16.
            kept: bool [B, tokens]; tokens that are False (padding) are left out.
        """
        key, value = self._accepted(key), self._accepted(value)
        self._core.append(key, value, kept)

    def attend(self, query: Array, scale: float | None = None, kept: Array | None = None) -> Array:
        """See kvq.attend()."""
        query = self._accepted(query)
        batch, heads, tokens, head_dim = query.shape
        output = _empty_like(query, (batch, tokens, heads, head_dim))
        self._core.attend(query, output, scale if scale is not None else 1 / math.sqrt(head_dim), kept)
        return output

    def read(self) -> tuple[Array, Array]:
        """Dequantized key and value, float32 [B, kv_heads, tokens, head_dim], as the newest query
        reads them; tokens that shorter sequences lack are zero. Tensors where the cache lies on a
        device, else numpy arrays."""
        shape = (self._core.batch, self._core.kv_heads, max(self.lengths, default=0),
                 self._core.head_dim)
        if self._on_device:
            torch = sys.modules["torch"]
            key, value = (torch.zeros(shape, device=self._core.device) for _ in range(2))
        else:
            key, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._core.read(key, value)
        return key, value

    def fork(self) -> LayerCache:
        """A copy that shares the packed pages."""
        copy = LayerCache.__new__(LayerCache)
        copy._arguments = self._arguments
        copy._core = self._core.select(list(range(self._core.batch)))
        return copy

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of every sequence."""
        self._core.truncate([length] * self._core.batch)


def attend(query: Array, cache: LayerCache, scale: float | None = None) -> Array:
    """Attention of the newest tokens over a cache, on packed codes where they lie.

    Args:
        query: [B, query_heads, tokens, head_dim], after RoPE, of the `tokens` tokens appended last;
            query_heads is a multiple (at most 16) of kv_heads.
        scale: of the scores; 1 / sqrt(head_dim) by default.

    Returns:
        [B, tokens, query_heads, head_dim], of the query's type.
    """
    return cache.attend(query, scale)
