"""softmax, log_softmax and logsumexp over the rows of a matrix.

(a) Wide rows: a row at a time, lanes along the row: the maximum, then exponentials and their sum, then one scaling pass
    while the row is in cache. Sum order: element j goes to lane j % lanes; lanes fold in a fixed tree.
(b) Narrow rows (fewer than `NARROW` classes): as many rows as there are lanes, transposed through a tile in L1, each lane
    one row. Sum order: j = 0, 1, 2, ...
(c) Large outputs: exponentials go to one row of scratch and the scaled row past the caches (`stream`).

The helpers serve the losses as well. d is a row's sum of exponentials less one, see `_math`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import FLAG, INDEX, MATRIX_IN, MATRIX_OUT, VECTOR_IN, VECTOR_OUT, inline, signature
from ._math import (
    SHIFT32, SHIFT64, exp_shifted, from_doubles, in_doubles, lane_add, lane_start, lane_sums, log1p_pair, low_add, low_start,
    pair_from_doubles, plus_one, ratio, row_sum, two_diff, two_sum,
)  # fmt: skip
from ._simd import (
    constant, fence, fma, keep_alive, lane, lanes, larger, largest, load, load_first, load_transposed, misalignment,
    number, pointer, prefetch, shift, splat, store, store_first, store_transposed, stream,
)  # fmt: skip

NARROW = 64  # classes; measured, see `tile` below
# vectors after which small parts of a sum move to doubles: so many additions in one precision lose less than half an ulp
_BLOCK, _TILE_BLOCK = 8, 5


# ---- wide rows: lanes along the row ----------------------------------------------------------------------------------
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
        end = min(n, j + _BLOCK * step)
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
        end = min(n, j + _BLOCK * step)
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


@inline
def scaled(value: Any, q_hi: Any, q_lo: Any) -> Any:
    """value * 2**-SHIFT * (q_hi + q_lo), rounded once in the normal range and again only below it."""
    return fma(value, q_hi, value * q_lo) * constant(value, 1.0 / SHIFT32, 1.0 / SHIFT64)


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


# ---- narrow rows: one row a lane, through a tile of columns in L1 -------------------------------------------------------
@inline
def aligned(scratch: Any) -> Any:
    """The first address of a whole vector in an array that has room for one more."""
    p = pointer(scratch, 0)
    return shift(p, (lanes(p) - misalignment(p)) % lanes(p))


@inline
def load_tile(z: Any, n: int, rows: int, tile: Any) -> None:
    step = lanes(z)
    for j in range(0, n, step):
        load_transposed(shift(z, j), n, rows, min(step, n - j), shift(tile, j * step))


@inline
def store_tile(tile: Any, out: Any, n: int, rows: int) -> None:
    step = lanes(out)
    for j in range(0, n, step):
        store_transposed(shift(tile, j * step), shift(out, j), n, rows, min(step, n - j))


@inline
def tile_max(tile: Any, n: int) -> Any:
    step = lanes(tile)
    m = load(tile, 0)
    for j in range(1, n):
        m = larger(load(tile, j * step), m)
    return larger(m, constant(tile, -np.inf, -np.inf))  # a NaN in column 0 must not stay


@inline
def tile_exp(tile: Any, n: int, m: Any) -> Any:
    """Exponentials in place; returns d of the lanes, see `lane_sums`."""
    step = lanes(tile)
    hi, lo = lane_start(tile)
    low = low_start()
    j = 0
    while j < n:
        end = min(n, j + _TILE_BLOCK)
        while j < end:
            s, error = two_diff(load(tile, j * step), m)
            value = exp_shifted(s, error)
            store(tile, j * step, value)
            hi, lo = lane_add(hi, lo, value)
            j += 1
        low, lo = low_add(low, lo), constant(tile, 0.0, 0.0)
    return lane_sums(hi, low)


# ---- the kernels ----------------------------------------------------------------------------------------------------------
@signature(MATRIX_IN, MATRIX_OUT, FLAG, INDEX, INDEX)
def softmax(logits, probs, streaming, first, last):
    n = logits.shape[1]
    if n < NARROW:
        step = lanes(pointer(logits, 0))
        scratch = np.empty((NARROW + 1) * step, logits.dtype)
        tile = aligned(scratch)
        for i in range(first, last, step):
            rows = min(step, last - i)
            load_tile(pointer(logits, i * n), n, rows, tile)
            a, b = tile_exp(tile, n, tile_max(tile, n))
            q = pair_from_doubles(
                load(tile, 0), ratio(splat(1.0), *plus_one(a[0], a[1])), ratio(splat(1.0), *plus_one(b[0], b[1]))
            )
            for j in range(n):
                store(tile, j * step, scaled(load(tile, j * step), q[0], q[1]))
            store_tile(tile, pointer(probs, i * n), n, rows)
        keep_alive(scratch)
        return
    scratch = np.empty(n if streaming else 0, logits.dtype)
    for i in range(first, last):
        z, p = pointer(logits, i * n), pointer(probs, i * n)
        e = pointer(scratch, 0) if streaming else p
        d = row_exp(z, n, row_max(z, n), e)
        q_hi, q_lo = split(z, *ratio(splat(1.0), *plus_one(d[0], d[1])))
        row_scale(e, n, q_hi, q_lo, p, streaming)
    if streaming:
        fence()


@signature(MATRIX_IN, MATRIX_OUT, FLAG, INDEX, INDEX)
def log_softmax(logits, log_probs, streaming, first, last):
    n = logits.shape[1]
    step = lanes(pointer(logits, 0))
    if n < NARROW:
        scratch = np.empty(2 * (NARROW + 1) * step, logits.dtype)
        tile = aligned(scratch)
        kept = shift(tile, NARROW * step)
        for i in range(first, last, step):
            rows = min(step, last - i)
            load_tile(pointer(logits, i * n), n, rows, tile)
            m = tile_max(tile, n)
            for j in range(n):
                store(kept, j * step, load(tile, j * step) - m)
            a, b = tile_exp(tile, n, m)
            log = from_doubles(m, log1p_pair(a[0], a[1])[0], log1p_pair(b[0], b[1])[0])
            for j in range(n):
                store(tile, j * step, load(kept, j * step) - log)
            store_tile(tile, pointer(log_probs, i * n), n, rows)
        keep_alive(scratch)
        return
    for i in range(first, last):
        z, out = pointer(logits, i * n), pointer(log_probs, i * n)
        m = row_max(z, n)
        d = row_exp_sum(z, n, m)
        log = log1p_pair(d[0], d[1])
        row_subtract(z, n, m, split(z, log[0], log[1])[0], out, streaming)
    if streaming:
        fence()


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


@signature(MATRIX_IN, VECTOR_OUT, INDEX, INDEX)
def logsumexp(logits, lse, first, last):
    n = logits.shape[1]
    step = lanes(pointer(logits, 0))
    if n < NARROW:
        scratch = np.empty((NARROW + 1) * step, logits.dtype)
        tile = aligned(scratch)
        for i in range(first, last, step):
            rows = min(step, last - i)
            load_tile(pointer(logits, i * n), n, rows, tile)
            m = tile_max(tile, n)
            a, b = tile_exp(tile, n, m)
            m0, m1 = in_doubles(m)
            value = from_doubles(m, shifted_log(m0, a[0], a[1]), shifted_log(m1, b[0], b[1]))
            store_first(pointer(lse, 0), i, value, rows)
        keep_alive(scratch)
    else:
        for i in range(first, last):
            z = pointer(logits, i * n)
            m = row_max(z, n)
            d = row_exp_sum(z, n, m)
            value = shifted_log(splat(np.float64(m)), d[0], d[1])
            lse[i] = lane(from_doubles(load_first(z, 0, 0, splat(m)), value, value), 0)
    for i in range(first, last):  # an infinite maximum is the result, as in SciPy and torch, unless there is a NaN
        if lse[i] != lse[i]:
            largest_, bad = logits[i, 0], False
            for j in range(n):
                bad = bad or logits[i, j] != logits[i, j]
                largest_ = max(largest_, logits[i, j])
            if not bad:
                lse[i] = largest_


@inline
def shifted_log(m: Any, d_hi: Any, d_lo: Any) -> Any:
    """m + log(1 + d), double vectors, the sum taken as a pair: m and the logarithm may all but cancel."""
    hi, lo = log1p_pair(d_hi, d_lo)
    s, error = two_sum(m, hi)
    return s + (error + lo)


@signature(VECTOR_IN, VECTOR_OUT)
def exp(x, out):
    """The exponential that all kernels use, for x <= 0: there to be tested."""
    step = lanes(pointer(x, 0))
    unit = constant(pointer(x, 0), 1.0 / SHIFT32, 1.0 / SHIFT64)
    zero = constant(pointer(x, 0), 0.0, 0.0)
    for j in range(0, x.size, step):
        value = exp_shifted(load_first(pointer(x, 0), j, x.size - j, zero), zero)
        store_first(pointer(out, 0), j, value * unit, x.size - j)
