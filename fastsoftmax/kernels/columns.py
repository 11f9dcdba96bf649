"""softmax and log_softmax down the columns of (n_outer, n, inner) arrays, C-contiguous: n classes, `inner` apart.

axis=0 of a features x samples matrix, or the class axis of (n, classes, height, width). Columns lie across lanes as they are,
a strip of as many as there are lanes at a time; strips are counted through all of n_outer. Few classes: see `_column_tiles`.
Many: some strips side by side, the array walked row by row in each pass, so that memory is read in runs; only the last strip is
masked (100 x 128, float64: 10.1 us with masks everywhere, 8.7 so). Sums are taken as rows take them, lane by lane: a row has
the same bits whichever way it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._column_tiles import columns_ahead, in_tiles, put_first
from ._jit import INDEX, VECTOR_IN, VECTOR_OUT, by_type, inline, signature
from ._math import (
    START32,
    START64,
    TOP32,
    TOP64,
    exp_from,
    fast_two_sum,
    four_added,
    from_doubles,
    lane_start,
    log1p_pair,
    low_add,
    multiplier,
    origin,
    pair_less,
    plus_one,
    ratio,
    scaled,
    times_unit,
    two_sum,
)  # fmt: skip
from ._narrow import (
    NARROW32,
    across,
    aligned,
    log_softmax_begun,
    log_softmax_ended,
    softmax_begun,
    softmax_ended,
    subtracted,
)  # fmt: skip
from ._simd import (
    V32,
    constant,
    keep_alive,
    lanes,
    larger,
    load,
    load_first,
    pointer,
    prefetch,
    prefetch_to_write,
    shift,
    splat,
    store,
    store_first,
    widen,
)  # fmt: skip
from ._wide import block_of

_STRIPS = 16  # side by side: runs of 1 KiB (32000 x 256, float32: 4.2 ms, 10.5 in runs of 512 bytes)
_COLUMNS = 1024  # so many, or fewer, are all taken side by side (float64, 32000 x 256: 32 -> 15 ms, x 512: 66 -> 33)
_AHEAD = 8  # rows ahead of the work that memory is asked for (the same: 4.2 ms, 6.6 two rows ahead)
_HALVES = 16  # doubles beside each vector of a strip: its lanes in twice the precision


@inline
def side_by_side(z: Any, strips: int) -> int:
    return strips if strips * lanes(z) <= _COLUMNS else _STRIPS


@inline
def columns_max(z: Any, n: int, inner: int, width: int, maxima: Any) -> None:
    step, low = lanes(z), constant(z, -np.inf, -np.inf)
    for c in range(0, width, step):
        store(maxima, c, low)
    for j in range(0, n // 4 * 4 * inner, 4 * inner):
        for c in range(j, j + width - step + 1, step):
            for k in range(_AHEAD, _AHEAD + 4):
                prefetch(z, c + k * inner)
            a = larger(load(z, c), larger(load(z, c + inner), load(maxima, c - j)))
            store(maxima, c - j, larger(load(z, c + 2 * inner), larger(load(z, c + 3 * inner), a)))
    for j in range(n // 4 * 4 * inner, n * inner, inner):
        for c in range(j, j + width - step + 1, step):
            store(maxima, c - j, larger(load(z, c), load(maxima, c - j)))
    if width % step:
        c = width // step * step
        for j in range(0, n * inner, inner):
            store(maxima, c, larger(load_first(z, j + c, width - c, low), load(maxima, c)))


@inline
def columns_exp(
    z: Any, n: int, inner: int, width: int, run: int, maxima: Any, bases: Any, e: Any, keep: bool, exact: bool, hi: Any,
    lo: Any, low: Any,
) -> None:  # fmt: skip
    """The exponentials, if they are to be kept, and their sums: class j adds to sum j % lanes, as in a row's lanes.

    Four classes at a time, those whose exponentials a row adds up together. `bases` has room for three vectors a strip; sums
    lie `run` apart.
    """
    step, block = lanes(z), block_of(z)
    one, zero = lane_start(z)
    for c in range(0, width, step):
        offset, zero_k, rest = origin(load(maxima, c))
        store(bases, c, offset)
        store(bases, run + c, zero_k)
        store(bases, 2 * run + c, rest)
    for k in range(run):
        store(hi, k * step, one)
        store(lo, k * step, zero)
        store(low, k * _HALVES, splat(0.0))
        store(low, k * _HALVES + 8, splat(0.0))
    for start in range(0, n, 4 * step):
        for lane in range(min(step, n - start)):
            first = start + lane
            ahead = (_AHEAD if lane + _AHEAD < step else _AHEAD + 3 * step) * inner
            at = lane * run
            for c in range(0, width - step + 1, step):
                four_exp(z, first, n, inner, c, step, run, bases, e, keep, ahead, shift(hi, at), shift(lo, at))
            if width % step:
                c = width // step * step
                four_exp(z, first, n, inner, c, width - c, run, bases, e, keep, ahead, shift(hi, at), shift(lo, at))
        if start + 4 * step < n and not (exact and (start + 4 * step) % block == 0):  # see `low_moved`
            continue
        for k in range(0, run * step, step):
            if k % run < width:
                at = k // step * _HALVES
                a, b = low_add((load(low, at), load(low, at + 8)), load(lo, k))
                store(low, at, a)
                store(low, at + 8, b)
                store(lo, k, zero)


@inline
def four_exp(
    z: Any, first: int, n: int, inner: int, c: int, width: int, run: int, bases: Any, e: Any, keep: bool, ahead: int,
    hi: Any, lo: Any,
) -> None:  # fmt: skip
    """The exponentials of up to four classes, from the first on, of `width` columns from c on."""
    step, k, zero = lanes(z), first * inner + c, constant(z, 0.0, 0.0)
    base = load(bases, c), load(bases, run + c), load(bases, 2 * run + c)
    a, b, c_, d = column_exp(z, k, width, base, e, keep, ahead), zero, zero, zero
    if first + 3 * step < n:
        b = column_exp(z, k + step * inner, width, base, e, keep, ahead)
        c_ = column_exp(z, k + 2 * step * inner, width, base, e, keep, ahead)
        d = column_exp(z, k + 3 * step * inner, width, base, e, keep, ahead)
    else:
        if first + step < n:
            b = column_exp(z, k + step * inner, width, base, e, keep, ahead)
        if first + 2 * step < n:
            c_ = column_exp(z, k + 2 * step * inner, width, base, e, keep, ahead)
    s, lost = four_added(load(hi, c), load(lo, c), a, b, c_, d)
    store(hi, c, s)
    store(lo, c, lost)


@inline
def column_exp(z: Any, k: int, width: int, base: Any, e: Any, keep: bool, ahead: int) -> Any:
    """One vector's exponentials; asks for the one `ahead`."""
    prefetch(z, k + ahead)
    value = exp_from(load_first(z, k, width, constant(z, 0.0, 0.0)), base)
    if keep:
        prefetch_to_write(e, k + ahead)
        put_first(e, k, value, width)
    return value


@inline
def write_scaled(
    z: Any, out: Any, j: int, inner: int, c: int, width: int, run: int, bases: Any, q_hi: Any, q_lo: Any, again: bool
) -> None:  # fmt: skip
    """A vector's probabilities, from its exponentials, or from its logits `again`."""
    k, q = j + c, (load(q_hi, c), load(q_lo, c))
    if again:
        base = load(bases, c), load(bases, run + c), load(bases, 2 * run + c)
        value = column_exp(z, k, width, base, out, False, _AHEAD * inner)
    else:
        value = load_first(out, k, width, q[0])
    prefetch_to_write(out, k + _AHEAD * inner)
    put_first(out, k, scaled(value, q[0], q[1]), width)


@by_type
def columns_sum(hi, low, run):
    """d of one strip's columns: two pairs of double vectors, see `lane_sums`. The same tree as `row_sum`'s."""
    if hi.dtype is V32.dtype:

        def floats(hi, low, run):
            a, b = splat(-16.0 * START32 - TOP32), splat(-16.0 * START32 - TOP32)
            for lane in range(16):
                x, y = widen(load(hi, lane * run))
                a, b = a + x, b + y
            half = 8
            while half:
                for lane in range(half):
                    p, q = lane * run, (lane + half) * run
                    store(low, p, load(low, p) + load(low, q))
                    store(low, p + 8, load(low, p + 8) + load(low, q + 8))
                half //= 2
            unit, zero = splat(1.0 / TOP32), splat(0.0)
            return ((a + load(low, 0)) * unit, zero), ((b + load(low, 8)) * unit, zero)

        return floats

    def doubles(hi, low, run):
        for lane in range(8):
            p, q = lane * run, 2 * lane * run
            s, lo = pair_less(load(hi, p), load(low, q) + load(low, q + 8), splat(START64))
            store(hi, p, s)
            store(low, q, lo)
        half = 4
        while half:
            for lane in range(half):
                p, q = lane * run, (lane + half) * run
                s, error = two_sum(load(hi, p), load(hi, q))
                s, lo = fast_two_sum(s, error + (load(low, 2 * p) + load(low, 2 * q)))
                store(hi, p, s)
                store(low, 2 * p, lo)
            half //= 2
        d = times_unit(*pair_less(load(hi, 0), load(low, 0), splat(TOP64)))
        return d, d

    return doubles


@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX)
def softmax_columns(logits, probs, n, inner, first, last):
    step = lanes(pointer(logits, 0))
    strips = (inner + step - 1) // step
    most = side_by_side(pointer(logits, 0), strips)
    run = most * step
    scratch = np.empty((max(5 * NARROW32 + 8, (2 * step + 6) * most) + 1) * step, logits.dtype)
    doubles = np.empty(0, np.float64)
    tile = aligned(scratch)
    if not across(tile, n):
        doubles = np.empty(run * _HALVES, np.float64)
    low = pointer(doubles, 0)
    hi, lo, maxima = tile, shift(tile, run * step), shift(tile, 2 * run * step)
    q_hi, q_lo, bases = shift(maxima, run), shift(maxima, 2 * run), shift(maxima, 3 * run)
    k, ahead = first, columns_ahead(tile, logits.size)
    # Where threads share the columns, exponentials are made twice. To read them back would fetch, ahead, lines that another
    # thread is about to write (1000 x 512, float32, two threads: 190 us, 128 so, 136 on one thread).
    again = (last - first) * n * inner < strips * logits.size
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
            columns_exp(z, n, inner, width, run, maxima, bases, out, not again, False, hi, lo, low)
            for c in range(0, width, step):
                d, e = columns_sum(shift(hi, c), shift(low, c // step * _HALVES), run)
                low_, high = ratio(hi, splat(1.0), *plus_one(d[0], d[1])), ratio(hi, splat(1.0), *plus_one(e[0], e[1]))
                q = multiplier(load(hi, 0), low_, high)
                store(q_hi, c, q[0])
                store(q_lo, c, q[1])
            for j in range(0, n * inner, inner):
                for c in range(0, width - step + 1, step):
                    write_scaled(z, out, j, inner, c, step, run, bases, q_hi, q_lo, again)
                if width % step:
                    c = width // step * step
                    write_scaled(z, out, j, inner, c, width - c, run, bases, q_hi, q_lo, again)
    keep_alive(scratch)
    keep_alive(doubles)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX)
def log_softmax_columns(logits, log_probs, n, inner, first, last):
    step = lanes(pointer(logits, 0))
    strips = (inner + step - 1) // step
    most = side_by_side(pointer(logits, 0), strips)
    run = most * step
    scratch = np.empty((max(5 * NARROW32 + 8, (2 * step + 5) * most) + 1) * step, logits.dtype)
    doubles = np.empty(0, np.float64)
    tile = aligned(scratch)
    if not across(tile, n):
        doubles = np.empty(run * _HALVES, np.float64)
    low = pointer(doubles, 0)
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
            columns_exp(z, n, inner, width, run, maxima, bases, out, False, True, hi, lo, low)
            for c in range(0, width, step):
                d, e = columns_sum(shift(hi, c), shift(low, c // step * _HALVES), run)
                store(logs, c, from_doubles(load(hi, 0), log1p_pair(hi, d[0], d[1])[0], log1p_pair(hi, e[0], e[1])[0]))
            for j in range(n):
                for c in range(0, width - step + 1, step):
                    prefetch(z, (j + _AHEAD) * inner + c)
                    prefetch_to_write(out, (j + _AHEAD) * inner + c)
                    store(out, j * inner + c, (load(z, j * inner + c) - load(maxima, c)) - load(logs, c))
                if width % step:
                    c = width // step * step
                    value = load_first(z, j * inner + c, width - c, load(logs, c))
                    store_first(out, j * inner + c, (value - load(maxima, c)) - load(logs, c), width - c)
    keep_alive(scratch)
    keep_alive(doubles)
