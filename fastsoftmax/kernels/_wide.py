"""Wide rows: lanes along the row.

The maximum, then exponentials and their sum, then one scaling pass while the row is in cache. Element j goes to lane
j % lanes, lanes fold in a fixed tree. Shorter rows are worked on together, one phase after the other: each row's sum is the
end of a chain that the next row need not wait for, and one division or logarithm serves all (128 x 100, float32: 8.9 -> 6.7
us). Results beyond the last-level cache go past it (`stream`), from one row of scratch, and memory is busy all the time: while
a row's exponentials are computed, the row before is written and the row after is looked through (`row_exp_between`). d is a
row's sum of exponentials less one, see `_math`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import by_type, inline
from ._math import (
    eight_pairs,
    fold_pair,
    four_begun,
    four_ended,
    lane_start,
    low_add,
    low_moved,
    low_start,
    origin,
    pair_from_doubles,
    rest_begun,
    rest_ended,
    row_sum,
    scaled,
    sum_ended,
    sum_parts,
)  # fmt: skip
from ._memory import stack
from ._simd import (
    V32,
    constant,
    eight_largest,
    eight_totals,
    item,
    lane,
    lanes,
    larger,
    largest,
    load,
    load_first,
    misalignment,
    prefetch,
    shift,
    splat,
    store,
    store_first,
    stream,
    total,
    with_lane,
)  # fmt: skip
from ._target import WIDE

vector_room = stack(64)  # a number for each of the rows worked on together
eight_vectors = stack(512)  # a vector for each

PAGE = 64  # vectors, 4 KiB
FEW = 2  # rows: no more than these, and each is added up by itself (1,000 classes, float32: 10.7 -> 9.7 cycles a vector)
AHEAD = 256  # vectors, 16 KiB: how far ahead memory is asked for the row after (256 x 32000, float32: 2.6 ms with 32, 1.9 so)


@inline
def block_of(z: Any) -> int:
    """Elements after which the small parts of a sum move on: 4 vectors of floats, 16 of doubles, whose limit is wider."""
    return 64 if lanes(z) == 16 else 128


@inline
def rows_together(n: int, most: int = 2048) -> int:
    """How many rows to work on at once: of `most` elements, and as many as a vector has doubles.

    Of doubles 2,048 where a logarithm is waited for (128 x 1000, loss-gradient: 13.4 -> 13.0 cycles a vector), 1,024 where all
    rows are read once more (log_softmax: 13.5, 13.0 so).
    """
    return max(1, min(8, most // n))


@inline
def row_max(z: Any, n: int) -> Any:
    """The largest of z[0..n-1], NaN passed over; -inf if there is nothing else."""
    return largest(lane_max(z, n))


@inline
def lane_max(z: Any, n: int) -> Any:
    """The same of each lane."""
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
    return larger(larger(a, b), larger(c, d))


@inline
def begun_at(z: Any, j: int, n: int, base: Any, before: Any) -> Any:
    """The first halves of a row's exponentials from j on, four vectors at most; what was `before` if there are none."""
    left = n - j
    if left >= 4 * lanes(z):
        return four_begun(z, j, base)
    if left > 0:
        return rest_begun(z, j, left, base)
    return before


@inline
def this_and_next(z: Any, j: int, n: int, base: Any, begun: Any) -> Any:
    """Four vectors to be ended now, and what is begun of those after them.

    Nothing with few registers: LLVM would keep it in memory (Zen 3, 1,000 classes, float32: 300 instructions for four vectors,
    257 so, and 5 % less time).
    """
    if WIDE:
        return begun, begun_at(z, j + 4 * lanes(z), n, base, begun)
    this = four_begun(z, j, base)
    return this, this


@inline
def row_exp(z: Any, n: int, base: Any, e: Any, keep: bool, exact: bool, ahead: int) -> Any:
    """The lanes' sums of a row, for `row_sum`; d has all its digits if it is to be `exact`.

    e[j] = exp_from(z[j], base) if it is to be kept. Asks for the row `ahead` elements on as it goes: memory would else be idle
    while this one computes.
    """
    step = lanes(z)
    hi, lo = lane_start(z)
    low = low_start()
    j, begun = 0, rest_begun(z, 0, n, base)
    while j + 4 * step <= n:
        this, begun = this_and_next(z, j, n, base, begun)
        for k in range(4):
            prefetch(z, j + k * step + ahead)
        hi, lo = four_ended(this, e, j, keep, hi, lo)
        j += 4 * step
        if j % block_of(z) == 0:
            low, lo = low_moved(low, lo, exact)
    if j < n:
        hi, lo = rest_ended(begun if WIDE else rest_begun(z, j, n - j, base), e, j, n - j, keep, hi, lo)
    return hi, low_add(low, lo)


@inline
def rows_max(z: Any, n: int, i: int, last: int, most: int) -> Any:
    """The maxima of rows [i, min(i + most, last)), one in each lane, of no rows if i is beyond; z is where row i begins.

    To be called while the rows before wait for their sums and divisions: this waits for nothing (1024 x 1000, float32:
    339 -> 320 us).
    """
    count = max(0, min(last - i, most))
    if most > FEW:
        maxima, step = eight_vectors(z), lanes(z)
        for b in range(count):
            store(maxima, b * step, lane_max(shift(z, b * n), n))
        for b in range(count, 8):
            store(maxima, b * step, constant(z, 0.0, 0.0))
        return eight_largest(maxima)
    top = constant(z, 0.0, 0.0)
    for b in range(count):
        top = with_lane(top, b, row_max(shift(z, b * n), n))
    return top


@inline
def rows_exp(z: Any, n: int, count: int, most: int, top: Any, e: Any, apart: int, keep: bool, exact: bool) -> Any:
    """`row_exp` for `count` rows with the maxima `top`, their exponentials `apart` from each other: d, a row in each lane.

    The next `most` rows are asked for.
    """
    offset, zero_k, rest = origin(top)
    offsets, zeros, rests = vector_room(z), vector_room(z), vector_room(z)
    store(offsets, 0, offset)
    store(zeros, 0, zero_k)
    store(rests, 0, rest)
    hi, lo = eight_vectors(splat(0.0)), eight_vectors(splat(0.0))
    for b in range(count):
        base = splat(item(offsets, b)), splat(item(zeros, b)), splat(item(rests, b))
        parts = sum_parts(*row_exp(shift(z, b * n), n, base, shift(e, b * apart), keep, exact, most * n))
        store(hi, b * 8, parts[0])
        store(lo, b * 8, parts[1])
    return sum_ended(z, *rows_across(z, hi, lo, count, most))


@by_type
def rows_across(like, hi, lo, count, most):
    """What `count` rows' `sum_parts` add up to over all lanes, a row in each lane; row b's are at hi[8 * b] and lo[8 * b].

    Together: float64, 100 classes: 252 -> 191 cycles a row, float32 108 -> 102.
    """
    if like.dtype is V32.dtype:
        return lambda like, hi, lo, count, most: (rows_total(hi, count, most), rows_total(lo, count, most))
    return lambda like, hi, lo, count, most: rows_pair(hi, lo, count, most)


@inline
def rows_total(p: Any, count: int, most: int) -> Any:
    """The `total` of each of `count` double vectors at p, one in each lane."""
    if most > FEW:
        for b in range(count, 8):
            store(p, b * 8, splat(0.0))
        return eight_totals(p)
    sums = splat(0.0)
    for b in range(count):
        sums = with_lane(sums, b, total(load(p, b * 8)))
    return sums


@inline
def rows_pair(hi: Any, lo: Any, count: int, most: int) -> Any:
    """`fold_pair` of each."""
    if most > FEW:
        for b in range(count, 8):
            store(hi, b * 8, splat(0.0))
            store(lo, b * 8, splat(0.0))
        return eight_pairs(hi, lo)
    sums, rests = splat(0.0), splat(0.0)
    for b in range(count):
        s, rest = fold_pair(load(hi, b * 8), load(lo, b * 8))
        sums, rests = with_lane(sums, b, lane(s, 0)), with_lane(rests, b, lane(rest, 0))
    return sums, rests


@inline
def begin_line(out: Any, n: int, value: Any, row: Any) -> int:
    """Write a row as far as its first whole line; where that begins."""
    step = lanes(out)
    lead = min(n, (step - misalignment(out, 1)) % step)
    store_first(out, 0, value(row, 0, lead), lead)
    return lead


@inline
def stream_lines(out: Any, j: int, n: int, value: Any, row: Any) -> None:
    """Write a row from j on, where a line begins, past the caches."""
    step = lanes(out)
    while j + step <= n:
        stream(out, j, value(row, j, step))
        j += step
    store_first(out, j, value(row, j, n - j), n - j)


@inline
def write_row(out: Any, n: int, streaming: bool, value: Any, row: Any) -> None:
    """out[j:j+k] = value(row, j, k) for a whole row, past the cache if `streaming`; k is how many lanes count.

    The last vector ends with the row and begins in the one before: after a masked store the CPU keeps loads waiting from where
    its other lanes would lie, as where the next row begins (128 x 100, float32: 6.5 -> 5.7 us). Likewise the first ends in the
    second, so that those between are whole lines (1024 x 1000, float64: log_softmax 467 -> 424 us, softmax_backward 478 -> 365;
    float32 3 % less). What they share is worked out first, because `out` may be what `value` reads.
    """
    step = lanes(out)
    if streaming:
        stream_lines(out, begin_line(out, n, value, row), n, value, row)
    elif n < step:
        store_first(out, 0, value(row, 0, n), n)
    else:
        first, last = value(row, 0, step), value(row, n - step, step)
        j = step - misalignment(out, 1)
        second = value(row, min(j, n - step), step)
        store(out, 0, first)
        if j + step < n:
            store(out, j, second)
            j += step
        while j + step < n:
            store(out, j, value(row, j, step))
            j += step
        store(out, n - step, last)


@inline
def write_row_looking(out: Any, n: int, value: Any, row: Any, look: Any, a: Any, b: Any, state: Any) -> Any:
    """`write_row` past the caches; meanwhile state = look(a, b, j, state) for every two vectors of two rows a and b.

    Returns where what is left of these begins, and the state. They are asked for half as far ahead as one row is in
    `row_exp_between`. `out` may be what `value` reads, so what is no pair of whole lines is written first.
    """
    pair, step = 2 * lanes(out), lanes(out)
    lead = begin_line(out, n, value, row)
    stream_lines(out, lead + (n - lead) // pair * pair, n, value, row)
    j = 0
    while j + pair <= n:
        for k in range(j, j + pair, step):
            prefetch(a, k + AHEAD // 2 * step)
            prefetch(b, k + AHEAD // 2 * step)
        state = look(a, b, j, state)
        if j + lead + pair <= n:
            for k in range(j + lead, j + lead + pair, step):
                stream(out, k, value(row, k, step))
        j += pair
    return j, state


@inline
def row_scale(e: Any, n: int, q_hi: Any, q_lo: Any, out: Any, streaming: bool) -> None:
    """out[j] = e[j] * 2**-SHIFT * (q_hi + q_lo)"""
    write_row(out, n, streaming, scale_at, (e, splat(q_hi), splat(q_lo)))


@inline
def page_apart(p: Any, z: Any) -> int:
    """How many elements p lies after z if only the last 12 bits of addresses count."""
    return (misalignment(p, PAGE) - misalignment(z, PAGE)) % (PAGE * lanes(z))


@inline
def row_room(room: Any, z: Any) -> Any:
    """The address of a whole line in memory with room for a row and a page, from which stores do not hinder loads from z."""
    line = shift(z, -misalignment(z, 1))
    return shift(room, (PAGE // 2 * lanes(z) - page_apart(room, line)) % (PAGE * lanes(z)))


@inline
def row_exp_between(
    z: Any, n: int, m: Any, e: Any, keep: bool, exact: bool, following: Any, writes: bool, out: Any, value: Any, row: Any
) -> Any:  # fmt: skip
    """d, of `row_exp`; also the maximum of the row `following`, and if it `writes`, `write_row(out, n, True, value, row)`.

    Takes 0.7 to 0.85 of the time of one after the other. What `row` has at j may be overwritten by e[j]: the row
    before is written from a whole line on, so it is always read first. It is written so far ahead of what is read that no load
    has the last 12 bits of its address in common with one of the stores just before: CPUs make it wait for such (Zen 4,
    4096 x 4096, float32: 11.4 -> 6.9 ms). With few registers it is written first (Zen 3, loss-gradient, 4096 x 4096, one
    thread, of the time within the caches: float32 1.04 -> 0.93, float64 1.10 -> 0.95).
    """
    step = lanes(z)
    hi, lo = lane_start(z)
    low, least = low_start(), constant(z, -np.inf, -np.inf)
    a_max, b_max, base = least, least, origin(splat(m))
    lead = 0
    if writes and not WIDE:
        write_row(out, n, True, value, row)
        writes = False
    if writes:
        lead = begin_line(out, n, value, row)
        apart = page_apart(shift(out, lead + 4 * step), z)
        while apart < PAGE * step // 4 and lead + 4 * step <= n:
            stream(out, lead, value(row, lead, step))
            lead, apart = lead + step, apart + step
        end = lead + (n - lead) // (4 * step) * (4 * step)
        while end + step <= n:  # not `stream_lines`: LLVM does better by the loop below (256 x 32000, float32: 6.0 -> 5.2 ms)
            stream(out, end, value(row, end, step))
            end += step
        store_first(out, end, value(row, end, n - end), n - end)
    j, begun = 0, rest_begun(z, 0, n, base)
    while j + 4 * step <= n:
        for k in range(j, j + 4 * step, step):
            prefetch(following, k + AHEAD * step)
        a_max, b_max = larger(load(following, j), a_max), larger(load(following, j + step), b_max)
        a_max, b_max = larger(load(following, j + 2 * step), a_max), larger(load(following, j + 3 * step), b_max)
        if writes and j + lead + 4 * step <= n:
            for k in range(j + lead, j + lead + 4 * step, step):
                stream(out, k, value(row, k, step))
        this, begun = this_and_next(z, j, n, base, begun)
        hi, lo = four_ended(this, e, j, keep, hi, lo)
        j += 4 * step
        if j % block_of(z) == 0:
            low, lo = low_moved(low, lo, exact)
    if j < n:
        hi, lo = rest_ended(begun if WIDE else rest_begun(z, j, n - j, base), e, j, n - j, keep, hi, lo)
    for k in range(j, n, step):
        a_max = larger(load_first(following, k, n - k, least), a_max)
    d_hi, d_lo = row_sum(hi, low_add(low, lo))
    return d_hi, d_lo, largest(larger(a_max, b_max))


@inline
def row_exp_looking(z: Any, n: int, m: Any, following: Any) -> Any:
    """The same where nothing is written."""
    zero = constant(z, 0.0, 0.0)
    return row_exp_between(z, n, m, z, False, True, following, False, z, scale_at, (z, zero, zero))


@inline
def scale_at(row: Any, j: int, k: int) -> Any:
    """What `row_scale` writes."""
    e, q_hi, q_lo = row
    return scaled(load_first(e, j, k, q_hi), q_hi, q_lo)


@inline
def subtract_at(row: Any, j: int, k: int) -> Any:
    """What `row_subtract` writes."""
    z, m, log = row
    return (load_first(z, j, k, m) - m) - log


@inline
def split(like: Any, hi: Any, lo: Any) -> Any:
    """Lane 0 of a pair of double vectors as a pair of scalars of `like`'s type."""
    return lane(pair_from_doubles(like, (hi, lo), (hi, lo))[0], 0), lane(pair_from_doubles(like, (hi, lo), (hi, lo))[1], 0)


@inline
def row_subtract(z: Any, n: int, m: Any, log: Any, out: Any, streaming: bool) -> None:
    """out[j] = (z[j] - m) - log: two terms of one sign, nothing cancels"""
    write_row(out, n, streaming, subtract_at, (z, splat(m), splat(log)))
