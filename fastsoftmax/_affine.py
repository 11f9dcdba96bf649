"""The affine layer and the classifier head over it: which kernel, which chunks, which threads.

All arrays are C-contiguous matrices of one dtype, checked by the caller. Chunks depend on shapes alone, never on the number of
threads, and every sum over chunks is taken in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import NOTHING
from ._threads import run_chunks
from .kernels import KERNELS

Array = NDArray[Any]

THIN = 10  # classes: as many as the thin kernels take
CHUNK = 1 << 24  # multiply-adds: 150 us; two of them are worth a second thread
QUIET = 1 << 22  # multiply-adds: below, the GIL is kept: handing it over costs up to 5 ms beside a busy Python thread
GRAIN = 16  # chunks are multiples of this many rows, so that tiles are full


def _chunks(n: int, work: int) -> tuple[int, int]:
    """(number of chunks, size of each): a power of two, so that two or four threads get equal shares."""
    n_chunks = 1
    while n_chunks * CHUNK < work and n_chunks * 2 * GRAIN <= n:
        n_chunks *= 2
    size = -(-n // n_chunks)
    size += -size % GRAIN
    return max(1, -(-n // size)) if size else 1, size


def _run(n: int, work: int, call: Callable[[int, int, bool], Any]) -> None:
    n_chunks, size = _chunks(n, work)
    if n_chunks == 1:
        call(0, n, work > QUIET)
    else:
        run_chunks(lambda i: call(i * size, min(n, (i + 1) * size), True), n_chunks)


def affine(x: Array, weight: Array, bias: Array | None, out: Array, *, relu: bool = False) -> Array:
    """out = x @ weight + bias, or its positive part."""
    kernel = KERNELS["affine"][x.dtype]
    b = NOTHING.astype(x.dtype) if bias is None else bias
    _run(len(x), x.size * weight.shape[1], lambda i, j, release: kernel(x, weight, b, False, relu, out, i, j, release))
    return out


def grad_x(grad_out: Array, weight: Array, out: Array) -> Array:
    """out = grad_out @ weight.T"""
    kernel, none = KERNELS["affine"][weight.dtype], NOTHING.astype(weight.dtype)
    _run(
        len(out), grad_out.size * weight.shape[0],
        lambda i, j, release: kernel(grad_out, weight, none, True, False, out, i, j, release),
    )  # fmt: skip
    return out


def grad_weight(grad_out: Array, x: Array, weight_out: Array, bias_out: Array) -> None:
    """weight_out = x.T @ grad_out and bias_out = grad_out.sum(axis=0)."""
    n_in, n_out = weight_out.shape
    work = x.size * n_out
    if n_out > THIN or not len(x):
        kernel = KERNELS["affine_grad_weight"][x.dtype]
        _run(n_in, work, lambda i, j, release: kernel(grad_out, x, weight_out, bias_out, i, j, release))
        if not n_in:
            np.sum(grad_out, axis=0, out=bias_out)
        return
    kernel = KERNELS["thin_grad_weight"][x.dtype]
    parts, parts_bias, size = _parts(len(x), weight_out)
    _run(
        len(x), work,
        lambda i, j, release: kernel(grad_out, x, parts[i // size], parts_bias[i // size], i, j, release),
    )  # fmt: skip
    KERNELS["add_thin_parts"][x.dtype](parts, parts_bias, weight_out, bias_out, False)


def _parts(n_rows: int, weight: Array) -> tuple[Array, Array, int]:
    """Room for each chunk's share of the gradients, and the rows of a chunk."""
    n_in, n_out = weight.shape
    n_chunks, size = _chunks(n_rows, n_rows * weight.size)
    return np.empty((n_chunks, n_out, n_in), weight.dtype), np.empty((n_chunks, n_out), weight.dtype), max(1, size)
