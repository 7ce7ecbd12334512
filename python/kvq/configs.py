"""How a cache is asked for: KVQConfig, and KVQCacheConfig with the names of quantized caches in
transformers."""
from __future__ import annotations

import dataclasses
import os
from typing import Any, Mapping

from . import _core
from .plans import Plan, _is_loaded, plan

__all__ = ["KVQCacheConfig", "KVQConfig", "as_config"]

PAGE = _core.PAGE_TOKENS


def _pair(value: Any, name: str) -> tuple[Any, Any]:
    """A value for keys and one for values, from {"k": .., "v": ..} or one for both."""
    if isinstance(value, Mapping):
        if set(value) != {"k", "v"}:
            raise ValueError(f"{name}: expected the keys 'k' and 'v', found {sorted(value)}")
        return value["k"], value["v"]
    return value, value


def _width(bits: Any) -> str:
    return f"{float(bits):g}"


def _tensor(letter: str, bits: Any, axis: str, group: int, options: str) -> str:
    width = _width(bits)
    return f"{letter}{width}" if width == "16" else f"{letter}{width}:g{group}:{axis}{options}"


def _window(residual_length: int) -> int:
    """Tokens kept exact, rounded up to whole pages."""
    if residual_length < 0:
        raise ValueError(f"residual_length: expected 0 or more, found {residual_length}")
    return (residual_length + PAGE - 1) // PAGE * PAGE


def _check_prefill(prefill: str) -> None:
    if prefill not in ("packed", "exact"):
        raise ValueError(f"prefill: expected 'packed' or 'exact', found {prefill!r}")


@dataclasses.dataclass
class KVQCacheConfig:
    """One format for all layers, in the words of transformers' quantized caches.

    Attributes:
        nbits_k, nbits_v: width of the codes: 1, 1.58, 2, 3, 4, 5, 6, 8, or 16 (unquantized).
        axis_key, axis_value: with backend "quanto" 0 = a scale per token and group of channels,
            -1 = per channel and group of tokens; with "hqq" 1 and 0 mean these.
        q_group_size: numbers that share a scale: 16, 32, 64, 128 or 256.
        residual_length: newest tokens kept in fp16, rounded up to a multiple of 64.
        compute_dtype: accepted; dequantized tensors are of the model's type.
        backend: which rule chooses scales: "quanto" (minimum and maximum), "hqq" (half-quadratic),
            or "kvq" (kvq's own: rotated, symmetric, least squared error).
        device: accepted; a cache lies where the model's keys are.
        sinks: first tokens kept in fp16.
        prefill: "packed" or "exact", see KVQConfig.
    """

    nbits_k: float = 4
    nbits_v: float = 2
    axis_key: int = 0
    axis_value: int = 0
    q_group_size: int = 64
    residual_length: int = 128
    compute_dtype: Any = None
    backend: str = "quanto"
    device: Any = None
    sinks: int = 4
    prefill: str = "packed"

    _OPTIONS = {"quanto": ":affine:minmax:none", "hqq": ":affine:hqq:none", "kvq": ""}
    _AXES = {"quanto": {0: "token", -1: "channel"}, "hqq": {1: "token", 0: "channel"},
             "kvq": {0: "token", 1: "channel", -1: "channel"}}

    def __post_init__(self) -> None:
        if self.backend not in self._OPTIONS:
            raise ValueError(f"backend: expected one of {list(self._OPTIONS)}, found {self.backend!r}")
        for name in ("axis_key", "axis_value"):
            axes = self._AXES[self.backend]
            if getattr(self, name) not in axes:
                raise ValueError(f"{name}: {self.backend} expects one of {sorted(axes)}, "
                                 f"found {getattr(self, name)}")
        _check_prefill(self.prefill)
        _core.normalize_spec(self.spec)

    @property
    def spec(self) -> str:
        """The format as kvq writes it."""
        axes, options = self._AXES[self.backend], self._OPTIONS[self.backend]
        return ",".join((_tensor("k", self.nbits_k, axes[self.axis_key], self.q_group_size, options),
                         _tensor("v", self.nbits_v, axes[self.axis_value], self.q_group_size, options)))

    @property
    def window(self) -> int:
        """Newest tokens kept in fp16."""
        return _window(self.residual_length)

    def resolve(self) -> "Resolved":
        """The format of the layers."""
        return Resolved([self.spec], False, self.sinks, self.window, self.prefill)


@dataclasses.dataclass
class KVQConfig:
    """What a cache stores: one format for all layers, or a plan.

    Give one of
        nbits: {"k": 4, "v": 2} or one number for both;
        spec: a format such as "k4v2" or "k4:g32:channel:affine,v2";
        budget: average bits of codes, given out over layers by the norms of `model`'s weights; with
            bit_range (widths to choose from) and score (0 = Frobenius norm, 1 = spectral norm);
        plan: a Plan, the path of its file, or a list of formats, one a layer.

    Attributes:
        model: a directory, an id in the local Hugging Face cache, or a loaded model.
        group_size: numbers that share a scale, {"k": 64, "v": 64} or one number.
        group_budget: average numbers that share a scale, chosen by norms from group_range.
        axis: 0 = a scale per token, 1 or -1 = per channel; {"k": .., "v": ..} or one number.
        residual_length: newest tokens kept in fp16, rounded up to a multiple of 64.
        sinks: first tokens kept in fp16.
        prefill: "packed": a prompt's queries read what is packed, as later ones do; "exact": they
            read the prompt's own rows, as in transformers' quantized caches.
        compute_dtype: accepted; dequantized tensors are of the model's type.
        device: accepted; a cache lies where the model's keys are.
    """

    nbits: Any = None
    budget: float | None = None
    bit_range: Any = None
    model: Any = None
    score: int = 0
    group_size: Any = 64
    group_budget: float | None = None
    group_range: Any = None
    residual_length: int = 64
    axis: Any = 0
    spec: str | None = None
    plan: Any = None
    sinks: int = 4
    prefill: str = "packed"
    compute_dtype: Any = None
    device: Any = None

    def __post_init__(self) -> None:
        given = [name for name in ("nbits", "spec", "budget", "plan") if getattr(self, name) is not None]
        if len(given) > 1 or (not given and self.group_budget is None):
            raise ValueError(f"KVQConfig: expected one of nbits, spec, budget and plan, found {given}")
        if self.score not in (0, 1):
            raise ValueError(f"score: expected 0 (Frobenius norm) or 1 (spectral norm), found {self.score}")
        if (self.budget is not None or self.group_budget is not None) and self.model is None:
            raise ValueError("model: budgets are given out by a model's norms: name or pass one")
        _check_prefill(self.prefill)
        if self.plan is None:
            _core.normalize_spec(self._base_spec())

    def _base_spec(self) -> str:
        if self.spec is not None:
            return self.spec
        widths = _pair(self.nbits if self.nbits is not None else {"k": 4, "v": 2}, "nbits")
        groups = _pair(self.group_size, "group_size")
        tensors = []
        for letter, bits, group, axis in zip("kv", widths, groups, _pair(self.axis, "axis")):
            if axis not in (0, 1, -1):
                raise ValueError(f"axis: expected 0 (per token), 1 or -1 (per channel), found {axis}")
            channel = axis != 0
            tensors.append(_tensor(letter, bits, "channel" if channel else "token", group,
                                   ":affine:none" if channel else ""))
        return ",".join(tensors)

    def _norm_plan(self) -> Plan:
        options: dict[str, Any] = {}
        if self.bit_range is not None:
            options["bits"] = self.bit_range
        if self.group_range is not None:
            options["groups"] = self.group_range
        return plan(self.model, method="norm", budget=self.budget, group_budget=self.group_budget,
                    norm="spectral" if self.score else "frobenius", spec=self._base_spec(),
                    sinks=self.sinks, window=_window(self.residual_length), **options)

    def _checked_plan(self) -> Plan | None:
        if self.plan is None or isinstance(self.plan, (list, tuple)):
            return None
        if isinstance(self.plan, Plan):
            return self.plan
        loaded = Plan.load(self.plan)
        if self.model is not None and not _is_loaded(self.model):
            loaded._core.check(os.fspath(self.model), os.fspath(self.plan))
        return loaded

    def resolve(self) -> "Resolved":
        """The formats of the layers; measures a model's norms where budgets are to be given out."""
        if isinstance(self.plan, (list, tuple)):
            specs = [_core.normalize_spec(spec) for spec in self.plan]
            return Resolved(specs, True, self.sinks, _window(self.residual_length), self.prefill)
        chosen = self._checked_plan()
        if chosen is None and (self.budget is not None or self.group_budget is not None):
            chosen = self._norm_plan()
        if chosen is not None:
            return Resolved(chosen.specs, True, chosen.sinks, chosen.window, self.prefill, chosen.model)
        return Resolved([self._base_spec()], False, self.sinks, _window(self.residual_length), self.prefill)


@dataclasses.dataclass
class Resolved:
    """What KVQ builds its layers from."""

    specs: list[str]
    per_layer: bool  # a format a layer; else one for all
    sinks: int
    window: int
    prefill: str
    model: dict[str, Any] | None = None  # of the plan

    def spec(self, layer: int) -> str:
        if not self.per_layer:
            return self.specs[0]
        if layer >= len(self.specs):
            raise ValueError(f"plan: made for {len(self.specs)} layers, the model has layer {layer}")
        return self.specs[layer]


def as_config(config: Any) -> KVQConfig | KVQCacheConfig:
    """A configuration from an object, a dictionary of either kind, or a format such as "k4v2"."""
    if isinstance(config, (KVQConfig, KVQCacheConfig)):
        return config
    if isinstance(config, str):
        return KVQConfig(spec=config)
    if isinstance(config, Plan):
        return KVQConfig(plan=config)
    if not isinstance(config, Mapping):
        raise TypeError(f"KVQ: expected a KVQConfig, KVQCacheConfig, dictionary, Plan or format, "
                        f"found {type(config).__name__}")
    names = {field.name for field in dataclasses.fields(KVQCacheConfig)}
    kind = KVQCacheConfig if {"nbits_k", "nbits_v"} & set(config) else KVQConfig
    known = names if kind is KVQCacheConfig else {f.name for f in dataclasses.fields(KVQConfig)}
    unknown = set(config) - known
    if unknown:
        raise ValueError(f"KVQ: unknown options {sorted(unknown)}; expected {sorted(known)}")
    return kind(**config)
