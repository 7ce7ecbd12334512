"""What a vLLM configuration asks of kvq, and whether kvq can serve it.

The configuration is read by its attributes alone: this file imports no vLLM.
"""
from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

from .. import _core
from ..plans import Plan

logger = logging.getLogger("vllm.kvq")

BLOCK_TOKENS = _core.PAGE_TOKENS
VERSIONS = ("0.32",)
OPTIONS = ("kv", "plan", "window")
DTYPES = ("float32", "bfloat16", "float16")
MAX_HEADS_PER_KV_HEAD = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one rank keeps its caches.

    Attributes:
        specs: the format of each layer.
        window: tokens before the block being filled that stay in 16 bits.
        slots: requests that run at a time; each has one slot of 16-bit rows.
        query_heads, kv_heads, head_dim: of this rank.
    """
    specs: tuple[str, ...]
    window: int
    slots: int
    query_heads: int
    kv_heads: int
    head_dim: int

    def content_bytes(self, layer: int) -> int:
        """Bytes of a token of one kv head in a block of the layer."""
        return _core.page_bytes(self.specs[layer], self.head_dim) // BLOCK_TOKENS

    @property
    def slot_bytes(self) -> int:
        """Bytes of all slots of all layers: fp16 keys and values."""
        rows = self.slots * (BLOCK_TOKENS + self.window)
        return 4 * len(self.specs) * rows * self.kv_heads * self.head_dim


def options_of(vllm_config: Any) -> dict[str, Any] | None:
    """The object under "kvq" in the additional configuration; None: kvq is not asked for."""
    additional = getattr(vllm_config, "additional_config", None)
    if not isinstance(additional, dict) or additional.get("kvq") is None:
        return None
    options = additional["kvq"]
    if not isinstance(options, dict):
        raise ValueError(f'kvq: expected an object such as {{"kv": "k4v2"}}, found {options!r}')
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"kvq: {unknown[0]}: unknown; expected {', '.join(OPTIONS)}")
    if ("kv" in options) == ("plan" in options):
        raise ValueError('kvq: expected "kv" (a format) or "plan" (a file), one of the two')
    return options


def _expect(condition: bool, name: str, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"kvq: {name}: expected {expected}, found {found}")


def check_version(version: str) -> None:
    _expect(any(version == known or version.startswith(known + ".") for known in VERSIONS),
            "vLLM", f"version {' or '.join(known + '.x' for known in VERSIONS)}", version)


def _check_model(model: Any) -> None:
    config = model.hf_text_config
    _expect(model.runner_type == "generate", "runner", "generate", model.runner_type)
    _expect(not model.is_encoder_decoder, "model", "a decoder", "an encoder and decoder")
    _expect(not model.use_mla, "model", "keys and values a head", "multi-head latent attention")
    _expect(not (model.is_hybrid or model.is_attention_free), "model", "attention in every layer",
            getattr(config, "model_type", "other layers"))
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "attention"}
    _expect(not kinds, "layers", "full attention in every layer", ", ".join(sorted(kinds)))
    _expect(model.get_sliding_window() is None, "layers", "no sliding window", model.get_sliding_window())
    softcap = getattr(config, "attn_logit_softcapping", None)
    _expect(softcap is None, "model", "scores without a soft cap", softcap)
    dtype = str(model.dtype).rpartition(".")[2]
    _expect(dtype in DTYPES, "dtype", " or ".join(DTYPES), dtype)
    head_dim = model.get_head_size()
    _expect(head_dim % 16 == 0 and 16 <= head_dim <= 256, "head size", "a multiple of 16 from 16 to 256",
            head_dim)


def _check_engine(config: Any) -> None:
    cache, parallel = config.cache_config, config.parallel_config
    # vLLM may have replaced "auto" by the dtype of the model.
    _expect(cache.cache_dtype in ("auto", *DTYPES), "--kv-cache-dtype", "auto", cache.cache_dtype)
    for name in ("pipeline", "prefill_context", "decode_context"):
        size = getattr(parallel, f"{name}_parallel_size", 1)
        _expect(size == 1, f"{name.replace('_', ' ')} parallel size", "1", size)
    _expect(config.speculative_config is None, "speculative decoding", "none",
            getattr(config.speculative_config, "method", "one"))
    _expect(config.kv_transfer_config is None, "KV transfer", "none",
            getattr(config.kv_transfer_config, "kv_connector", "one"))


def _plan_specs(path: str, model: Any) -> list[str]:
    if not os.path.exists(path):
        raise ValueError(f"kvq: plan: expected a file, found none at {path}")
    plan = Plan.load(path)
    shape = {"layers": model.get_total_num_hidden_layers(), "kv_heads": model.get_total_num_kv_heads(),
             "head_dim": model.get_head_size()}
    for name, expected in shape.items():
        _expect(plan.model[name] == expected, f"{path}: model: {name}", f"{expected} as the model has",
                plan.model[name])
    if plan.model["identity"] and os.path.isdir(model.model):
        plan._core.check(model.model, path)
    if plan.sinks or plan.window:
        logger.info("kvq: %s: its %d sinks and window of %d tokens do not apply: blocks are packed when "
                    "they are full", path, plan.sinks, plan.window)
    return plan.specs


def settings_of(vllm_config: Any) -> Settings | None:
    """What the configuration asks for; None if it does not ask for kvq. A ValueError says what kvq cannot
    serve."""
    options = options_of(vllm_config)
    if options is None:
        return None
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    _check_model(model)
    _check_engine(vllm_config)
    window = options.get("window", 0)
    _expect(isinstance(window, int) and window in (0, BLOCK_TOKENS), "window", f"0 or {BLOCK_TOKENS}", window)
    if "plan" in options:
        specs = _plan_specs(os.fspath(options["plan"]), model)
    else:
        specs = [options["kv"]] * model.get_total_num_hidden_layers()
    kv_heads = model.get_num_kv_heads(parallel)
    query_heads = model.get_num_attention_heads(parallel)
    _expect(query_heads % kv_heads == 0 and query_heads // kv_heads <= MAX_HEADS_PER_KV_HEAD, "heads",
            f"1 to {MAX_HEADS_PER_KV_HEAD} query heads for each kv head", f"{query_heads} for {kv_heads}")
    for spec in sorted(set(specs)):
        _core.page_bytes(spec, model.get_head_size())  # a ValueError names what is wrong with it
    return Settings(tuple(specs), window, vllm_config.scheduler_config.max_num_seqs, query_heads, kv_heads,
                    model.get_head_size())


def check_block_size(cache_config: Any) -> None:
    """Blocks are pages: takes 64 tokens unless the user asked for another size, which is an error."""
    if cache_config.user_specified_block_size:
        _expect(cache_config.block_size == BLOCK_TOKENS, "--block-size", str(BLOCK_TOKENS),
                cache_config.block_size)
    cache_config.block_size = BLOCK_TOKENS
    cache_config.user_specified_block_size = True
