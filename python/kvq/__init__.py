"""Packed low-bit key/value caches for language models.

`kvq` alone gives packing, plans, norms, analyses and attention over packed codes, on numpy arrays or
torch tensors. The cache for transformers' `generate()` needs transformers:

    from kvq import KVQ, KVQConfig
    model.generate(**inputs, past_key_values=KVQ(KVQConfig(nbits={"k": 4, "v": 2})))

The distribution is called kvq-cpp. It shadows the distribution kvq, whose import name is the same.
"""
from typing import TYPE_CHECKING, Any

from ._core import PAGE_TOKENS, VERSION, instruction_set, thread_count
from .arrays import LayerCache, attend, effective_bits, pack, page_bytes, unpack
from .configs import KVQCacheConfig, KVQConfig
from .measure import analyze
from .plans import Norms, Plan, norms, plan
from .threads import set_thread_count

if TYPE_CHECKING:
    from .graphs import cuda_graphs
    from .hf_cache import KVQ

__version__ = VERSION

__all__ = [
    "KVQ", "KVQCacheConfig", "KVQConfig", "LayerCache", "Norms", "PAGE_TOKENS", "Plan", "__version__",
    "analyze", "attend", "cuda_graphs", "effective_bits", "instruction_set", "norms", "pack", "page_bytes",
    "plan", "set_thread_count", "thread_count", "unpack",
]


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import, and most of the package does without.
    if name == "KVQ":
        from .hf_cache import KVQ
        return KVQ
    if name == "cuda_graphs":
        from .graphs import cuda_graphs
        return cuda_graphs
    raise AttributeError(f"module 'kvq' has no attribute '{name}'")


def _register_with_loaded_transformers() -> None:
    """So that attn_implementation="kvq" is known to programs that import transformers first."""
    import sys
    if sys.modules.get("transformers") and sys.modules.get("torch"):
        from .hf_attention import register
        register()


_register_with_loaded_transformers()
