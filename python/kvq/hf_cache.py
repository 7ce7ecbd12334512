"""KVQ: a packed cache for transformers models, one layer object for each model layer."""
from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from . import _core, threads
from .cuda import CudaCore, Memory
from .configs import Resolved, as_config
from .hf_attention import CachedRows, Chunk, on_host, register

__all__ = ["KVQ", "KVQLayer"]

register()


class KVQLayer(CacheLayerMixin):
    """The packed keys and values of one model layer, for a batch of sequences.

    A column is a token of the batch; padding takes a column but no place in its sequence. `mask` is
    bool [B, columns] on the cpu, False where a token is padding; None while there is none.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, spec: str, sinks: int = 4, window: int = 64, prefill: str = "packed",
                 memory: Memory | None = None):
        super().__init__()
        self.spec, self.sinks, self.window, self.prefill = spec, sinks, window, prefill
        self.memory = memory or Memory()  # where keys are on a CUDA device
        self.core: _core.LayerCache | CudaCore | None = None
        self.columns = 0
        self.mask: torch.Tensor | None = None
        self.device: torch.device | None = None
        self._chunk: Chunk | None = None  # appended when it is read
        self._stepping = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if key_states.shape[-1] != value_states.shape[-1]:
            raise ValueError("kvq: expected keys and values of one head size, found "
                             f"{key_states.shape[-1]} and {value_states.shape[-1]}")
        self.device = key_states.device
        cache = (self.spec, key_states.shape[1], key_states.shape[3], self.sinks, self.window,
                 self.prefill == "exact")
        if self.device.type == "cpu":
            self.core = _core.LayerCache.create(*cache)
        else:
            self.core = CudaCore.create(self.memory, self.device, *cache)
        self.is_initialized = True

    @torch.compiler.disable
    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[Any, Any]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._flush()
        chunk = Chunk(self, key_states.detach(), value_states.detach())
        self._chunk = chunk
        return CachedRows(chunk, True), CachedRows(chunk, False)

    def _take(self, chunk: Chunk) -> bool:
        """Whether the chunk waits to be appended; it counts as appended from now on."""
        if self._chunk is not chunk:
            return False
        self._chunk = None
        self.columns += chunk.key.shape[2]
        if self.mask is not None:
            new = self.mask.new_ones(self.mask.shape[0], chunk.key.shape[2])
            self.mask = torch.cat([self.mask, new], dim=1)
        return True

    def _flush(self) -> None:
        """Appends a chunk that nobody attended to."""
        chunk = self._chunk
        if chunk is not None and self._take(chunk):
            self.core.append(chunk.key, chunk.value)

    def attend(self, chunk: Chunk, query: torch.Tensor, scale: float,
               mask: torch.Tensor | None) -> torch.Tensor:
        """Appends the chunk and attends to everything up to its tokens; see Chunk.attend()."""
        batch, heads, tokens, head_dim = query.shape
        output = torch.empty(batch, tokens, heads, head_dim, dtype=query.dtype, device=query.device)
        if self._stepping:
            self._chunk = None
            self.core.attend_step(chunk.key, chunk.value, query, output, scale)
            return output
        waiting = self._take(chunk)
        kept = self._kept(mask, tokens)
        if waiting:
            self.core.append_and_attend(chunk.key, chunk.value, query, output, scale, kept)
        else:
            self.core.attend(query, output, scale, kept)
        return output

    @property
    def is_waiting(self) -> bool:
        """Whether rows wait that nobody attended to."""
        return self._chunk is not None

    def begin_step(self, mask: torch.Tensor | None) -> tuple[int, ...]:
        """Counts one token more in every sequence, and describes it to the device: until end_step(),
        attend() only launches kernels. They do the same for all steps of which this returns the same."""
        self.columns += 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], 1)], dim=1)
        self._kept(mask, 1)
        self._stepping = True
        return self.core.begin_step()

    def end_step(self) -> None:
        self._stepping, self._chunk = False, None

    def _kept(self, mask: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
        """Which of the newest tokens are no padding, bool [B, tokens]; None: all. Remembers `mask`,
        which must agree with what was cached before."""
        mask = mask if mask is None else on_host(mask)
        past = self.columns - tokens
        before = None if self.mask is None else self.mask[:, :past]
        if mask is None:
            if before is not None and not bool(before.all()):
                raise ValueError("kvq: padding was cached, but no attention_mask is given now")
            return None
        same = bool(mask[:, :past].all()) if before is None else torch.equal(mask[:, :past], before)
        if not same:
            raise ValueError("kvq: attention_mask differs from the one that cached tokens were given with")
        self.mask = mask
        kept = mask[:, past:]
        return None if bool(kept.all()) else kept

    def dense(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        """Dequantized key and value [B, kv_heads, columns, head_dim], the chunk's included."""
        if not self._take(chunk):
            return self._read(chunk.key.dtype)
        if self.prefill == "packed":
            self.core.append(chunk.key, chunk.value)
            return self._read(chunk.key.dtype)
        columns = self.columns - chunk.key.shape[2]
        past = self._read(chunk.key.dtype, columns) if columns > 0 else None
        self.core.append(chunk.key, chunk.value)
        if past is None:
            return chunk.key, chunk.value
        return tuple(torch.cat([old, new], dim=2) for old, new in zip(past, (chunk.key, chunk.value)))

    def _read(self, dtype: torch.dtype, columns: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        batch, lengths = self.core.batch, self.core.lengths
        columns = self.columns if columns is None else columns
        shape = (batch, self.core.kv_heads, max(lengths, default=0), self.core.head_dim)
        key, value = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
        if shape[2] == 0:
            return key, value
        self.core.read(key, value)
        if self.mask is None:
            return key, value
        rows = []
        for packed in (key, value):
            spread = packed.new_zeros(batch, shape[1], columns, shape[3])
            for i, length in enumerate(lengths):
                spread[i, :, self.mask[i, :columns]] = packed[i, :, :length]
            rows.append(spread)
        return rows[0], rows[1]

    @property
    def nbytes(self) -> int:
        """Bytes of packed pages and exact rows, scales and padding included."""
        if self.core is None:
            return 0
        self._flush()
        count = self.core.bytes()
        return count["pages"] + count["exact"]

    def get_seq_length(self) -> int:
        return self.columns + (self._chunk.key.shape[2] if self._chunk is not None else 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        raise NotImplementedError("kvq: a packed cache is not offloaded")

    prefetch = offload

    def reset(self) -> None:
        self.core, self.mask, self._chunk = None, None, None
        self.columns = 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if not self.is_initialized or self.get_seq_length() == 0:
            return
        self._flush()
        source = beam_idx.tolist()
        if source == list(range(self.core.batch)):
            return
        if len(source) == self.core.batch:
            self.core.reorder(source)
            self.mask = None if self.mask is None else self.mask[beam_idx.to(self.mask.device)]
        else:
            self._select(source)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"crop: expected 0 or the negative number of tokens to remove, found "
                             f"{tokens_to_remove}")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        self._flush()
        columns = max(self.columns + tokens_to_remove, 0)
        if self.mask is None:
            lengths = [columns] * self.core.batch
        else:
            self.mask = self.mask[:, :columns]
            lengths = self.mask.sum(dim=1).tolist()
        self.core.truncate(lengths)
        self.columns = columns

    def _select(self, source: list[int]) -> None:
        self._flush()
        self.core = self.core.select(source)
        if self.mask is not None:
            self.mask = self.mask[torch.tensor(source, device=self.mask.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.get_seq_length() > 0:
            self._flush()
            self._select([i for i in range(self.core.batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.get_seq_length() > 0:
            self._flush()
            self._select(torch.arange(self.core.batch)[indices.cpu()].tolist())

    def __deepcopy__(self, memo: dict) -> KVQLayer:
        """A fork: it shares the packed pages."""
        self._flush()
        fork = copy.copy(self)
        if self.core is not None:
            fork.core = self.core.select(list(range(self.core.batch)))
        return fork

    def __getstate__(self) -> None:
        raise TypeError("kvq: a packed cache cannot be pickled; copy.deepcopy() forks it")

    def __copy__(self) -> KVQLayer:
        fork = type(self).__new__(type(self))
        fork.__dict__.update(self.__dict__)
        return fork


class KVQ(Cache):
    """A packed key/value cache for model.generate(past_key_values=...) and model.forward().

    Args:
        config: a KVQConfig, a KVQCacheConfig, a dictionary with the fields of either, a Plan, or a
            format such as "k4v2".

    With attn_implementation="kvq" attention reads packed codes where they lie. With any other
    implementation it gets dequantized tensors, which is slow. A cache holds what was generated with
    it: pass it again to continue, copy.deepcopy(cache) or cache.fork() to continue twice.
    """

    def __init__(self, config: Any):
        self.resolved: Resolved = as_config(config).resolve()
        threads.follow(torch.get_num_threads())
        self._memory = Memory()
        count = len(self.resolved.specs) if self.resolved.per_layer else 0
        super().__init__(layers=[self._new_layer(index) for index in range(count)])

    def _new_layer(self, index: int) -> KVQLayer:
        resolved = self.resolved
        return KVQLayer(resolved.spec(index), resolved.sinks, resolved.window, resolved.prefill,
                        self._memory)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        while len(self.layers) <= layer_idx:
            self.layers.append(self._new_layer(len(self.layers)))
        model = self.resolved.model
        if model is not None and not self.layers[layer_idx].is_initialized:
            shape = (key_states.shape[1], key_states.shape[3])
            if shape != (model["kv_heads"], model["head_dim"]):
                raise ValueError(f"plan: made for {model['kv_heads']} kv heads of {model['head_dim']} "
                                 f"numbers, the model has {shape[0]} of {shape[1]}")
        return self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reset(self) -> None:
        self._memory = Memory()
        for layer in self.layers:
            layer.reset()
            layer.memory = self._memory

    @property
    def nbytes(self) -> int:
        """Bytes of packed pages and exact rows of all layers and sequences; pages that forks share
        count in each."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def device_bytes(self) -> int:
        """Bytes taken from a CUDA device, those for further tokens and of forks included; 0 where the
        cache lies in host memory."""
        return self._memory.bytes

    def fork(self) -> KVQ:
        """A second cache with the same content, sharing packed pages."""
        return copy.deepcopy(self)

    def __iter__(self) -> Any:
        raise TypeError("kvq: a packed cache has no tuples of tensors (the legacy format) to iterate over")
