"""How many threads packing and attention use."""
import os

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


def start_beside_pinned() -> None:
    """Starts the threads on all processors that threads of this process may use. Software that pins its
    threads pins the calling one too, and others would start on that one's processor alone."""
    mine = os.sched_getaffinity(0)
    everywhere = set(mine)
    for thread in os.listdir("/proc/self/task"):
        try:
            everywhere |= os.sched_getaffinity(int(thread))
        except ProcessLookupError:
            continue
    os.sched_setaffinity(0, everywhere)
    try:
        _core.start_threads()
    finally:
        os.sched_setaffinity(0, mine)
