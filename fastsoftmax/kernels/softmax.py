"""softmax, log_softmax and logsumexp over rows of n classes; wide and narrow rows each in their own way and kernel."""

from __future__ import annotations

from typing import Any

from ._jit import FLAG, INDEX, VECTOR_IN, VECTOR_OUT, inline, signature
from ._math import (
    SHIFT32,
    SHIFT64,
    exp_from,
    from_doubles,
    in_doubles,
    log1p_pair,
    multiplier,
    origin,
    pair_from_doubles,
    plus_one,
    ratio,
    two_sum,
)  # fmt: skip
from ._memory import release, scratch
from ._narrow import (
    across,
    kept_sums,
    load_tiles,
    log_softmax_begun,
    log_softmax_ended,
    rows_in_turn,
    softmax_begun,
    softmax_ended,
    sum_room,
    tile_room,
    tile_scaled,
    tile_size,
    tile_subtracted,
    tiles_exp,
    tiles_together,
)  # fmt: skip
from ._plans import a_number_each_narrow_row, a_number_each_wide_row, along_narrow_rows, along_wide_rows
from ._simd import (
    constant,
    fence,
    item,
    lanes,
    load,
    load_first,
    pointer,
    shift,
    splat,
    store,
    store_first,
)  # fmt: skip
from ._wide import (
    PAGE,
    row_exp_between,
    row_max,
    row_room,
    row_scale,
    row_subtract,
    rows_exp,
    rows_max,
    rows_together,
    scale_at,
    subtract_at,
    vector_room,
    write_row,
)  # fmt: skip


@inline
def softmax(logits: Any, probs: Any, n: int, streaming: bool, first: int, last: int) -> None:
    """Either kernel, for a user's compiled code (`numba_support`)."""
    if across(pointer(logits, 0), n):
        softmax_narrow(logits, probs, n, streaming, first, last)
    else:
        softmax_wide(logits, probs, n, streaming, first, last)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX, small=along_narrow_rows)
def softmax_narrow(logits, probs, n, streaming, first, last):
    """As many classes as go `across` lanes; results never go past the caches."""
    rows_in_turn(softmax_begun, softmax_ended, tile_scaled, pointer(logits, 0), pointer(probs, 0), n, first, last)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX, small=along_wide_rows)
def softmax_wide(logits, probs, n, streaming, first, last):
    if streaming:
        streaming_softmax(logits, probs, n, first, last)
        return
    like, zero = pointer(logits, 0), constant(pointer(logits, 0), 0.0, 0.0)
    most = rows_together(n, 128 * lanes(like))
    q_hi, q_lo, top = vector_room(like), vector_room(like), rows_max(pointer(logits, first * n), n, first, last, most)
    for i in range(first, last, most):
        z, p, count = pointer(logits, i * n), pointer(probs, i * n), min(last - i, most)
        d_hi, d_lo = rows_exp(z, n, count, most, top, p, n, True, False)
        q = ratio(like, splat(1.0), *plus_one(d_hi, d_lo))
        hi, lo = multiplier(zero, q, q)
        store(q_hi, 0, hi)
        store(q_lo, 0, lo)
        top = rows_max(shift(z, most * n), n, i + most, last, most)
        for b in range(count):
            row = shift(p, b * n)
            row_scale(row, n, item(q_hi, b), item(q_lo, b), row, False)


@inline
def streaming_softmax(logits: Any, probs: Any, n: int, first: int, last: int) -> None:
    like, zero = pointer(logits, 0), constant(pointer(logits, 0), 0.0, 0.0)
    room = scratch(like, n + PAGE * lanes(like))
    e = row_room(room, like)
    m, hi, lo = row_max(pointer(logits, first * n), n), zero, zero
    for i in range(first, last):
        z, after, p = pointer(logits, i * n), pointer(logits, min(i + 1, last - 1) * n), pointer(probs, (i - 1) * n)
        d_hi, d_lo, m = row_exp_between(z, n, m, e, True, False, after, i > first, p, scale_at, (e, hi, lo))
        q = ratio(e, splat(1.0), *plus_one(d_hi, d_lo))
        hi, lo = multiplier(zero, q, q)
    write_row(pointer(probs, (last - 1) * n), n, True, scale_at, (e, hi, lo))
    fence()
    release(room)


@inline
def log_softmax(logits: Any, log_probs: Any, n: int, streaming: bool, first: int, last: int) -> None:
    """Likewise."""
    if across(pointer(logits, 0), n):
        log_softmax_narrow(logits, log_probs, n, streaming, first, last)
    else:
        log_softmax_wide(logits, log_probs, n, streaming, first, last)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX, small=along_narrow_rows)
def log_softmax_narrow(logits, log_probs, n, streaming, first, last):
    z, out = pointer(logits, 0), pointer(log_probs, 0)
    rows_in_turn(log_softmax_begun, log_softmax_ended, tile_subtracted, z, out, n, first, last)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX, small=along_wide_rows)
def log_softmax_wide(logits, log_probs, n, streaming, first, last):
    if streaming:
        streaming_log_softmax(logits, log_probs, n, first, last)
        return
    like, zero = pointer(logits, 0), constant(pointer(logits, 0), 0.0, 0.0)
    most, maxima, logs = rows_together(n, 128 * lanes(like)), vector_room(like), vector_room(like)
    top = rows_max(pointer(logits, first * n), n, first, last, most)
    for i in range(first, last, most):
        z, out, count = pointer(logits, i * n), pointer(log_probs, i * n), min(last - i, most)
        d_hi, d_lo = rows_exp(z, n, count, most, top, z, n, False, True)
        log = log1p_pair(like, d_hi, d_lo)
        store(maxima, 0, top)
        store(logs, 0, pair_from_doubles(zero, log, log)[0])
        top = rows_max(shift(z, most * n), n, i + most, last, most)
        for b in range(count):
            row_subtract(shift(z, b * n), n, item(maxima, b), item(logs, b), shift(out, b * n), False)


@inline
def streaming_log_softmax(logits: Any, log_probs: Any, n: int, first: int, last: int) -> None:
    zero = constant(pointer(logits, 0), 0.0, 0.0)
    m, m_before, log = row_max(pointer(logits, first * n), n), zero, zero
    for i in range(first, last):
        z, after = pointer(logits, i * n), pointer(logits, min(i + 1, last - 1) * n)
        before, out = shift(z, -n), pointer(log_probs, (i - 1) * n)
        d_hi, d_lo, m_after = row_exp_between(
            z, n, m, z, False, True, after, i > first, out, subtract_at, (before, m_before, log)
        )  # fmt: skip
        value = log1p_pair(z, d_hi, d_lo)
        log, m_before, m = pair_from_doubles(zero, value, value)[0], splat(m), m_after
    write_row(pointer(log_probs, (last - 1) * n), n, True, subtract_at, (pointer(logits, (last - 1) * n), m_before, log))
    fence()


@inline
def logsumexp(logits: Any, lse: Any, n: int, first: int, last: int) -> None:
    """Likewise."""
    if across(pointer(logits, 0), n):
        logsumexp_narrow(logits, lse, n, first, last)
    else:
        logsumexp_wide(logits, lse, n, first, last)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, small=a_number_each_narrow_row)
def logsumexp_narrow(logits, lse, n, first, last):
    like = pointer(logits, 0)
    step, size, most = lanes(like), tile_size(like, n), tiles_together(n)
    tiles, sums = tile_room(like), sum_room(splat(0.0))
    maxima = shift(tiles, most * size)
    for start in range(first, last, most * step):
        count = (min(last - start, most * step) + step - 1) // step
        load_tiles(like, n, start, last, count, tiles, maxima)
        tiles_exp(like, n, n, start, count, tiles, maxima, tiles, size, shift(like, most * step * n), sums)
        for b in range(count):
            i, m = start + b * step, load(maxima, b * step)
            d, e = kept_sums(sums, b)
            m0, m1 = in_doubles(m)
            value = from_doubles(m, shifted_log(m, m0, d[0], d[1]), shifted_log(m, m1, e[0], e[1]))
            store_first(pointer(lse, 0), i, value, min(step, last - i))
    infinite_maxima(logits, lse, n, first, last)


@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, small=a_number_each_wide_row)
def logsumexp_wide(logits, lse, n, first, last):
    z, zero = pointer(logits, 0), constant(pointer(logits, 0), 0.0, 0.0)
    most = rows_together(n)
    following = rows_max(shift(z, first * n), n, first, last, most)
    for i in range(first, last, most):
        row, count = shift(z, i * n), min(last - i, most)
        top, following = following, rows_max(shift(row, most * n), n, i + most, last, most)
        d_hi, d_lo = rows_exp(row, n, count, most, top, row, n, False, True)
        value = shifted_log(z, in_doubles(top)[0], d_hi, d_lo)
        store_first(pointer(lse, 0), i, from_doubles(zero, value, value), count)
    infinite_maxima(logits, lse, n, first, last)


@inline
def infinite_maxima(logits: Any, lse: Any, n: int, first: int, last: int) -> None:
    """An infinite maximum is the result, as in SciPy and torch, unless there is a NaN."""
    for i in range(first, last):
        if lse[i] != lse[i]:
            largest_, bad = logits[i * n], False
            for j in range(i * n, (i + 1) * n):
                bad = bad or logits[j] != logits[j]
                largest_ = max(largest_, logits[j])
            if not bad:
                lse[i] = largest_


@inline
def shifted_log(like: Any, m: Any, d_hi: Any, d_lo: Any) -> Any:
    """m + log(1 + d), double vectors, the sum taken as a pair: m and the logarithm may all but cancel."""
    hi, lo = log1p_pair(like, d_hi, d_lo)
    s, error = two_sum(m, hi)
    return s + (error + lo)


@signature(VECTOR_IN, VECTOR_OUT)
def exp(x, out):
    """The exponential that all kernels use, for x <= 0, left multiplied by TOP / SHIFT: there to be tested."""
    step = lanes(pointer(x, 0))
    unit = constant(pointer(x, 0), 1.0 / SHIFT32, 1.0 / SHIFT64)
    zero = constant(pointer(x, 0), 0.0, 0.0)
    base = origin(zero)
    for j in range(0, x.size, step):
        value = exp_from(load_first(pointer(x, 0), j, x.size - j, zero), base)
        store_first(pointer(out, 0), j, value * unit, x.size - j)
