"""Backward passes of softmax and log_softmax, and the diagonal Hessian, row by row.

The inner products are taken in doubles (of doubles: in pairs, over all lanes too).
"""

from __future__ import annotations

from typing import Any

from numba import types

from ._jit import DOUBLES_IN, FLAG, INDEX, MATRIX_IN, MATRIX_OUT, REAL, VECTOR_IN, VECTOR_OUT, by_type, inline, signature
from ._math import (
    SHIFT32,
    SHIFT64,
    TOP32,
    TOP64,
    exp_below,
    fold,
    multiplier,
    origin,
    pair_from_doubles,
    plus_one,
    ratio,
    row_sum,
    scaled,
    two_sum,
)  # fmt: skip
from ._narrow import NARROW, load_tile, store_tile, tile_room, tile_size
from ._plans import backward_along_rows
from ._simd import (
    V32,
    constant,
    exact_fma,
    fence,
    fma,
    lanes,
    load,
    load_first,
    load_wide,
    load_wide_first,
    pointer,
    prefetch,
    prefetch_to_write,
    select,
    shift,
    splat,
    store_first,
    total,
    widen,
)  # fmt: skip
from ._wide import row_exp, row_max, split, write_row, write_row_looking


@by_type
def dot_add(acc, g, p):
    """Add g * p to a sum kept in twice the precision."""
    if g == V32:

        def floats(acc, g, p):  # products of floats are exact in doubles
            g0, g1 = widen(g)
            p0, p1 = widen(p)
            return fma(g0, p0, acc[0]), fma(g1, p1, acc[1])

        return floats

    def doubles(acc, g, p):  # Knuth's TwoSum, whose last difference takes in the product's rounding: 8 operations, not 10
        x = g * p
        s = acc[0] + x
        b = s - acc[0]
        return s, acc[1] + ((acc[0] - (s - b)) + exact_fma(g, p, -b))

    return doubles


@by_type
def dot_at(acc, g, p, j):
    """The same for a vector of each of two rows."""
    if g.dtype == types.float32:

        def floats(acc, g, p, j):  # converted as they are loaded: 4 operations less than `dot_add` takes
            return fma(load_wide(g, j), load_wide(p, j), acc[0]), fma(load_wide(g, j + 8), load_wide(p, j + 8), acc[1])

        return floats
    return lambda acc, g, p, j: dot_add(acc, load(g, j), load(p, j))


@by_type
def dot_total(like, acc, more):
    """Both sums over all lanes, as a pair of `like`'s type (lanes alike)."""
    if like == V32:

        def floats(like, acc, more):
            s = splat(total((acc[0] + more[0]) + (acc[1] + more[1])))
            return dot_lanes(like, (s, s))

        return floats

    def doubles(like, acc, more):
        s, error = two_sum(acc[0], more[0])
        hi, lo = fold(s, error + (acc[1] + more[1]), 4)
        hi, lo = fold(hi, lo, 2)
        return fold(hi, lo, 1)

    return doubles


@by_type
def dot_lanes(like, acc):
    """Each lane's sum as a pair of `like`'s type."""
    if like.dtype is V32.dtype:
        return lambda like, acc: pair_from_doubles(like, (acc[0], splat(0.0)), (acc[1], splat(0.0)))
    return lambda like, acc: acc


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX, small=backward_along_rows)
def softmax_backward(grad_probs, probs, grad_logits, n, streaming, first, last):
    """p * (g - sum(g * p))"""
    if n < NARROW:
        narrow_softmax_backward(grad_probs, probs, grad_logits, n, first, last)
        return
    if streaming:
        backward_past_the_caches(no_dots, dots_begun, dots_ended, _gradient_at, grad_probs, probs, grad_logits, n, first, last)
        return
    for i in range(first, last):
        g, p = pointer(grad_probs, i * n), pointer(probs, i * n)
        hi, lo = row_sums(no_dots, dots_begun, dots_ended, g, p, n)
        write_row(pointer(grad_logits, i * n), n, False, _gradient_at, (g, p, hi, lo))


@inline
def backward_past_the_caches(
    none: Any, begun: Any, ended: Any, value: Any, grads: Any, results: Any, out: Any, n: int, first: int, last: int
) -> None:
    """Each row is written while the sums of the one after are taken: memory is read and written all the time.

    (Ice Lake, one thread, 256 x 32000, float64: 19.9 -> 13.9 ms, log_softmax_backward 18.2 -> 14.1; 2000 x 1000, float32:
    1.39 -> 1.19.)
    """
    g, r, to = pointer(grads, first * n), pointer(results, first * n), pointer(out, first * n)
    hi, lo = row_sums(none, begun, ended, g, r, n)
    for _ in range(first + 1, last):
        g_after, r_after = shift(g, n), shift(r, n)
        j, acc = write_row_looking(to, n, value, (g, r, hi, lo), begun, g_after, r_after, none(r))
        hi, lo = ended(g_after, r_after, j, n, acc)
        g, r, to = g_after, r_after, shift(to, n)
    write_row(to, n, True, value, (g, r, hi, lo))
    fence()


@inline
def row_sums(none: Any, begun: Any, ended: Any, g: Any, r: Any, n: int) -> Any:
    """What a row of gradients and one of results add up to."""
    acc, j, step = none(r), 0, 2 * lanes(r)
    while j + step <= n:
        acc = begun(g, r, j, acc)
        j += step
    return ended(g, r, j, n, acc)


@inline
def no_dots(p: Any) -> Any:
    return (splat(0.0), splat(0.0)), (splat(0.0), splat(0.0))


@inline
def dots_begun(g: Any, p: Any, j: int, sums: Any) -> Any:
    """Two vectors of each row. Two sums: one waits for itself."""
    return dot_at(sums[0], g, p, j), dot_at(sums[1], g, p, j + lanes(p))


@inline
def dots_ended(g: Any, p: Any, j: int, n: int, sums: Any) -> Any:
    """The inner product, from what was begun and what is left from j on."""
    acc, zero = sums[0], constant(p, 0.0, 0.0)
    while j < n:
        acc = dot_add(acc, load_first(g, j, n - j, zero), load_first(p, j, n - j, zero))
        j += lanes(p)
    return dot_total(zero, acc, sums[1])


@inline
def _gradient_at(row: Any, j: int, k: int) -> Any:
    g, p, hi, lo = row
    zero = constant(p, 0.0, 0.0)
    return load_first(p, j, k, zero) * ((load_first(g, j, k, zero) - hi) - lo)


@inline
def narrow_softmax_backward(grad_probs: Any, probs: Any, grad_logits: Any, n: int, first: int, last: int) -> None:
    """Asks, while it adds up a tile, for the one after the next and for the place of its results.

    (Ice Lake, one thread, float32: 500000 x 10 6.4 -> 5.3 ms, 20000 x 48 1.47 -> 0.87; within the caches the same.)
    """
    like = pointer(probs, 0)
    step, size = lanes(like), tile_size(like, n)
    tile = tile_room(like)
    after = shift(tile, 2 * size)
    load_both(grad_probs, probs, n, first, last, tile)
    for i in range(first, last, step):
        g, p, acc = tile, shift(tile, size), (splat(0.0), splat(0.0))
        for j in range(0, n * step, step):
            prefetch(pointer(grad_probs, (i + 2 * step) * n), j)
            prefetch(pointer(probs, (i + 2 * step) * n), j)
            prefetch_to_write(pointer(grad_logits, i * n), j)
            acc = dot_add(acc, load(g, j), load(p, j))
        if i + step < last:
            load_both(grad_probs, probs, n, i + step, last, after)
        hi, lo = dot_lanes(load(p, 0), acc)
        store_tile(pointer(grad_logits, i * n), n, last - i, _tile_gradient, (p, g, hi, lo))
        tile, after = after, tile


@inline
def load_both(grad_probs: Any, probs: Any, n: int, i: int, last: int, tile: Any) -> None:
    rows = min(lanes(tile), last - i)
    load_tile(pointer(grad_probs, i * n), n, rows, tile)
    load_tile(pointer(probs, i * n), n, rows, shift(tile, tile_size(tile, n)))


@inline
def _tile_gradient(source: Any, j: int) -> Any:
    p, g, hi, lo = source
    return load(p, j * lanes(p)) * ((load(g, j * lanes(g)) - hi) - lo)


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX, small=backward_along_rows)
def log_softmax_backward(grad_log_probs, log_probs, grad_logits, n, streaming, first, last):
    """g - exp(log_probs) * sum(g)"""
    if streaming:
        backward_past_the_caches(
            no_grads, grads_begun, grads_ended, _log_gradient_at, grad_log_probs, log_probs, grad_logits, n, first, last
        )
        return
    for i in range(first, last):
        row_log_backward(pointer(grad_log_probs, i * n), pointer(log_probs, i * n), pointer(grad_logits, i * n), n)


@inline
def row_log_backward(g: Any, logp: Any, out: Any, n: int) -> None:
    sum_, _ = row_sums(no_grads, grads_begun, grads_ended, g, logp, n)
    write_row(out, n, False, _log_gradient_at, (g, logp, sum_, sum_))


@inline
def no_grads(logp: Any) -> Any:
    return splat(0.0), splat(0.0)


@inline
def grads_begun(g: Any, logp: Any, j: int, sums: Any) -> Any:
    """Two vectors of gradients."""
    s, error = sums
    for k in range(j, j + 2 * lanes(logp), 8):
        s, rest = two_sum(s, load_wide(g, k))
        error = error + rest
    return s, error


@inline
def grads_ended(g: Any, logp: Any, j: int, n: int, sums: Any) -> Any:
    """Their sum, twice."""
    s, error = sums
    for k in range(j, n, 8):
        s, rest = two_sum(s, load_wide_first(g, k, n - k, 0.0))
        error = error + rest
    sum_ = splat(split(constant(logp, 0.0, 0.0), splat(total(s) + total(error)), splat(0.0))[0])
    return sum_, sum_


@inline
def _log_gradient_at(row: Any, j: int, k: int) -> Any:
    g, logp, sum_, _ = row
    zero, unit = constant(logp, 0.0, 0.0), constant(logp, 1.0 / SHIFT32, 1.0 / SHIFT64)
    p = exp_below(load_first(logp, j, k, zero)) * unit
    return load_first(g, j, k, zero) - p * sum_


@signature(MATRIX_IN, DOUBLES_IN, REAL, MATRIX_OUT, INDEX, INDEX)
def softmax_hessian(logits, sample_weight, scale, hess, first, last):
    """scale * w * p * (1 - p); 1 - p of the maximum is d / (1 + d), the share of the others"""
    n = logits.shape[1]
    step = lanes(pointer(logits, 0))
    for i in range(first, last):
        z, h = pointer(logits, i * n), pointer(hess, i * n)
        w = scale * (sample_weight[i] if sample_weight.size else 1.0)
        d = row_sum(*row_exp(z, n, origin(splat(row_max(z, n))), h, True, True, n))
        s = plus_one(d[0], d[1])
        zero, one = constant(z, 0.0, 0.0), constant(z, 1.0, 1.0)
        q = ratio(zero, splat(1.0), s[0], s[1])
        q_hi, q_lo = multiplier(zero, q, q)
        share, _ = split(zero, d[0] / s[0], splat(0.0))
        w_hi, _ = split(zero, splat(w), splat(0.0))
        whole = constant(z, TOP32, TOP64)
        for j in range(0, n, step):
            e = load_first(h, j, n - j, zero)
            p = scaled(e, q_hi, q_lo)
            value = splat(w_hi) * p * select(e == whole, splat(share), one - p)
            store_first(h, j, value, n - j)
