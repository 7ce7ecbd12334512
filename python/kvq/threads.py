"""How many threads packing and attention use."""
from . import _core

_chosen = False


def set_thread_count(count: int) -> None:
    """Sets the number of threads of packing and attention, at least 1. By default: as many as the
    process has processors, or as torch uses once a KVQ cache is made."""
    global _chosen
    _core.set_thread_count(count)
    _chosen = True


def follow(count: int) -> None:
    """Uses as many threads as other software in the process, unless a number was chosen."""
    if not _chosen and count != _core.thread_count():
        _core.set_thread_count(count)
