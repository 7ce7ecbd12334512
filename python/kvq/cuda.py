"""Caches in the memory of a CUDA device, for torch tensors there.

Nothing here waits for the device. Work is given to torch's current stream of the cache's device.
"""
from __future__ import annotations

from typing import Any, Sequence

import torch

from . import _core

__all__ = ["CudaCore", "Memory"]

# As the extension module numbers them.
_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def _description(rows: torch.Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return rows.data_ptr(), _NUMBERS[rows.dtype], rows.shape, rows.stride()


class Memory:
    """What the layers of a cache and its forks share: memory on the device of the first tensor."""

    def __init__(self) -> None:
        self.core: Any = None
        self.device: torch.device | None = None

    def __deepcopy__(self, memo: dict) -> Memory:
        return self

    def __getstate__(self) -> None:
        raise TypeError("kvq: a packed cache cannot be pickled; copy.deepcopy() forks it")

    @property
    def bytes(self) -> int:
        """Taken from the device."""
        return 0 if self.core is None else self.core.bytes

    def on(self, device: torch.device) -> Any:
        """The memory, on that device."""
        if not _core.has_cuda:
            raise ValueError(f"kvq: this build has no CUDA support, and found a tensor on {device}: build "
                             "the package with a CUDA compiler (docs/python.md), or move it to the cpu")
        if device.type != "cuda":
            raise ValueError(f"kvq: expected tensors on cpu or cuda, found one on {device}")
        if self.core is None:
            self.core, self.device = _core.CudaMemory.create(device.index), device
        elif self.device != device:
            raise ValueError(f"kvq: a cache lies on one device: expected tensors on {self.device}, found "
                             f"one on {device}; a model over several devices needs a cache for each")
        return self.core


class _Kept:
    """Which tokens of a chunk are no padding, and where their rows lie."""

    def __init__(self, kept: torch.Tensor, device: torch.device):
        on_host = kept.cpu()
        self.counts: list[int] = on_host.sum(dim=1).tolist()
        self.rows = on_host.flatten().nonzero()[:, 0].to(device)  # of [B * tokens]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, heads, tokens, head_dim] -> those of all sequences, [1, heads, kept, head_dim]."""
        token_major = rows.transpose(1, 2).flatten(0, 1)
        return token_major.index_select(0, self.rows).transpose(0, 1)[None]


class CudaCore:
    """_core.LayerCache for tensors on a CUDA device: the same methods."""

    def __init__(self, core: Any, device: torch.device):
        self.core, self.device = core, device

    @classmethod
    def create(cls, memory: Memory, device: torch.device, *format_and_shape: Any) -> CudaCore:
        on_device = memory.on(device)
        return cls(_core.CudaLayerCache.create(on_device, *format_and_shape), device)

    @property
    def batch(self) -> int:
        return self.core.batch

    @property
    def lengths(self) -> list[int]:
        return self.core.lengths

    @property
    def kv_heads(self) -> int:
        return self.core.kv_heads

    @property
    def head_dim(self) -> int:
        return self.core.head_dim

    def bytes(self) -> dict[str, int]:
        return self.core.bytes()

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream

    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        """What kernels can read: on the device, four numbers at a time."""
        if rows.device != self.device:
            raise ValueError(f"kvq: expected tensors on {self.device}, found one on {rows.device}")
        if rows.dtype not in _NUMBERS:
            raise ValueError(f"kvq: expected float32, float16 or bfloat16 numbers, found {rows.dtype}")
        if rows.data_ptr() % 16 or rows.stride(3) != 1 or any(step % 4 for step in rows.stride()[:3]):
            return rows.clone(memory_format=torch.contiguous_format)
        return rows

    def _kept_rows(self, kept: torch.Tensor | None) -> _Kept | None:
        return None if kept is None else _Kept(kept, self.device)

    def append(self, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor | None = None) -> None:
        key, value, counts = self._appended(key, value, self._kept_rows(kept))
        self.core.append(_description(key), _description(value), counts, self._stream())

    def _appended(self, key: torch.Tensor, value: torch.Tensor,
                  kept: _Kept | None) -> tuple[torch.Tensor, torch.Tensor, Sequence[int]]:
        if value.dtype != key.dtype:
            value = value.to(key.dtype)
        if kept is not None:
            return kept.gather(key), kept.gather(value), kept.counts
        return self._rows(key), self._rows(value), ()

    def attend(self, query: torch.Tensor, output: torch.Tensor, scale: float,
               kept: torch.Tensor | None = None) -> None:
        self._attend((), query, output, scale, self._kept_rows(kept))

    def append_and_attend(self, key: torch.Tensor, value: torch.Tensor, query: torch.Tensor,
                          output: torch.Tensor, scale: float, kept: torch.Tensor | None = None) -> None:
        rows = self._kept_rows(kept)
        key, value, _ = self._appended(key, value, rows)
        self._attend((_description(key), _description(value)), query, output, scale, rows)

    def begin_step(self) -> tuple[int, ...]:
        """See KVQLayer.begin_step()."""
        return self.core.begin_step(self._stream())

    def attend_step(self, key: torch.Tensor, value: torch.Tensor, query: torch.Tensor,
                    output: torch.Tensor, scale: float) -> None:
        """append_and_attend() of the tokens that begin_step() began."""
        key, value, _ = self._appended(key, value, None)
        self._attend((_description(key), _description(value)), query, output, scale, None,
                     self.core.attend_step)

    def _attend(self, appended: tuple[Any, ...], query: torch.Tensor, output: torch.Tensor, scale: float,
                kept: _Kept | None, call: Any = None) -> None:
        """output: [B, tokens, query_heads, head_dim], contiguous."""
        call = call or (self.core.append_and_attend if appended else self.core.attend)
        # Kernels take rows of all heads side by side, as most models leave them.
        rows = (kept.gather(query) if kept else query).transpose(1, 2).contiguous()
        target = output if kept is None else torch.empty_like(rows, dtype=output.dtype)
        call(*appended, _description(self._rows(rows).transpose(1, 2)), target.data_ptr(), scale,
             kept.counts if kept else (), self._stream())
        if kept:
            output.zero_()
            output.flatten(0, 1).index_copy_(0, kept.rows, target[0])

    def read(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.core.read(_description(key), _description(value), self._stream())

    def select(self, source: list[int]) -> CudaCore:
        return CudaCore(self.core.select(source, self._stream()), self.device)

    def reorder(self, source: list[int]) -> None:
        self.core.reorder(source, self._stream())

    def truncate(self, lengths: list[int]) -> None:
        self.core.truncate(lengths, self._stream())

    def kernel_name(self, query_heads: int) -> str:
        return self.core.kernel_name(query_heads)
