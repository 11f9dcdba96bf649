"""How many threads a call may use, and the pool that runs its chunks.

The callers of `run_rows` cut their work into chunks whose size does not depend on the number of threads, so that results do
not either. The calling thread works through the chunks itself, and idle workers of the pool help; a worker that wakes too
late finds nothing left and is not waited for. Chunks are shared inside the compiled code (`kernels._board`); Python only
starts the workers, and has those that sleep woken if that is worth it: else the call is made alone. No thread is started before
the first call that wants one; none outlives the interpreter; after a fork the child starts a pool of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ._processors import processors
from .kernels import (
    AWAKE,
    BOARD,
    CLOSED,
    FEWER,
    JOB,
    JOB_BOARD,
    JOB_HELPERS,
    JOB_HOLDS,
    JOB_LONG,
    JOB_ROWS,
    KERNELS,
    UNTIL,
    WAKES,
    WORKER,
)

# ---- how many threads ----------------------------------------------------------------------------------------------

_set: int | None = None  # by `set_num_threads`, for the whole process
_within: ContextVar[int | None] = ContextVar("fastsoftmax_num_threads", default=None)  # by `num_threads`


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, for the whole process.

    Parameters
    ----------
    n : int
        At least 1; 1 means the calling thread alone. Calls take fewer where there is little to do, and where other programs
        keep the processors busy. Results are the same bits for every number.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or less than 1.
    """
    global _set
    _set = _checked(n)


def get_num_threads() -> int:
    """How many threads a call made here may use.

    The number given to `num_threads` or `set_num_threads`. Before either: the environment variable
    ``FASTSOFTMAX_NUM_THREADS``; without it the number of processors this process may run on, or of those that a container's
    limit gives it the time of, or fewer if ``OMP_NUM_THREADS`` says so (as joblib does for its worker processes).
    """
    return _within.get() or _set or _default()


def threads_now() -> int:
    """How many threads a call that begins now is given: fewer while other programs keep processors busy (`kernels._board`)."""
    threads = get_num_threads()
    if threads > 1 and (until := pool.board.item(UNTIL)) and time.monotonic_ns() < until:
        return max(1, threads - pool.board.item(FEWER))
    return threads


def threads_for(cost: float, most: int) -> int:
    """How many, at most `most`, take part in a call that takes one thread `cost` microseconds: 1 if nobody will help."""
    if (threads := threads_now()) > 1 and (threads := min(threads, most, pool.most + 1)) > 1:
        return 1 + pool.ask(threads - 1, cost)
    return 1


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Within the ``with`` block, let calls of this thread (or asyncio task) use up to `n` threads.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or less than 1.
    """
    token = _within.set(_checked(n))
    try:
        yield
    finally:
        _within.reset(token)


def _checked(n: int) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads must be an integer, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"the number of threads must be at least 1, got {n}")
    return n.__index__()


@cache
def _default() -> int:
    if own := os.environ.get("FASTSOFTMAX_NUM_THREADS"):
        if not own.strip().isdecimal() or int(own) < 1:
            raise ValueError(f"FASTSOFTMAX_NUM_THREADS must be an integer of at least 1, got {own!r}")
        return int(own)
    openmp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(processors(), int(openmp)) if openmp.isdecimal() and int(openmp) else processors()


# ---- chunks --------------------------------------------------------------------------------------------------------
COST = 2e-4  # microseconds an element, of a kernel that does little more than read and write it


def run_rows(
    call: Callable[[int, int, int], Any], n_rows: int, size: int, cost: float = 1000.0, size_alone: int | None = None
) -> Any:
    """Run a compiled kernel over chunks of `size` rows on up to `get_num_threads` threads.

    ``call(first, last, job)`` hands its arguments on to the kernel, once: the threads take chunks from each other inside
    the compiled code. `cost` is about how many microseconds it will take one thread; one that nobody will help takes chunks
    of `size_alone` rows if given. Of a kernel that returns a number, what it returns for each chunk is added up, in the order
    of the rows.
    """
    threads = threads_for(cost, -(-n_rows // size))
    _kept, address = job(pool, n_rows, size if threads > 1 else size_alone or size, threads, cost)
    return call(0, n_rows, address)


def in_order(numbers: Any) -> float:
    """Their sum, one added to the other: `sum` carries rounding errors on from Python 3.12 on."""
    total = 0.0
    for number in numbers.tolist():
        total += number
    return total


@lru_cache(maxsize=256)  # a new one takes 3 us
def job(pool: Pool, n_rows: int, size: int, threads: int, cost: float) -> tuple[Any, int]:
    """The array of a call on so many threads, to be kept while compiled code reads it, and its address."""
    helpers = max(0, min(threads, -(-n_rows // size)) - 1)
    fields = {
        JOB_ROWS: size, JOB_BOARD: pool.address if helpers else 0, JOB_HELPERS: helpers,
        JOB_HOLDS: cost < QUICK, JOB_LONG: cost > _LONG,
    }  # fmt: skip
    array = np.zeros(JOB, np.int64)
    array[list(fields)] = list(fields.values())
    return array, address(array)


def address(array: Any) -> int:
    """Of a writable array's data, in a quarter of the time that `array.ctypes.data` takes."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array))


# ---- the pool ------------------------------------------------------------------------------------------------------
# In microseconds. Shorter calls keep the GIL: to hand it over and back costs 5 ms beside a busy Python thread. To wake a
# sleeping worker costs the caller up to 30, and it comes some 50 later: only for work that takes longer, in one call (Zen 3,
# calls 2 ms apart: softmax, 310 x 1000, float32, alone 340, so 228; all gradients of 128 x 784 x 100: 963, so 697), or in calls
# that follow each other so closely that it is still awake for the next one (Ice Lake, calls 0.4 ms apart: softmax, 128 x 1000,
# float32, alone 81, so 95, woken for every third one 251). Long calls look at a clock that takes 0.4.
QUICK, _WAKING, _CLOSELY, _LONG = 30.0, 150.0, 300.0, 100.0
# A call wakes one after the other, and does nothing else meanwhile: h workers save about cost / h and take h * _WAKE / 2, least
# in all for the root of 2 * cost / _WAKE. (Ice Lake, virtual, two processors: 39 to 45 for the first, 2 to 12 for each other.)
_WAKE = 20.0


class Pool:
    """Threads that run `kernels.pool.serve`: they sleep in it, and need the GIL only to begin and to end."""

    def __init__(self) -> None:
        self.most = processors() - 1  # with the caller one for each: more would keep each other from their processors
        self.board = np.zeros(BOARD + WORKER * self.most, np.int64)
        self.address = address(self.board)
        self.workers: list[threading.Thread] = []
        self.hiring = threading.Lock()
        self.owed, self.asked = 0.0, 0  # microseconds of work that they slept through; when, in nanoseconds

    def ask(self, helpers: int, cost: float) -> int:
        """How many workers will help, of so many at most; those that sleep are woken if there is work enough.

        A call made alone does without what sharing costs (64 x 784 x 100, float32, in two chunks, each of which copies weight:
        150 -> 179 us).
        """
        awake = self.board.item(AWAKE)
        if cost < _WAKING:
            if awake >= helpers:
                return helpers
            now = time.monotonic_ns()
            self.owed = cost = cost + (self.owed if now - self.asked < 1e3 * _CLOSELY else 0.0)
            self.asked = now
            if cost < _WAKING:
                return helpers if awake else 0
        self.owed = 0.0
        helpers = min(helpers, max(1, awake, int(math.sqrt(2.0 * cost / _WAKE))))
        if len(self.workers) < helpers:
            self.hire(helpers)
        self.board[WAKES] = 1  # the call does it, once its work is there
        return helpers

    def hire(self, helpers: int) -> None:
        serve, self.wake = (KERNELS[name][_FLOAT64] for name in ("serve", "wake"))  # to compile one later might be too late
        with self.hiring:
            while len(self.workers) < helpers and not self.board[CLOSED]:
                # Daemons, because the interpreter joins other threads before it runs `dismiss`.
                k = len(self.workers)
                worker = threading.Thread(target=serve, args=(self.address, k, 1), name=f"fastsoftmax-{k}", daemon=True)
                try:
                    worker.start()
                except RuntimeError:  # the system's limit, or the interpreter is shutting down
                    break
                self.workers.append(worker)

    def dismiss(self) -> None:
        with self.hiring:
            self.board[CLOSED] = 1
            workers = self.workers[:]
        while workers:
            self.wake(self.address, len(workers), 0)  # again and again: one may have been about to sleep
            workers[-1].join(0.001)
            if not workers[-1].is_alive():
                workers.pop()
        self.workers.clear()


_FLOAT64 = np.dtype(np.float64)
pool = Pool()


@atexit.register
def _dismiss() -> None:
    pool.dismiss()


def _start_afresh() -> None:
    """In a forked child: the workers were not copied, and what the parent's threads held is held for ever."""
    global pool
    pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
