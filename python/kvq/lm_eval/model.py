"""The lm-eval model kvq-hf: a transformers model whose every score reads packed keys and values."""
from __future__ import annotations

import json
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from ..configs import as_config
from ..hf_attention import NAME
from ..hf_cache import KVQ
from ..plans import Plan


def parse_config(text: Any) -> Any:
    """A cache's configuration from an option: a JSON object, the path of a plan, or a format."""
    if not isinstance(text, str):
        return text
    if text.lstrip().startswith("{"):
        return json.loads(text)
    return Plan.load(text) if text.endswith(".json") else text


@register_model("kvq-hf")
class KvqHF(HFLM):
    """HFLM with a packed cache.

    Model arguments beside those of `hf`:
        kvq: a format ("k4v2"), the path of a plan, or an object with the fields of KVQConfig or
            KVQCacheConfig; "k16v16" by default.

    Prompts are read packed too, each token seeing behind its window what generation would see. So
    tasks of both kinds measure the format, and padding to the right, which lm-eval adds without a
    mask, changes nothing.
    """

    default_kvq: Any = "k16v16"  # of the option --kvq

    def __init__(self, pretrained: Any, kvq: Any = None, **options: Any):
        config = as_config(parse_config(kvq if kvq is not None else self.default_kvq))
        if config.prefill == "exact":
            raise ValueError("kvq-hf: with prefill='exact' a prompt never reads the packed cache, and "
                             "log-likelihoods would not measure it: use 'packed'")
        self._cache_config = config
        options.setdefault("attn_implementation", NAME)
        super().__init__(pretrained, **options)
        if self.backend != "causal":
            raise ValueError("kvq-hf: expected a causal language model")

    def _model_call(self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None,
                    labels: torch.Tensor | None = None) -> torch.Tensor:
        if attn_mask is not None or labels is not None:
            raise ValueError("kvq-hf: expected a causal language model")
        with torch.no_grad():
            return self.model(inps, past_key_values=KVQ(self._cache_config), use_cache=True).logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str],
                        **generation_kwargs: Any) -> torch.Tensor:
        return super()._model_generate(context, max_length, stop, past_key_values=KVQ(self._cache_config),
                                       **generation_kwargs)
