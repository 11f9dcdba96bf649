"""Narrow rows: as many at a time as there are lanes, each lane one row, transposed through tiles in L1.

A horizontal sum costs as much as ten classes, and a vector of ten classes wastes six lanes: below so many classes, `across`,
rows go across lanes. Several tiles are worked on together, one phase after the other: a tile alone is a chain of operations
that wait for each other (8192 x 10, float32: 0.60 -> 0.51 ns an element). Sum order: j = 0, 1, 2, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import inline
from ._layout import NARROW
from ._math import (
    TOP32,
    TOP64,
    exp_from,
    four_begun,
    four_ended,
    lane_add,
    lane_start,
    lane_sums,
    low_add,
    low_start,
    low_sums,
    origin,
    scaled,
)  # fmt: skip
from ._simd import (
    any_lane,
    constant,
    lanes,
    load,
    misalignment,
    pointer,
    prefetch,
    prefetch_to_write,
    select,
    shift,
    splat,
    stack,
    store,
)  # fmt: skip
from ._transpose import load_transposed, store_transposed

# More classes of floats, for softmax and its like (log_softmax, Zen 5, cycles a row of 80: 83 -> 74, 100: 103 -> 91; doubles
# are as fast either way, and gradients lose).
NARROW32 = 104
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
def aligned(scratch: Any) -> Any:
    """The first address of a whole vector in an array that has room for one more."""
    p = pointer(scratch, 0)
    return shift(p, (lanes(p) - misalignment(p, 1)) % lanes(p))


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
    """out[r * n + j] = value(source, j)[r]; source[0] is a tile."""
    store_transposed(value, source, out, n, rows, n)


@inline
def tile_scaled(source: Any, j: int) -> Any:
    """Exponentials made probabilities."""
    tile, hi, lo = source
    return scaled(load(tile, j * lanes(tile)), hi, lo)


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
def tile_sums(tile: Any, n: int, m: Any, e: Any, ahead: Any, out: Any, by: int) -> Any:
    """The exponentials, which go to `e`, it may be the tile itself, and the lanes' sums, see `lane_start`.

    Asks for what comes next while it computes, a line for each class, `by` apart: the logits at `ahead`, the results' place at
    `out`.
    """
    step, base = lanes(tile), origin(m)
    hi, lo = lane_start(tile)
    j = 0
    for k in range(n):
        prefetch(ahead, k * by)
        prefetch_to_write(out, k * by)
    if n >= 4:
        begun = four_begun(tile, 0, base)
        while j + 8 <= n:
            following = four_begun(tile, (j + 4) * step, base)
            hi, lo = four_ended(begun, e, j * step, True, hi, lo)
            begun = following
            j += 4
        hi, lo = four_ended(begun, e, j * step, True, hi, lo)
        j += 4
    while j < n:
        a = exp_from(load(tile, j * step), base)
        store(e, j * step, a)
        hi, lo = lane_add(hi, lo, a)
        j += 1
    return hi, lo
