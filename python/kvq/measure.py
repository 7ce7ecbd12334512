"""What runs a whole model, on kvq's own runtime: plans by sensitivity, and analyses."""
from __future__ import annotations

import json
import os
import pathlib
from types import ModuleType
from typing import Any, Iterable

from . import _core

__all__ = ["analyze", "plan_by_sensitivity"]

FilePath = str | os.PathLike[str]
PATH_CHARACTERS = 4096  # at most; a text of one window has more


def _runtime() -> ModuleType:
    # Brings oneDNN with it, which takes longer to load than the rest of the package.
    from . import _model
    return _model


def _model_path(model: Any) -> str:
    """The name under which kvq's runtime finds a model's files."""
    if hasattr(model, "named_parameters"):
        raise ValueError("model: kvq runs it from its files: expected a directory or the id of a model "
                         "in the local Hugging Face cache, found a loaded model")
    return str(os.fspath(model))


def _list(values: Iterable[float | str] | None) -> str | None:
    """As the command reads it: "2,4"."""
    if values is None:
        return None
    return ",".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def _calibration(source: FilePath | None) -> tuple[str | None, str]:
    """A text, None if the model writes it, and its name in errors."""
    if source is None:
        return None, ""
    if isinstance(source, str) and ("\n" in source or len(source) > PATH_CHARACTERS):
        return source, "calibration"
    return pathlib.Path(source).read_text(encoding="utf-8"), os.fspath(source)


def plan_by_sensitivity(model: Any, *, budget: float | None, memory: int | None, tokens: int | None,
                        batch: int, bits: Iterable[float | str] | None, groups: Iterable[int] | None,
                        sensitivity: str, calibration: FilePath | None, windows: int | None,
                        copies: int | None, rounds: int | None, seed: int, sinks: int,
                        window: int) -> tuple[str, float]:
    """See kvq.plan(): the text of the plan's file, and its divergence on the calibration text."""
    text, name = _calibration(calibration)
    found, divergence = _runtime().plan_by_sensitivity(
        _model_path(model), budget or 0.0, memory or 0, tokens or 0, batch, _list(bits), _list(groups),
        sensitivity, text, name, windows, copies, rounds, seed, sinks, window, _core.thread_count())
    return found, divergence


def analyze(model: FilePath, *, text: FilePath | None = None, windows: int | None = None,
            sensitivity: int | None = None, seed: int = 0, spec: str = "k4v2", sinks: int = 4,
            window: int = 64, report: FilePath | None = None) -> dict[str, Any]:
    """Measures what a model's keys and values are like and what cache formats cost it.

    Takes minutes, and more for large models; Ctrl-C ends it. A progress bar shows on stderr where that
    is a terminal.

    Args:
        model: a directory, or the id of a model in the local Hugging Face cache.
        text: a file to measure on; by default the model writes the text.
        windows: of 1,024 tokens of it, at most [4].
        sensitivity: windows, written by the model, on which every tensor's widths are tried and plans
            are made [2]; 0 for none.
        seed: of text that the model writes.
        spec: the format of which others vary one or two options.
        sinks, window: first and newest tokens kept in 16 bits.
        report: where to write the result as one self-contained HTML page.

    Returns:
        What `kvq analyze --json` writes; docs/report.md says what is in it. `kvq report` makes pages
        from the file that json.dump() makes of it.
    """
    if report is not None and not pathlib.Path(report).parent.is_dir():
        raise ValueError(f"report: there is no directory {pathlib.Path(report).parent}")
    runtime = _runtime()
    result = runtime.analyze(_model_path(model), "" if text is None else os.fspath(text), windows,
                             sensitivity, seed, spec, sinks, window, _core.thread_count())
    if report is not None:
        pathlib.Path(report).write_text(runtime.page([result]), encoding="utf-8")
    fields: dict[str, Any] = json.loads(result)
    return fields
