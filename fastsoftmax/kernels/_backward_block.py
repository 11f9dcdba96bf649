"""softmax's backward pass for a block of columns whose memory is read row by row: sums are fetched and put back."""

from __future__ import annotations

from typing import Any

from numba import types

from ._jit import by_type, inline
from ._math import two_sum
from ._simd import constant, lanes, load, load_first, shift, splat, store
from ._wide import write_row
from .backward import dot_add, dot_at, dot_lanes


@inline
def block_backward(
    g: Any, p: Any, out: Any, n: int, inner: int, width: int, each: int, streaming: bool, sums: Any, dots: Any
) -> None:  # fmt: skip
    """n classes, `inner` apart, in `width` columns. Of `each` column one sum, as tiles have, or two vectors', as rows have.

    `sums` has room for as many pairs of double vectors a strip of columns, `dots` for a pair of vectors.
    """
    strips = (width + lanes(p) - 1) // lanes(p)
    block_sums(g, p, n, inner, width, each, 0, each, sums)
    block_dots(p, sums, strips, each, dots)
    for j in range(0, n * inner, inner):
        write_row(shift(out, j), width, streaming, gradient_at, (shift(g, j), shift(p, j), dots, strips * lanes(p)))


@inline
def block_sums(
    g: Any, p: Any, n: int, inner: int, width: int, each: int, first: int, last: int, sums: Any
) -> None:  # fmt: skip
    """Of each column's sums those from `first` up to `last`."""
    step, by = lanes(p), each * inner
    size, fours, whole = (width + step - 1) // step * 16, n // (4 * each) * (4 * each), n // each * each
    for k in range(first * size, last * size, 8):
        store(sums, k, splat(0.0))
    for j in range(0, fours, 4 * each):
        for k in range(first, last):
            at = (j + k) * inner
            add_products(shift(g, at), shift(p, at), width, True, by, shift(sums, k * size))
    for j in range(fours, n):
        k = j % each if j < whole else (j - whole) % step
        if first <= k < last:
            add_products(shift(g, j * inner), shift(p, j * inner), width, False, by, shift(sums, k * size))


@inline
def block_dots(p: Any, sums: Any, strips: int, each: int, dots: Any) -> None:
    """What each column's sums come to; the second parts of pairs follow the first."""
    step = lanes(p)
    for strip in range(strips):
        total = shift(sums, 16 * strip)
        hi, lo = dot_lanes(load(p, 0), (load(total, 0), load(total, 8))) if each == 1 else sums_total(p, total, 16 * strips)
        store(dots, strip * step, hi)
        store(dots, (strips + strip) * step, lo)


@inline
def add_products(g: Any, p: Any, width: int, four: bool, by: int, sums: Any) -> None:
    """The products of a row of the array added to sums; of `four`, `by` apart, so that sums are fetched and put back once."""
    step, zero = lanes(p), constant(p, 0.0, 0.0)
    at = 0
    for c in range(0, width - step + 1, step):
        acc = dot_at((load(sums, at), load(sums, at + 8)), g, p, c)
        if four:
            acc = dot_at(dot_at(dot_at(acc, g, p, c + by), g, p, c + 2 * by), g, p, c + 3 * by)
        store(sums, at, acc[0])
        store(sums, at + 8, acc[1])
        at += 16
    c, rest = width // step * step, width % step
    if rest:
        acc = load(sums, at), load(sums, at + 8)
        for k in range(4 if four else 1):
            acc = dot_add(acc, load_first(g, c + k * by, rest, zero), load_first(p, c + k * by, rest, zero))
        store(sums, at, acc[0])
        store(sums, at + 8, acc[1])


@by_type
def sums_total(p, sums, by):
    """`dot_total` for each column of a strip, whose sums lie `by` apart."""
    if p.dtype == types.float32:

        def floats(p, sums, by):
            for k in range(0, 8 * by, by):
                for v in range(k, k + 16, 8):  # the columns' halves; lane k of sums 0 and 1, lane k + 8 of both
                    a = load(sums, v) + load(sums, v + 16 * by)
                    store(sums, v, a + (load(sums, v + 8 * by) + load(sums, v + 24 * by)))
            half = 4 * by
            while half >= by:
                for k in range(0, half, by):
                    for v in range(k, k + 16, 8):
                        store(sums, v, load(sums, v) + load(sums, v + half))
                half //= 2
            return dot_lanes(load(p, 0), (load(sums, 0), load(sums, 8)))

        return floats

    def doubles(p, sums, by):
        half = 8 * by
        while half >= by:
            for k in range(0, half, by):
                s, error = two_sum(load(sums, k), load(sums, k + half))
                store(sums, k, s)
                store(sums, k + 8, error + (load(sums, k + 8) + load(sums, k + half + 8)))
            half //= 2
        return load(sums, 0), load(sums, 8)

    return doubles


@inline
def gradient_at(row: Any, j: int, k: int) -> Any:
    g, p, dots, lo = row
    zero = constant(p, 0.0, 0.0)
    value = load_first(g, j, k, zero) - load_first(dots, j, k, zero)
    return load_first(p, j, k, zero) * (value - load_first(dots, lo + j, k, zero))
