"""How many threads a call may use, and the pool that runs its chunks.

The callers of `run_rows` and `run_chunks` cut their work into chunks whose size does not depend on the number of
threads, so that results do not either. The calling thread works through the chunks itself, and idle workers of the pool
help; a worker that wakes too late finds nothing left and is not waited for. No thread is started before the first call
that wants one; none outlives the interpreter; after a fork the child starts a pool of its own.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

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
def _default() -> int:
    if own := os.environ.get("FASTSOFTMAX_NUM_THREADS"):
        if not own.strip().isdecimal() or int(own) < 1:
            raise ValueError(f"FASTSOFTMAX_NUM_THREADS must be an integer of at least 1, got {own!r}")
        return int(own)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    openmp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(processors, int(openmp)) if openmp.isdecimal() and int(openmp) else processors


# ---- chunks --------------------------------------------------------------------------------------------------------


def run_chunks(task: Callable[[int], object], n_chunks: int) -> None:
    """Call ``task(i)`` for every i in ``range(n_chunks)``, in any order, on up to `get_num_threads` threads.

    Returns when all are done. If a task raises, no more chunks are begun, those in progress are waited for, and the
    error is raised here; so with Ctrl-C. Called from within a task, it runs serially.
    """
    helpers = min(get_num_threads(), n_chunks) - 1
    if helpers < 1 or getattr(_this_thread, "is_worker", False) or not _hire(helpers):
        for i in range(n_chunks):
            task(i)
        return
    call = _Call(task, n_chunks)
    for _ in range(helpers):
        _calls.put(call)
    call.lead()


def run_rows(call: Callable[[int, int, int], object], n_rows: int, size: int, *, serial: bool = False) -> list[float]:
    """Run a compiled kernel over chunks of `size` rows on up to `get_num_threads` threads, or on this one alone.

    ``call(first, last, job)`` hands its arguments on to the kernel. The threads take chunks from each other inside the
    compiled code (`kernels._jit`), with the GIL released once: if they came back to Python between two chunks, a busy
    Python thread would keep each of them for 5 ms every time, and each other for longer than a chunk takes.

    Returns what the kernel, if it returns a float64, returned for each chunk, in the order of the rows.
    """
    n_chunks = -(-n_rows // size)
    job = np.zeros(2 + n_chunks, np.int64)  # the next chunk, their size, the results
    job[1] = size

    def work(_: int, job: NDArray[np.int64] = job) -> None:  # `job` as a default: it lives as long as this function
        call(0, n_rows, job.ctypes.data)

    run_chunks(work, 1 if serial else min(get_num_threads(), n_chunks))
    return job[2:].view(np.float64).tolist()


class _Call:
    """The chunks of one `run_chunks`, and who works on them."""

    __slots__ = ("_done", "_error", "_helping", "_lock", "_open", "_task", "_todo")

    def __init__(self, task: Callable[[int], object], n_chunks: int) -> None:
        self._task: Callable[[int], object] | None = task
        self._todo = deque(range(n_chunks))  # popleft and clear are atomic
        self._lock = threading.Lock()
        self._open = True
        self._helping = 0
        self._done = threading.Lock()  # released by the last helper
        self._done.acquire()
        self._error: BaseException | None = None

    def _work(self) -> None:
        """Do chunks until none is left."""
        task = self._task
        assert task is not None  # until `_close`, which waits for those who work
        try:
            while True:
                try:
                    i = self._todo.popleft()
                except IndexError:
                    return
                task(i)
        except BaseException:
            self._todo.clear()
            raise

    def lead(self) -> None:
        """The caller's part: work, then wait for the helpers that have begun."""
        try:
            self._work()
        finally:
            self._close()
        if self._error is not None:
            raise self._error

    def _close(self) -> None:
        with self._lock:
            self._open = False
            helping = self._helping
        if helping:
            try:
                self._done.acquire()
            except BaseException:  # Ctrl-C: the helpers still write into the caller's arrays
                self._todo.clear()
                self._done.acquire()
                raise
        self._task = None  # the queue may hold this call a little longer, but not the caller's arrays

    def help(self) -> None:
        """A worker's part."""
        with self._lock:
            if not self._open:
                return
            self._helping += 1
        try:
            self._work()
        except BaseException as error:
            self._error = error
        with self._lock:
            self._helping -= 1
            if not self._open and not self._helping:
                self._done.release()


# ---- the pool ------------------------------------------------------------------------------------------------------
# A queue and threads that read from it. concurrent.futures would do, but its round trip is up to a third longer and its
# threads end before the program's own exit functions run.

_this_thread = threading.local()
_calls: SimpleQueue[_Call | None] = SimpleQueue()
_workers: list[threading.Thread] = []
_hiring = threading.Lock()
_closed = False


def _hire(n: int) -> bool:
    """See to it that there are at least `n` workers; False if there cannot be any."""
    if len(_workers) >= n:
        return True
    with _hiring:
        while len(_workers) < n and not _closed:
            # Daemons, because the interpreter joins other threads before it runs `_dismiss`.
            worker = threading.Thread(target=_serve, args=(_calls,), name=f"fastsoftmax-{len(_workers)}", daemon=True)
            try:
                worker.start()
            except RuntimeError:  # the system's limit, or the interpreter is shutting down
                break
            _workers.append(worker)
        return bool(_workers)


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    _this_thread.is_worker = True
    while (call := calls.get()) is not None:
        call.help()
        del call  # or it would live until the next one comes


@atexit.register
def _dismiss() -> None:
    global _closed
    with _hiring:
        _closed = True
        workers = _workers[:]
        _workers.clear()
    for _ in workers:
        _calls.put(None)
    for worker in workers:
        worker.join()


def _start_afresh() -> None:
    """In a forked child: the workers were not copied, and a lock may have been held by a thread that was not either."""
    global _calls, _workers, _hiring
    _calls, _workers, _hiring = SimpleQueue(), [], threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
