"""softmax and log_softmax down the columns of (n_outer, n_classes, n_inner) arrays, C-contiguous.

axis=0 of a features x samples matrix, or the class axis of (n, classes, height, width). Few classes: columns lie across
lanes as they are. Many: a strip of columns is turned into rows of scratch, a square at a time, and back. Either way sums are
taken as rows take them: a row has the same bits whichever way it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import CUBE_IN, CUBE_OUT, INDEX, inline, signature
from ._math import from_doubles, log1p_pair, pair_from_doubles, plus_one, ratio
from ._narrow import NARROW, aligned, tile_exp, tile_max
from ._simd import (
    constant,
    keep_alive,
    lanes,
    load,
    load_first,
    load_transposed,
    pointer,
    shift,
    splat,
    store,
    store_first,
    store_transposed,
)  # fmt: skip
from ._wide import row_exp, row_exp_sum, row_max, row_scale, row_subtract, scaled, split


@inline
def load_strip(z: Any, n: int, stride: int, columns: int, tile: Any) -> None:
    for j in range(n):
        store(tile, j * lanes(z), load_first(z, j * stride, columns, constant(z, 0.0, 0.0)))


@inline
def to_scratch(z: Any, n: int, stride: int, columns: int, square: Any, rows: Any) -> None:
    """Columns of z become rows of n values."""
    step = lanes(z)
    for j in range(0, n, step):
        load_transposed(shift(z, j * stride), stride, min(step, n - j), columns, square)
        for c in range(columns):
            store_first(rows, c * n + j, load(square, c * step), n - j)


@inline
def from_scratch(rows: Any, n: int, stride: int, columns: int, square: Any, out: Any) -> None:
    step = lanes(out)
    for j in range(0, n, step):
        for c in range(columns):
            store(square, c * step, load_first(rows, c * n + j, n - j, load(square, 0)))
        store_transposed(square, shift(out, j * stride), stride, min(step, n - j), columns)


@signature(CUBE_IN, CUBE_OUT, INDEX, INDEX)
def softmax_columns(logits, probs, first, last):
    """Strips first..last-1 of as many columns as there are lanes, counted through all of n_outer."""
    _, n, inner = logits.shape
    step = lanes(pointer(logits, 0))
    strips = (inner + step - 1) // step
    scratch = np.empty((NARROW if n < NARROW else n) * step + (step + 1) * step, logits.dtype)
    square = aligned(scratch)
    rows = shift(square, step * step)
    for k in range(first, last):
        column = k % strips * step
        where, columns = k // strips * n * inner + column, min(step, inner - column)
        z, out = pointer(logits, where), pointer(probs, where)
        if n < NARROW:
            load_strip(z, n, inner, columns, rows)
            d, e = tile_exp(rows, n, tile_max(rows, n), True, rows, rows)
            low, high = ratio(rows, splat(1.0), *plus_one(d[0], d[1])), ratio(rows, splat(1.0), *plus_one(e[0], e[1]))
            q = pair_from_doubles(load(rows, 0), low, high)
            for j in range(n):
                store_first(out, j * inner, scaled(load(rows, j * step), q[0], q[1]), columns)
        else:
            to_scratch(z, n, inner, columns, square, rows)
            for c in range(columns):
                row = shift(rows, c * n)
                d = row_exp(row, n, row_max(row, n), row)
                q_hi, q_lo = split(row, *ratio(row, splat(1.0), *plus_one(d[0], d[1])))
                row_scale(row, n, q_hi, q_lo, row, False)
            from_scratch(rows, n, inner, columns, square, out)
    keep_alive(scratch)


@signature(CUBE_IN, CUBE_OUT, INDEX, INDEX)
def log_softmax_columns(logits, log_probs, first, last):
    """The same for log_softmax."""
    _, n, inner = logits.shape
    step = lanes(pointer(logits, 0))
    strips = (inner + step - 1) // step
    scratch = np.empty((NARROW if n < NARROW else n) * step + (step + 1) * step, logits.dtype)
    square = aligned(scratch)
    rows = shift(square, step * step)
    for k in range(first, last):
        column = k % strips * step
        where, columns = k // strips * n * inner + column, min(step, inner - column)
        z, out = pointer(logits, where), pointer(log_probs, where)
        if n < NARROW:
            load_strip(z, n, inner, columns, rows)
            m = tile_max(rows, n)
            d, e = tile_exp(rows, n, m, False, rows, rows)
            log = from_doubles(m, log1p_pair(rows, d[0], d[1])[0], log1p_pair(rows, e[0], e[1])[0])
            for j in range(n):
                store_first(out, j * inner, (load(rows, j * step) - m) - log, columns)
        else:
            to_scratch(z, n, inner, columns, square, rows)
            for c in range(columns):
                row = shift(rows, c * n)
                m = row_max(row, n)
                d = row_exp_sum(row, n, m)
                log = log1p_pair(row, d[0], d[1])
                row_subtract(row, n, m, split(row, log[0], log[1])[0], row, False)
            from_scratch(rows, n, inner, columns, square, out)
    keep_alive(scratch)
