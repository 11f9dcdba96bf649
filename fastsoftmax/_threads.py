"""How many threads a call may use, and the pool that runs its chunks.

The callers of `run_rows` cut their work into chunks whose size does not depend on the number of threads, so that results do
not either. The calling thread works through the chunks itself, and idle workers of the pool help; a worker that wakes too
late finds nothing left and is not waited for. Chunks are shared inside the compiled code (`kernels._board`); Python only
starts the workers and wakes those that sleep. No thread is started before the first call that wants one; none outlives the
interpreter; after a fork the child starts a pool of its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from queue import SimpleQueue

import numpy as np

from .kernels import BOARD_SIZE, JOB, JOB_BOARD, JOB_HELPERS, JOB_HOLDS, JOB_ROWS, KERNELS, LOOKING

# ---- how many threads ----------------------------------------------------------------------------------------------

_set: int | None = None  # by `set_num_threads`, for the whole process
_within: ContextVar[int | None] = ContextVar("fastsoftmax_num_threads", default=None)  # by `num_threads`


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, for the whole process.

    Parameters
    ----------
    n : int
        At least 1; 1 means the calling thread alone. Results are the same bits for every number.

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
    ``FASTSOFTMAX_NUM_THREADS``; without it the number of processors this process may run on, or fewer if
    ``OMP_NUM_THREADS`` says so (as joblib does for its worker processes).
    """
    return _within.get() or _set or _default()


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
def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _default() -> int:
    if own := os.environ.get("FASTSOFTMAX_NUM_THREADS"):
        if not own.strip().isdecimal() or int(own) < 1:
            raise ValueError(f"FASTSOFTMAX_NUM_THREADS must be an integer of at least 1, got {own!r}")
        return int(own)
    processors = _processors()
    openmp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(processors, int(openmp)) if openmp.isdecimal() and int(openmp) else processors


# ---- chunks --------------------------------------------------------------------------------------------------------


def run_rows(call: Callable[[int, int, int], object], n_rows: int, size: int, *, hold: bool = False) -> list[float]:
    """Run a compiled kernel over chunks of `size` rows on up to `get_num_threads` threads.

    ``call(first, last, job)`` hands its arguments on to the kernel, once: the threads take chunks from each other inside
    the compiled code, with the GIL released, unless this thread is to `hold` it. Returns what the kernel, if it returns a
    float64, returned for each chunk, in the order of the rows.
    """
    n_chunks = -(-n_rows // size)
    job = np.zeros(JOB + n_chunks, np.int64)
    job[JOB_ROWS] = size
    job[JOB_HOLDS] = hold
    helpers = min(get_num_threads(), n_chunks, _processors()) - 1  # more would keep each other from their processors
    if helpers > 0 and (pool := _pool_for(helpers)) is not None:
        job[JOB_BOARD], job[JOB_HELPERS] = pool.address, helpers
        if not hold:  # or the woken would wait for the GIL
            pool.wake(helpers)
    call(0, n_rows, job.ctypes.data)
    return job[JOB:].view(np.float64).tolist()


# ---- the pool ------------------------------------------------------------------------------------------------------
# A worker that has nothing to do looks at the board for some 100 us before it sleeps: to wake it costs 50 us and more.
_LOOKS = 4000


class _Pool:
    """Threads that sleep until they are woken, then run `kernels.pool.serve`."""

    def __init__(self) -> None:
        self.board = np.zeros(BOARD_SIZE, np.int64)
        self.address = self.board.ctypes.data
        self.workers: list[threading.Thread] = []
        self.calls: SimpleQueue[bool] = SimpleQueue()
        self.hiring = threading.Lock()
        self.closed = False

    def hire(self, n: int) -> bool:
        """See to it that there are at least `n` workers; False if there cannot be any."""
        if len(self.workers) >= n:
            return True
        serve = KERNELS["serve"][np.dtype(np.float64)]
        with self.hiring:
            while len(self.workers) < n and not self.closed:
                # Daemons, because the interpreter joins other threads before it runs `dismiss`.
                name = f"fastsoftmax-{len(self.workers)}"
                worker = threading.Thread(target=self.work, args=(serve,), name=name, daemon=True)
                try:
                    worker.start()
                except RuntimeError:  # the system's limit, or the interpreter is shutting down
                    break
                self.workers.append(worker)
            return bool(self.workers)

    def work(self, serve: Callable[..., object]) -> None:
        while self.calls.get():
            serve(self.address, _LOOKS, True)

    def wake(self, helpers: int) -> None:
        for _ in range(min(helpers - int(self.board[LOOKING]), len(self.workers)) - self.calls.qsize()):
            self.calls.put(True)

    def dismiss(self) -> None:
        with self.hiring:
            self.closed = True
            workers = self.workers[:]
            self.workers.clear()
        for _ in workers:
            self.calls.put(False)
        for worker in workers:
            worker.join()


_pool = _Pool()


def _pool_for(helpers: int) -> _Pool | None:
    pool = _pool
    return pool if pool.hire(helpers) else None


@atexit.register
def _dismiss() -> None:
    _pool.dismiss()


def _start_afresh() -> None:
    """In a forked child: the workers were not copied, and what the parent's threads held is held for ever."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
