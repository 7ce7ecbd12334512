"""The caches of one worker: which request has which slot of 16-bit rows, and a layer's step.

Blocks are vLLM's: full ones hold packed pages and are shared as vLLM sees fit. A request that runs has a
slot, from the step that first computes it until it finishes or is preempted; there its rows wait until
their block is full.
"""
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import _core
from .settings import BLOCK_TOKENS, Settings


@dataclasses.dataclass
class Running:
    """A request that holds a slot.

    Attributes:
        blocks: ids of all its blocks, in order.
        computed: tokens in the cache before the step.
        origin: the position at which it began to compute, after tokens that others had cached.
    """
    slot: int
    blocks: list[int]
    computed: int
    origin: int


@dataclasses.dataclass
class Step:
    """A step's requests, in the order of the batch; see PagedCache.step()."""
    starts: np.ndarray   # int32 [requests + 1]
    lengths: np.ndarray  # int32 [requests], as slots and firsts
    slots: np.ndarray
    firsts: np.ndarray
    table: np.ndarray    # int32 [requests, blocks]


def _blocks_of(groups: tuple[list[int], ...]) -> list[int]:
    if len(groups) != 1:
        raise RuntimeError(f"kvq: expected one group of layers, found {len(groups)}")
    return list(groups[0])


class Engine:
    def __init__(self, settings: Settings):
        self.settings = settings
        self.cache = _core.PagedCache.create(list(settings.specs), settings.query_heads, settings.kv_heads,
                                             settings.head_dim, settings.slots, settings.window)
        self.running: dict[str, Running] = {}
        self.free_slots = list(range(settings.slots))[::-1]
        # Of the requests of this step, by the block that its last token goes to: no other request
        # writes to that block.
        self.by_block: dict[int, Running] = {}
        self.reused_tokens = 0

    def close(self) -> None:
        """Lets the slots' memory go; no step may follow."""
        self.cache = None

    def begin_step(self, output: Any) -> None:
        """Follows vLLM's scheduler: `output` is its SchedulerOutput."""
        for request in (*output.finished_req_ids, *(output.preempted_req_ids or ())):
            self._release(request)
        for new in output.scheduled_new_reqs:
            self._start(new.req_id, new.block_ids, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for request, blocks, computed in zip(cached.req_ids, cached.new_block_ids,
                                             cached.num_computed_tokens):
            if request in cached.resumed_req_ids:
                self._start(request, blocks, computed)
            else:
                held = self._held(request)
                held.blocks += _blocks_of(blocks) if blocks is not None else []
                held.computed = computed
        self.by_block = {}
        for request, tokens in output.num_scheduled_tokens.items():
            held = self._held(request)
            self.by_block[held.blocks[(held.computed + tokens - 1) // BLOCK_TOKENS]] = held

    def _held(self, request: str) -> Running:
        if request not in self.running:
            raise RuntimeError(f"kvq: vLLM continues request {request}, which holds no slot")
        return self.running[request]

    def _start(self, request: str, blocks: tuple[list[int], ...], computed: int) -> None:
        self._release(request)
        if not self.free_slots:
            raise RuntimeError(f"kvq: more than {self.settings.slots} requests run (--max-num-seqs)")
        if computed % BLOCK_TOKENS != 0:
            raise RuntimeError(f"kvq: request {request} begins at token {computed}, inside a block")
        self.running[request] = Running(self.free_slots.pop(), _blocks_of(blocks), computed, computed)
        self.reused_tokens += computed

    def _release(self, request: str) -> None:
        held = self.running.pop(request, None)
        if held is not None:
            self.free_slots.append(held.slot)

    def step(self, starts: np.ndarray, lengths: np.ndarray, table: np.ndarray) -> Step:
        """The batch as vLLM laid it out; rows without tokens are padding.

        starts [rows + 1], lengths [rows], table [rows, blocks]
        """
        tokens = np.diff(starts)
        rows = np.flatnonzero(tokens > 0)
        lengths = lengths[rows].astype(np.int32)
        table = table[rows]
        last = table[np.arange(len(rows)), (lengths - 1) // BLOCK_TOKENS]
        try:
            held = [self.by_block[block] for block in last.tolist()]
        except KeyError as block:
            raise RuntimeError(f"kvq: no request of this step writes to block {block}") from None
        begins = lengths - tokens[rows]
        firsts = begins // BLOCK_TOKENS * BLOCK_TOKENS - self.settings.window
        return Step(
            starts=np.append(starts[rows], starts[-1]).astype(np.int32),
            lengths=lengths,
            slots=np.array([request.slot for request in held], np.int32),
            firsts=np.maximum(firsts, [request.origin for request in held]).astype(np.int32),
            table=np.ascontiguousarray(table[:, :-(-int(lengths.max(initial=1)) // BLOCK_TOKENS)], np.int32))

    def attend(self, layer: int, blocks: Any, key: Any, value: Any, query: Any, output: Any, step: Step,
               scale: float) -> None:
        """Appends the step's keys and values to a layer's caches, packs blocks that became full, and
        attends. All arrays are [rows, heads, head_dim]; `blocks` is uint8
        [blocks, kv_heads, 64, content bytes]."""
        self.cache.step(layer, blocks, key, value, query, output, step.starts, step.lengths, step.slots,
                        step.firsts, step.table, scale)
