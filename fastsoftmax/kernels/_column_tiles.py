"""Columns of few classes: a strip of them, or four, is copied to a tile in L1, worked on there, and written."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import inline
from ._math import from_doubles, log1p_pair
from ._narrow import tile_exp, tile_exp_reciprocal
from ._simd import (
    constant,
    lanes,
    larger,
    load,
    load_first,
    prefetch,
    prefetch_to_write,
    shift,
    store,
    store_first,
)  # fmt: skip

# From an array of so many vectors on, 8 MiB, memory is asked for so many vectors ahead in each row (10 x 500000,
# one thread: float32 3.2 -> 1.3 ms, float64 7.5 -> 3.1; within the caches up to 10 % slower).
_FAR, _SOON = 1 << 17, 16


@inline
def put_first(p: Any, k: int, value: Any, n: int) -> None:
    """`store_first`, without a mask where none is needed: masked stores that miss the cache are slow."""
    if n >= lanes(p):
        store(p, k, value)
    else:
        store_first(p, k, value, n)


@inline
def columns_ahead(like: Any, size: int) -> int:
    """How many columns ahead to ask for memory where there are few classes, 0 for not."""
    return _SOON * lanes(like) if size >= _FAR * lanes(like) else 0


@inline
def in_tiles(
    factors: Any, value: Any, z: Any, out: Any, n: int, inner: int, width: int, ahead: int, tiles: Any
) -> None:  # fmt: skip
    """value(what a tile has, x, y) of `width` columns, x and y a strip's `factors`: by one strip at a time, or four.

    `tiles` has room for 5 n + 8 vectors.
    """
    step, together, c = lanes(z), four_strips(z, n, inner, ahead), 0
    while together and c + 4 * step <= width:
        in_four_tiles(factors, value, shift(z, c), shift(out, c), n, inner, ahead, tiles)
        c += 4 * step
    while c + step <= width:
        in_one_tile(factors, value, shift(z, c), shift(out, c), n, inner, step, ahead, tiles)
        c += step
    if c < width:
        in_one_tile(factors, value, shift(z, c), shift(out, c), n, inner, width - c, ahead, tiles)


@inline
def four_strips(like: Any, n: int, inner: int, ahead: int) -> bool:
    """Whether strips are copied to tiles four at a time.

    So where many classes lie whole pages apart, in the first cache all in one place, and of more within the caches (one thread,
    100 x 1024, float32: 89 -> 36 us, 50 x 1024, float64: 87 -> 39, 30 x 10000, float32: 77 -> 66; but 16 x 10000: 34 -> 39,
    10 x 500000: 1.4 -> 2.0 ms).
    """
    return n >= 20 if inner % (64 * lanes(like)) == 0 else n >= 30 and not ahead


@inline
def load_strip(z: Any, n: int, inner: int, columns: int, ahead: int, tile: Any) -> Any:
    """As `load_tile`, where nothing is to be transposed; asks for what lies `ahead`, unless that is 0."""
    m, zero = constant(z, -np.inf, -np.inf), constant(z, 0.0, 0.0)
    for j in range(n):
        if ahead:
            prefetch(z, j * inner + ahead)
        value = load_first(z, j * inner, columns, zero)
        store(tile, j * lanes(z), value)
        m = larger(value, m)
    return m


@inline
def in_one_tile(
    factors: Any, value: Any, z: Any, out: Any, n: int, inner: int, columns: int, ahead: int, tile: Any
) -> None:  # fmt: skip
    x, y = factors(tile, n, load_strip(z, n, inner, columns, ahead, tile), shift(tile, n * lanes(z)))
    for j in range(n):
        if ahead:
            prefetch_to_write(out, j * inner + ahead)
        put_first(out, j * inner, value(load(tile, j * lanes(z)), x, y), columns)


@inline
def load_strips(z: Any, n: int, inner: int, ahead: int, tiles: Any, maxima: Any) -> None:
    """Four strips side by side, to tiles, and their maxima."""
    step, low = lanes(z), constant(z, -np.inf, -np.inf)
    size = n * step
    a, b, c_, d = low, low, low, low
    for j in range(n):
        row, to = shift(z, j * inner), shift(tiles, j * step)
        if ahead:
            for k in range(ahead, ahead + 4 * step, step):
                prefetch(row, k)
        v, w, x, y = load(row, 0), load(row, step), load(row, 2 * step), load(row, 3 * step)
        store(to, 0, v)
        store(to, size, w)
        store(to, 2 * size, x)
        store(to, 3 * size, y)
        a, b, c_, d = larger(v, a), larger(w, b), larger(x, c_), larger(y, d)
    store(maxima, 0, a)
    store(maxima, step, b)
    store(maxima, 2 * step, c_)
    store(maxima, 3 * step, d)


@inline
def write_tiles(out: Any, n: int, inner: int, ahead: int, value: Any, tiles: Any, x: Any, y: Any) -> None:
    """value(what a tile has, x, y) of four strips, `x` and `y` a vector for each."""
    step = lanes(out)
    size = n * step
    a, b, c_, d = load(x, 0), load(x, step), load(x, 2 * step), load(x, 3 * step)
    e, f, g, h = load(y, 0), load(y, step), load(y, 2 * step), load(y, 3 * step)
    for j in range(n):
        row, tile = shift(out, j * inner), shift(tiles, j * step)
        if ahead:
            for k in range(ahead, ahead + 4 * step, step):
                prefetch_to_write(row, k)
        store(row, 0, value(load(tile, 0), a, e))
        store(row, step, value(load(tile, size), b, f))
        store(row, 2 * step, value(load(tile, 2 * size), c_, g))
        store(row, 3 * step, value(load(tile, 3 * size), d, h))


@inline
def in_four_tiles(factors: Any, value: Any, z: Any, out: Any, n: int, inner: int, ahead: int, tiles: Any) -> None:
    step = lanes(z)
    x, y = shift(tiles, 4 * n * step), shift(tiles, 4 * (n + 1) * step)
    load_strips(z, n, inner, ahead, tiles, x)
    for k in range(0, 4 * step, step):
        a, b = factors(shift(tiles, k * n), n, load(x, k), shift(tiles, 4 * (n + 2) * step))
        store(x, k, a)
        store(y, k, b)
    write_tiles(out, n, inner, ahead, value, tiles, x, y)


@inline
def softmax_factors(tile: Any, n: int, m: Any, room: Any) -> Any:
    """For `scaled`; exponentials replace the logits."""
    return tile_exp_reciprocal(tile, n, m, tile, tile)


@inline
def log_softmax_factors(tile: Any, n: int, m: Any, room: Any) -> Any:
    """For `subtracted`."""
    d, e = tile_exp(tile, n, m, room, tile, tile)
    return m, from_doubles(m, log1p_pair(tile, d[0], d[1])[0], log1p_pair(tile, e[0], e[1])[0])


@inline
def subtracted(z: Any, m: Any, log: Any) -> Any:
    return (z - m) - log
