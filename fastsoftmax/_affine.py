"""The affine layer and the classifier head over it: which kernel, which chunks, which threads.

All arrays are C-contiguous matrices of one dtype, checked by the caller. Chunks whose results are added up depend on shapes
alone, never on the number of threads, and are added in their order.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._program import NOW, Caller
from ._threads import COST as PASS
from .kernels import KERNELS, SMALL_PRODUCT

Array = NDArray[Any]

THIN = 10  # classes: as many as the thin kernels take
SMALL_HEAD = 1 << 16  # what `SMALL_PRODUCT` is, of a thin head, whose parts are the same ones always
CHUNK = 1 << 24  # of a chunk where there are more than two, 150 us
# Microseconds a multiply-add, for each byte of a number; a head does two or three. Zen 5 takes 2e-6, 3e-6 and 6e-6, Zen 3 6e-6
# to 8e-6, 1.2e-5 and 2.3e-5.
COST, THIN_COST, HEAD_COST = 4e-6, 8e-6, 1.5e-5
GRAIN, PANEL = 16, 128  # the least a chunk has of rows, so that tiles are full; of columns, so that copied panels pay
WIDE = 256  # columns: beyond, the kernel copies panels of weight
HEAD_BYTES = 8 << 20  # of x and logits that a wide head has in hand at a time: they stay in the last-level cache
HEAD_ROWS, HEAD_MOST = 480, 60 << 20  # but this many rows, so that weight is not read too often, unless logits take more


@lru_cache(maxsize=256)
def _chunks(n: int, work: int, grain: int, small: int) -> tuple[int, int]:
    """(number of chunks, size of each): a power of two, so that two or four threads get equal shares.

    Two as soon as a second thread gains by it (128 x 784 x 100, float32: 100 -> 53 us), more of them where they stay large.

    More than four only of twice the grain: each chunk copies the panels again (1024 x 1024 x 1000 on one thread, float64:
    4 chunks take 0.93 of the time of 8).
    """
    n_chunks = 1 if work <= small or n < 2 * grain else 2
    while n_chunks > 1 and n_chunks * CHUNK < work and n_chunks * (2 if n_chunks < 4 else 4) * grain <= n:
        n_chunks *= 2
    size = -(-n // n_chunks)
    size = max(1, size + -size % GRAIN)
    return max(1, -(-n // size)), size


def _cost(work: int, weight: Array) -> float:
    return work * weight.itemsize * (THIN_COST if weight.shape[1] <= THIN else COST)


def _run(
    via: Caller, kernel: Any, arguments: tuple[Any, ...], n: int, weight: Array, work: int, grain: int = GRAIN
) -> None:  # fmt: skip
    """Have a kernel whose results do not depend on chunks run in some, or where there is one thread in one piece."""
    if work <= SMALL_PRODUCT and via is NOW:  # straight on: 0.3 us of 5
        kernel(*arguments, 0, n, 0)
        return
    n_chunks, size = _chunks(n, work, grain, SMALL_PRODUCT)
    if n_chunks == 1 or (threads := via.threads()) == 1:
        via.whole(kernel, arguments, n, _cost(work, weight))
    else:
        if threads > n_chunks:
            size = min(size, _share(n, work, grain, threads))
        via.pieces(kernel, arguments, n, size, _cost(work, weight))


def _share(n: int, work: int, grain: int, threads: int) -> int:
    """How many rows each of many threads takes: what is twice enough for one thread, or more."""
    size = -(-n // max(1, min(threads, work // (2 * SMALL_PRODUCT), n // grain)))
    return size + -size % GRAIN


@cache
def _nothing(dtype: Any, ndim: int = 1) -> Array:
    """Stands for an array that is not given or not wanted."""
    return np.empty((0,) * ndim, dtype)


def affine(
    x: Array, weight: Array, bias: Array | None, out: Array, *, relu: bool = False, via: Caller = NOW
) -> Array:  # fmt: skip
    """out = x @ weight + bias, or its positive part."""
    kernel, n, work = KERNELS["affine"][out.dtype], len(out), x.size * weight.shape[1]
    b = _nothing(out.dtype) if bias is None else bias
    if via is not NOW and bias is not None and THIN < weight.shape[1] <= WIDE and weight.size > 2 * out.size:
        n_parts, size = _chunks(len(weight), work, PANEL, SMALL_PRODUCT)
        if n_parts == 2:
            _affine_by_inputs(via, x, weight, b, relu, out, n_parts, size)
            return out
    _run(via, kernel, (x, weight, b, out, False, relu), n, weight, work, PANEL if weight.shape[1] > WIDE else GRAIN)
    return out


def _affine_by_inputs(
    via: Caller, x: Array, weight: Array, bias: Array, relu: bool, out: Array, n_parts: int, size: int
) -> None:  # fmt: skip
    """The same in parts of the inputs, those of `affine_grad_weight`.

    In a training step each thread then reads, after the first step, the rows of weight that it updated itself. Processors that
    are far apart pass each other all the others line by line (784 x 100, batch 128, float32, two threads, where a line takes
    220 ns: 196 -> 173 us a step; where it takes 50, and on one thread, the same).
    """
    parts = np.empty((n_parts, *out.shape), out.dtype)
    work = x.size * weight.shape[1]
    kernel, arguments = KERNELS["affine_parts"][out.dtype], (x, weight, parts, size)
    if via.threads() == 1:  # the kernel itself keeps the parts apart
        via.whole(kernel, arguments, len(weight), _cost(work, weight))
    else:
        via.chunks(kernel, arguments, len(weight), size, _cost(work, weight))
    via.shares(KERNELS["add_parts"][out.dtype], (parts, bias, relu, out), len(out), parts.size * PASS)


def affine_grad_x(grad_out: Array, weight: Array, out: Array, *, via: Caller = NOW) -> Array:
    """out = grad_out @ weight.T"""
    arguments = grad_out, weight, _nothing(out.dtype), out, True, False
    _run(via, KERNELS["affine"][out.dtype], arguments, len(out), weight, out.size * weight.shape[1], PANEL // 2)
    return out


def affine_grad_weight(
    grad_out: Array, x: Array, weight_out: Array, bias_out: Array, *, adding: bool = False, via: Caller = NOW
) -> None:  # fmt: skip
    """weight_out = x.T @ grad_out and bias_out = grad_out.sum(axis=0); or add them to what is there."""
    n_in, n_out = weight_out.shape
    work = x.size * n_out
    if n_in == 0:  # no rows of weight for a kernel to go over
        via.python(partial(_sum_rows, grad_out, bias_out, adding))
    elif n_out > THIN or adding:
        kernel = KERNELS["affine_grad_weight"][x.dtype]
        _run(via, kernel, (grad_out, x, weight_out, bias_out, adding), n_in, weight_out, work, PANEL)
    elif len(x) == 0:
        weight_out[...], bias_out[...] = 0, 0
    else:
        n_chunks, size = _chunks(len(x), work, GRAIN, SMALL_PRODUCT)
        parts, parts_bias = _parts(n_chunks, weight_out)
        arguments, cost = (grad_out, x, parts, parts_bias, size), _cost(work, weight_out)
        via.chunks(KERNELS["thin_grad_weight"][x.dtype], arguments, len(x), size, cost)
        _add_parts(via, parts, parts_bias, weight_out, bias_out)


def _sum_rows(grad_out: Array, bias_out: Array, adding: bool) -> None:
    with np.errstate(all="ignore"):
        bias_out[...] = np.sum(grad_out, axis=0) + (bias_out if adding else 0)


def affine_backward(
    grad_out: Array, x: Array, weight: Array, grad_x: Array | None, grad_weight: Array, grad_bias: Array
) -> tuple[Array | None, Array, Array]:
    """The gradients for x (unless it is None), weight and the bias, into the given arrays."""
    affine_grad_weight(grad_out, x, grad_weight, grad_bias)
    return None if grad_x is None else affine_grad_x(grad_out, weight, grad_x), grad_weight, grad_bias


def _parts(n_chunks: int, weight: Array) -> tuple[Array, Array]:
    """Room for each chunk's share of the gradients."""
    n_in, n_out = weight.shape
    return np.empty((n_chunks, n_out, n_in), weight.dtype), np.empty((n_chunks, n_out), weight.dtype)


def _add_parts(via: Caller, parts: Array, parts_bias: Array, grad_weight: Array, grad_bias: Array) -> None:
    arguments = parts, parts_bias, grad_weight, grad_bias
    via.whole(KERNELS["add_thin_parts"][parts.dtype], arguments, len(grad_weight), parts.size * PASS)


def thin_head(
    x: Array, weight: Array, bias: Array | None, labels: Array, class_weight: Array, sample_weight: Array,
    ignore_index: int, scale: float, denominator: float, losses: Array, grad_x: Array | None,
    grad_weight: Array | None, grad_bias: Array | None, *, via: Caller = NOW,
) -> Array:  # fmt: skip
    """The weighted losses of a head of at most `THIN` classes, and with grad_weight the gradients, in one pass.

    Returns the sum of each chunk's losses, to be added with `_threads.in_order`.
    """
    kernel, dtype = KERNELS["linear_cross_entropy"][x.dtype], x.dtype
    b = _nothing(dtype) if bias is None else bias
    gx = _nothing(dtype, 2) if grad_x is None else grad_x
    n_chunks, size = _chunks(len(x), x.size * weight.shape[1], GRAIN, SMALL_HEAD)
    parts, parts_bias = _nothing(dtype, 3), _nothing(dtype, 2)
    if grad_weight is not None:
        parts, parts_bias = _parts(n_chunks, grad_weight)
    sums = np.zeros(n_chunks)
    arguments = (
        x, weight, b, labels, class_weight, sample_weight, ignore_index, scale, denominator, losses, gx,
        parts, parts_bias, size,
    )  # fmt: skip
    cost = x.size * weight.shape[1] * x.itemsize * HEAD_COST
    if cost <= via.share or via.threads() == 1:  # the kernel itself keeps the chunks apart
        via.whole(kernel, arguments, len(x), cost, sums)
    else:
        via.chunks(kernel, arguments, len(x), size, cost, sums)
    if grad_weight is not None and grad_bias is not None:
        _add_parts(via, parts, parts_bias, grad_weight, grad_bias)
    return sums


def wide_head_rows(n_in: int, n_out: int, itemsize: int) -> int:
    """How many rows of a wide head are taken at a time."""
    most = min(HEAD_ROWS, HEAD_MOST // (n_out * itemsize))
    return max(GRAIN, most, HEAD_BYTES // ((n_in + n_out) * itemsize) // GRAIN * GRAIN)
