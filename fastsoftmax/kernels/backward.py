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
from ._wide import row_exp, row_max, split, write_row


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
    for i in range(first, last):
        row_backward(pointer(grad_probs, i * n), pointer(probs, i * n), pointer(grad_logits, i * n), n, streaming)
    if streaming:
        fence()


@inline
def row_backward(g: Any, p: Any, out: Any, n: int, streaming: bool) -> None:
    step, zero = lanes(p), constant(p, 0.0, 0.0)
    acc, more = (splat(0.0), splat(0.0)), (splat(0.0), splat(0.0))
    j = 0
    while j + 2 * step <= n:  # two sums: one waits for itself
        if streaming:  # one thread, 1000 x 1000, float64: 418 -> 378 us; within the caches 10 % slower
            prefetch(g, j + n)
            prefetch(g, j + step + n)
            prefetch(p, j + n)
            prefetch(p, j + step + n)
        acc, more = dot_at(acc, g, p, j), dot_at(more, g, p, j + step)
        j += 2 * step
    while j < n:
        acc = dot_add(acc, load_first(g, j, n - j, zero), load_first(p, j, n - j, zero))
        j += step
    hi, lo = dot_total(zero, acc, more)
    write_row(out, n, streaming, _gradient_at, (g, p, hi, lo))


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
    for i in range(first, last):
        row_log_backward(pointer(grad_log_probs, i * n), pointer(log_probs, i * n), pointer(grad_logits, i * n), n, streaming)
    if streaming:
        fence()


@inline
def row_log_backward(g: Any, logp: Any, out: Any, n: int, streaming: bool) -> None:
    s, error = splat(0.0), splat(0.0)
    for j in range(0, n, 8):
        s, rest = two_sum(s, load_wide_first(g, j, n - j, 0.0))
        error = error + rest
    zero = constant(logp, 0.0, 0.0)
    sum_ = splat(split(zero, splat(total(s) + total(error)), splat(0.0))[0])
    write_row(out, n, streaming, _log_gradient_at, (g, logp, sum_))


@inline
def _log_gradient_at(row: Any, j: int, k: int) -> Any:
    g, logp, sum_ = row
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
