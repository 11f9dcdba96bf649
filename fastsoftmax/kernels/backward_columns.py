"""The backward passes down the columns of (n_outer, n, inner) arrays, C-contiguous: n classes, `inner` apart.

softmax's has columns across lanes as they lie, some strips side by side, so that memory is read in runs; whatever is left over,
and log_softmax's, goes by way of rows, a few at a time. Sums are taken as rows take them, so that bits are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from ._jit import INDEX, VECTOR_IN, VECTOR_OUT, by_type, inline, signature
from ._math import two_sum
from ._narrow import NARROW
from ._simd import (
    constant,
    keep_alive,
    lanes,
    load,
    load_first,
    pointer,
    prefetch,
    prefetch_to_write,
    shift,
    splat,
    stack,
    store,
)  # fmt: skip
from .backward import dot_add, dot_at, dot_lanes, row_backward, row_log_backward
from .columns import columns_ahead, put_first
from .turn import strips_in_rows, to_columns, to_rows

# Of many classes: strips side by side (1000 x 128, float32: 4 together 32 us, 8 27, 16 29; 1000 x 1024, float64: 1.4, 1.0,
# 0.93 ms), and rows ahead that memory is asked for.
_STRIPS, _AHEAD = 8, 8
_sums, _dots = stack(_STRIPS * 32 * 128), stack(_STRIPS * 128)  # pairs of double vectors, 32 a strip; a pair of vectors a strip


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX)
def softmax_backward_columns(grad_probs, probs, grad_logits, n, inner, first, last):
    step = lanes(pointer(probs, 0))
    strips, ahead = (inner + step - 1) // step, columns_ahead(pointer(probs, 0), 3 * probs.size)
    sums = _sums(splat(0.0))
    k = first
    while k < last:
        column = k % strips * step
        where, width = k // strips * n * inner + column, inner - column
        g, p, out = pointer(grad_probs, where), pointer(probs, where), pointer(grad_logits, where)
        whole = min(last - k, width // step)
        if n < NARROW and whole >= 4:
            few_classes_backward(g, p, out, n, inner, ahead)
            k += 4
        elif n < NARROW:
            strip_backward(g, p, out, n, inner, width)
            k += 1
        elif whole >= 4:
            together = min(whole // 4 * 4, _STRIPS)
            many_classes_backward(g, p, out, n, inner, together, sums)
            k += together
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
    dots, step = _dots(p), lanes(p)
    for strip, acc in enumerate(four_dots((none, none, none, none), g, p, 0, n * inner, inner, ahead)):
        hi, lo = dot_lanes(zero, acc)
        store(dots, 2 * strip * step, hi)
        store(dots, (2 * strip + 1) * step, lo)
    write_strips(g, p, out, n, inner, 4, ahead, dots)


@inline
def many_classes_backward(g: Any, p: Any, out: Any, n: int, inner: int, strips: int, sums: Any) -> None:
    """The sums of `row_backward`, each over the classes that it takes there, for a multiple of four strips.

    Asks for the next sum's classes.
    """
    step, none = lanes(p), (splat(0.0), splat(0.0))
    pairs, dots = n // (2 * step) * (2 * step), _dots(p)
    for k in range(2 * step):
        for strip in range(0, strips, 4):
            to, c = shift(sums, sum_at(strip, k)), strip * step
            acc = four_dots(
                (none, none, none, none), shift(g, c), shift(p, c), k * inner, pairs * inner, 2 * step * inner, inner
            )  # fmt: skip
            if k < step:
                acc = four_dots(acc, shift(g, c), shift(p, c), (pairs + k) * inner, n * inner, step * inner, inner)
            for i, (x, y) in enumerate(acc):
                store(to, sum_at(i, 0), x)
                store(to, sum_at(i, 0) + 8, y)
    for strip in range(strips):
        hi, lo = sums_total(p, sums, strip)
        store(dots, 2 * strip * step, hi)
        store(dots, (2 * strip + 1) * step, lo)
    write_strips(g, p, out, n, inner, strips, _AHEAD * inner, dots)


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
def write_strips(g: Any, p: Any, out: Any, n: int, inner: int, strips: int, ahead: int, dots: Any) -> None:
    step = lanes(p)
    for j in range(0, n * inner, inner):
        for strip in range(strips):
            at, dot = j + strip * step, 2 * strip * step
            if ahead:
                prefetch_to_write(out, at + ahead)
            store(out, at, load(p, at) * ((load(g, at) - load(dots, dot)) - load(dots, dot + step)))


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
