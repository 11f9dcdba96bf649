"""Cross-entropy of probabilities and of smoothed labels: targets that put weight on every class.

Row i has weights b_j: of probabilities t, b_j = ((1 - e) * t_j + e / n_classes) * class_weight_j; of a label t,
b_j = (1 - e) * [j == t] * class_weight_t + e / n_classes * class_weight_j; with A their sum,
    loss   = A * log1p(d) + sum_j b_j * (m - z_j)
    grad_j = (A * e_j - b_j * (1 + d)) / (1 + d),    e_j = exp(z_j - m)
all times sample_weight. A * p - b all but cancels wherever the model agrees with a smooth target, so doubles are computed in
pairs (106 bits), and floats in doubles; a one-hot row still has its 1e-20 at the target.

Two passes after the maximum: one takes exponentials and sums, one writes the gradient. What a label adds to its own class is
left out of both, and put in for several rows at once, as are logarithms and divisions. Of labels without class weights what is
left weighs alike, and A is 1: grad_j = (e_j - e / n_classes * (1 + d)) / (1 + d), in passes of their own (Zen 3, one thread,
loss and gradient: 8192 x 10 float32 515 -> 245 us, float64 1.0 -> 0.55 ms, 128 x 1000 285 -> 208 us, 690 -> 550).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import DOUBLES_IN, INDEX, LABELS, MATRIX_IN, MATRIX_OUT, REAL, VECTOR_OUT, by_type, inline, signature
from ._math import (
    SHIFT64,
    START64,
    exp_below_begun,
    exp_below_ended,
    exp_pair_begun,
    exp_pair_ended,
    fast_two_sum,
    lane_add,
    lane_part,
    log1p_pair,
    pair_less,
    plus_one,
    two_diff,
    two_product,
    two_sum,
)  # fmt: skip
from ._memory import release, scratch
from ._narrow import NARROW, load_tile, store_tile, tile_room, tile_size
from ._simd import (
    V32,
    exact_fma,
    fma,
    item,
    lane,
    lanes,
    load,
    load_first,
    load_wide,
    load_wide_first,
    number,
    pointer,
    put,
    select,
    shift,
    splat,
    store,
    store_narrow_first,
    with_lane,
)  # fmt: skip
from ._wide import eight_vectors, row_max, rows_pair, rows_total, vector_room
from .cross_entropy import nonzero, row_clear, row_target

_UNIT = 1.0 / SHIFT64


# ---- pairs of doubles; of floats a double has digits enough, and their low parts are 0 --------------------------------------
@inline
def add(a: Any, b: Any) -> Any:
    s, error = two_sum(a[0], b[0])
    return fast_two_sum(s, error + (a[1] + b[1]))


@inline
def times(a: Any, b: Any) -> Any:
    """A pair times a double."""
    p, error = two_product(a[0], b)
    return p, error + a[1] * b


@inline
def product(a: Any, b: Any, scale: float) -> Any:
    """a * b * scale of pairs, scale a power of two."""
    p, error = two_product(a[0], b[0])
    return p * splat(scale), (error + (a[0] * b[1] + a[1] * b[0])) * splat(scale)


@inline
def divide(a: float, b: float) -> Any:
    """a / b of two doubles as a pair."""
    q = splat(a) / splat(b)
    return q, exact_fma(-q, splat(b), splat(a)) / splat(b)


@inline
def difference(a: Any, e: Any, b: Any, d: Any) -> Any:
    """a * e - b * (1 + d) of pairs, rounded once."""
    one = plus_one(d[0], d[1])
    p, p_lo = two_product(a[0], e[0])
    q, q_lo = two_product(b[0], one[0])
    s, error = two_diff(p, q)
    return s + (error + ((p_lo + (a[0] * e[1] + a[1] * e[0])) - (q_lo + (b[0] * one[1] + b[1] * one[0]))))


@by_type
def gradient(like, a, e, b, d):
    """The same; of floats in an order that leaves d whole where a * e is b."""
    if like.dtype is V32.dtype:
        return lambda like, a, e, b, d: fma(a[0], e[0], -b[0]) + fma(a[1], e[0], -(b[0] * d[0]))
    return lambda like, a, e, b, d: difference(a, e, b, d)


@by_type
def gradient_alike(like, e, q):
    """The same where A is 1 and b * (1 + d) is q for every class."""
    if like.dtype is V32.dtype:
        return lambda like, e, q: e[0] - q[0]

    def doubles(like, e, q):
        s, error = two_diff(e[0], q[0])
        return s + (error + (e[1] - q[1]))

    return doubles


@by_type
def exponential_begun(like, s, error):
    """The first half of exp(s + error), times 2**SHIFT, see `exp_begun`."""
    if like.dtype is V32.dtype:
        return lambda like, s, error: exp_below_begun(s)
    return lambda like, s, error: exp_pair_begun(s, error)


@by_type
def exponential_ended(like, begun):
    """The second: it as a pair."""
    if like.dtype is V32.dtype:
        return lambda like, begun: (exp_below_ended(begun), splat(0.0))
    return lambda like, begun: exp_pair_ended(begun)


@by_type
def mixed(like, keep, t, uniform):
    """keep * t + uniform."""
    if like.dtype is V32.dtype:
        return lambda like, keep, t, uniform: (fma(keep[0], t, uniform[0]), splat(0.0))
    return lambda like, keep, t, uniform: add(times(keep, t), uniform)


@by_type
def weighted(like, b, weight):
    """b * weight."""
    if like.dtype is V32.dtype:
        return lambda like, b, weight: (b[0] * weight, splat(0.0))
    return lambda like, b, weight: times(b, weight)


@by_type
def store_pair(like, e, e_lo, j, value):
    if like.dtype is V32.dtype:
        return lambda like, e, e_lo, j, value: store(e, j, value[0])

    def doubles(like, e, e_lo, j, value):
        store(e, j, value[0])
        store(e_lo, j, value[1])

    return doubles


@by_type
def load_pair(like, e, e_lo, j):
    if like.dtype is V32.dtype:
        return lambda like, e, e_lo, j: (load(e, j), splat(0.0))
    return lambda like, e, e_lo, j: (load(e, j), load(e_lo, j))


@by_type
def item_pair(like, e, e_lo, j):
    if like.dtype is V32.dtype:
        return lambda like, e, e_lo, j: (item(e, j), 0.0)
    return lambda like, e, e_lo, j: (item(e, j), item(e_lo, j))


# ---- sums over the classes --------------------------------------------------------------------------------------------------
@by_type
def add_exponential(like, hi, lo, value):
    """As `lane_add`, of pairs."""
    if like.dtype is V32.dtype:
        return lambda like, hi, lo, value: lane_add(hi, lo, value[0])

    def doubles(like, hi, lo, value):
        s, lost = lane_part(hi, value[0])
        return s, lo + (lost + value[1])

    return doubles


@by_type
def sums_moved(like, sums):
    """Of doubles what a plain sum has lost digits of after many terms moved to a pair, after 16 at most: lo, and x.

    Once x was infinite, x_hi is, or NaN, and x_lo is NaN.
    """
    if like.dtype is V32.dtype:
        return lambda like, sums: sums

    def doubles(like, sums):
        hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo = sums
        low, error = two_sum(low, lo)
        x_hi, rest = two_sum(x_hi, x)
        return hi, splat(0.0), low, lost + error, a_hi, a_lo, splat(0.0), x_hi, x_lo + rest

    return doubles


@inline
def no_sums() -> Any:
    """Of exponentials in four parts, of weights as a pair, of losses less A * log1p(d), x, in three."""
    zero = splat(0.0)
    return splat(START64), zero, zero, zero, zero, zero, zero, zero, zero


@inline
def classes_begun(like: Any, z: Any, m: Any) -> Any:
    """A vector of logits less the maximum, and the first halves of their exponentials."""
    s, error = two_diff(z, m)
    return s, exponential_begun(like, s, error)


@inline
def add_exponentials(like: Any, begun: Any, e: Any, e_lo: Any, at: int, kept: bool, sums: Any) -> Any:
    """Add them; e[at..] gets them if they are to be kept."""
    hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo = sums
    value = exponential_ended(like, begun[1])
    if kept:
        store_pair(like, e, e_lo, at, value)
    hi, lo = add_exponential(like, hi, lo, value)
    return hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo


@inline
def add_weights(like: Any, s: Any, b: Any, given: Any, sums: Any) -> Any:
    """Add the weights b of the classes whose logits less the maximum are s."""
    hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo = sums
    if given[0] or given[2]:
        a_hi, error = two_sum(a_hi, b[0])
        a_lo = a_lo + (error + b[1])
    term = b[0] * -s  # 0 * inf: a masked class without weight adds nothing, but NaN does
    x = x + select(b[0] == splat(0.0), select(s == s, splat(0.0), s), term)
    return hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo


@inline
def add_alike(like: Any, s: Any, j: int, k: int, row: Any, sums: Any) -> Any:
    """The same of k classes of one weight."""
    hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo = sums
    if k < 8:
        s = select(row[2][0] == splat(0.0), splat(0.0), s)
    x = fma(s, -row[1][0], x)
    return hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo


@inline
def sums_ended(sums: Any) -> Any:
    """What lanes are to be added up of: (the exponentials in two parts, A as a pair, x)."""
    hi, lo, low, lost, a_hi, a_lo, x, x_hi, x_lo = sums
    whole = x_hi + (x_lo + x)
    return (hi, low + (lo + lost)), fast_two_sum(a_hi, a_lo), select(x_lo == x_lo, whole, x_hi)


# ---- wide rows: lanes along the row -----------------------------------------------------------------------------------------
# `row` is (where its probabilities are, uniform, rest, given): what every class weighs, the same for those of the last vector,
# and what else there is.
@inline
def row_at(row: Any, k: int) -> Any:
    return shift(row[0], k), row[1], row[2], row[3]


@inline
def class_weights(like: Any, j: int, k: int, row: Any) -> Any:
    """b_j.. of the first k lanes, without what a label adds; 0 in the others."""
    t, uniform, rest, given = row
    soft, keep, weighs, weights = given
    b = uniform if k == 8 else rest
    if soft:
        b = mixed(like, keep, load_wide_first(t, j, k, 0.0), b)
    if weighs:
        b = weighted(like, b, load_first(weights, j, k, splat(0.0)))
    return b


@inline
def add_classes(like: Any, s: Any, j: int, k: int, row: Any, sums: Any) -> Any:
    return add_weights(like, s, class_weights(like, j, k, row), row[3], sums)


@inline
def begun_at(z: Any, j: int, n: int, m: Any) -> Any:
    """`classes_begun` of a row's vector at j; -inf stands for what lies beyond its end.

    Two vectors are begun before the two before them are ended (1,000 classes, with the gradient: float64 64 -> 51 cycles for
    eight, float32 23 -> 18).
    """
    if j + 8 <= n:
        return classes_begun(z, load_wide(z, j), m)
    return classes_begun(z, load_wide_first(z, j, n - j, -np.inf), m)


@inline
def row_sums(z: Any, n: int, m: Any, add: Any, row: Any, e: Any, e_lo: Any, kept: bool) -> Any:
    """What is to be added up over all lanes: (d and A as pairs, sum_j b_j * (m - z_j)), without what a label adds."""
    sums, j, begun, more = no_sums(), 0, begun_at(z, 0, n, m), begun_at(z, 8, n, m)
    while j + 16 <= n:
        this, other, begun, more = begun, more, begun_at(z, j + 16, n, m), begun_at(z, j + 24, n, m)
        for _ in range(2):
            sums = add(z, this[0], j, 8, row, add_exponentials(z, this, e, e_lo, j, kept, sums))
            this, j = other, j + 8
        if j % 128 == 0:
            sums = sums_moved(z, sums)
    if j + 8 <= n:
        sums = add(z, begun[0], j, 8, row, add_exponentials(z, begun, e, e_lo, j, kept, sums))
        begun, j = more, j + 8
    if j < n:
        sums = add(z, begun[0], j, n - j, row, add_exponentials(z, begun, e, e_lo, j, kept, sums))
    (hi, lo), a, x = sums_ended(sums_moved(z, sums))
    return pair_less(hi, lo, splat(START64)), a, x


@inline
def rows_sums(z: Any, n: int, count: int, most: int, alike: bool, row: Any, e: Any, e_lo: Any, apart: int, kept: bool) -> Any:
    """Their sums for `count` rows, a row in each lane, and before them the maxima."""
    zero = splat(0.0)
    m, d_hi, d_lo = zero, eight_vectors(zero), eight_vectors(zero)
    a_hi, a_lo, x = eight_vectors(zero), eight_vectors(zero), eight_vectors(zero)
    for b in range(count):
        z_b, k, row_b = shift(z, b * n), b * apart, row_at(row, b * n)
        top = np.float64(row_max(z_b, n))
        if alike:
            d, a, x_b = row_sums(z_b, n, splat(top), add_alike, row_b, shift(e, k), shift(e_lo, k), kept)
        else:
            d, a, x_b = row_sums(z_b, n, splat(top), add_classes, row_b, shift(e, k), shift(e_lo, k), kept)
        m = with_lane(m, b, top)
        store(d_hi, b * 8, d[0])
        store(d_lo, b * 8, d[1])
        store(a_hi, b * 8, a[0])
        store(a_lo, b * 8, a[1])
        store(x, b * 8, x_b)
    d = pair_less(*rows_pair(d_hi, d_lo, count, most), splat(SHIFT64))
    a = rows_pair(a_hi, a_lo, count, most)
    return m, (d[0] * splat(_UNIT), d[1] * splat(_UNIT)), a, rows_total(x, count, most)


@inline
def row_gradient(n: int, value: Any, row: Any, e: Any, e_lo: Any, inverse: Any, out: Any) -> None:
    j = 0
    while j + 8 <= n:
        store_narrow_first(out, j, value(out, row, j, 8, load_pair(out, e, e_lo, j)) * inverse, 8)
        j += 8
    if j < n:
        store_narrow_first(out, j, value(out, row, j, n - j, load_pair(out, e, e_lo, j)) * inverse, n - j)


@inline
def class_gradient(like: Any, row: Any, j: int, k: int, e: Any) -> Any:
    return gradient(like, row[1], e, class_weights(like, j, k, row[0]), row[2])


@inline
def class_gradient_alike(like: Any, row: Any, j: int, k: int, e: Any) -> Any:
    return gradient_alike(like, e, row)


@inline
def rows_gradient(
    n: int, count: int, alike: bool, row: Any, e: Any, e_lo: Any, apart: int, a: Any, d: Any, inverse: Any, out: Any
) -> None:  # fmt: skip
    """The same for `count` rows, of which `a`, `d` and `inverse` have a lane each; if all weigh alike, q is at `a`."""
    a_hi, a_lo, d_hi, d_lo = vector_room(inverse), vector_room(inverse), vector_room(inverse), vector_room(inverse)
    inverses = vector_room(inverse)
    store(a_hi, 0, a[0])
    store(a_lo, 0, a[1])
    store(d_hi, 0, d[0])
    store(d_lo, 0, d[1])
    store(inverses, 0, inverse)
    for b in range(count):
        k, g, by = b * apart, shift(out, b * n), splat(item(inverses, b))
        a_b = splat(item(a_hi, b)), splat(item(a_lo, b))
        if alike:
            row_gradient(n, class_gradient_alike, a_b, shift(e, k), shift(e_lo, k), by, g)
        else:
            row_b = row_at(row, b * n), a_b, (splat(item(d_hi, b)), splat(item(d_lo, b)))
            row_gradient(n, class_gradient, row_b, shift(e, k), shift(e_lo, k), by, g)


# ---- narrow rows: eight at a time, a row in each lane, transposed through a tile of doubles ----------------------------------
@inline
def lane_class_weights(like: Any, j: int, row: Any) -> Any:
    t, uniform, _, given = row
    soft, keep, weighs, weights = given
    b = uniform
    if soft:
        b = mixed(like, keep, load(t, j * 8), uniform)
    if weighs:
        b = weighted(like, b, splat(item(weights, j)))
    return b


@inline
def add_lane_classes(like: Any, s: Any, j: int, k: int, row: Any, sums: Any) -> Any:
    return add_weights(like, s, lane_class_weights(like, j, row), row[3], sums)


@inline
def tile_sums(like: Any, n: int, m: Any, add: Any, row: Any, e: Any, e_lo: Any) -> Any:
    """As `row_sums`, of each lane; e holds the logits, then the exponentials."""
    sums, begun = no_sums(), classes_begun(like, load(e, 0), m)
    for j in range(n):
        this, begun = begun, classes_begun(like, load(e, min(j + 1, n - 1) * 8), m)
        sums = sums_moved(like, add(like, this[0], j, 8, row, add_exponentials(like, this, e, e_lo, j * 8, True, sums)))
    (hi, lo), a, x = sums_ended(sums)
    d_hi, d_lo = two_sum(hi - splat(START64 + SHIFT64), lo)
    return (d_hi * splat(_UNIT), d_lo * splat(_UNIT)), a, x


@inline
def tile_gradient(like: Any, n: int, value: Any, row: Any, e: Any, e_lo: Any, inverse: Any, counts: Any) -> None:
    """It takes the place of the exponentials."""
    for j in range(n):
        store(e, j * 8, nonzero(counts, value(like, row, j, 8, load_pair(like, e, e_lo, j * 8)) * inverse))


@inline
def lane_class_gradient(like: Any, row: Any, j: int, k: int, e: Any) -> Any:
    return gradient(like, row[1], e, lane_class_weights(like, j, row[0]), row[2])


@inline
def _tile_column(source: Any, j: int) -> Any:
    return load(source[0], j * 8)


# ---- rows ------------------------------------------------------------------------------------------------------------------
@inline
def soft_rows(
    logits: Any, labels: Any, probs: Any, smoothing: float, class_weight: Any, sample_weight: Any, ignore_index: int,
    grad_losses: Any, scale: float, denominator: float, losses: Any, grad: Any, wanted: bool, first: int, last: int,
) -> float:  # fmt: skip
    """The sum of the weighted losses; the gradient if it is wanted."""
    n, soft, weighs, zero = logits.shape[1], labels.size == 0, class_weight.size > 0, splat(0.0)
    like, targets, weights = pointer(logits, 0), pointer(labels, 0), pointer(class_weight, 0)
    keep, uniform = two_diff(splat(1.0), splat(smoothing)), divide(smoothing, np.float64(n))
    given, alike = (soft, keep, weighs, weights), not (soft or weighs) and lane(uniform[0], 0) > 0.0
    values, at_target = vector_room(zero), vector_room(zero)
    store(values, 0, uniform[0])
    store(at_target, 0, uniform[1])
    rest = load_first(values, 0, n % 8, zero), load_first(at_target, 0, n % 8, zero)

    # exponentials: of narrow rows in a tile, class by class; of wide ones row by row, `apart` from each other
    narrow, most, apart, parts = n < NARROW, max(1, min(8, 1024 // n)), (n + 7) // 8 * 8, 16 // lanes(like)
    room = scratch(zero, most * apart * parts if wanted and not narrow else 0)
    e, e_lo = room, shift(room, most * apart * (parts - 1))
    tile, size = tile_room(zero), tile_size(values, min(n, NARROW))
    t_tile = shift(tile, 2 * size)
    if narrow:
        e, e_lo = tile, shift(tile, size)
    result = 0.0
    for i in range(first, last, most):
        count, z, p, g = min(most, last - i), pointer(logits, i * n), pointer(probs, i * n), pointer(grad, i * n)
        if narrow:
            m = load_tile(z, n, count, e)
            if soft:
                load_tile(p, n, count, t_tile)
            row = t_tile, uniform, rest, given
            if alike:
                d, a, x = tile_sums(like, n, m, add_alike, row, e, e_lo)
            else:
                d, a, x = tile_sums(like, n, m, add_lane_classes, row, e, e_lo)
        else:
            m, d, a, x = rows_sums(z, n, count, most, alike, (p, uniform, rest, given), e, e_lo, apart, wanted)
        z_t, e_t, w_t, counts, w, factor = zero, (zero, zero), splat(1.0), splat(1.0), splat(1.0), splat(scale)
        for b in range(count):
            if not soft:
                t, counts_b = row_target(targets, i + b, ignore_index)
                z_t, counts = with_lane(z_t, b, np.float64(item(z, b * n + t))), with_lane(counts, b, counts_b)
                if weighs:
                    w_t = with_lane(w_t, b, item(weights, t))
                if wanted:
                    at = item_pair(like, e, e_lo, t * 8 + b if narrow else b * apart + t)
                    e_t = with_lane(e_t[0], b, at[0]), with_lane(e_t[1], b, at[1])
            if sample_weight.size:
                w = with_lane(w, b, sample_weight[i + b])
            if grad_losses.size:
                factor = with_lane(factor, b, scale * grad_losses[i + b])
        own = zero, zero
        if not soft:
            own = times(keep, w_t)
            a = add(a if weighs else (splat(smoothing), zero), own)
        log_hi, log_lo = log1p_pair(like, d[0], d[1])
        x = x + nonzero(own[0], own[0] * (m - z_t))
        store(values, 0, nonzero(counts, (a[0] * (log_hi + log_lo) + x) * w))
        for b in range(count):
            result += item(values, b)
            if losses.size:
                losses[i + b] = item(values, b)
        if wanted:
            inverse = w * factor / splat(denominator) / plus_one(d[0], d[1])[0]
            a = a[0] * splat(_UNIT), a[1] * splat(_UNIT)
            g_t = nonzero(counts, difference(a, e_t, add(own, weighted(like, uniform, w_t)), d) * inverse)
            store(at_target, 0, g_t)
            if alike:
                a, inverse = product(uniform, plus_one(d[0], d[1]), SHIFT64), inverse * splat(_UNIT)
            if not narrow:
                rows_gradient(n, count, alike, (p, uniform, rest, given), e, e_lo, apart, a, d, inverse, g)
            elif alike:
                tile_gradient(like, n, class_gradient_alike, a, e, e_lo, inverse, counts)
            else:
                tile_gradient(like, n, lane_class_gradient, ((t_tile, uniform, rest, given), a, d), e, e_lo, inverse, counts)
            for b in range(0 if soft else count):
                t, counts_b = row_target(targets, i + b, ignore_index)
                if narrow:
                    put(e, t * 8 + b, item(at_target, b))
                elif counts_b == 0.0:
                    row_clear(shift(g, b * n), n)
                else:
                    put(g, b * n + t, number(g, item(at_target, b)))
            if narrow:
                store_tile(g, n, count, _tile_column, (e,))
    release(room)
    return result


# ---- the kernels -----------------------------------------------------------------------------------------------------------
@signature(
    MATRIX_IN, LABELS, MATRIX_IN, REAL, DOUBLES_IN, DOUBLES_IN, INDEX, VECTOR_OUT, INDEX, INDEX, returns=REAL
)  # fmt: skip
def soft_cross_entropy(
    logits, labels, probs, smoothing, class_weight, sample_weight, ignore_index, losses, first, last
):  # fmt: skip
    """Write the weighted losses, unless `losses` is empty; return their sum. Of labels and probs one is empty."""
    return soft_rows(
        logits, labels, probs, smoothing, class_weight, sample_weight, ignore_index, sample_weight, 1.0, 1.0, losses,
        logits, False, first, last,
    )  # fmt: skip


@signature(
    MATRIX_IN, LABELS, MATRIX_IN, REAL, DOUBLES_IN, DOUBLES_IN, INDEX, DOUBLES_IN, REAL, REAL, VECTOR_OUT, MATRIX_OUT,
    INDEX, INDEX, returns=REAL,
)  # fmt: skip
def soft_cross_entropy_with_grad(
    logits, labels, probs, smoothing, class_weight, sample_weight, ignore_index, grad_losses, scale, denominator, losses,
    grad, first, last,
):  # fmt: skip
    """The same and the gradient, times scale / denominator, and per row times grad_losses[i] unless that is empty."""
    return soft_rows(
        logits, labels, probs, smoothing, class_weight, sample_weight, ignore_index, grad_losses, scale, denominator,
        losses, grad, True, first, last,
    )  # fmt: skip
