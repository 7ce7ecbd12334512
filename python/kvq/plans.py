"""Which bits go where: plans, and the norms that they are made from."""
from __future__ import annotations

import json
import os
from typing import Any, Iterable

from . import _core

__all__ = ["Norms", "Plan", "norms", "plan"]

WIDTHS = ("1", "2", "3", "4", "5", "6", "8")
GROUPS = (16, 32, 64, 128, 256)


class Plan:
    """A format for every layer's keys and values, and how many tokens stay in 16 bits.

    Attributes:
        specs: format of each layer, such as ["k4v2", "k2v2"].
        sinks, window: tokens kept in fp16, the first and the newest ones.
        effective_bits: mean stored bits of a packed number, scales, centers and padding included.
        model: {"identity", "layers", "kv_heads", "head_dim"}; an empty identity fits any model of
            the shape.
        method, budget: how the plan was made, and the bits that were asked for.
    """

    def __init__(self, core: _core.Plan):
        self._core = core

    @classmethod
    def of_specs(cls, specs: Iterable[str], kv_heads: int, head_dim: int, *, sinks: int = 4,
                 window: int = 64, method: str = "given") -> Plan:
        """A plan of one format a layer."""
        return cls(_core.Plan.of_specs(list(specs), kv_heads, head_dim, sinks, window, method))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Plan:
        """Reads and checks a plan file; ValueError names the field that is wrong."""
        return cls(_core.Plan.read(os.fspath(path)))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file that `kvq --plan` and Plan.load() read."""
        self._core.write(os.fspath(path))

    def to_json(self) -> str:
        """The text of the file."""
        return self._core.to_json()

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of `tokens` cached tokens of one sequence, metadata included."""
        return self._core.cache_bytes(tokens)

    def cache_bytes_16bit(self, tokens: int) -> int:
        """The same numbers in plain fp16."""
        return self._core.cache_bytes_16bit(tokens)

    specs = property(lambda self: self._core.specs)
    model = property(lambda self: self._core.model)
    method = property(lambda self: self._core.method)
    budget = property(lambda self: self._core.budget)
    sinks = property(lambda self: self._core.sinks)
    window = property(lambda self: self._core.window)
    effective_bits = property(lambda self: self._core.effective_bits)

    def __repr__(self) -> str:
        return (f"Plan(layers={len(self.specs)}, method={self.method!r}, "
                f"effective_bits={self.effective_bits:.3f})")


class Norms:
    """Norms of every layer's key and value projection (w_k, w_v: one number a layer)."""

    def __init__(self, core: _core.Norms):
        self._core = core

    @classmethod
    def of_lists(cls, w_k: Iterable[float], w_v: Iterable[float], *, norm: str = "frobenius",
                 kv_heads: int = 0, head_dim: int = 0, label: str = "") -> Norms:
        """A table of given norms; kv_heads and head_dim are those of the model."""
        return cls(_core.Norms.of_lists(list(w_k), list(w_v), norm, kv_heads, head_dim, label))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Norms:
        """Reads the file that `kvq norms -o` writes."""
        return cls(_core.Norms.read(os.fspath(path)))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file that `kvq plan --norms` and Norms.load() read."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self._core.to_json())

    def to_dict(self) -> dict[str, Any]:
        """{"model", "norm", "w_k": [...], "w_v": [...]} and what else is known."""
        return json.loads(self._core.to_json())

    label = property(lambda self: self._core.label)
    norm = property(lambda self: self._core.norm)
    w_k = property(lambda self: self._core.w_k)
    w_v = property(lambda self: self._core.w_v)
    model = property(lambda self: self._core.model)


def _is_loaded(model: Any) -> bool:
    return hasattr(model, "named_parameters") and hasattr(model, "config")


def _norms_of_loaded(model: Any, norm: str) -> Norms:
    import torch
    order = {"frobenius": "fro", "spectral": 2}.get(norm)
    if order is None:
        raise ValueError(f"norm: expected frobenius or spectral, found {norm!r}")
    lists: dict[str, list[float]] = {"k_proj": [], "v_proj": []}
    for name, weight in model.named_parameters():
        for projection, values in lists.items():
            if name.endswith(f".{projection}.weight"):
                matrix = weight.detach().to(torch.float32)
                values.append(float(torch.linalg.matrix_norm(matrix, ord=order)))
    config = model.config.get_text_config(decoder=True)
    if len(lists["k_proj"]) != config.num_hidden_layers:
        raise ValueError(f"model: expected k_proj.weight in each of {config.num_hidden_layers} layers, "
                         f"found {len(lists['k_proj'])}")
    kv_heads, head_dim = shape_of(config)
    return Norms.of_lists(lists["k_proj"], lists["v_proj"], norm=norm, kv_heads=kv_heads,
                          head_dim=head_dim, label=getattr(config, "_name_or_path", ""))


def shape_of(config: Any) -> tuple[int, int]:
    """kv heads and head_dim of a transformers configuration."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return kv_heads, head_dim


def norms(model: Any, norm: str = "frobenius") -> Norms:
    """Norms of the projections that make keys and values.

    Args:
        model: a directory or the id of a model in the local Hugging Face cache (its files are
            streamed, nothing is downloaded), or a loaded transformers model.
        norm: "frobenius" or "spectral" (the largest singular value).
    """
    if _is_loaded(model):
        return _norms_of_loaded(model, norm)
    return Norms(_core.Norms.measure(os.fspath(model), norm))


def plan(model: Any = None, *, budget: float | None = None, group_budget: float | None = None,
         bits: Iterable[float | str] = WIDTHS, groups: Iterable[int] = GROUPS,
         norm: str = "frobenius", norms: Norms | str | os.PathLike | None = None,
         spec: str = "k4v2", sinks: int = 4, window: int = 64) -> Plan:
    """A plan by the norms of the weights, as the KVQ paper makes it.

    Args:
        model: a directory, a cached id, or a loaded transformers model; not needed with `norms`.
        budget: average bits of the codes of all keys and values.
        group_budget: average numbers that share a scale; alone or beside `budget`.
        bits, groups: widths and group sizes to choose from.
        norm: "frobenius" or "spectral".
        norms: a table, or its file, in place of measuring.
        spec: what the plan does not choose.
    """
    if budget is None and group_budget is None:
        raise ValueError("plan: expected budget or group_budget")
    if norms is None:
        if model is None:
            raise ValueError("plan: expected a model or norms")
        norms = globals()["norms"](model, norm)
    elif not isinstance(norms, Norms):
        norms = Norms.load(norms)
    table = norms._core
    if table.model["kv_heads"] == 0:
        if model is None:
            raise ValueError("plan: the norms name no model: give one, or kv_heads and head_dim")
        shape = shape_of(model.config) if _is_loaded(model) else \
            tuple(_core.model_shape(os.fspath(model))[key] for key in ("kv_heads", "head_dim"))
        table = table.with_shape(*shape)
    widths = [f"{width:g}" if not isinstance(width, str) else width for width in bits]
    return Plan(_core.plan_by_norms(table, budget or 0.0, widths, group_budget or 0.0, list(groups),
                                    spec, sinks, window))
