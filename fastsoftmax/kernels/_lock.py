"""The lock that a kernel is built under, and what it does at a fork.

A process forked while another thread compiles inherits numba's global lock in the locked state and LLVM in the middle
of its work: the child's first compile would wait for ever. So a fork waits for the build in progress, numba's lock
included (a user's own ``@njit`` function may be compiling). Should that take longer than `_PATIENCE` seconds, the child
is told that it cannot build, and raises instead of hanging; kernels built before the fork work there all the same.
"""

from __future__ import annotations

import logging  # noqa: F401  its lock, which a build may need, is taken at a fork too: after ours, being registered before
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PATIENCE = 8.0

_lock = threading.RLock()
# Who waits for `_lock` holds this one, so that a thread that builds one kernel after another cannot overtake a fork.
_queue = threading.Lock()

_fork = threading.local()  # what this thread, which is forking, found and holds
_cannot_build = False


@contextmanager
def building() -> Iterator[None]:
    """Hold the build lock: one thread builds at a time, and not across a fork."""
    if _cannot_build:
        raise RuntimeError(
            "this process was forked while another thread was compiling, and cannot compile itself; "
            "call fastsoftmax.warmup() before forking, or start processes with 'spawn' or 'forkserver'"
        )
    with _queue:
        _lock.acquire()
    try:
        yield
    finally:
        _lock.release()


def _numba_lock() -> Any:
    """numba's global lock, or None before numba is imported (or where a later numba keeps it elsewhere)."""
    compiler_lock = sys.modules.get("numba.core.compiler_lock")
    return getattr(getattr(compiler_lock, "global_compiler_lock", None), "_lock", None)


def _before_fork() -> None:
    deadline = time.monotonic() + _PATIENCE
    _fork.held = []
    queued = _queue.acquire(timeout=_PATIENCE)
    # numba's lock is looked up when ours is held: the build waited for may have been importing numba.
    for find in (lambda: _lock, _numba_lock):
        if (lock := find()) is not None:
            if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                break
            _fork.held.append(lock)
    else:
        _fork.quiet = True
    if queued:
        _queue.release()


def _release() -> None:
    while _fork.held:
        _fork.held.pop().release()
    _fork.quiet = False


def _after_fork_in_child() -> None:
    global _queue, _cannot_build
    _queue = threading.Lock()  # a thread that does not exist here may have been waiting
    _cannot_build = _cannot_build or not getattr(_fork, "quiet", False)
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release, after_in_child=_after_fork_in_child)
