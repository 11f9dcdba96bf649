"""Columns copied to rows and back, for kernels that take rows only."""

from __future__ import annotations

from typing import Any

from ._jit import FLAG, INDEX, VECTOR_IN, VECTOR_OUT, inline, signature
from ._memory import stack
from ._simd import lanes, load, pointer, prefetch, prefetch_to_write, shift, store, store_first
from ._transpose import load_transposed

_STRIPS, _MANY = 4, 1024  # side by side, unless there are so many classes that they would not stay in the second cache
_SOON = 16  # vectors ahead in each row that memory is asked for

_square = stack(1024)


@signature(VECTOR_IN, VECTOR_OUT, FLAG, INDEX, INDEX, INDEX, INDEX)
def turn(x, out, back, n, inner, first, last):
    """(n_outer, n, inner) to (n_outer, inner, n), or `back`, both C-contiguous: strips of columns, counted through n_outer."""
    step = lanes(pointer(x, 0))
    strips = (inner + step - 1) // step
    k = first
    while k < last:
        column = k % strips * step
        count = min(strips_in_rows(n), last - k, strips - k % strips)
        width, start = min(count * step, inner - column), k // strips * n * inner
        k += count
        if back:
            to_columns(pointer(x, start + column * n), pointer(out, start + column), n, inner, width)
        else:
            to_rows(pointer(x, start + column), pointer(out, start + column * n), n, inner, width)


@inline
def strips_in_rows(n: int) -> int:
    """How many strips of columns to copy together."""
    return _STRIPS if n <= _MANY else 1


@inline
def to_rows(z: Any, out: Any, n: int, inner: int, width: int) -> None:
    """`width` columns of n classes, `inner` apart, to as many rows.

    Masked stores are slow where they miss the cache: rows of less than a vector are written one after the other, each spilling
    into the next.
    """
    step, square = lanes(z), _square(z)
    for j in range(0, n, step):
        depth = min(step, n - j)
        for i in range(depth):
            for c in range(0, width, step):
                prefetch(z, (j + i) * inner + c + _SOON * step)
        for c in range(0, width, step):
            rows = min(step, width - c)
            load_transposed(shift(z, j * inner + c), inner, depth, rows, square)
            for r in range(rows):
                at = (c + r) * n + j
                if depth == step or (j == 0 and at + step <= width * n):
                    store(out, at, load(square, r * step))
                else:
                    store_first(out, at, load(square, r * step), depth)


@inline
def to_columns(z: Any, out: Any, n: int, inner: int, width: int) -> None:
    """The way back."""
    step, square = lanes(z), _square(z)
    for j in range(0, n, step):
        depth = min(step, n - j)
        for c in range(0, width, step):
            columns = min(step, width - c)
            load_transposed(shift(z, c * n + j), n, columns, depth, square)
            for i in range(depth):
                at = (j + i) * inner + c
                prefetch_to_write(out, at + _SOON * step)
                if columns == step:
                    store(out, at, load(square, i * step))
                else:
                    store_first(out, at, load(square, i * step), columns)
