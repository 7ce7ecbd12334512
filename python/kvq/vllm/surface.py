"""All that kvq touches of vLLM. Written against vLLM 0.32; everything else here is free of vLLM.

    process             kvq hooks in                                  to
    all                 Platform.check_and_update_config()            check the configuration, block size 64
    workers             Platform.get_attn_backend_cls()               name Backend, and hook in what follows
                        Attention.get_kv_cache_spec()                 give each layer its bytes a token
                        Worker.determine_available_memory()           count the slots of 16-bit rows
                        Worker.execute_model()                        follow the scheduler
"""
from __future__ import annotations

import atexit
import dataclasses
import functools
import re
import weakref
from typing import Any

import torch
import vllm
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder, AttentionType
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_layout import KVCacheLayout

from ..threads import follow, start_beside_pinned
from .engine import Engine, Step
from .settings import BLOCK_TOKENS, Settings, check_block_size, check_version, options_of, settings_of

logger = init_logger("vllm.kvq")


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_engines() -> None:
    # Configurations outlive the interpreter's module objects; caches must not.
    for engine in _engines:
        engine.close()


def _settings(vllm_config: VllmConfig) -> Settings | None:
    """Settings of a configuration that was checked, kept with it."""
    if not hasattr(vllm_config, "kvq_settings"):
        vllm_config.kvq_settings = settings_of(vllm_config)
    return vllm_config.kvq_settings


def _engine(vllm_config: VllmConfig) -> Engine:
    """The worker's, made when its first layer asks for it."""
    if not hasattr(vllm_config, "kvq_engine"):
        settings = _settings(vllm_config)
        follow(torch.get_num_threads())
        torch.zeros(2**20).add_(1)  # torch's threads are there, and pinned, after their first work
        start_beside_pinned()
        vllm_config.kvq_engine = Engine(settings)
        _engines.add(vllm_config.kvq_engine)
        formats = sorted(set(settings.specs), key=settings.specs.index)
        logger.info("kvq: %s; %.1f MiB for 16-bit rows of %d requests; window %d", ", ".join(formats),
                    settings.slot_bytes / 2**20, settings.slots, settings.window)
    return vllm_config.kvq_engine


@functools.cache
def _layer_index(layer_name: str) -> int:
    found = re.findall(r"(?:^|\.)layers?\.(\d+)\.", layer_name)
    if len(found) != 1:
        raise ValueError(f"kvq: layer {layer_name}: expected a name with one layer number")
    return int(found[0])


class Backend(AttentionBackend):
    supported_dtypes = [torch.float32, torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16"]
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        return Implementation

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return MetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None) -> list[int]:
        return [BLOCK_TOKENS]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)


class MetadataBuilder(AttentionMetadataBuilder[Step]):
    def build(self, common_prefix_len, common_attn_metadata, fast_build=False) -> Step:
        batch = common_attn_metadata
        return _engine(self.vllm_config).step(batch.query_start_loc_cpu.numpy(), batch.seq_lens.numpy(),
                                              batch.block_table_tensor.numpy())

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        _engine(vllm_config)


class Implementation(AttentionImpl):
    def __init__(self, num_heads, head_size, scale, num_kv_heads=None, alibi_slopes=None, sliding_window=None,
                 kv_cache_dtype="auto", logits_soft_cap=None, attn_type=AttentionType.DECODER,
                 kv_sharing_target_layer_name=None, **others):
        refused = {"alibi_slopes": alibi_slopes, "sliding_window": sliding_window,
                   "logits_soft_cap": logits_soft_cap, "kv_sharing_target_layer_name":
                   kv_sharing_target_layer_name, **others}
        for name, value in refused.items():
            if value:
                raise ValueError(f"kvq: attention layers with {name} are not supported")
        if attn_type != AttentionType.DECODER:
            raise ValueError(f"kvq: attention layers: expected {AttentionType.DECODER}, found {attn_type}")
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads, self.kv_cache_dtype = num_kv_heads or num_heads, kv_cache_dtype
        self.vllm_config = get_current_vllm_config()

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None,
                output_block_scale=None):
        if attn_metadata is None:  # vLLM measures or compiles
            return output.fill_(0)
        _engine(self.vllm_config).attend(_layer_index(layer.layer_name), kv_cache, key, value, query, output,
                                         attn_metadata, self.scale)
        return output


def _wrap(owner: type, name: str, make) -> None:
    """Puts make(original) in the place of a method, once."""
    original = owner.__dict__[name]
    if getattr(original, "kvq", False):
        return
    is_class_method = isinstance(original, classmethod)
    wrapped = make(original.__func__ if is_class_method else original)
    functools.update_wrapper(wrapped, original.__func__ if is_class_method else original)
    if is_class_method:
        wrapped = classmethod(wrapped)
    setattr(owner, name, wrapped)
    wrapped.kvq = True


def _owner(kind: type, name: str) -> type:
    return next(owner for owner in kind.__mro__ if name in owner.__dict__)


def _checking(original):
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        asked = options_of(vllm_config) is not None and vllm_config.model_config is not None
        if asked:
            check_version(vllm.__version__)
            if not current_platform.is_cpu():
                raise ValueError(f"kvq: expected vLLM for CPU, found {current_platform.device_name}")
            check_block_size(vllm_config.cache_config)
        original(cls, vllm_config)
        if asked:
            settings_of(vllm_config)
        # The selection is kept in the process, whatever the configuration says.
        from vllm.v1.attention import selector
        selector._cached_get_attn_backend.cache_clear()
    return check_and_update_config


def _selecting(original):
    def get_attn_backend_cls(cls, *args, **kwargs) -> str:
        if options_of(get_current_vllm_config()) is None:
            AttentionBackendEnum.CPU_ATTN.clear_override()
        else:
            _hook_worker()
            register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.{Backend.__name__}")
        return original(cls, *args, **kwargs)
    return get_attn_backend_cls


def _sizing(original):
    def get_kv_cache_spec(self, vllm_config: VllmConfig):
        spec = original(self, vllm_config)
        settings = _settings(vllm_config)
        if settings is None or spec is None:
            return spec
        from vllm.v1.kv_cache_interface import FullAttentionSpec
        if type(spec) is not FullAttentionSpec:
            raise ValueError(f"kvq: {self.layer_name}: expected full attention, found {type(spec).__name__}")
        content = settings.content_bytes(_layer_index(self.layer_name))
        return dataclasses.replace(spec, dtype=torch.uint8, state_content_bytes=content)
    return get_kv_cache_spec


def _counting(original):
    def determine_available_memory(self) -> int:
        available = original(self)
        settings = _settings(self.vllm_config)
        if settings is None:
            return available
        if settings.slot_bytes >= available:
            raise ValueError(
                f"kvq: 16-bit rows of {settings.slots} requests take {settings.slot_bytes / 2**20:.1f} MiB of "
                f"{available / 2**20:.1f} MiB for the cache: expected more memory or a smaller --max-num-seqs")
        return available - settings.slot_bytes
    return determine_available_memory


def _following(original):
    def execute_model(self, scheduler_output: Any, *args, **kwargs):
        if _settings(self.vllm_config) is not None:
            _engine(self.vllm_config).begin_step(scheduler_output)
        return original(self, scheduler_output, *args, **kwargs)
    return execute_model


def _hook_worker() -> None:
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.worker.cpu_worker import CPUWorker
    _wrap(Attention, "get_kv_cache_spec", _sizing)
    for name, make in (("determine_available_memory", _counting), ("execute_model", _following)):
        _wrap(_owner(CPUWorker, name), name, make)


def install() -> None:
    """Hooks in where vLLM checks its configuration and selects the attention backend."""
    platform = type(current_platform)
    _wrap(_owner(platform, "check_and_update_config"), "check_and_update_config", _checking)
    _wrap(_owner(platform, "get_attn_backend_cls"), "get_attn_backend_cls", _selecting)
