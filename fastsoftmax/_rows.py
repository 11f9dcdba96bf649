"""Kernels over the rows of a matrix: on how many threads, in which chunks, and whether results go past the caches."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from . import _threads
from .kernels import NARROW32, SMALL

Array = NDArray[Any]

# Microseconds a byte of one array: where exponentials are taken (Zen 5 0.4e-4 to 1.6e-4, Zen 3 1.4e-4 to 4.5e-4, the less the
# more classes); where none are; with soft targets (Zen 3, 4e-4 to 13e-4).
COST, LIGHT_COST, SOFT_COST = 1.3e-4, 6e-5, 5e-4
# How many chunks, and elements of one, 1 to 40 us, or 16 rows: they overlap. Where nothing is added up, two for each thread
# (softmax, 128 x 1000, float32, two threads: 15.5 us in 16 chunks, 13.2 in four).
_CHUNKS, _LEAST, _MOST = 16, 1 << 11, 1 << 17
# Bytes of all arrays for each thread, and of a row of them, from which results go past the caches, where what is read then
# stays (softmax, 4096 x 1000, one thread: float32 1.05 -> 0.81 ms, float64 2.34 -> 1.71; two threads, 2000 x 1000, float32:
# 0.17 -> 0.27; shorter rows gain less than each row costs: 16384 x 500, float32, one thread: 2.7 -> 2.8 ms).
_STREAM, _STREAM_ROW = 14 << 20, 7 << 10
# Where each result is written once (Zen 3, beside peers that use the caches too, one thread and two: softmax_backward, 1024 x
# 1000, float32 847 -> 664, 562 -> 361 us, 512 x 1000, float64 1,240 -> 557, 683 -> 421, float32 the same; log_softmax, 1024 x
# 1000, float32 1.5 -> 2.0 times as fast as the best of them).
_ONCE = 7 << 20


def over_rows(
    kernel: Callable[..., Any], arguments: tuple[Any, ...], shape: tuple[int, int], least: int = 1, small: int = SMALL,
    cost: float = COST,
) -> None:  # fmt: skip
    """Run ``kernel(*arguments, first, last, job)`` over the rows, in chunks of a multiple of `least` rows."""
    n_rows, n_columns = shape
    work, cost = n_rows * n_columns, cost * arguments[0].itemsize
    if work <= small or n_rows <= least or (threads := _threads.threads_for(cost * work, n_rows)) == 1:
        kernel(*arguments, 0, n_rows, work > SMALL)  # True: without the GIL
    else:
        _kept, job = _plan(_threads.pool, shape, least, 2 * threads, threads, cost)
        kernel(*arguments, 0, n_rows, job)


def sum_over_rows(
    kernel: Callable[..., float], arguments: tuple[Any, ...], shape: tuple[int, int], cost: float = COST
) -> float:  # fmt: skip
    """The same for a kernel that returns a sum, in chunks that do not depend on the number of threads."""
    n_rows, n_columns = shape
    work, cost = n_rows * n_columns, cost * arguments[0].itemsize
    if work <= SMALL:
        return kernel(*arguments, 0, n_rows, 0)
    _kept, job = _plan(_threads.pool, shape, 1, _CHUNKS, _threads.threads_for(cost * work, n_rows), cost)
    return kernel(*arguments, 0, n_rows, job)


@lru_cache(maxsize=256)
def _plan(
    pool: _threads.Pool, shape: tuple[int, int], least: int, chunks: int, threads: int, cost: float
) -> tuple[Any, int]:  # fmt: skip
    """What `_threads.job` gives; what shapes alone decide is remembered: that is 0.3 us of 9 (128 x 1000, two threads)."""
    n_rows, n_columns = shape
    return _threads.job(pool, n_rows, _rows_of_chunk(shape, least, chunks), threads, cost * n_rows * n_columns)


def _rows_of_chunk(shape: tuple[int, int], least: int, chunks: int) -> int:
    """For two, four, eight, ... chunks: a multiple of `least`, of 16 where rows are narrow and lie across lanes."""
    n_rows, n_columns = shape
    work = n_rows * n_columns
    many = max(2, min(chunks, work // _LEAST), work // max(_MOST, 16 * n_columns))
    least = max(least, 16 if n_columns < NARROW32 else 1)
    return -(-n_rows // ((1 << (many - 1).bit_length()) * least)) * least


def streams(out: Array, n_classes: int, times_sooner: int = 1) -> bool:
    """Whether results go past the caches: from so many bytes on, up to half as many again where rows are short.

    For two times sooner, from half as many.
    """
    row, size = 2 * n_classes * out.itemsize, 2 * out.nbytes * times_sooner
    if size < _STREAM or row < _STREAM_ROW:
        return False
    return 2 * size * min(row, 3 * _STREAM_ROW // 2) >= 3 * _STREAM * _STREAM_ROW * _threads.threads_now()


def softmax_streams(out: Array, n_classes: int) -> bool:
    """Doubles from half as many bytes on (two threads, 1000 x 1000: 193 -> 178 us)."""
    return streams(out, n_classes, out.itemsize // 4)


def streams_once(out: Array, n_classes: int, n_arrays: int) -> bool:
    """The same where a result is written once, not exponentials in its place before: sooner, on any number of threads."""
    return n_arrays * out.nbytes >= _ONCE and n_arrays * n_classes * out.itemsize >= _STREAM_ROW
