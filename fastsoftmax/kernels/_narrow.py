"""Narrow rows: as many at a time as there are lanes, each lane one row, transposed through tiles in L1.

A horizontal sum costs as much as ten classes, and a vector of ten classes wastes six lanes: below so many classes, `across`,
rows go across lanes. A tile alone is a chain of operations that wait for each other: several are worked on together, one phase
after the other (8192 x 10, float32: 0.60 -> 0.51 ns an element), or in turn, see `rows_in_turn`. Sum order: j = 0, 1, 2, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import inline
from ._layout import NARROW, NARROW32
from ._math import (
    TOP32,
    TOP64,
    exp_from,
    four_begun,
    four_ended,
    from_doubles,
    lane_add,
    lane_start,
    lane_sums,
    log1p_pair,
    low_add,
    low_start,
    low_sums,
    origin,
    reciprocal,
    scaled,
)  # fmt: skip
from ._memory import stack
from ._simd import (
    any_lane,
    constant,
    lanes,
    load,
    prefetch,
    prefetch_to_write,
    select,
    shift,
    splat,
    store,
)  # fmt: skip
from ._transpose import load_transposed, store_transposed

TILES = 36 << 10  # bytes that the tiles worked on together, one more, and six vectors for each never exceed
# d over n**2, below which it is the sum of the others. Above it `lo` has digits enough: in k steps it adds up k * 2**-23 at
# most (roundings of `hi` in [2, 4)), each is rounded by 2**-24 of that, so n**2 * 2**-48 in all; of doubles n**2 * 2**-106
_CONFIDENT32, _CONFIDENT64 = 2.0**-24, 2.0**-53
tile_room = stack(TILES)
sum_room = stack(2048)  # four vectors of doubles for each of eight tiles


@inline
def across(z: Any, n: int) -> bool:
    """Whether softmax and its like take rows of n classes across lanes."""
    return n < (NARROW32 if lanes(z) == 16 else NARROW)


@inline
def tile_size(like: Any, n: int) -> int:
    """Elements of one tile: a vector for each class, in whole squares."""
    step = lanes(like)
    return (n + step - 1) // step * step * step


@inline
def tiles_together(n: int) -> int:
    """How many tiles to work on at once: 28 KiB at most."""
    return max(1, min(8, 384 // n))


@inline
def load_tile(z: Any, n: int, rows: int, tile: Any) -> Any:
    """Returns each lane's maximum, NaN passed over."""
    return load_transposed(z, n, rows, n, tile)


@inline
def load_tiles(z: Any, n: int, i: int, last: int, count: int, tiles: Any, maxima: Any) -> None:
    """`count` tiles from row i on, and their maxima."""
    step, size = lanes(tiles), tile_size(tiles, n)
    for b in range(count):
        k = i + b * step
        store(maxima, b * step, load_tile(shift(z, k * n), n, min(step, last - k), shift(tiles, b * size)))


@inline
def tile_target(tile: Any, n: int, labels: Any) -> Any:
    """The logit of each lane's own label (0 where no class matches)."""
    z_t, c, one = constant(tile, 0.0, 0.0), constant(tile, 0.0, 0.0), constant(tile, 1.0, 1.0)
    for j in range(n):
        z_t = select(labels == c, load(tile, j * lanes(tile)), z_t)
        c = c + one
    return z_t


@inline
def store_tile(out: Any, n: int, rows: int, value: Any, source: Any) -> None:
    """out[r * n + j] = value(source, j)[r]; source[0] is a tile. `rows`: its own and those written after them."""
    store_transposed(value, source, out, n, rows, n)


@inline
def tile_exact(e: Any, n: int, hi: Any, lo: Any) -> Any:
    """The lanes' d, see `lane_sums`, with all its digits, for the exponentials at e and what `tile_sums` made of them.

    Where one class outweighs the others by far, the roundings of their sum `lo` would count in d: of such rows it is taken once
    more, in doubles and without the largest (all rows in doubles: 8192 x 10, float32, loss-gradient 92 us, 85 so).
    """
    a, b = lane_sums(hi, low_add(low_start(), lo))
    least = splat(np.float64(n * n) * (_CONFIDENT32 if lanes(e) == 16 else _CONFIDENT64))
    small_a, small_b = a[0] < least, b[0] < least
    if any_lane(small_a) or any_lane(small_b):
        low, top, zero = low_start(), constant(e, TOP32, TOP64), constant(e, 0.0, 0.0)
        for j in range(n):
            value = load(e, j * lanes(e))
            low = low_add(low, select(value < top, value, zero))
        c, d = low_sums(lo, low)
        a = select(small_a, c[0], a[0]), select(small_a, c[1], a[1])
        b = select(small_b, d[0], b[0]), select(small_b, d[1], b[1])
    return a, b


@inline
def tiles_exp(
    z: Any, n: int, by: int, i: int, count: int, tiles: Any, maxima: Any, e: Any, apart: int, out: Any, sums: Any
) -> None:  # fmt: skip
    """The exponentials of `count` tiles from row i on, `apart` from each other, and each d, see `tile_exact`, for `kept_sums`.

    Rows of z and out, of which it asks for the next, lie `by` apart.

    What is done with d is a chain of operations that wait for each other: for all tiles together, and apart from the
    exponentials, it hinders them least (8192 x 10, log_softmax, Zen 5: 285 -> 247 cycles a tile, float64 289 -> 245).
    """
    step, size, most = lanes(tiles), tile_size(tiles, n), tiles_together(n)
    for b in range(count):
        k, tile, to = i + b * step, shift(tiles, b * size), shift(e, b * apart)
        hi, lo = tile_sums(tile, n, load(maxima, b * step), to, shift(z, (k + most * step) * by), shift(out, k * by), step)
        low, high = tile_exact(to, n, hi, lo)
        store(sums, 32 * b, low[0])
        store(sums, 32 * b + 8, low[1])
        store(sums, 32 * b + 16, high[0])
        store(sums, 32 * b + 24, high[1])


@inline
def kept_sums(sums: Any, b: int) -> Any:
    """Tile b's d, the halves as from `tile_exact`."""
    return (load(sums, 32 * b), load(sums, 32 * b + 8)), (load(sums, 32 * b + 16), load(sums, 32 * b + 24))


@inline
def ask_for(ahead: Any, out: Any, j: int, count: int, by: int) -> None:
    """The logits at `ahead`, the results' place at `out`: a line for each of `count` classes from j on."""
    for k in range(j, j + count):
        prefetch(ahead, k * by)
        prefetch_to_write(out, k * by)


@inline
def tile_sums(tile: Any, n: int, m: Any, e: Any, ahead: Any, out: Any, by: int) -> Any:
    """The exponentials, which go to `e`, it may be the tile itself, and the lanes' sums, see `lane_start`.

    Asks for what comes next while it computes, a line for each class, `by` apart: the logits at `ahead`, the results' place at
    `out`. A few at a time: all at once they are more than a CPU keeps track of (Ice Lake, one thread, softmax, float32: 20000 x
    80 1.90 -> 1.29 ms, 8192 x 10 90 -> 85 us, log_softmax 102 -> 89).
    """
    step, base = lanes(tile), origin(m)
    hi, lo = lane_start(tile)
    j = 0
    if n >= 4:
        begun = four_begun(tile, 0, base)
        ask_for(ahead, out, 0, 4, by)
        while j + 8 <= n:
            following = four_begun(tile, (j + 4) * step, base)
            ask_for(ahead, out, j + 4, 4, by)
            hi, lo = four_ended(begun, e, j * step, True, hi, lo)
            begun = following
            j += 4
        hi, lo = four_ended(begun, e, j * step, True, hi, lo)
        j += 4
    while j < n:
        a = exp_from(load(tile, j * step), base)
        ask_for(ahead, out, j, 1, by)
        store(e, j * step, a)
        hi, lo = lane_add(hi, lo, a)
        j += 1
    return hi, lo


# ---- softmax and log_softmax of a tile of rows or columns: begun, ended, and what becomes of an element ----------------------
@inline
def softmax_begun(tile: Any, n: int, m: Any, room: Any, ahead: Any, out: Any, by: int) -> Any:
    """The exponentials replace the logits."""
    return tile_sums(tile, n, m, tile, ahead, out, by)


@inline
def softmax_ended(m: Any, sums: Any) -> Any:
    return reciprocal(*sums)


@inline
def log_softmax_begun(tile: Any, n: int, m: Any, room: Any, ahead: Any, out: Any, by: int) -> Any:
    """The exponentials go to `room`, a tile."""
    return tile_exact(room, n, *tile_sums(tile, n, m, room, ahead, out, by))


@inline
def log_softmax_ended(m: Any, sums: Any) -> Any:
    low, high = sums
    return m, from_doubles(m, log1p_pair(m, low[0], low[1])[0], log1p_pair(m, high[0], high[1])[0])


@inline
def subtracted(z: Any, m: Any, log: Any) -> Any:
    return (z - m) - log


@inline
def rows_in_turn(begun: Any, ended: Any, value: Any, z: Any, out: Any, n: int, first: int, last: int) -> None:
    """Rows [first, last), at least one.

    Three tiles are under way: of one there are sums, the next is in its place, the one after is being loaded.
    In this order little waits for what is just before it (several tiles together, one phase after the other: 500000 x 10,
    float32 1.55 ms, so 1.46, float64 3.10 and 2.85; 8192 x 10 45 us and 43).
    """
    step, size = lanes(z), tile_size(z, n)
    before, far = tile_room(z), tiles_together(n) * step * n
    tile, after, room = shift(before, size), shift(before, 2 * size), shift(before, 3 * size)
    m = load_tile(shift(z, first * n), n, min(step, last - first), before)
    sums = begun(before, n, m, room, shift(z, first * n + far), shift(out, first * n), step)
    m_after = m
    if first + step < last:
        m_after = load_tile(shift(z, (first + step) * n), n, min(step, last - first - step), tile)
    for i in range(first + step, last, step):
        x, y = ended(m, sums)
        m = m_after
        if i + step < last:
            m_after = load_tile(shift(z, (i + step) * n), n, min(step, last - i - step), after)
        sums = begun(tile, n, m, room, shift(z, i * n + far), shift(out, i * n), step)
        store_tile(shift(out, (i - step) * n), n, last - i + step, value, (before, x, y))
        before, tile, after = tile, after, before
    x, y = ended(m, sums)
    i = last - 1 - (last - 1 - first) % step
    store_tile(shift(out, i * n), n, last - i, value, (before, x, y))


@inline
def tile_scaled(source: Any, j: int) -> Any:
    tile, hi, lo = source
    return scaled(load(tile, j * lanes(tile)), hi, lo)


@inline
def tile_subtracted(source: Any, j: int) -> Any:
    tile, m, log = source
    return subtracted(load(tile, j * lanes(tile)), m, log)
