"""Passes over columns of many classes, side by side, row by row as memory lies: maxima, exponentials, what sums come to.

Only the last strip is masked (100 x 128, float64: 10.1 us with masks everywhere, 8.7 so). Sums are taken as rows take them,
lane by lane: a row has the same bits whichever way it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._column_tiles import put_first
from ._jit import by_type, inline
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
    times_unit,
    two_sum,
)  # fmt: skip
from ._simd import (
    V32,
    constant,
    lanes,
    larger,
    load,
    load_first,
    prefetch,
    prefetch_to_write,
    shift,
    splat,
    store,
    widen,
)  # fmt: skip
from ._wide import block_of

AHEAD = 8  # rows ahead of the work that memory is asked for (32000 x 256, float32: 4.2 ms, 6.6 two rows ahead)
HALVES = 16  # doubles beside each vector of a strip: its lanes in twice the precision


@inline
def columns_max(z: Any, n: int, inner: int, width: int, maxima: Any) -> None:
    step, low = lanes(z), constant(z, -np.inf, -np.inf)
    for c in range(0, width, step):
        store(maxima, c, low)
    for j in range(0, n // 4 * 4 * inner, 4 * inner):
        for c in range(j, j + width - step + 1, step):
            for k in range(AHEAD, AHEAD + 4):
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
def columns_origin(maxima: Any, width: int, run: int, bases: Any) -> None:
    """What exponentials below each maximum are taken from: three numbers, `run` apart."""
    for c in range(0, width, lanes(maxima)):
        offset, zero, rest = origin(load(maxima, c))
        store(bases, c, offset)
        store(bases, run + c, zero)
        store(bases, 2 * run + c, rest)


@inline
def columns_exp(
    z: Any, n: int, inner: int, width: int, run: int, maxima: Any, bases: Any, e: Any, keep: bool, exact: bool, hi: Any,
    lo: Any, low: Any, first: int, last: int,
) -> None:  # fmt: skip
    """The exponentials, if they are to be kept, and their sums: class j adds to sum j % lanes, as in a row's lanes.

    Of sums from `first` up to `last`; four classes at a time, those whose exponentials a row adds up together. `bases` has
    room for three vectors a strip; sums lie `run` apart.
    """
    step, block = lanes(z), block_of(z)
    one, zero = lane_start(z)
    columns_origin(maxima, width, run, bases)
    for k in range(first * run, last * run, step):
        store(hi, k, one)
        store(lo, k, zero)
        store(low, k // step * HALVES, splat(0.0))
        store(low, k // step * HALVES + 8, splat(0.0))
    for start in range(0, n, 4 * step):
        for lane in range(first, min(last, n - start)):
            j = start + lane
            ahead = (AHEAD if lane + AHEAD < last else 4 * step + min(0, AHEAD - (last - first))) * inner
            at = lane * run
            for c in range(0, width - step + 1, step):
                four_exp(z, j, n, inner, c, step, run, bases, e, keep, ahead, shift(hi, at), shift(lo, at))
            if width % step:
                c = width // step * step
                four_exp(z, j, n, inner, c, width - c, run, bases, e, keep, ahead, shift(hi, at), shift(lo, at))
        if start + 4 * step < n and not (exact and (start + 4 * step) % block == 0):  # see `low_moved`
            continue
        for k in range(first * run, last * run, step):
            if k % run < width:
                at = k // step * HALVES
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


@inline
def columns_factor(hi: Any, low: Any, width: int, run: int, q: Any) -> None:
    """What each column's exponentials are multiplied by, from its sums: a pair, the second parts `run` after the first."""
    for c in range(0, width, lanes(hi)):
        d, e = columns_sum(shift(hi, c), shift(low, c // lanes(hi) * HALVES), run)
        first, second = ratio(hi, splat(1.0), *plus_one(d[0], d[1])), ratio(hi, splat(1.0), *plus_one(e[0], e[1]))
        pair = multiplier(load(hi, 0), first, second)
        store(q, c, pair[0])
        store(q, run + c, pair[1])


@inline
def columns_log(hi: Any, low: Any, width: int, run: int, logs: Any) -> None:
    """Each column's logarithm of what its sums come to."""
    for c in range(0, width, lanes(hi)):
        d, e = columns_sum(shift(hi, c), shift(low, c // lanes(hi) * HALVES), run)
        store(logs, c, from_doubles(load(hi, 0), log1p_pair(hi, d[0], d[1])[0], log1p_pair(hi, e[0], e[1])[0]))
