"""Kernels down the columns of an array (n_outer, n, inner): threads share the columns or, of large matrices, the classes.

And arrays of any layout as matrices of rows, and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _arrays
from ._rows import over_rows
from ._threads import get_num_threads, threads_now
from .kernels import KERNELS, NARROW, SIDE_BY_SIDE, SMALL

Array = NDArray[Any]

FEW_STRIPS = 64  # of a small array, for softmax and its like: one thread (100 x 128, float64: 8.0 us, shared 10.7)
_RUN, _LONG_RUN = 4, 16  # strips, see `_strips_together`
# Threads share the classes where there are so many, of up to so many columns, whose sums take 256 bytes each; doubles have
# eight lanes to be shared. From so many bytes of all arrays on results go past the caches.
_CLASSES, _COLUMNS, _THREADS, _PAST = 8 * NARROW, 4096, 8, 32 << 20


def down_columns(name: str, arrays: tuple[Array, ...], n: int, inner: int, small: int = SMALL) -> None:
    """Run a kernel down the columns of arrays (n_outer, n, inner), the last of them for the result."""
    array = arrays[0]
    if array.size == n * inner and n >= _CLASSES and inner <= _COLUMNS and name in _SHARED and _by_classes(name, n, inner):
        _SHARED[name].share(*arrays, n, inner)
    else:
        over_columns(KERNELS[name + "_columns"][array.dtype], arrays, n, inner, array, small)


def _by_classes(name: str, n: int, inner: int) -> bool:
    """Whether that is faster; n and inner are within the limits."""
    threads, way = threads_now(), _SHARED[name]
    if threads == 1:
        return inner > SIDE_BY_SIDE and n >= way.alone
    return threads <= _THREADS and n * inner >= way.least


def over_columns(
    kernel: Callable[..., Any], arguments: tuple[Any, ...], n: int, inner: int, array: Array, small: int = SMALL
) -> None:  # fmt: skip
    """Run a kernel down the columns of an array (n_outer, n, inner), in chunks of strips of 64 bytes."""
    strip = 64 // array.itemsize
    strips = array.size // (n * inner) * -(-inner // strip)
    over_rows(kernel, (*arguments, n, inner), (strips, strip * n), _strips_together(strips), small)


def _strips_together(strips: int) -> int:
    """Strips of 64 bytes that a thread takes at a time: two shares for each in runs of at least 1 KiB, or one in shorter ones.

    Where two threads meet, in each row, the CPU fetches lines for the one that the other is about to write, so runs are of at
    least 256 bytes (softmax_backward, two threads, 1000 x 128, float32, in runs of 128: 27 -> 41 us; 1000 x 256, float64, in
    runs of 1 KiB: 115 -> 70). Past the caches longer runs are faster (4096 x 4096, float64: 18.0 ms in runs of 1 KiB, 14.8 so).
    """
    if strips < 4 * _RUN:
        return strips
    threads = get_num_threads()
    return -(-max(_RUN, strips // (2 * threads), min(_LONG_RUN, -(-strips // threads))) // _RUN) * _RUN


# ---- classes shared -----------------------------------------------------------------------------------------------------
def _softmax(logits: Array, probs: Array, n: int, inner: int) -> None:
    # To make exponentials of doubles again takes as long as to put them down and fetch them.
    keep = probs.itemsize == 8 or 2 * probs.nbytes < _PAST
    maxima, factors = _factors(logits, probs, n, inner, keep, exact=False)
    over_rows(KERNELS["shared_softmax"][probs.dtype], (logits, maxima, factors, probs, keep, inner), (n, inner))


def _log_softmax(logits: Array, log_probs: Array, n: int, inner: int) -> None:
    maxima, logs = _factors(logits, log_probs, n, inner, keep=False, exact=True)
    streaming = 2 * log_probs.nbytes >= _PAST
    over_rows(KERNELS["shared_log_softmax"][logs.dtype], (logits, maxima, logs, log_probs, streaming, inner), (n, inner))


def _factors(logits: Array, e: Array, n: int, inner: int, keep: bool, exact: bool) -> tuple[Array, Array]:
    """The columns' maxima, and what their exponentials are multiplied by or, `exact`, the logarithms to subtract."""
    dtype, step = logits.dtype, 64 // logits.itemsize
    parts, run = 2 * threads_now(), -(-inner // step) * step
    maxima = np.empty((parts, run), dtype)
    over_rows(KERNELS["shared_maxima"][dtype], (logits, maxima, n, inner), (parts, logits.size // parts))
    maxima = maxima.max(axis=0)
    sums, halves, factors = np.empty((2 * step, run), dtype), np.empty(16 * run), np.empty((2, run), dtype)
    arguments = logits, maxima, e, sums, halves, keep, exact, n, inner
    over_rows(KERNELS["shared_sums"][dtype], arguments, (step, logits.size // step))
    KERNELS["shared_factors"][dtype](sums, halves, factors, exact, 0, 1, 0)
    return maxima, factors


def _softmax_backward(grad_probs: Array, probs: Array, grad_logits: Array, n: int, inner: int) -> None:
    dtype, step = grad_probs.dtype, 64 // grad_probs.itemsize
    run = -(-inner // step) * step
    sums, dots = np.empty(32 * run + 8), np.empty((2, run), dtype)
    arguments = grad_probs, probs, sums, n, inner
    over_rows(KERNELS["shared_products"][dtype], arguments, (2 * step, probs.size // (2 * step)))
    KERNELS["shared_dots"][dtype](sums, dots, 0, 1, 0)
    streaming = 3 * probs.nbytes >= _PAST
    over_rows(KERNELS["shared_softmax_backward"][dtype], (grad_probs, probs, dots, grad_logits, streaming, inner), (n, inner))


class _Way(NamedTuple):
    """How classes are shared, from how many elements on and, by a thread alone, from how many classes on.

    Two threads, Zen 3, by columns -> by classes: 1000 x 128: softmax_backward float32 82 -> 57 us, float64 118 -> 94, softmax
    float32 101 -> 127; 1000 x 1024: softmax_backward 531 -> 324, 2,077 -> 1,126, softmax 889 -> 811, 2,210 -> 1,927,
    log_softmax 749 -> 672, 1,889 -> 1,849; 32000 x 256, ms: 14.1 -> 6.5, 23 -> 13, 12.7 -> 8.4, 24 -> 20, 12.4 -> 8.3, 23 ->
    16; 4096 x 4096, float64, ms: 41 -> 34, 55 -> 41, 57 -> 36; fewer classes, 300 x 4096: log_softmax 883 -> 996 us.

    One thread, Ice Lake, ms, where not all columns are taken side by side and the classes of some leave the second cache from
    pass to pass: 4096 x 4096: softmax 36 -> 27, 76 -> 62, log_softmax 36 -> 26, 78 -> 50; 4096 x 2048: 16 -> 12, 32 -> 27,
    15 -> 11, 29 -> 21; 2000 x 2048: 7.3 -> 7.2, 14.7 -> 15.8, 6.7 -> 5.8, 13.9 -> 12.2. softmax_backward takes the same time.
    """

    share: Callable[..., None]
    least: int
    alone: float


_SHARED = {
    "softmax": _Way(_softmax, 1 << 18, 4096),
    "log_softmax": _Way(_log_softmax, 1 << 19, 2048),
    "softmax_backward": _Way(_softmax_backward, 1 << 16, math.inf),
}


# ---- layouts ----------------------------------------------------------------------------------------------------------
def to_rows(a: Array, axes: tuple[int, ...], n_classes: int, dtype: Any) -> Array:
    """`_arrays.to_rows`, columns copied by a kernel (150 x 16384, float32: 5.4 -> 0.6 ms, two threads 0.3)."""
    if not a.size or not _arrays.is_columns(a, axes, dtype):
        return _arrays.to_rows(a, axes, n_classes, dtype)
    rows = np.empty((a.size // n_classes, n_classes), dtype)
    _turn(a, rows, a, axes[0], False)
    return rows


def fill_from_rows(out: Array, rows: Array, axes: tuple[int, ...]) -> None:
    """The way back, into an array of any layout."""
    if out.size and _arrays.is_columns(out, axes, rows.dtype):
        _turn(rows, out, out, axes[0], True)
    else:
        _arrays.fill(out, _arrays.from_rows(rows, out.shape, axes))


def _turn(source: Array, to: Array, like: Array, k: int, back: bool) -> None:
    over_columns(KERNELS["turn"][to.dtype], (source, to, back), like.shape[k], math.prod(like.shape[k + 1 :]), like)
