"""Which bits go where: plans, and the norms that they are made from."""
from __future__ import annotations

import json
import os
from typing import Any, Iterable

from . import _core
from .measure import FilePath, plan_by_sensitivity

__all__ = ["Norms", "Plan", "norms", "plan"]

# What plans by norms choose from, unless told.
NORM_WIDTHS = ("1", "2", "3", "4", "5", "6", "8")
NORM_GROUPS = (16, 32, 64, 128, 256)


class Plan:
    """A format for every layer's keys and values, and how many tokens stay in 16 bits.

    Attributes:
        divergence: mean KL divergence of the model's output from that with a 16-bit cache, on the text
            that the plan was calibrated on, in nats; None unless kvq.plan() has measured it.
    """

    def __init__(self, core: _core.Plan, divergence: float | None = None):
        self._core = core
        self.divergence = divergence

    @classmethod
    def of_specs(cls, specs: Iterable[str], kv_heads: int, head_dim: int, *, sinks: int = 4,
                 window: int = 64, method: str = "given") -> Plan:
        """A plan of one format a layer."""
        return cls(_core.Plan.of_specs(list(specs), kv_heads, head_dim, sinks, window, method))

    @classmethod
    def load(cls, path: FilePath) -> Plan:
        """Reads and checks a plan file; ValueError names the field that is wrong."""
        return cls(_core.Plan.read(os.fspath(path)))

    def save(self, path: FilePath) -> None:
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

    @property
    def specs(self) -> list[str]:
        """Format of each layer, such as ["k4v2", "k2v2"]."""
        return self._core.specs

    @property
    def model(self) -> dict[str, Any]:
        """"identity" (empty: fits any model of the shape), "layers", "kv_heads" and "head_dim"."""
        return self._core.model

    @property
    def method(self) -> str:
        """How the plan was made: "sensitivity", "norm", "given"."""
        return self._core.method

    @property
    def budget(self) -> float:
        """The bits that were asked for, in the method's unit; 0 if none were."""
        return self._core.budget

    @property
    def sinks(self) -> int:
        """First tokens of a sequence kept in fp16."""
        return self._core.sinks

    @property
    def window(self) -> int:
        """Newest tokens of a sequence kept in fp16, a multiple of 64."""
        return self._core.window

    @property
    def effective_bits(self) -> float:
        """Mean stored bits of a packed number, scales, centers and padding included."""
        return self._core.effective_bits

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
    def load(cls, path: FilePath) -> Norms:
        """Reads the file that `kvq norms -o` writes."""
        return cls(_core.Norms.read(os.fspath(path)))

    def save(self, path: FilePath) -> None:
        """Writes the file that `kvq plan --norms` and Norms.load() read."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self._core.to_json())

    def to_dict(self) -> dict[str, Any]:
        """{"model", "norm", "w_k": [...], "w_v": [...]} and what else is known."""
        fields: dict[str, Any] = json.loads(self._core.to_json())
        return fields

    @property
    def label(self) -> str:
        """What was measured: the model as it was named."""
        return self._core.label

    @property
    def norm(self) -> str:
        """"frobenius" or "spectral"."""
        return self._core.norm

    @property
    def w_k(self) -> list[float]:
        """Norm of each layer's key projection."""
        return self._core.w_k

    @property
    def w_v(self) -> list[float]:
        """Norm of each layer's value projection."""
        return self._core.w_v

    @property
    def model(self) -> dict[str, Any]:
        """"identity", "layers", "kv_heads" (0: not known) and "head_dim"."""
        return self._core.model


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


def _method(method: str | None, options: dict[str, dict[str, Any]]) -> str:
    """The method that the given options ask for. `options`: those of each method, None if not given."""
    if method is not None and method not in options:
        raise ValueError(f"method: expected one of {list(options)}, found {method!r}")
    given = {name: [option for option, value in values.items() if value is not None]
             for name, values in options.items()}
    chosen = method or ("norm" if given["norm"] else "sensitivity")
    for name, wrong in given.items():
        if wrong and name != chosen:
            raise ValueError(f"{wrong[0]}: goes with method {name!r}, found {chosen!r}")
    return chosen


def _check_budget(budget: float | None, memory: int | None, tokens: int | None,
                  group_budget: float | None) -> None:
    if budget is None and memory is None and group_budget is None:
        raise ValueError("plan: expected budget, memory or group_budget")
    if budget is not None and memory is not None:
        raise ValueError("plan: expected one of budget and memory")
    if memory is not None and group_budget is not None:
        raise ValueError("plan: group_budget goes with budget or alone, not with memory")
    if (memory is None) != (tokens is None):
        raise ValueError("plan: memory and tokens need each other")
    for name, value in (("budget", budget), ("memory", memory), ("tokens", tokens),
                        ("group_budget", group_budget)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected more than 0, found {value}")


def _plan_by_norms(model: Any, given: Norms | FilePath | None, norm: str, budget: float | None,
                   memory: tuple[int, int, int], group_budget: float | None, bits: Iterable[float | str] | None,
                   groups: Iterable[int] | None, spec: str, sinks: int, window: int) -> Plan:
    if given is None:
        if model is None:
            raise ValueError("plan: expected a model or norms")
        given = norms(model, norm)
    elif not isinstance(given, Norms):
        given = Norms.load(given)
    table = given._core
    if table.model["kv_heads"] == 0:
        if model is None:
            raise ValueError("plan: the norms name no model: give one, or kv_heads and head_dim")
        shape = shape_of(model.config) if _is_loaded(model) else \
            tuple(_core.model_shape(os.fspath(model))[key] for key in ("kv_heads", "head_dim"))
        table = table.with_shape(*shape)
    widths = [width if isinstance(width, str) else f"{width:g}" for width in bits or NORM_WIDTHS]
    return Plan(_core.plan_by_norms(table, budget or 0.0, *memory, widths, group_budget or 0.0,
                                    list(groups or NORM_GROUPS), spec, sinks, window))


def plan(model: Any = None, *, budget: float | None = None, memory: int | None = None,
         tokens: int | None = None, batch: int = 1, method: str | None = None,
         bits: Iterable[float | str] | None = None, groups: Iterable[int] | None = None, sinks: int = 4,
         window: int = 64,
         sensitivity: str | None = None, calibration: FilePath | None = None,
         windows: int | None = None, copies: int | None = None, rounds: int | None = None,
         seed: int | None = None,
         norm: str | None = None, norms: Norms | FilePath | None = None,
         group_budget: float | None = None, spec: str | None = None) -> Plan:
    """Decides which bits go where, as `kvq plan` does: docs/planning.md.

    Args:
        model: a directory, or the id of a model in the local Hugging Face cache. Plans by norms also
            take a loaded transformers model, and need none with `norms`.
        budget: mean stored bits of a number, scales, centers and padding included; of a plan by norms
            the mean bits of the codes alone, as the KVQ paper counts.
        memory, tokens, batch: in place of `budget`: bytes that the caches of `batch` sequences of
            `tokens` tokens have to fit.
        method: "sensitivity": each format's measured effect on the model decides. It runs the model,
            for a minute or more; Ctrl-C ends it. "norm": norms of the weights decide, as published.
            By default "sensitivity", unless an option that goes with norms is given.
        bits, groups: widths and group sizes to choose from, such as [2, 3, 4] and [64, 128].
        sinks, window: first and newest tokens kept in 16 bits; the window is a multiple of 64.

    Of plans by sensitivity, which choose everything about each layer's keys and values:
        sensitivity: "attention" [default]: two formats of a tensor are measured on the model's output,
            the others on their layer's attention; "kl": all on the output, which takes longer.
        calibration: text that formats are tried on: the path of a file, or the text itself (a string
            with line breaks or longer than paths can be). By default the model writes it; give one
            where you can.
        windows: of 1,024 tokens of that text, at most [4].
        copies: windows that repeat random tokens of it, so that looking up far behind counts [2].
        rounds: of measuring the plan as a whole and improving it [2].
        seed: of text that the model writes, and of copies [0].

    Of plans by norms:
        norm: "frobenius" [default] or "spectral".
        norms: a table, or its file, in place of measuring.
        group_budget: mean numbers that share a scale; alone or beside `budget`.
        spec: what the plan does not choose ["k4v2"].
    """
    by_sensitivity = {"sensitivity": sensitivity, "calibration": calibration, "windows": windows,
                      "copies": copies, "rounds": rounds, "seed": seed}
    by_norm = {"norm": norm, "norms": norms, "group_budget": group_budget, "spec": spec}
    _check_budget(budget, memory, tokens, group_budget)
    if _method(method, {"sensitivity": by_sensitivity, "norm": by_norm}) == "norm":
        return _plan_by_norms(model, norms, norm or "frobenius", budget, (memory or 0, tokens or 0, batch),
                              group_budget, bits, groups, spec or "k4v2", sinks, window)
    if model is None:
        raise ValueError("plan: expected a model")
    text, divergence = plan_by_sensitivity(
        model, budget=budget, memory=memory, tokens=tokens, batch=batch, bits=bits, groups=groups,
        sensitivity=sensitivity or "attention", calibration=calibration, windows=windows, copies=copies,
        rounds=rounds, seed=seed or 0, sinks=sinks, window=window)
    return Plan(_core.Plan.parse(text), divergence)
