"""softmax and log_softmax down the columns of (n_outer, n, inner) arrays, C-contiguous: n classes, `inner` apart.

axis=0 of a features x samples matrix, or the class axis of (n, classes, height, width). Columns lie across lanes as they are,
a strip of as many as there are lanes at a time; strips are counted through all of n_outer. Few classes: see `_column_tiles`.
Many: some strips side by side, the array walked row by row in each pass, so that memory is read in runs.
"""

from __future__ import annotations

from typing import Any

from ._column_passes import (
    AHEAD,
    HALVES,
    column_exp,
    columns_exp,
    columns_factor,
    columns_log,
    columns_max,
)  # fmt: skip
from ._column_tiles import columns_ahead, in_tiles, put_first
from ._jit import INDEX, VECTOR_IN, VECTOR_OUT, inline, signature
from ._layout import NARROW32, SIDE_BY_SIDE
from ._math import scaled
from ._memory import release, scratch
from ._narrow import (
    across,
    log_softmax_begun,
    log_softmax_ended,
    softmax_begun,
    softmax_ended,
    subtracted,
)  # fmt: skip
from ._plans import along_columns
from ._simd import (
    lanes,
    load,
    load_first,
    pointer,
    prefetch,
    prefetch_to_write,
    shift,
    splat,
    store,
    store_first,
)  # fmt: skip

_STRIPS = 16  # side by side: runs of 1 KiB (32000 x 256, float32: 4.2 ms, 10.5 in runs of 512 bytes)


@inline
def side_by_side(z: Any, strips: int) -> int:
    return strips if strips * lanes(z) <= SIDE_BY_SIDE else _STRIPS


@inline
def write_scaled(
    z: Any, out: Any, j: int, inner: int, c: int, width: int, run: int, bases: Any, q_hi: Any, q_lo: Any, again: bool
) -> None:  # fmt: skip
    """A vector's probabilities, from its exponentials, or from its logits `again`."""
    k, q = j + c, (load(q_hi, c), load(q_lo, c))
    if again:
        base = load(bases, c), load(bases, run + c), load(bases, 2 * run + c)
        value = column_exp(z, k, width, base, out, False, AHEAD * inner)
    else:
        value = load_first(out, k, width, q[0])
    prefetch_to_write(out, k + AHEAD * inner)
    put_first(out, k, scaled(value, q[0], q[1]), width)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX, small=along_columns)
def softmax_columns(logits, probs, n, inner, first, last):
    step = lanes(pointer(logits, 0))
    strips = (inner + step - 1) // step
    most = side_by_side(pointer(logits, 0), strips)
    run = most * step
    tile = scratch(pointer(logits, 0), max(5 * NARROW32 + 8, (2 * step + 6) * most) * step)
    low = scratch(splat(0.0), 0 if across(tile, n) else run * HALVES)
    hi, lo, maxima = tile, shift(tile, run * step), shift(tile, 2 * run * step)
    q_hi, q_lo, bases = shift(maxima, run), shift(maxima, 2 * run), shift(maxima, 3 * run)
    k, ahead = first, columns_ahead(tile, logits.size)
    # Where threads share the columns, exponentials are made twice. To read them back would fetch, ahead, lines that another
    # thread is about to write (1000 x 512, float32, two threads: 190 us, 128 so, 136 on one thread). Likewise of fewer columns
    # than lanes: loads wait for masked stores to the row before (100,000 x 2, float32: 2.2 -> 1.9 ms).
    again = (last - first) * n * inner < strips * logits.size or inner < step
    while k < last:
        column = k % strips * step
        where, count = k // strips * n * inner + column, min(most, last - k, strips - k % strips)
        width = min(count * step, inner - column)
        z, out = pointer(logits, where), pointer(probs, where)
        k += count
        if across(tile, n):
            in_tiles(softmax_begun, softmax_ended, scaled, z, out, n, inner, width, ahead, tile)
        else:
            columns_max(z, n, inner, width, maxima)
            columns_exp(z, n, inner, width, run, maxima, bases, out, not again, False, hi, lo, low, 0, step)
            columns_factor(hi, low, width, run, q_hi)
            for j in range(0, n * inner, inner):
                for c in range(0, width - step + 1, step):
                    write_scaled(z, out, j, inner, c, step, run, bases, q_hi, q_lo, again)
                if width % step:
                    c = width // step * step
                    write_scaled(z, out, j, inner, c, width - c, run, bases, q_hi, q_lo, again)
    release(tile)
    release(low)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX, small=along_columns)
def log_softmax_columns(logits, log_probs, n, inner, first, last):
    step = lanes(pointer(logits, 0))
    strips = (inner + step - 1) // step
    most = side_by_side(pointer(logits, 0), strips)
    run = most * step
    tile = scratch(pointer(logits, 0), max(5 * NARROW32 + 8, (2 * step + 5) * most) * step)
    low = scratch(splat(0.0), 0 if across(tile, n) else run * HALVES)
    hi, lo, maxima, logs = tile, shift(tile, run * step), shift(tile, 2 * run * step), shift(tile, run * (2 * step + 1))
    bases = shift(logs, run)
    k, ahead = first, columns_ahead(tile, logits.size)
    while k < last:
        column = k % strips * step
        where, count = k // strips * n * inner + column, min(most, last - k, strips - k % strips)
        width = min(count * step, inner - column)
        z, out = pointer(logits, where), pointer(log_probs, where)
        k += count
        if across(tile, n):
            in_tiles(log_softmax_begun, log_softmax_ended, subtracted, z, out, n, inner, width, ahead, tile)
        else:
            columns_max(z, n, inner, width, maxima)
            columns_exp(z, n, inner, width, run, maxima, bases, out, False, True, hi, lo, low, 0, step)
            columns_log(hi, low, width, run, logs)
            for j in range(n):
                for c in range(0, width - step + 1, step):
                    prefetch(z, (j + AHEAD) * inner + c)
                    prefetch_to_write(out, (j + AHEAD) * inner + c)
                    store(out, j * inner + c, (load(z, j * inner + c) - load(maxima, c)) - load(logs, c))
                if width % step:
                    c = width // step * step
                    value = load_first(z, j * inner + c, width - c, load(logs, c))
                    store_first(out, j * inner + c, (value - load(maxima, c)) - load(logs, c), width - c)
    release(tile)
    release(low)
