"""Serving with vLLM on packed caches: the plugin that `pip install kvq-cpp[vllm]` brings along.

vLLM calls register() in each of its processes. Nothing changes unless vLLM's additional configuration
names kvq:

    vllm serve MODEL --additional-config '{"kvq": {"kv": "k4v2"}}'
    vllm serve MODEL --additional-config '{"kvq": {"plan": "plan.json"}}'
"""


def register() -> None:
    """The entry point vllm.general_plugins; may be called any number of times."""
    from .surface import install
    install()
