"""Columns of few classes: a strip of them, or four, is copied to a tile in L1, worked on there, and written."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import inline
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
def get_first(p: Any, k: int, n: int, other: Any) -> Any:
    """`load_first` likewise."""
    return load(p, k) if n >= lanes(p) else load_first(p, k, n, other)


@inline
def columns_ahead(like: Any, size: int) -> int:
    """How many columns ahead to ask for memory where there are few classes, 0 for not."""
    return _SOON * lanes(like) if size >= _FAR * lanes(like) else 0


@inline
def in_tiles(
    begun: Any, ended: Any, value: Any, z: Any, out: Any, n: int, inner: int, width: int, ahead: int, tiles: Any
) -> None:  # fmt: skip
    """value(what a tile has, x, y) of `width` columns, x and y what `ended` makes of what `begun` makes of a strip.

    `tiles` has room for 5 n + 8 vectors.
    """
    step, c = lanes(z), 0
    if four_strips(z, n, inner, ahead):
        while c + 4 * step <= width:
            in_four_tiles(begun, ended, value, shift(z, c), shift(out, c), n, inner, ahead, tiles)
            c += 4 * step
    whole = (width - c) // step * step
    if whole:
        strips_in_turn(begun, ended, value, shift(z, c), shift(out, c), n, inner, whole, ahead, tiles)
        c += whole
    if c < width:
        in_one_tile(begun, ended, value, shift(z, c), shift(out, c), n, inner, width - c, tiles)


@inline
def four_strips(like: Any, n: int, inner: int, ahead: int) -> bool:
    """Whether strips are copied to tiles four at a time.

    So where many classes lie whole pages apart, in the first cache all in one place, and of more within the caches (one thread,
    one after the other and four at a time, float32: 50 x 1024 37 and 17 us, 30 x 1024 14 and 10, 30 x 20000 115 and 130,
    60 x 1000 12.3 and 12.2, log_softmax 14.2 and 13.1).
    """
    return n >= 20 if inner % (64 * lanes(like)) == 0 else n >= 48 and not ahead


@inline
def load_strip(z: Any, n: int, inner: int, columns: int, ahead: int, tile: Any) -> Any:
    """As `load_tile`, where nothing is to be transposed; asks for what lies `ahead`, unless that is 0."""
    m, zero = constant(z, -np.inf, -np.inf), constant(z, 0.0, 0.0)
    for j in range(n):
        if ahead:
            prefetch(z, j * inner + ahead)
        value = get_first(z, j * inner, columns, zero)
        store(tile, j * lanes(z), value)
        m = larger(value, m)
    return m


@inline
def strips_in_turn(
    begun: Any, ended: Any, value: Any, z: Any, out: Any, n: int, inner: int, width: int, ahead: int, tiles: Any
) -> None:  # fmt: skip
    """As `rows_in_turn`, of at least one whole strip.

    One thread, strip after strip and so: 10 x 8192 19.7 -> 16.0 us, log_softmax 26.4 -> 22.5, float64 47 -> 41, 65 -> 55.
    """
    step, size = lanes(z), n * lanes(z)
    before, tile, after, room = tiles, shift(tiles, size), shift(tiles, 2 * size), shift(tiles, 3 * size)
    far = max(ahead, 2 * step)
    m = load_strip(z, n, inner, step, 0, before)
    sums = begun(before, n, m, room, shift(z, far), shift(out, far), inner)
    m_after = m
    if step < width:
        m_after = load_strip(shift(z, step), n, inner, step, 0, tile)
    for c in range(step, width, step):
        x, y = ended(m, sums)
        m = m_after
        if c + step < width:
            m_after = load_strip(shift(z, c + step), n, inner, step, 0, after)
        sums = begun(tile, n, m, room, shift(z, c + far), shift(out, c + far), inner)
        write_tile(shift(out, c - step), n, inner, step, value, before, x, y)
        before, tile, after = tile, after, before
    x, y = ended(m, sums)
    write_tile(shift(out, width - step), n, inner, step, value, before, x, y)


@inline
def in_one_tile(begun: Any, ended: Any, value: Any, z: Any, out: Any, n: int, inner: int, columns: int, tile: Any) -> None:
    """The last columns."""
    m = load_strip(z, n, inner, columns, 0, tile)
    x, y = ended(m, begun(tile, n, m, shift(tile, n * lanes(z)), tile, tile, lanes(z)))
    write_tile(out, n, inner, columns, value, tile, x, y)


@inline
def write_tile(out: Any, n: int, inner: int, columns: int, value: Any, tile: Any, x: Any, y: Any) -> None:
    for j in range(n):
        put_first(out, j * inner, value(load(tile, j * lanes(out)), x, y), columns)


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
def in_four_tiles(begun: Any, ended: Any, value: Any, z: Any, out: Any, n: int, inner: int, ahead: int, tiles: Any) -> None:
    step = lanes(z)
    x, y, room = shift(tiles, 4 * n * step), shift(tiles, 4 * (n + 1) * step), shift(tiles, 4 * (n + 2) * step)
    load_strips(z, n, inner, ahead, tiles, x)
    for k in range(0, 4 * step, step):
        tile, m = shift(tiles, k * n), load(x, k)
        a, b = ended(m, begun(tile, n, m, room, tile, tile, step))
        store(x, k, a)
        store(y, k, b)
    write_tiles(out, n, inner, ahead, value, tiles, x, y)
