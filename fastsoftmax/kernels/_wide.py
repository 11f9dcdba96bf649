"""Wide rows: one at a time, lanes along the row.

The maximum, then exponentials and their sum, then one scaling pass while the row is in cache. Element j goes to lane
j % lanes, lanes fold in a fixed tree. Results beyond the last-level cache go past it (`stream`), from one row of scratch.
d is a row's sum of exponentials less one, see `_math`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import by_type, inline
from ._math import (
    SHIFT32,
    SHIFT64,
    exp_shifted,
    lane_add,
    lane_start,
    low_add,
    low_start,
    pair_from_doubles,
    row_sum,
    two_diff,
)  # fmt: skip
from ._simd import (
    V32,
    constant,
    fma,
    lane,
    lanes,
    larger,
    largest,
    load,
    load_first,
    misalignment,
    narrow,
    prefetch,
    splat,
    store,
    store_first,
    stream,
    widen,
)  # fmt: skip
from ._target import FMA

# vectors after which the small parts of a sum move to doubles: so many additions lose less than half an ulp
BLOCK = 8


@inline
def row_max(z: Any, n: int) -> Any:
    """The largest of z[0..n-1], NaN passed over; -inf if there is nothing else."""
    step = lanes(z)
    low = constant(z, -np.inf, -np.inf)
    a, b, c, d = low, low, low, low  # four chains: one alone waits for itself
    j = 0
    while j + 4 * step <= n:
        a = larger(load(z, j), a)
        b = larger(load(z, j + step), b)
        c = larger(load(z, j + 2 * step), c)
        d = larger(load(z, j + 3 * step), d)
        j += 4 * step
    while j + step <= n:
        a = larger(load(z, j), a)
        j += step
    b = larger(load_first(z, j, n - j, low), b)
    return largest(larger(larger(a, b), larger(c, d)))


@inline
def exp_at(z: Any, j: int, m: Any) -> Any:
    s, error = two_diff(load(z, j), m)
    return exp_shifted(s, error)


@inline
def exp_at_first(z: Any, j: int, k: int, m: Any) -> Any:
    """k lanes of the same; 0 in the others."""
    s, error = two_diff(load_first(z, j, k, constant(z, -np.inf, -np.inf)), m)
    return exp_shifted(s, error)


@inline
def row_exp(z: Any, n: int, m: Any, e: Any) -> Any:
    """e[j] = exp(z[j] - m) * 2**SHIFT; returns d as a pair of double vectors (all lanes alike).

    Asks for the row after this one as it goes: memory would else be idle while this one computes. Two vectors at a time
    let the CPU overlap more: 0.21 -> 0.19 ns an element.
    """
    step = lanes(z)
    hi, lo = lane_start(z)
    low = low_start()
    m = splat(m)
    j = 0
    while j < n:
        end = min(n, j + BLOCK * step)
        while j + 2 * step <= end:
            prefetch(z, j + n)
            prefetch(z, j + step + n)
            a, b = exp_at(z, j, m), exp_at(z, j + step, m)
            store(e, j, a)
            store(e, j + step, b)
            hi, lo = lane_add(hi, lo, a)
            hi, lo = lane_add(hi, lo, b)
            j += 2 * step
        while j < end:
            a = exp_at_first(z, j, end - j, m)
            store_first(e, j, a, end - j)
            hi, lo = lane_add(hi, lo, a)
            j += step
        low, lo = low_add(low, lo), constant(z, 0.0, 0.0)
    return row_sum(hi, low)


@inline
def row_exp_sum(z: Any, n: int, m: Any) -> Any:
    """The same d without keeping the exponentials."""
    step = lanes(z)
    hi, lo = lane_start(z)
    low = low_start()
    m = splat(m)
    j = 0
    while j < n:
        end = min(n, j + BLOCK * step)
        while j + 2 * step <= end:
            prefetch(z, j + n)
            prefetch(z, j + step + n)
            a, b = exp_at(z, j, m), exp_at(z, j + step, m)
            hi, lo = lane_add(hi, lo, a)
            hi, lo = lane_add(hi, lo, b)
            j += 2 * step
        while j < end:
            hi, lo = lane_add(hi, lo, exp_at_first(z, j, end - j, m))
            j += step
        low, lo = low_add(low, lo), constant(z, 0.0, 0.0)
    return row_sum(hi, low)


@by_type
def scaled(value, q_hi, q_lo):
    """value * 2**-SHIFT * (q_hi + q_lo), rounded once in the normal range and again only below it."""
    if value == V32 and not FMA:  # a product and a sum would be rounded: 2.03 ulps in all, not under 2

        def floats(value, q_hi, q_lo):
            a, b = widen(value)
            h0, h1 = widen(q_hi)
            l0, l1 = widen(q_lo)
            return narrow(a * (h0 + l0), b * (h1 + l1)) * splat(np.float32(1.0 / SHIFT32))

        return floats
    return lambda value, q_hi, q_lo: (
        fma(value, q_hi, value * q_lo) * constant(value, 1.0 / SHIFT32, 1.0 / SHIFT64)
    )


@inline
def row_scale(e: Any, n: int, q_hi: Any, q_lo: Any, out: Any, streaming: bool) -> None:
    """out[j] = e[j] * 2**-SHIFT * (q_hi + q_lo)"""
    step = lanes(e)
    q_hi, q_lo = splat(q_hi), splat(q_lo)
    j = 0
    if streaming:
        j = min(n, (step - misalignment(out)) % step)
        store_first(out, 0, scaled(load_first(e, 0, j, q_hi), q_hi, q_lo), j)
        while j + step <= n:
            stream(out, j, scaled(load(e, j), q_hi, q_lo))
            j += step
    else:
        while j + step <= n:
            store(out, j, scaled(load(e, j), q_hi, q_lo))
            j += step
    if j < n:
        store_first(out, j, scaled(load_first(e, j, n - j, q_hi), q_hi, q_lo), n - j)


@inline
def split(like: Any, hi: Any, lo: Any) -> Any:
    """Lane 0 of a pair of double vectors as a pair of scalars of `like`'s type."""
    return lane(pair_from_doubles(like, (hi, lo), (hi, lo))[0], 0), lane(pair_from_doubles(like, (hi, lo), (hi, lo))[1], 0)


@inline
def row_subtract(z: Any, n: int, m: Any, log: Any, out: Any, streaming: bool) -> None:
    """out[j] = (z[j] - m) - log: two terms of one sign, nothing cancels"""
    step = lanes(z)
    m, log = splat(m), splat(log)
    j = 0
    if streaming:
        j = min(n, (step - misalignment(out)) % step)
        store_first(out, 0, (load_first(z, 0, j, m) - m) - log, j)
        while j + step <= n:
            stream(out, j, (load(z, j) - m) - log)
            j += step
    else:
        while j + step <= n:
            store(out, j, (load(z, j) - m) - log)
            j += step
    if j < n:
        store_first(out, j, (load_first(z, j, n - j, m) - m) - log, n - j)
