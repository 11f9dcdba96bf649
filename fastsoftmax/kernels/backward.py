"""Backward passes of softmax and log_softmax, and the diagonal Hessian, row by row.

The inner products are taken in doubles (of doubles: in pairs, over all lanes too).
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
from ._simd import (
    V32,
    constant,
    exact_fma,
    fence,
    fma,
    keep_alive,
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
    stack,
    store,
    store_first,
    total,
    widen,
)  # fmt: skip
from ._wide import row_exp, row_max, split, write_row
from .columns import columns_ahead, put_first
from .turn import strips_in_rows, to_columns, to_rows

_AHEAD = 8  # rows ahead of the work that memory is asked for where classes are many
_sums = stack(4 * 32 * 128)  # a pair of double vectors for each of 32 sums of four strips


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


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX)
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
    like = pointer(probs, 0)
    step, size = lanes(like), tile_size(like, n)
    p = tile_room(like)
    g = shift(p, size)
    for i in range(first, last, step):
        rows = min(step, last - i)
        load_tile(pointer(grad_probs, i * n), n, rows, g)
        load_tile(pointer(probs, i * n), n, rows, p)
        acc = (splat(0.0), splat(0.0))
        for j in range(n):
            acc = dot_add(acc, load(g, j * step), load(p, j * step))
        hi, lo = dot_lanes(load(p, 0), acc)
        store_tile(pointer(grad_logits, i * n), n, rows, _tile_gradient, (p, g, hi, lo))


@inline
def _tile_gradient(source: Any, j: int) -> Any:
    p, g, hi, lo = source
    return load(p, j * lanes(p)) * ((load(g, j * lanes(g)) - hi) - lo)


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, FLAG, INDEX, INDEX)
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


# ---- down columns ---------------------------------------------------------------------------------------------------------
@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX)
def softmax_backward_columns(grad_probs, probs, grad_logits, n, inner, first, last):
    """(n_outer, n, inner), C-contiguous: columns across lanes as they lie, four strips side by side, the rest one by one."""
    step = lanes(pointer(probs, 0))
    strips, ahead = (inner + step - 1) // step, columns_ahead(pointer(probs, 0), 3 * probs.size)
    sums = _sums(splat(0.0))
    k = first
    while k < last:
        column = k % strips * step
        where, width = k // strips * n * inner + column, inner - column
        g, p, out = pointer(grad_probs, where), pointer(probs, where), pointer(grad_logits, where)
        if min(last - k, width // step) >= 4:
            if n < NARROW:
                few_classes_backward(g, p, out, n, inner, ahead)
            else:
                many_classes_backward(g, p, out, n, inner, sums)
            k += 4
        else:
            if n < NARROW:
                strip_backward(g, p, out, n, inner, width)
            else:
                backward_in_rows(row_backward, grad_probs, probs, grad_logits, n, inner, k, k + 1)
            k += 1


@inline
def strip_backward(g: Any, p: Any, out: Any, n: int, inner: int, width: int) -> None:
    acc, zero = (splat(0.0), splat(0.0)), constant(p, 0.0, 0.0)
    for j in range(0, n * inner, inner):
        acc = dot_add(acc, load_first(g, j, width, zero), load_first(p, j, width, zero))
    hi, lo = dot_lanes(zero, acc)
    for j in range(0, n * inner, inner):
        value = load_first(p, j, width, zero) * ((load_first(g, j, width, zero) - hi) - lo)
        put_first(out, j, value, width)


@inline
def few_classes_backward(g: Any, p: Any, out: Any, n: int, inner: int, ahead: int) -> None:
    zero, none = constant(p, 0.0, 0.0), (splat(0.0), splat(0.0))
    a, b, c, d = four_dots((none, none, none, none), g, p, 0, n * inner, inner, ahead)
    write_four(g, p, out, n, inner, ahead, (dot_lanes(zero, a), dot_lanes(zero, b), dot_lanes(zero, c), dot_lanes(zero, d)))


@inline
def many_classes_backward(g: Any, p: Any, out: Any, n: int, inner: int, sums: Any) -> None:
    """The sums of `row_backward`, each over the classes that it takes there; asks for the next one's."""
    step, none = lanes(p), (splat(0.0), splat(0.0))
    pairs = n // (2 * step) * (2 * step)
    for k in range(2 * step):
        acc = four_dots((none, none, none, none), g, p, k * inner, pairs * inner, 2 * step * inner, inner)
        if k < step:
            acc = four_dots(acc, g, p, (pairs + k) * inner, n * inner, step * inner, inner)
        for strip, (x, y) in enumerate(acc):
            store(sums, sum_at(strip, k), x)
            store(sums, sum_at(strip, k) + 8, y)
    a, b, c, d = sums_total(p, sums, 0), sums_total(p, sums, 1), sums_total(p, sums, 2), sums_total(p, sums, 3)
    write_four(g, p, out, n, inner, _AHEAD * inner, (a, b, c, d))


@inline
def four_dots(acc: Any, g: Any, p: Any, first: int, stop: int, by: int, ahead: int) -> Any:
    """Products from `first` on, `by` apart, added to the sums of four strips; asks for what lies `ahead`, unless that is 0."""
    a, b, c, d = acc
    step = lanes(p)
    for j in range(first, stop, by):
        if ahead:
            for k in range(j + ahead, j + ahead + 4 * step, step):
                prefetch(g, k)
                prefetch(p, k)
        a = dot_at(a, g, p, j)
        b = dot_at(b, g, p, j + step)
        c = dot_at(c, g, p, j + 2 * step)
        d = dot_at(d, g, p, j + 3 * step)
    return a, b, c, d


@inline
def sum_at(strip: int, k: int) -> int:
    """Where the pair of double vectors lies that is sum k of a strip."""
    return (strip * 32 + k) * 16


@by_type
def sums_total(p, sums, strip):
    """`dot_total` for each column."""
    if p.dtype == types.float32:

        def floats(p, sums, strip):
            for k in range(8):
                at = sum_at(strip, k)
                for v in range(at, at + 16, 8):  # the columns' halves; lane k of sums 0 and 1, lane k + 8 of both
                    a, b = load(sums, v) + load(sums, v + 256), load(sums, v + 128) + load(sums, v + 384)
                    store(sums, v, a + b)
            half = 4
            while half:
                for k in range(half):
                    at = sum_at(strip, k)
                    for v in range(at, at + 16, 8):
                        store(sums, v, load(sums, v) + load(sums, v + 16 * half))
                half //= 2
            at = sum_at(strip, 0)
            return dot_lanes(load(p, 0), (load(sums, at), load(sums, at + 8)))

        return floats

    def doubles(p, sums, strip):
        half = 8
        while half:
            for k in range(half):
                at = sum_at(strip, k)
                s, error = two_sum(load(sums, at), load(sums, at + 16 * half))
                store(sums, at, s)
                store(sums, at + 8, error + (load(sums, at + 8) + load(sums, at + 16 * half + 8)))
            half //= 2
        at = sum_at(strip, 0)
        return load(sums, at), load(sums, at + 8)

    return doubles


@inline
def write_four(g: Any, p: Any, out: Any, n: int, inner: int, ahead: int, dots: Any) -> None:
    step = lanes(p)
    a, b, c, d = dots
    for j in range(0, n * inner, inner):
        if ahead:
            for k in range(j + ahead, j + ahead + 4 * step, step):
                prefetch_to_write(out, k)
        store(out, j, column_gradient(g, p, j, a))
        store(out, j + step, column_gradient(g, p, j + step, b))
        store(out, j + 2 * step, column_gradient(g, p, j + 2 * step, c))
        store(out, j + 3 * step, column_gradient(g, p, j + 3 * step, d))


@inline
def column_gradient(g: Any, p: Any, j: int, dot: Any) -> Any:
    return load(p, j) * ((load(g, j) - dot[0]) - dot[1])


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX)
def log_softmax_backward_columns(grad_log_probs, log_probs, grad_logits, n, inner, first, last):
    backward_in_rows(row_log_backward, grad_log_probs, log_probs, grad_logits, n, inner, first, last)


@inline
def backward_in_rows(
    backward: Any, grad: Any, result: Any, grad_logits: Any, n: int, inner: int, first: int, last: int
) -> None:  # fmt: skip
    """A few strips of columns at a time are copied to rows, and what `backward` makes of them back to columns."""
    step = lanes(pointer(grad, 0))
    strips, most = (inner + step - 1) // step, strips_in_rows(n)
    scratch = np.empty(2 * most * step * n, grad.dtype)
    g, y = pointer(scratch, 0), pointer(scratch, most * step * n)
    k = first
    while k < last:
        column, count = k % strips * step, min(most, last - k, strips - k % strips)
        where, width = k // strips * n * inner + column, min(count * step, inner - column)
        to_rows(pointer(grad, where), g, n, inner, width)
        to_rows(pointer(result, where), y, n, inner, width)
        for r in range(0, width * n, n):
            backward(shift(g, r), shift(y, r), shift(g, r), n, False)
        to_columns(g, pointer(grad_logits, where), n, inner, width)
        k += count
    keep_alive(scratch)


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
