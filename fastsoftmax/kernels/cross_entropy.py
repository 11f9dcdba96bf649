"""Cross-entropy of class indices: the loss, and loss and gradient in one pass over the logits.

Per row, with m the maximum and 1 + d the sum of exp(z - m), of which d keeps all its digits (see `_math`):
    loss        = w * (log1p(d) - (z_t - m))                  two terms of one sign
    grad_j      = a * exp(z_j - m) / (1 + d),  a = w * scale / denominator
    grad_target = -a * (1 + d - exp(z_t - m)) / (1 + d)       never p - 1
w is class_weight[t] * sample_weight[i]; an array of length 0 stands for "none given". Targets have been checked by
`check_targets`; a row whose target is `ignore_index` contributes exactly 0, even if it holds NaN. Columns of few classes are
taken as rows of few are: they lie across lanes already.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._column_tiles import columns_ahead, load_strip, put_first
from ._jit import (
    DOUBLES_IN,
    FLAG,
    INDEX,
    LABELS,
    MATRIX_IN,
    MATRIX_OUT,
    REAL,
    VECTOR_OUT,
    by_type,
    inline,
    no_vector,
    signature,
)
from ._layout import IGNORED
from ._math import (
    exp_from,
    exponentials,
    from_doubles,
    in_doubles,
    log1p_pair,
    multiplier,
    origin,
    plus_one,
    ratio,
    scaled,
    two_diff,
    two_sum,
)  # fmt: skip
from ._memory import release, scratch, stack
from ._narrow import (
    NARROW,
    kept_sums,
    load_tiles,
    store_tile,
    sum_room,
    tile_room,
    tile_size,
    tile_target,
    tiles_exp,
    tiles_together,
)  # fmt: skip
from ._plans import narrow_matrix, wide_matrix
from ._simd import (
    V32,
    any_lane,
    constant,
    fence,
    fma,
    item,
    lane,
    lanes,
    load,
    load_labels,
    number,
    pointer,
    prefetch_to_write,
    put,
    select,
    shift,
    splat,
    store,
    store_first,
    total,
    with_lane,
)  # fmt: skip
from ._wide import (
    PAGE,
    row_exp_between,
    row_exp_looking,
    row_max,
    row_room,
    row_scale,
    rows_exp,
    rows_max,
    rows_together,
    scale_at,
    vector_room,
    write_row,
)  # fmt: skip


@signature(LABELS, INDEX, INDEX, DOUBLES_IN, DOUBLES_IN, returns=(INDEX, REAL))
def check_targets(targets, n_classes, ignore_index, class_weight, sample_weight):
    """(first row whose target is neither a class nor ignore_index, or -1; sum of the weights of the rows that count)"""
    n_rows = targets.size
    kept, bad = 0, 0
    for i in range(n_rows):  # vectorised: no early exit
        t = targets[i]
        ignored = t == ignore_index
        kept += not ignored
        bad += (np.uint64(t) >= np.uint64(n_classes)) and not ignored
    if bad:
        for i in range(n_rows):
            if np.uint64(targets[i]) >= np.uint64(n_classes) and targets[i] != ignore_index:
                return i, 0.0
    if class_weight.size == 0 and sample_weight.size == 0:
        return -1, np.float64(kept)
    weight, lost, given = 0.0, 0.0, given_weights(class_weight, sample_weight)
    for i in range(n_rows):
        if targets[i] != ignore_index:  # in a pair: every gradient is divided by this sum
            w = row_weight(i, targets[i], given)
            s = weight + w
            v = s - weight
            weight, lost = s, lost + ((weight - (s - v)) + (w - v))
    return -1, weight + lost if lost == lost else weight  # an infinite sum has a NaN as its rest


@inline
def given_weights(class_weight: Any, sample_weight: Any) -> Any:
    """Where they are, and whether they are given."""
    return pointer(class_weight, 0), class_weight.size > 0, pointer(sample_weight, 0), sample_weight.size > 0


@inline
def row_weight(i: int, t: int, given: Any) -> float:
    weight = 1.0
    if given[1]:
        weight = item(given[0], t)
    if given[3]:
        weight *= item(given[2], i)
    return weight


@inline
def row_loss(like: Any, m: Any, z_t: Any, d_hi: Any, d_lo: Any) -> Any:
    """log1p(d) - (z_t - m) in double vectors, rounded once; inf at z_t = -inf."""
    log_hi, log_lo = log1p_pair(like, d_hi, d_lo)
    x, x_lo = two_diff(m, z_t)
    x_lo = select(x == splat(np.inf), splat(0.0), x_lo)
    s, error = two_sum(x, log_hi)
    error = select(s == splat(np.inf), splat(0.0), error)
    return s + (error + (x_lo + log_lo))


@inline
def target_grad(q: Any, e_t: Any, d_hi: Any, d_lo: Any) -> Any:
    """-(1 + d - e_t) * q in double vectors, with the pair q = a / (1 + d), rounded once."""
    others, error = two_sum(splat(1.0) - e_t, d_hi)
    return -fma(others, q[0], fma(others, q[1], (error + d_lo) * q[0]))


@by_type
def joined(like, low, high):
    """One vector of sums over both halves (of doubles there is only one)."""
    if like.dtype is V32.dtype:
        return lambda like, low, high: low + high
    return lambda like, low, high: low


# ---- wide rows ----------------------------------------------------------------------------------------------------------
@inline
def wide_cross_entropy(
    logits: Any, labels: Any, given: Any, ignore_index: int, losses: Any, first: int, last: int
) -> float:  # fmt: skip
    n, targets, out, per_row = logits.shape[1], pointer(labels, 0), pointer(losses, 0), losses.size > 0
    most, values = rows_together(n), vector_room(splat(0.0))
    result = 0.0
    if most == 1:
        m = row_max(pointer(logits, first * n), n)
        for i in range(first, last):
            z, after = pointer(logits, i * n), pointer(logits, min(i + 1, last - 1) * n)
            z_t, w, kept = rows_targets(z, n, i, 1, targets, given, ignore_index)
            d_hi, d_lo, m_after = row_exp_looking(z, n, m, after)
            loss = lane(nonzero(kept, row_loss(z, splat(np.float64(m)), z_t, d_hi, d_lo) * w), 0)
            result, m = result + loss, m_after
            if per_row:
                put(out, i, loss)
        return result
    following = rows_max(pointer(logits, first * n), n, first, last, most)
    for i in range(first, last, most):
        z, count = pointer(logits, i * n), min(last - i, most)
        z_t, w, kept = rows_targets(z, n, i, count, targets, given, ignore_index)
        top, following = following, rows_max(shift(z, most * n), n, i + most, last, most)
        d_hi, d_lo = rows_exp(z, n, count, most, top, z, n, False, True)
        store(values, 0, nonzero(kept, row_loss(z, in_doubles(top)[0], z_t, d_hi, d_lo) * w))
        for b in range(count):
            result += item(values, b)
            if per_row:
                put(out, i + b, item(values, b))
    return result


@inline
def wide_gradient(
    logits: Any, labels: Any, given: Any, ignore_index: int, grad_losses: Any, factor: float, losses: Any, grad: Any,
    first: int, last: int,
) -> float:  # fmt: skip
    n, targets, out = logits.shape[1], pointer(labels, 0), pointer(losses, 0)
    like = pointer(logits, 0)
    most, values = rows_together(n), vector_room(splat(0.0))
    q_hi, q_lo, at_target = vector_room(like), vector_room(like), vector_room(like)
    result, top = 0.0, rows_max(pointer(logits, first * n), n, first, last, most)
    for i in range(first, last, most):
        z, g, count = pointer(logits, i * n), pointer(grad, i * n), min(last - i, most)
        z_t, w, kept = rows_targets(z, n, i, count, targets, given, ignore_index)  # first: g may be z
        d_hi, d_lo = rows_exp(z, n, count, most, top, g, n, True, True)
        store(values, 0, nonzero(kept, row_loss(z, in_doubles(top)[0], z_t, d_hi, d_lo) * w))
        hi, lo, g_t = rows_factors(g, n, i, count, targets, ignore_index, w * splat(factor), grad_losses, d_hi, d_lo)
        store(q_hi, 0, hi)
        store(q_lo, 0, lo)
        store(at_target, 0, g_t)
        top = rows_max(shift(z, most * n), n, i + most, last, most)
        for b in range(count):
            row = shift(g, b * n)
            if row_target(targets, i + b, ignore_index)[1] != 0.0:
                row_scale(row, n, item(q_hi, b), item(q_lo, b), row, False)
            row_target_grad(row, n, targets, i + b, ignore_index, item(at_target, b))
            result += item(values, b)
            if losses.size:
                put(out, i + b, item(values, b))
    return result


@inline
def streaming_gradient(
    logits: Any, labels: Any, given: Any, ignore_index: int, grad_losses: Any, factor: float, losses: Any, grad: Any,
    first: int, last: int,
) -> float:  # fmt: skip
    """The same past the cache."""
    n, targets, out = logits.shape[1], pointer(labels, 0), pointer(losses, 0)
    like, zero = pointer(logits, 0), constant(pointer(logits, 0), 0.0, 0.0)
    room = scratch(like, n + PAGE * lanes(like))
    e, m, g_t = row_room(room, like), row_max(pointer(logits, first * n), n), lane(zero, 0)
    result, hi, lo, t, keep = 0.0, zero, zero, 0, 0.0
    for i in range(first, last):
        z, after, g = pointer(logits, i * n), pointer(logits, min(i + 1, last - 1) * n), pointer(grad, (i - 1) * n)
        z_t, w, kept = rows_targets(z, n, i, 1, targets, given, ignore_index)
        row = e, hi, lo, t, g_t
        d_hi, d_lo, m_after = row_exp_between(z, n, m, e, True, True, after, i > first, g, _gradient_at, row)
        if i > first and keep == 0.0:
            row_clear(g, n)
        loss = lane(nonzero(kept, row_loss(z, splat(np.float64(m)), z_t, d_hi, d_lo) * w), 0)
        hi, lo, at_target = rows_factors(e, n, i, 1, targets, ignore_index, w * splat(factor), grad_losses, d_hi, d_lo)
        hi, lo, g_t, m = splat(lane(hi, 0)), splat(lane(lo, 0)), lane(at_target, 0), m_after
        t, keep = row_target(targets, i, ignore_index)
        result += loss
        if losses.size:
            put(out, i, loss)
    g = pointer(grad, (last - 1) * n)
    write_row(g, n, True, _gradient_at, (e, hi, lo, t, g_t))
    if keep == 0.0:
        row_clear(g, n)
    fence()
    release(room)
    return result


@inline
def _gradient_at(row: Any, j: int, k: int) -> Any:
    """What is streamed, the target's gradient in its place.

    Put in afterwards, it would wait for a line that is on its way to memory (4096 x 4096, float32: 3.19 -> 2.90 ms).
    """
    e, hi, lo, t, g_t = row
    value = scale_at((e, hi, lo), j, k)
    if np.uint64(t - j) < np.uint64(lanes(e)):
        value = with_lane(value, t - j, g_t)
    return value


@inline
def rows_factors(
    e: Any, n: int, i: int, count: int, targets: Any, ignore_index: int, a: Any, grad_losses: Any, d_hi: Any, d_lo: Any
) -> Any:  # fmt: skip
    """For each row, in a vector's lanes: what its exponentials are to be multiplied with, as a pair; its target's gradient."""
    zero = constant(e, 0.0, 0.0)
    e_t = zero
    for b in range(count):
        t, _ = row_target(targets, i + b, ignore_index)
        e_t = with_lane(e_t, b, item(e, b * n + t))
        if grad_losses.size:
            a = with_lane(a, b, lane(a, b) * grad_losses[i + b])
    q = ratio(e, a, *plus_one(d_hi, d_lo))
    g_t = target_grad(q, exponentials(e_t)[0], d_hi, d_lo)
    hi, lo = multiplier(zero, q, q)
    return hi, lo, from_doubles(zero, g_t, g_t)


@inline
def row_target_grad(row: Any, n: int, targets: Any, i: int, ignore_index: int, g_t: Any) -> None:
    """Put in the target's gradient; a row that is ignored is 0."""
    t, keep = row_target(targets, i, ignore_index)
    if keep == 0.0:
        row_clear(row, n)
    else:
        put(row, t, g_t)


@inline
def rows_targets(z: Any, n: int, i: int, count: int, targets: Any, given: Any, ignore_index: int) -> Any:
    """For each row, in a double vector's lanes: the logit of its class, its weight, and whether it counts."""
    z_t, w, kept = splat(0.0), splat(0.0), splat(0.0)
    for b in range(count):
        t, keep = row_target(targets, i + b, ignore_index)
        z_t, kept = with_lane(z_t, b, np.float64(item(z, b * n + t))), with_lane(kept, b, keep)
        w = with_lane(w, b, row_weight(i + b, t, given))
    return z_t, w, kept


@inline
def row_target(targets: Any, i: int, ignore_index: int) -> Any:
    """(the row's class, 1.0), or (0, 0.0) where it is ignored."""
    t = item(targets, i)
    if t == ignore_index:
        return 0, 0.0
    return t, 1.0


@inline
def row_clear(out: Any, n: int) -> None:
    for j in range(0, n, lanes(out)):
        store_first(out, j, constant(out, 0.0, 0.0), n - j)


# ---- narrow rows --------------------------------------------------------------------------------------------------------
@inline
def kept_lanes(labels: Any, n: int, ignore_index: int) -> Any:
    """1 where the label is a class that counts, else 0."""
    one, zero = constant(labels, 1.0, 1.0), constant(labels, 0.0, 0.0)
    classes = constant(labels, np.float64(n), np.float64(n))
    ignored = constant(labels, np.float64(ignore_index), np.float64(ignore_index))
    kept = select(labels < zero, zero, select(labels < classes, one, zero))
    return select(labels == ignored, zero, kept)


@inline
def lane_weights(i: int, rows: int, kept: Any, targets: Any, given: Any, scratch: Any) -> Any:
    """The rows' weights, 0 where ignored, as two vectors of doubles."""
    low, high = in_doubles(kept)
    if given[1] or given[3]:
        for r in range(lanes(kept)):
            put(scratch, r, 0.0)
            if r < rows and lane(kept, r) != 0.0:
                put(scratch, r, row_weight(i + r, item(targets, i + r), given))
        low, high = load(scratch, 0), load(scratch, lanes(kept) - 8)
    return low, high


@inline
def nonzero(keep: Any, value: Any) -> Any:
    """value where keep is not 0, else exactly 0 (also for NaN)."""
    return select(keep == splat(0.0), splat(0.0), value)


_weight_room = stack(128)
_class_room = stack(8 * NARROW)


@inline
def load_with_targets(
    z: Any, n: int, inner: int, ahead: int, targets: Any, i: int, last: int, count: int, tiles: Any, maxima: Any, z_t: Any,
    labels: Any,
) -> None:  # fmt: skip
    """Tiles of rows, or of columns if they are `inner` long, and beside each lane's maximum its label's logit and its label."""
    step, size = lanes(tiles), tile_size(tiles, n)
    if inner == 0:
        load_tiles(z, n, i, last, count, tiles, maxima)
    for b in range(count):
        k = i + b * step
        if inner:
            m = load_strip(shift(z, k), n, inner, min(step, last - k), ahead, shift(tiles, b * size))
            store(maxima, b * step, m)
        own = load_labels(tiles, targets, k, min(step, last - k))
        store(labels, b * step, own)
        store(z_t, b * step, tile_target(shift(tiles, b * size), n, own))


@inline
def lane_losses(like: Any, m: Any, z_t: Any, d: Any, e: Any, kept: Any, w0: Any, w1: Any) -> Any:
    """The weighted losses of one tile's rows, as two vectors of doubles; d and e are the halves' sums."""
    m0, m1 = in_doubles(m)
    t0, t1 = in_doubles(z_t)
    k0, k1 = in_doubles(kept)
    l0 = nonzero(k0, row_loss(like, m0, t0, d[0], d[1]) * w0)
    return l0, nonzero(k1, row_loss(like, m1, t1, e[0], e[1]) * w1)


@inline
def narrow_cross_entropy(
    logits: Any, n: int, inner: int, labels_: Any, given: Any, ignore_index: int, losses: Any, first: int, last: int
) -> float:  # fmt: skip
    """Of rows, or of columns if they are `inner` apart."""
    z, targets, out, ahead = pointer(logits, 0), pointer(labels_, 0), pointer(losses, 0), 0
    if inner:
        ahead = columns_ahead(z, logits.size)
    step, size, most = lanes(z), tile_size(z, n), tiles_together(n)
    tiles, weights, per_row = tile_room(z), _weight_room(splat(0.0)), losses.size > 0
    maxima, z_t = shift(tiles, most * size), shift(tiles, most * (size + step))
    labels = shift(tiles, most * (size + 5 * step))
    acc, sums = splat(0.0), sum_room(splat(0.0))
    for start in range(first, last, most * step):
        count = (min(last - start, most * step) + step - 1) // step
        load_with_targets(z, n, inner, ahead, targets, start, last, count, tiles, maxima, z_t, labels)
        if inner:
            tiles_exp(tiles, n, 0, start, count, tiles, maxima, tiles, size, tiles, sums)
        else:
            tiles_exp(z, n, n, start, count, tiles, maxima, tiles, size, shift(z, most * step * n), sums)
        for b in range(count):
            i, m = start + b * step, load(maxima, b * step)
            rows, kept = min(step, last - i), kept_lanes(load(labels, b * step), n, ignore_index)
            d, e = kept_sums(sums, b)
            w0, w1 = lane_weights(i, rows, kept, targets, given, weights)
            l0, l1 = lane_losses(tiles, m, load(z_t, b * step), d, e, kept, w0, w1)
            acc = acc + joined(m, l0, l1)
            if per_row:
                store_first(out, i, from_doubles(m, l0, l1), rows)
    return total(acc)


@inline
def narrow_gradient(
    logits: Any, n: int, inner: int, labels_: Any, given: Any, ignore_index: int, grad_losses: Any, factor: float, losses: Any,
    grad: Any, first: int, last: int,
) -> float:  # fmt: skip
    """Of rows, or of columns if they are `inner` apart."""
    z, targets, to, ahead = pointer(logits, 0), pointer(labels_, 0), pointer(losses, 0), 0
    if inner:
        ahead = columns_ahead(z, logits.size)
    upstream, scaled_rows, gradient = pointer(grad_losses, 0), grad_losses.size > 0, pointer(grad, 0)
    step, size, most = lanes(z), tile_size(z, n), tiles_together(n)
    tiles, weights, per_row = tile_room(z), _weight_room(splat(0.0)), losses.size > 0
    maxima, z_t = shift(tiles, most * size), shift(tiles, most * (size + step))
    labels = shift(tiles, most * (size + 5 * step))
    q_hi, q_lo = shift(tiles, most * (size + 2 * step)), shift(tiles, most * (size + 3 * step))
    g_t = shift(tiles, most * (size + 4 * step))
    acc, sums, classes = splat(0.0), sum_room(splat(0.0)), _class_room(z)
    for j in range(n):
        put(classes, j, number(z, np.float64(j)))
    for start in range(first, last, most * step):
        count = (min(last - start, most * step) + step - 1) // step
        load_with_targets(z, n, inner, ahead, targets, start, last, count, tiles, maxima, z_t, labels)
        if inner:
            tiles_exp(tiles, n, 0, start, count, tiles, maxima, tiles, size, tiles, sums)
        else:
            tiles_exp(z, n, n, start, count, tiles, maxima, tiles, size, gradient, sums)
        for b in range(count):  # operations that wait for each other: apart from the exponentials, 0.92 ns an element, not 0.97
            i, tile = start + b * step, shift(tiles, b * size)
            rows = min(step, last - i)
            kept = kept_lanes(load(labels, b * step), n, ignore_index)
            m, target = load(maxima, b * step), load(z_t, b * step)
            d, e = kept_sums(sums, b)
            w0, w1 = lane_weights(i, rows, kept, targets, given, weights)
            l0, l1 = lane_losses(tile, m, target, d, e, kept, w0, w1)
            acc = acc + joined(m, l0, l1)
            if per_row:
                store_first(to, i, from_doubles(m, l0, l1), rows)
            if scaled_rows:
                for r in range(step):
                    put(weights, r, item(upstream, i + r) if r < rows else 0.0)
                w0, w1 = w0 * load(weights, 0), w1 * load(weights, step - 8)
            q0 = ratio(tile, w0 * splat(factor), *plus_one(d[0], d[1]))
            q1 = ratio(tile, w1 * splat(factor), *plus_one(e[0], e[1]))
            e0, e1 = exponentials(exp_from(target, origin(m)))
            g0 = target_grad(q0, e0, d[0], d[1])
            g1 = target_grad(q1, e1, e[0], e[1])
            (hi, lo), g = multiplier(m, q0, q1), from_doubles(m, g0, g1)
            zero = constant(tile, 0.0, 0.0)
            ignored = kept == zero
            if any_lane(ignored):  # 0 times NaN would be NaN
                hi, lo, g = select(ignored, zero, hi), select(ignored, zero, lo), select(ignored, zero, g)
                for j in range(n):
                    store(tile, j * step, select(ignored, zero, load(tile, j * step)))
            store(q_hi, b * step, hi)
            store(q_lo, b * step, lo)
            store(g_t, b * step, g)
        for b in range(count):
            i, tile = start + b * step, shift(tiles, b * size)
            rows = min(step, last - i)
            own, hi, lo, g = load(labels, b * step), load(q_hi, b * step), load(q_lo, b * step), load(g_t, b * step)
            source = tile, hi, lo, own, g, classes
            if inner:
                for j in range(n):
                    if ahead:
                        prefetch_to_write(gradient, j * inner + i + ahead)
                    put_first(gradient, j * inner + i, _tile_gradient(source, j), rows)
            else:
                store_tile(shift(gradient, i * n), n, min(last - i, (count - b) * step), _tile_gradient, source)
    return total(acc)


@inline
def _tile_gradient(source: Any, j: int) -> Any:
    tile, hi, lo, labels, g_t, classes = source
    return select(labels == splat(item(classes, j)), g_t, scaled(load(tile, j * lanes(tile)), hi, lo))


# ---- the kernels ----------------------------------------------------------------------------------------------------------
_losses = signature(
    MATRIX_IN, LABELS, DOUBLES_IN, DOUBLES_IN, INDEX, VECTOR_OUT, INDEX, INDEX, returns=REAL
)  # fmt: skip
_losses_and_gradient = signature(
    MATRIX_IN, LABELS, DOUBLES_IN, DOUBLES_IN, INDEX, DOUBLES_IN, REAL, REAL, VECTOR_OUT, MATRIX_OUT, FLAG, INDEX, INDEX,
    returns=REAL,
)  # fmt: skip


@inline
def cross_entropy(
    logits: Any, targets: Any, class_weight: Any, sample_weight: Any, ignore_index: int, losses: Any, first: int, last: int
) -> float:  # fmt: skip
    """Either kernel, for a user's compiled code (`numba_support`)."""
    if logits.shape[1] < NARROW:
        return cross_entropy_narrow(logits, targets, class_weight, sample_weight, ignore_index, losses, first, last)
    return cross_entropy_wide(logits, targets, class_weight, sample_weight, ignore_index, losses, first, last)


@_losses
def cross_entropy_narrow(logits, targets, class_weight, sample_weight, ignore_index, losses, first, last):
    """Write the weighted losses, unless `losses` is empty; return their sum."""
    given = given_weights(class_weight, sample_weight)
    return narrow_cross_entropy(logits, logits.shape[1], 0, targets, given, ignore_index, losses, first, last)


@_losses
def cross_entropy_wide(logits, targets, class_weight, sample_weight, ignore_index, losses, first, last):
    given = given_weights(class_weight, sample_weight)
    return wide_cross_entropy(logits, targets, given, ignore_index, losses, first, last)


@_losses_and_gradient
def cross_entropy_with_grad_narrow(
    logits, targets, class_weight, sample_weight, ignore_index, grad_losses, scale, denominator, losses, grad, streaming,
    first, last,
):  # fmt: skip
    """The same and the gradient, times scale / denominator, and per row times grad_losses[i] unless that is empty."""
    n, given, factor = logits.shape[1], given_weights(class_weight, sample_weight), scale / denominator
    return narrow_gradient(logits, n, 0, targets, given, ignore_index, grad_losses, factor, losses, grad, first, last)


@_losses_and_gradient
def cross_entropy_with_grad_wide(
    logits, targets, class_weight, sample_weight, ignore_index, grad_losses, scale, denominator, losses, grad, streaming,
    first, last,
):  # fmt: skip
    given, factor = given_weights(class_weight, sample_weight), scale / denominator
    if streaming:
        return streaming_gradient(
            logits, targets, given, ignore_index, grad_losses, factor, losses, grad, first, last
        )
    return wide_gradient(
        logits, targets, given, ignore_index, grad_losses, factor, losses, grad, first, last
    )


@_losses
def cross_entropy_columns(logits, targets, class_weight, sample_weight, ignore_index, losses, first, last):
    """`cross_entropy_narrow` down the columns of (n_classes, n_samples)."""
    n, inner = logits.shape
    given = given_weights(class_weight, sample_weight)
    return narrow_cross_entropy(logits, n, inner, targets, given, ignore_index, losses, first, last)


@signature(
    MATRIX_IN, LABELS, DOUBLES_IN, DOUBLES_IN, INDEX, DOUBLES_IN, REAL, REAL, VECTOR_OUT, MATRIX_OUT, INDEX, INDEX,
    returns=REAL,
)  # fmt: skip
def cross_entropy_with_grad_columns(
    logits, targets, class_weight, sample_weight, ignore_index, grad_losses, scale, denominator, losses, grad, first, last
):  # fmt: skip
    """`cross_entropy_with_grad_narrow` likewise."""
    n, inner = logits.shape
    given = given_weights(class_weight, sample_weight)
    return narrow_gradient(
        logits, n, inner, targets, given, ignore_index, grad_losses, scale / denominator, losses, grad, first, last
    )


@signature(MATRIX_IN, LABELS, returns=REAL, small=narrow_matrix)
def mean_cross_entropy_narrow(logits, targets):
    """The mean loss with all checks, for small batches; NaN for what must be looked at more closely."""
    kept = labels_that_count(logits, targets)
    if kept == 0.0:
        return np.nan
    none, losses = no_vector(np.float64), logits[0, :0]  # of no length, as LLVM sees too
    return cross_entropy_narrow(logits, targets, none, none, IGNORED, losses, 0, logits.shape[0]) / kept


@signature(MATRIX_IN, LABELS, returns=REAL, small=wide_matrix)
def mean_cross_entropy_wide(logits, targets):
    kept = labels_that_count(logits, targets)
    if kept == 0.0:
        return np.nan
    none, losses = no_vector(np.float64), logits[0, :0]
    return cross_entropy_wide(logits, targets, none, none, IGNORED, losses, 0, logits.shape[0]) / kept


@signature(MATRIX_IN, LABELS, MATRIX_OUT, returns=REAL, small=narrow_matrix)
def mean_cross_entropy_with_grad_narrow(logits, targets, grad):
    """The same and its gradient. Nothing is written then, unless NaN is the loss."""
    kept, (n_rows, n), none = labels_that_count(logits, targets), logits.shape, no_vector(np.float64)
    if kept == 0.0:
        return np.nan
    losses, given = grad[0, :0], given_weights(none, none)
    return narrow_gradient(logits, n, 0, targets, given, IGNORED, none, 1.0 / kept, losses, grad, 0, n_rows) / kept


@signature(MATRIX_IN, LABELS, MATRIX_OUT, returns=REAL, small=wide_matrix)
def mean_cross_entropy_with_grad_wide(logits, targets, grad):
    """Without what goes past the caches: that is less to compile."""
    kept, none = labels_that_count(logits, targets), no_vector(np.float64)
    if kept == 0.0:
        return np.nan
    losses, given = grad[0, :0], given_weights(none, none)
    return wide_gradient(logits, targets, given, IGNORED, none, 1.0 / kept, losses, grad, 0, logits.shape[0]) / kept


@inline
def labels_that_count(logits: Any, targets: Any) -> float:
    """How many rows do; 0 also if a label is no class, or there are no labels, or too many or few."""
    n_rows, n = logits.shape
    if targets.size != n_rows or n_rows == 0 or n == 0:
        return 0.0
    return check_targets(targets, n, IGNORED, no_vector(np.float64), no_vector(np.float64))[1]
