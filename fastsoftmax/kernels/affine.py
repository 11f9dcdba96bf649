"""Matrix products of the affine layer: x @ weight + bias, grad_out @ weight.T, x.T @ grad_out.

Three ways, chosen by shape alone:
(a) Tiles of results in registers, lanes along the columns of the result (`_tile`). The second factor is copied, a panel of
    columns at a time, where there are rows enough (`few_for_panels`) or where it has to be transposed. The last few columns,
    if they would fill no more than a quarter of a vector, get tiles of their own.
(b) Few columns (at most `THIN`): most of a vector would be empty. x @ weight then has its lanes along n_in, with weight
    transposed once, and x.T @ grad_out is computed as (grad_out.T @ x).T. grad_out @ weight.T, tiles of (a), takes all columns
    of a few rows before the next ones: large results go to memory in whole lines, past the caches.
(c) Few rows (at most `FEW`): x @ weight and x @ weight.T read weight once, as it lies. Without 512-bit vectors, and one row of
    a large weight with them, whole rows at a time; likewise x.T @ grad_out.
Sum order: along the inner index, in blocks of `DEPTH` (for x.T @ grad_out: of rows, see `SLAB` and `thin_rows`) whose sums are
added in order; training steps take large weights in `affine_parts`, added likewise. (b)'s x @ weight and (c)'s x @ weight.T
put index k into lane k % lanes and fold the lanes in a fixed tree.
"""

from __future__ import annotations

from ._jit import CUBE_OUT, FLAG, INDEX, MATRIX_IN, MATRIX_OUT, VECTOR_IN, VECTOR_OUT, inline, no_vector, signature
from ._memory import one_at, release, scratch
from ._plans import layer, layer_backward
from ._simd import (
    constant,
    fence,
    fma,
    item,
    lanes,
    larger,
    load,
    load_first,
    misalignment,
    pointer,
    prefetch,
    shift,
    splat,
    store,
    store_first,
)  # fmt: skip
from ._target import WIDE
from ._tile import (
    EIGHT,
    FOURS,
    ROWS,
    VECTORS,
    across,
    add_row,
    add_tile,
    copy_eight,
    multiply_add,
    multiply_add_ahead,
    multiply_add_lanes,
    multiply_add_quarters,
    positive_part,
    store_tile,
    stream_tile,
    tile,
    tile_rows,
    tile_vectors,
)  # fmt: skip
from ._transpose import load_transposed

THIN, FEW = 10, 3
# `few_rows` takes so many rows of weight together, and no more rows of x than the second number says, or, where weight is
# `LARGE`, 1 MB in vectors, and its rows lie far apart, the first. More rows than that, up to those for which panels are copied,
# ask for a large weight's rows to come (Ice Lake, one thread, 1000 x 1000: 32 rows, float32, 1.10 -> 0.85 ms, 8 rows, float64,
# 1.9 -> 0.8; with 256 bits 24 rows, float64, as `few_rows` 6.8 -> 3.1, but of 16 x 256 x 1000, float32, 0.16 -> 0.27).
TOGETHER, LARGE = 4, 1 << 14
FEW_FAR, FEW_NEAR = (1, 0) if WIDE else (4 * ROWS, FEW)
DEPTH = 1024
SLAB = 512
# With 512-bit vectors two panels at a time are copied, for many rows, of which few at a time pass through them: both stay in a
# second cache of 1 MB (Ice Lake, one thread, 1024 x 512 x 1000, beside one panel and 512 rows: float32 12.2 -> 11.3 ms, float64
# 23.8 -> 22.1). With 256 bits a panel has a third of the columns, and caches may be half as large: all panels are copied,
# for all rows (Zen 3, 1000 x 1000 x 992, float32: a panel at a time 0.91 of OpenBLAS's speed, 1.00 so).
SWEEP = 512 if WIDE else 1 << 30  # rows of x for which panels of weight are copied once
PANELS = 2 if WIDE else 32  # that are copied together: at most 400 KB, or 2 MB, for each thread
REST_ROWS, REST_VECTORS = (4, 6) if WIDE else (4, 1)  # the tile of `rest_product`
SPREAD = 32  # vectors from row to row, beyond which panels are copied for few rows: each of a panel's is on a page of its own
# (b)'s tiles: rows of x by classes, classes by vectors of x; and the same for very few classes, of which tiles for ten would
# work out the last one again and again (Ice Lake, one thread, float32, 200 x 2048 x 2: 184 -> 110 us, the head 351 -> 188)
LANE_ROWS, LANE_COLUMNS = (2, 10) if WIDE else (1, 5)
OUTER_ROWS, OUTER_VECTORS = (10, 2) if WIDE else (5, 1)
VERY_THIN = 3
TRIPLE_ROWS, TRIPLE_VECTORS = (6, 6) if WIDE else (2, 2)
# Vectors of each row that are taken together: those that ten classes' 32 KB leave room for in a first cache, or of more, with
# which it would be full, 16 KB of each (60000 x 784, float64: Zen 3 34 -> 27 ms; Ice Lake 40.0 -> 34.6).
WHOLE, LANE_DEPTH = 50 if WIDE else 25, 25
AHEAD = 16  # rows of a panel
STREAM = 1 << 19  # vectors of grad_x, 32 MB: beyond the last-level cache, written past it (60000 x 784: 14 -> 6.3 ms)


# ---- (a) ---------------------------------------------------------------------------------------------------------------
@inline
def ask_for_tile(out, out_row, rows, columns):
    """Ask for all lines of a tile of results at once, where they lie far apart: stores wait for them one after the other."""
    step = lanes(out)
    if out_row > SPREAD * step:
        for r in range(rows):
            for v in range(0, columns + step, step):
                prefetch(out, r * out_row + v)


@inline
def end_sums(acc, out, out_row, rows, columns, begun):
    """Add a tile of sums to those that have begun, or write it."""
    if begun:
        acc = add_tile(acc, out, out_row, rows, columns)
    store_tile(acc, out, out_row, rows, columns)


@inline
def panel_product(acc, a, a_tile, a_row, a_step, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun):
    """All rows of one panel of out (+)= a @ b; `acc` is an empty tile, which says the tiles' shape.

    a's tiles begin a_tile elements apart for each of their rows.
    """
    height = tile_rows(acc)
    for i in range(0, n_rows, height):
        rows = min(height, n_rows - i)
        to = shift(out, i * out_row)
        ask_for_tile(to, out_row, rows, columns)
        c = multiply_add(acc, shift(a, i * a_tile), a_row, a_step, rows, b, b_vector, b_step, columns, n)
        end_sums(c, to, out_row, rows, columns, begun)


@inline
def fitting_product(a, a_tile, a_row, a_step, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun):
    """The same with the tile that fits the panel."""
    step = lanes(a)
    if columns > 2 * step:
        panel_product(
            tile(a, ROWS, VECTORS), a, a_tile, a_row, a_step, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun
        )
    elif columns > step:
        panel_product(tile(a, ROWS, 2), a, a_tile, a_row, a_step, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun)
    else:
        panel_product(tile(a, ROWS, 1), a, a_tile, a_row, a_step, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun)


@inline
def panels_product(a, a_tile, a_step, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun):
    """The same for many panels."""
    step, span = lanes(b), VECTORS * lanes(b)
    for j in range(0, columns, span):
        width, q = min(span, columns - j), shift(b, j // step * b_vector)
        fitting_product(a, a_tile, 1, a_step, n_rows, q, b_vector, b_step, width, n, shift(out, j), out_row, begun)


@inline
def at_hand(acc, a, a_row, rows, b, b_vector, b_step, columns, n):
    """Where a panel's rows lie side by side, or close to each other."""
    return multiply_add(acc, a, a_row, 1, rows, b, b_vector, b_step, columns, n)


@inline
def far_apart(acc, a, a_row, rows, b, b_vector, b_step, columns, n):
    """Where each may be on a page of its own: asks for those to come."""
    ahead = shift(b, AHEAD * b_step)
    return multiply_add_ahead(acc, a, a_row, 1, rows, b, b_vector, b_step, columns, n, ahead, b_vector, b_step)


@inline
def panel_product_ended(
    acc, multiply, a, a_row, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun, biased, bias, relu
):  # fmt: skip
    """The same, and the bias and the rectifier while the results are in registers."""
    height = tile_rows(acc)
    for i in range(0, n_rows, height):
        rows = min(height, n_rows - i)
        to = shift(out, i * out_row)
        ask_for_tile(to, out_row, rows, columns)
        c = multiply(acc, shift(a, i * a_row), a_row, rows, b, b_vector, b_step, columns, n)
        end_tile(c, to, out_row, rows, columns, begun, biased, bias, relu)


@inline
def panel_rest_ended(a, a_row, n_rows, b, b_step, columns, n, out, out_row, begun, biased, bias, relu):
    """The same for the few columns that `rest` leaves to a panel of their own."""
    acc = tile(a, FOURS, 1)
    for i in range(0, n_rows, FOURS):
        rows, to = min(FOURS, n_rows - i), shift(out, i * out_row)
        c = multiply_add_quarters(acc, shift(a, i * a_row), a_row, rows, b, b_step, columns, n)
        end_tile(c, to, out_row, rows, columns, begun, biased, bias, relu)


@inline
def panels_product_ended(
    a, a_row, n_rows, b, b_vector, b_step, columns, whole, rest_step, n, out, out_row, span, far, begun, biased, bias, relu
):  # fmt: skip
    """The same for many panels, `span` columns each, with the tiles that fit; columns from `whole` on are left to `rest`."""
    step, j = lanes(b), 0
    while j < columns:
        width, q = min(span, whole - j) if j < whole else columns - j, shift(b, j // step * b_vector)
        to, end = shift(out, j), (begun, biased, shift(bias, j), relu)
        if j == whole:
            panel_rest_ended(a, a_row, n_rows, q, rest_step, width, n, to, out_row, *end)
        elif n_rows <= FEW and WIDE and far:
            panel_product_ended(tile(a, FEW, 7), far_apart, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        elif n_rows <= FEW and WIDE and width <= 7 * step:
            panel_product_ended(tile(a, 1, 7), at_hand, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        elif n_rows <= FEW and WIDE:
            panel_product_ended(tile(a, 1, 8), at_hand, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        elif far and width > 2 * step:
            acc = tile(a, ROWS, VECTORS)
            panel_product_ended(acc, far_apart, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        elif width > 2 * step:
            acc = tile(a, ROWS, VECTORS)
            panel_product_ended(acc, at_hand, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        elif width > step:
            panel_product_ended(tile(a, ROWS, 2), at_hand, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        else:
            panel_product_ended(tile(a, ROWS, 1), at_hand, a, a_row, n_rows, q, b_vector, b_step, width, n, to, out_row, *end)
        j += width


@inline
def end_tile(c, out, out_row, rows, columns, begun, biased, bias, relu):
    """What is left to do to a tile of sums before it is written, and write it."""
    if begun:
        c = add_tile(c, out, out_row, rows, columns)
    if biased:
        c = add_row(c, bias, columns)
    if relu:
        c = positive_part(c)
    store_tile(c, out, out_row, rows, columns)


@inline
def rest(like, n_out):
    """How many columns are left over by whole vectors, if no more than a quarter of one; else 0: tiles take them too.

    Tiles would spend a whole vector on them: of 128 x 784 x 100, float32, a seventh of the work for 4 columns.
    """
    columns = n_out % lanes(like)
    return columns if columns <= lanes(like) // 4 else 0


@inline
def block_rows(like):
    """How many rows of x pass through the copied panels before the next ones do: they stay in a second cache."""
    return 4 * ROWS if WIDE else ROWS * lanes(like) // 4


@inline
def slab_rows(like, n):
    """How many rows of grad_weight take their values from n rows of x at a time: 256 KB or less, which a second cache holds."""
    return max(ROWS, 4096 * lanes(like) // max(n, 1) // ROWS * ROWS) if WIDE else ROWS * lanes(like)


@inline
def few_for_panels(like, n_out):
    """Up to how many rows of x the panels of weight, or of grad_out, are read as they lie.

    (Ice Lake, one thread, x.T @ grad_out, 200 x 784 x 128: float32 0.66 -> 0.48 ms, float64 1.36 -> 0.98; x @ weight,
    1000 x 256 x 128: 0.75 -> 0.60, 1.76 -> 1.59. Of fewer rows, not spread out, copies gain nothing.)
    """
    return 8 * lanes(like) if WIDE and n_out <= SPREAD * lanes(like) else 4 * ROWS


@inline
def panels_size(like, n, columns):
    """Elements for the panels of n x columns, and a square besides for `turn_panels`."""
    step = lanes(like)
    return (n * ((columns + step - 1) // step) + step) * step


@inline
def copy_panels(b, b_row, n, columns, panels):
    """Copy the n x columns matrix at b, each vector's n steps side by side; zeros beyond its columns.

    Each row may be on a page of its own, where no CPU foresees the next: so it is asked for, `AHEAD` rows before its turn.
    """
    step = lanes(b)
    zero = constant(b, 0.0, 0.0)
    for g in range(0, columns, 4 * step):
        for k in range(n):
            row = shift(b, k * b_row)
            for j in range(g, min(columns, g + 4 * step), step):
                prefetch(row, AHEAD * b_row + j)
                value = load(row, j) if j + step <= columns else load_first(row, j, columns - j, zero)
                store(panels, j * n + k * step, value)


@inline
def rest_row(like):
    """From row to row of `copy_rest`'s copy."""
    return lanes(like) // 4


@inline
def copy_rest(b, b_row, n, columns, panel):
    """Copy the few columns that `rest` leaves close together: in panels each row of them would take a line of the first cache.

    200 x 3072 x 50, Zen 3, one thread: 0.96 of the time, float64 0.95.
    """
    zero = constant(b, 0.0, 0.0)
    for k in range(n):  # each spills into the next
        store(panel, k * rest_row(b), load_first(b, k * b_row, columns, zero))


@inline
def copy_rows(x, x_row, n_rows, n, to, to_row):
    """Copy n_rows rows of n values, to_row elements apart, and zeros up to a whole vector."""
    step, zero = lanes(x), constant(x, 0.0, 0.0)
    for i in range(n_rows):
        k = 0
        while k + step <= n:
            store(to, i * to_row + k, load(x, i * x_row + k))
            k += step
        store(to, i * to_row + k, load_first(x, i * x_row + k, n - k, zero))


@inline
def turn_panels(b, b_row, n, columns, panels):
    """The same of the n x columns matrix that is transposed at b."""
    step = lanes(b)
    spare = shift(panels, (columns + step - 1) // step * step * n)  # where a square ends that is not all ours
    for j in range(0, columns, step):
        to, width = shift(panels, j * n), min(step, columns - j)
        for k in range(0, n, step):
            depth = min(step, n - k)
            square = shift(to, k * step) if depth == step else spare
            load_transposed(shift(b, j * b_row + k), b_row, width, depth, square)
            if depth < step:
                for t in range(depth):
                    store(to, (k + t) * step, load(spare, t * step))


@inline
def few_rows(x, n_rows, n_in, weight, n_out, biased, bias, relu, out, sums):
    """out = x @ weight + bias: `TOGETHER` of weight's rows at a time, as they lie, the sums of all rows in a near cache.

    Memory is read in its order, once (Ice Lake, 1000 x 1000, one row: float32 220 -> 170 us, float64 450 -> 350). And where
    registers hold the sums of few columns (Zen 3, 784 x 1000, one row, float32: 142 -> 82 us).
    """
    step, zero, most = lanes(x), constant(x, 0.0, 0.0), columns_together(x, n_rows)
    for c in range(0, n_out, most):
        columns = min(most, n_out - c)
        row = (columns + step - 1) // step * step
        for start in range(0, max(n_in, 1), DEPTH):
            end = min(start + DEPTH, n_in)
            for j in range(0, n_rows * row, step):
                store(sums, j, zero)
            for k in range(start, end, TOGETHER):
                for i in range(n_rows):
                    some, p = min(TOGETHER, end - k), shift(x, i * n_in + k)
                    add_weighted_rows(shift(weight, k * n_out + c), n_out, columns, some, p, shift(sums, i * row))
            for i in range(n_rows):
                to = shift(out, i * n_out + c)
                for j in range(0, columns, step):
                    value, count = load(sums, i * row + j), columns - j
                    if start > 0:
                        value = value + load_first(to, j, count, zero)
                    if biased and end == n_in:
                        value = value + load_first(bias, c + j, count, zero)
                    store_first(to, j, larger(zero, value) if relu and end == n_in else value, count)


@inline
def columns_together(like, n_rows):
    """Of how many columns `few_rows` keeps sums: 64 KB, or 4 KB for each row."""
    return max(64, 1024 // max(1, n_rows)) * lanes(like)


@inline
def add_weighted_rows(rows, row, n, count, factors, sums):
    """sums += factors[0] * rows[0] + factors[1] * rows[1] + ..., in this order."""
    step, zero = lanes(rows), constant(rows, 0.0, 0.0)
    if count == TOGETHER:
        a, b, c, d = splat(item(factors, 0)), splat(item(factors, 1)), splat(item(factors, 2)), splat(item(factors, 3))
        j = 0
        while j + step <= n:
            value = fma(a, load(rows, j), load(sums, j))
            value = fma(b, load(rows, row + j), value)
            value = fma(c, load(rows, 2 * row + j), value)
            store(sums, j, fma(d, load(rows, 3 * row + j), value))
            j += step
        if j < n:
            value = load(sums, j)
            for k in range(TOGETHER):
                value = fma(splat(item(factors, k)), load_first(rows, k * row + j, n - j, zero), value)
            store(sums, j, value)
    else:
        for k in range(count):
            for j in range(0, n, step):
                value = load_first(rows, k * row + j, n - j, zero)
                store(sums, j, fma(splat(item(factors, k)), value, load(sums, j)))


@inline
def few_rows_outer(x, n_rows, n_in, width, grad_out, n_out, adding, out):
    """out (+)= x.T @ grad_out for `FEW` rows and `width` of x's n_in columns: whole rows of out, one after the other."""
    step, zero = lanes(x), constant(x, 0.0, 0.0)
    for k in range(width):
        to, j = shift(out, k * n_out), 0
        while j < n_out:
            count, value = n_out - j, zero
            if count >= step:
                for i in range(n_rows):
                    value = fma(splat(item(x, i * n_in + k)), load(grad_out, i * n_out + j), value)
                store(to, j, load(to, j) + value if adding else value)
            else:
                for i in range(n_rows):
                    value = fma(splat(item(x, i * n_in + k)), load_first(grad_out, i * n_out + j, count, zero), value)
                store_first(to, j, load_first(to, j, count, zero) + value if adding else value, count)
            j += step


@inline
def few_rows_transposed(x, n_rows, n_in, weight, n_out, biased, bias, relu, out):
    """out = x @ weight.T + bias for `FEW` rows: weight's rows are read as they lie, lanes along n_in."""
    step = lanes(x)
    for i in range(n_rows):
        p = shift(x, i * n_in)
        for j in range(0, n_out, LANE_COLUMNS):
            columns, to, q = min(LANE_COLUMNS, n_out - j), shift(out, i * n_out + j), shift(weight, j * n_in)
            c = across(multiply_add_lanes(tile(x, 1, LANE_COLUMNS), p, n_in, 1, q, n_in, step, columns, n_in, n_in, 0))
            if biased:
                c = add_row(c, shift(bias, j), columns)
            if relu:
                c = positive_part(c)
            store_tile(c, to, n_out, 1, columns)


@inline
def copy_slab(x, x_row, n, width, slab, slab_tile):
    """Copy n rows of `width` values so that what one tile reads of them, ROWS values of each, lies side by side.

    Tiles lie slab_tile elements apart for each of their rows.
    """
    zero = constant(x, 0.0, 0.0)
    for i in range(n):
        k = 0
        while k + EIGHT <= width and not WIDE:  # what is too much is overwritten, or lies between tiles
            copy_eight(x, i * x_row + k, slab, k * slab_tile + i * ROWS)
            k += ROWS
        while k < width:
            columns = min(ROWS, width - k)
            store_first(slab, k * slab_tile + i * ROWS, load_first(x, i * x_row + k, columns, zero), columns)
            k += ROWS


@signature(MATRIX_IN, MATRIX_IN, VECTOR_IN, MATRIX_OUT, FLAG, FLAG, INDEX, INDEX, small=layer)
def affine(x, weight, bias, out, transposed, relu, first, last):
    """Rows [first, last) of out = x @ weight + bias (weight.T if `transposed`), of it the positive part if `relu`.

    An empty bias stands for none.
    """
    n_in, n_out, n_rows, biased = x.shape[1], out.shape[1], last - first, bias.size > 0
    x_, w, b, to = pointer(x, first * n_in), pointer(weight, 0), pointer(bias, 0), pointer(out, first * n_out)
    step = lanes(w)
    if n_out <= THIN and not transposed:
        row = turned_row(w, n_in)
        turned = scratch(w, turned_size(w, n_in, n_out))
        turn_weight(w, n_in, n_out, turned, row)
        block = thin_rows(w, n_in)
        for i in range(0, n_rows, block):
            rows, p, q = min(block, n_rows - i), shift(x_, i * n_in), shift(to, i * n_out)
            thin_product(p, rows, n_in, turned, row, n_out, biased, b, relu, q, n_rows - i)
        release(turned)
        return
    if transposed and n_in <= THIN and not biased and not relu:
        row = turned_row(w, n_out)
        turned = scratch(w, turned_size(w, n_out, n_in))
        turn_weight(w, n_out, n_in, turned, row)
        thin_spread(x_, n_rows, n_in, turned, row, n_out, to, streams(out))
        release(turned)
        return
    if transposed and n_rows <= FEW:
        few_rows_transposed(x_, n_rows, n_in, w, n_out, biased, b, relu, to)
        return
    far = not transposed and n_out > SPREAD * step and weight.size >= LARGE * step
    if not transposed and n_rows <= (FEW_FAR if far else FEW_NEAR):
        sums = scratch(w, n_rows * (min(n_out, columns_together(w, n_rows)) + step))
        few_rows(x_, n_rows, n_in, w, n_out, biased, b, relu, to, sums)
        release(sums)
        return
    copied = transposed or n_rows > few_for_panels(w, n_out)
    far = far and not copied
    span, group = VECTORS * step, PANELS * VECTORS * step if copied else n_out
    if n_rows <= FEW and not copied:
        vectors = (n_out + step - 1) // step  # reading weight is all the work: not one load more than must be
        span = (7 if far or (vectors + 6) // 7 == (vectors + 7) // 8 else 8) * step
    whole = n_out - rest(w, n_out) if n_rows > ROWS else n_out
    # Rows of x a multiple of 1 KB apart are copied too: they would contend for the same places in caches (1024 x 1024 x 1000,
    # Zen 3: 0.87 of OpenBLAS's speed, 0.99 so).
    aside = not WIDE and copied and n_in % (16 * step) == 0
    room = panels_size(w, min(n_in, DEPTH), min(group, n_out)) if copied else 0
    panels = scratch(w, room + (block_rows(w) * (min(n_in, DEPTH) + 2 * step) if aside else 0))
    block = shift(panels, room)
    for i in range(0, n_rows, SWEEP):
        rows = min(SWEEP, n_rows - i)
        for k in range(0, max(n_in, 1), DEPTH):
            depth, begun, ended = min(DEPTH, n_in - k), k > 0, k + DEPTH >= n_in
            add, rectify = biased and ended, relu and ended
            for j in range(0, n_out, max(group, 1)):
                columns, q, q_vector, q_step, q_rest = min(group, n_out - j), shift(w, k * n_out + j), step, n_out, n_out
                there = min(columns, whole - j)
                if copied:
                    if transposed:
                        turn_panels(shift(w, j * n_in + k), n_in, depth, columns, panels)
                        q_rest = step
                    else:
                        copy_panels(q, n_out, depth, there, panels)
                        if there < columns:
                            copy_rest(shift(q, there), n_out, depth, columns - there, shift(panels, there * depth))
                            q_rest = rest_row(w)
                    q, q_vector, q_step = panels, depth * step, step
                for t in range(i, i + rows, block_rows(w)):
                    height, p, p_row = min(block_rows(w), i + rows - t), shift(x_, t * n_in + k), n_in
                    if aside:
                        p_row = (min(n_in, DEPTH) + step - 1) // step * step + step
                        copy_rows(p, n_in, height, depth, block, p_row)
                        p = block
                    panels_product_ended(
                        p, p_row, height, q, q_vector, q_step, columns, there, q_rest, depth,
                        shift(to, t * n_out + j), n_out, span, far, begun, add, shift(b, j), rectify,
                    )  # fmt: skip
    release(panels)


@signature(MATRIX_IN, MATRIX_IN, CUBE_OUT, INDEX, INDEX, INDEX)
def affine_parts(x, weight, parts, size, first, last):
    """parts[k] = x @ weight over the inputs [k * size, (k + 1) * size), of those within [first, last); `size` divides first."""
    n_rows, n_in, n_out = x.shape[0], x.shape[1], weight.shape[1]
    step = lanes(pointer(weight, 0))
    whole = n_out - rest(pointer(weight, 0), n_out)
    for k in range(first, last, size):
        a, depth, j = pointer(x, k), min(size, last - k), 0
        while j < n_out:
            columns = min(VECTORS * step, whole - j) if j < whole else n_out - j
            b, to = pointer(weight, k * n_out + j), pointer(parts, k // size * n_rows * n_out + j)
            if j == whole:
                panel_rest_ended(a, n_in, n_rows, b, n_out, columns, depth, to, n_out, False, False, b, False)
            else:
                fitting_product(a, n_in, n_in, 1, n_rows, b, step, n_out, columns, depth, to, n_out, False)
            j += columns


@signature(CUBE_OUT, VECTOR_IN, FLAG, MATRIX_OUT, INDEX, INDEX)
def add_parts(parts, bias, relu, out, first, last):
    """Rows [first, last) of out = the sum of the parts in their order + bias, or its positive part."""
    n_out = out.shape[1]
    p, zero = pointer(parts, 0), constant(pointer(parts, 0), 0.0, 0.0)
    for i in range(first, last):
        for j in range(0, n_out, lanes(p)):
            count, at = n_out - j, i * n_out + j
            value = load_first(p, at, count, zero)
            for k in range(1, parts.shape[0]):
                value = value + load_first(p, k * out.size + at, count, zero)
            value = value + load_first(pointer(bias, 0), j, count, zero)
            store_first(pointer(out, 0), at, larger(zero, value) if relu else value, count)


@inline
def turned_rest_size(like, width):
    """Elements for `rest_product` to write on."""
    step = lanes(like)
    return (REST_ROWS + 1) * step * (width // step + step)


@inline
def rest_product(grad_out, n_out, columns, x, n_in, n, width, turned, out, begun):
    """out (+)= x.T @ grad_out for `columns` of grad_out's n_out columns and `width` of x's n_in, lanes along the latter.

    All are pointers; `turned` has room for the transposed result and a square.
    """
    step, zero = lanes(x), constant(x, 0.0, 0.0)
    row = (width + step - 1) // step * step
    square = shift(turned, REST_ROWS * row)
    acc = tile(x, REST_ROWS, REST_VECTORS)
    for k in range(0, width, REST_VECTORS * step):
        m = min(REST_VECTORS * step, width - k)
        c = multiply_add(acc, grad_out, 1, n_out, columns, shift(x, k), step, n_in, m, n)
        store_tile(c, shift(turned, k), row, columns, m)
    for k in range(0, width, step):
        m = min(step, width - k)
        load_transposed(shift(turned, k), row, columns, m, square)
        for t in range(m):
            to, value = shift(out, (k + t) * n_out), load(square, t * step)
            if begun:
                value = value + load_first(to, 0, columns, zero)
            store_first(to, 0, value, columns)


@signature(MATRIX_IN, MATRIX_IN, MATRIX_OUT, VECTOR_OUT, FLAG, INDEX, INDEX)
def affine_grad_weight(grad_out, x, grad_weight, grad_bias, adding, first, last):
    """Rows [first, last) of grad_weight = x.T @ grad_out; with row 0 also grad_bias = grad_out.sum(0), unless it is empty.

    If `adding`, they are added to what is there.
    """
    n_rows, n_in, n_out = x.shape[0], x.shape[1], grad_out.shape[1]
    step = lanes(pointer(x, 0))
    one, width = one_at(pointer(x, 0)), last - first
    if n_rows <= FEW and not WIDE:
        a, b = pointer(x, first), pointer(grad_out, 0)
        few_rows_outer(a, n_rows, n_in, width, b, n_out, adding, pointer(grad_weight, first * n_out))
        if first == 0 and grad_bias.size:
            add_rows(b, n_rows, n_out, one, pointer(grad_bias, 0), adding)
        return
    spread = n_out > SPREAD * step
    enough = n_rows > few_for_panels(pointer(x, 0), n_out) and width >= 8 * ROWS  # 1000 x 40 x 100, float32: 112 us, copied 130
    copied = spread or enough
    kept = spread and WIDE  # x's copy, for the next panels
    span, group = VECTORS * step, PANELS * VECTORS * step if spread else n_out
    whole = n_out if kept else n_out - rest(pointer(x, 0), n_out)
    depth = min(n_rows, SLAB)
    height = min(width, SWEEP if kept else slab_rows(pointer(x, 0), depth))
    room = panels_size(pointer(x, 0), depth, min(group, n_out)) if copied else 0
    spare = turned_rest_size(pointer(x, 0), height) if whole < n_out else 0
    slab_size = (depth + 1) * ((width if kept else height) + ROWS) if copied else 0
    turned = scratch(pointer(x, 0), spare + room + slab_size)
    panels = shift(turned, spare)
    slab = shift(panels, room)
    for i in range(0, max(n_rows, 1), SLAB):
        n, begun = min(SLAB, n_rows - i), adding or i > 0
        a_tile, a_step = (n + 1, ROWS) if copied else (1, n_in)
        for g in range(0, n_out, max(group, 1)):
            columns, b, b_vector, b_step = min(group, n_out - g), pointer(grad_out, i * n_out + g), step, n_out
            if copied:
                copy_panels(b, n_out, n, columns, panels)
                b, b_vector, b_step = panels, n * step, step
            for r in range(0, width, height):
                rows, a = min(height, width - r), pointer(x, i * n_in + first + r)
                if copied:
                    to = shift(slab, r * a_tile) if kept else slab
                    if g == 0 or not kept:
                        copy_slab(a, n_in, n, rows, to, a_tile)
                    a = to
                to, there = pointer(grad_weight, (first + r) * n_out), min(columns, whole - g)
                panels_product(a, a_tile, a_step, rows, b, b_vector, b_step, there, n, shift(to, g), n_out, begun)
                if there < columns:  # while these columns of x are in cache
                    y, q = pointer(x, i * n_in + first + r), pointer(grad_out, i * n_out + whole)
                    rest_product(q, n_out, n_out - whole, y, n_in, n, rows, turned, shift(to, whole), begun)
            if first == 0 and grad_bias.size:
                for j in range(0, columns, span):
                    panel_product(
                        tile(b, 1, VECTORS), one, 0, 0, 0, 1, shift(b, j // step * b_vector), b_vector, b_step,
                        min(span, columns - j), n, pointer(grad_bias, g + j), 0, begun,
                    )  # fmt: skip
    release(turned)


# ---- (b) ---------------------------------------------------------------------------------------------------------------
@inline
def turned_row(like, n_in):
    """From row to row of the transposed weight: an odd number of vectors, for the first cache's sake."""
    step = lanes(like)
    return ((n_in + step - 1) // step | 1) * step


@inline
def turned_size(like, n_in, n_out):
    """Elements for `turn_weight` to write on, its scratch included."""
    step = lanes(like)
    return turned_row(like, n_in) * n_out + step * step


@inline
def turn_weight(weight, n_in, n_out, turned, row):
    """weight.T, its rows `row` elements apart."""
    step = lanes(weight)
    square = shift(turned, row * n_out)
    for k in range(0, n_in, step):
        for c in range(0, n_out, step):
            columns = min(step, n_out - c)
            load_transposed(shift(weight, k * n_out + c), n_out, min(step, n_in - k), columns, square)
            for j in range(columns):
                store(turned, (c + j) * row + k, load(square, j * step))


@inline
def thin_product(x, n_rows, n_in, turned, row, n_out, biased, bias, relu, out, n_left):
    """out = x @ weight + bias from `turn_weight`'s copy; all are pointers. Of x, n_left rows will be read by and by."""
    step = lanes(x)
    most = WHOLE * step if n_in <= WHOLE * step else LANE_DEPTH * step
    for k in range(0, max(n_in, 1), most):
        depth = min(most, n_in - k)
        begun, ended = k > 0, k + depth == n_in
        end, p, q = (begun, biased and ended, bias, relu and ended), shift(x, k), shift(turned, k)
        if n_out <= VERY_THIN:
            lane_product(tile(x, TRIPLE_ROWS, VERY_THIN), p, n_rows, n_in, q, row, n_out, depth, out, n_left, *end)
        else:
            lane_product(tile(x, LANE_ROWS, LANE_COLUMNS), p, n_rows, n_in, q, row, n_out, depth, out, n_left, *end)


@inline
def lane_product(acc, x, n_rows, n_in, turned, row, n_out, depth, out, n_left, begun, biased, bias, relu):
    """`depth` of the inputs, in tiles like the empty one `acc`.

    A tile's rows lie far apart: memory is read in as many places at once (Ice Lake, one thread, 60000 x 784 x 10, float32:
    17.1 -> 14.0 ms).
    """
    step, height, width = lanes(x), tile_rows(acc), tile_vectors(acc)
    apart = (n_rows + height - 1) // height
    ahead = min(n_rows, n_left - n_rows) * n_in
    for j in range(0, n_out, width):
        columns, q = min(width, n_out - j), shift(turned, j * row)
        for i in range(apart):
            rows, to, p = (n_rows - i + apart - 1) // apart, shift(out, i * n_out + j), shift(x, i * n_in)
            c = across(multiply_add_lanes(acc, p, apart * n_in, rows, q, row, step, columns, depth, n_in, ahead))
            end_tile(c, to, apart * n_out, rows, columns, begun, biased, shift(bias, j), relu)


@inline
def thin_spread(grad_out, n_rows, n_out, turned, row, n_in, out, streaming):
    """out = grad_out @ weight.T from `turn_weight`'s copy, all columns of a few rows before the next ones; all are pointers."""
    step = lanes(out)
    head = (step - misalignment(out, 1)) % step if streaming else 0
    for i in range(0, n_rows, ROWS):
        rows, g, to = min(ROWS, n_rows - i), shift(grad_out, i * n_out), shift(out, i * n_in)
        j = 0
        while j < n_in:
            columns = min(head if j < head else VECTORS * step, n_in - j)
            b, c = shift(turned, j), shift(to, j)
            if columns <= step:
                last = multiply_add(tile(g, ROWS, 1), g, n_out, 1, rows, b, step, row, columns, n_out)
                store_tile(last, c, n_in, rows, columns)
            else:
                acc = multiply_add(tile(g, ROWS, VECTORS), g, n_out, 1, rows, b, step, row, columns, n_out)
                if streaming and columns == VECTORS * step:
                    stream_tile(acc, c, n_in, rows)
                else:
                    store_tile(acc, c, n_in, rows, columns)
            j += columns
    if streaming:
        fence()


@inline
def streams(out):
    """Whether to write a matrix past the caches: it is large, and its rows all begin alike within a line."""
    step = lanes(pointer(out, 0))
    return out.size >= STREAM * step and out.shape[1] % step == 0


@inline
def thin_rows(like, n_in):
    """How many rows (b) takes at a time: as many as fill a quarter of a second cache of 1 MB, but at least 16."""
    return max(16, 4096 // (n_in // lanes(like) + 1) // 16 * 16)


@inline
def thin_outer(grad_out, x, n, n_in, n_out, out, begun, asks):
    """out (+)= grad_out.T @ x over n rows, out being (n_out, n_in); all are pointers.

    If it `asks` for the next n rows, then in their order in memory: read by tiles, two lines of a row and then two of the next,
    they would come at a third of the speed. And in as many places at once as a tile has vectors (Ice Lake, one thread, 60000 x
    784 x 10: float32 21.2 -> 19.4 ms, float64 48 -> 37).
    """
    if n_out <= VERY_THIN:
        outer_product(tile(x, VERY_THIN, TRIPLE_VECTORS), tile(x, VERY_THIN, 1), grad_out, x, n, n_in, n_out, out, begun, asks)
    else:
        acc, last = tile(x, OUTER_ROWS, OUTER_VECTORS), tile(x, OUTER_ROWS, 1)
        outer_product(acc, last, grad_out, x, n, n_in, n_out, out, begun, asks)


@inline
def outer_product(acc, last, grad_out, x, n, n_in, n_out, out, begun, asks):
    """The same in tiles like the empty one `acc`, or `last` where that is wide enough."""
    step, height, width = lanes(x), tile_rows(acc), tile_vectors(acc) * lanes(x)
    line = step if asks else 0  # else for what is in the first cache
    ahead, whole = shift(x, line // step * n * n_in), n_in // width
    for c in range(0, n_out, height):
        rows = min(height, n_out - c)
        for j in range(0, n_in, width):
            columns, to = min(width, n_in - j), shift(out, c * n_in + j)
            g, b = shift(grad_out, c), shift(x, j)
            if columns <= step:
                more = shift(ahead, j * n)
                sums = multiply_add_ahead(last, g, 1, n_out, rows, b, step, n_in, columns, n, more, line, line)
                end_sums(sums, to, n_in, rows, columns, begun)
            else:
                more, apart = shift(ahead, j // width * step * n), whole * line * n
                if columns < width:
                    more, apart = shift(ahead, j * n), line * n
                sums = multiply_add_ahead(acc, g, 1, n_out, rows, b, step, n_in, columns, n, more, apart, line)
                end_sums(sums, to, n_in, rows, columns, begun)


@inline
def add_rows(matrix, n_rows, n_columns, one, out, begun):
    """out (+)= the sum over the rows; `one` points to a 1."""
    step = lanes(matrix)
    for j in range(0, n_columns, step):
        columns = min(step, n_columns - j)
        acc = multiply_add(tile(matrix, 1, 1), one, 0, 0, 1, shift(matrix, j), step, n_columns, columns, n_rows)
        end_sums(acc, shift(out, j), 0, 1, columns, begun)


@inline
def thin_sums(grad_out, x, n_rows, n_in, n_out, part, part_bias):
    """grad_out.T @ x and grad_out.sum(0); all are pointers."""
    block, one = thin_rows(part, n_in), one_at(part)
    for i in range(0, n_rows, block):
        n, begun, a, b = min(block, n_rows - i), i > 0, shift(grad_out, i * n_out), shift(x, i * n_in)
        thin_outer(a, b, n, n_in, n_out, part, begun, i + n < n_rows)
        add_rows(a, n, n_out, one, part_bias, begun)


@inline
def turn_part(part, n_in, n_out, first, last, square, out):
    """Rows [first, last) of out, which is (n_in, n_out), are columns of the part; all are pointers, `square` to scratch."""
    step = lanes(part)
    for k in range(first, last, step):
        for c in range(0, n_out, step):
            width = min(step, last - k)
            load_transposed(shift(part, c * n_in + k), n_in, min(step, n_out - c), width, square)
            for j in range(width):
                store_first(out, (k + j) * n_out + c, load(square, j * step), min(step, n_out - c))


@signature(MATRIX_IN, MATRIX_IN, CUBE_OUT, MATRIX_OUT, INDEX, INDEX, INDEX)
def thin_grad_weight(grad_out, x, parts, parts_bias, size, first, last):
    """Over rows [first, last): grad_out.T @ x and grad_out.sum(0), into the parts of chunk number first // size."""
    n_in, n_out = x.shape[1], grad_out.shape[1]
    chunk = first // size
    to, to_bias = pointer(parts, chunk * n_in * n_out), pointer(parts_bias, chunk * n_out)
    thin_sums(pointer(grad_out, first * n_out), pointer(x, first * n_in), last - first, n_in, n_out, to, to_bias)


@signature(CUBE_OUT, MATRIX_OUT, MATRIX_OUT, VECTOR_OUT, INDEX, INDEX)
def add_thin_parts(parts, parts_bias, grad_weight, grad_bias, first, last):
    """Rows [first, last) of grad_weight = the sum of the parts in their order, transposed; grad_bias with the first rows.

    Overwrites the first part.
    """
    n_in, n_out = grad_weight.shape
    p = pointer(parts, 0)
    step, size = lanes(p), n_in * n_out
    square, zero = scratch(p, step * step), constant(p, 0.0, 0.0)
    for c in range(1, parts.shape[0]):
        for row in range(0, size, n_in):
            for j in range(row + first, row + last, step):
                count = min(step, row + last - j)
                store_first(p, j, load_first(p, j, count, zero) + load_first(p, c * size + j, count, zero), count)
    if first == 0:
        for j in range(n_out):
            grad_bias[j] = parts_bias[0, j]
            for c in range(1, parts.shape[0]):
                grad_bias[j] += parts_bias[c, j]
    turn_part(p, n_in, n_out, first, last, square, pointer(grad_weight, 0))
    release(square)


# ---- all gradients of a small layer --------------------------------------------------------------------------------------
@signature(MATRIX_IN, MATRIX_IN, MATRIX_IN, MATRIX_OUT, MATRIX_OUT, VECTOR_OUT, small=layer_backward)
def affine_backward(grad_out, x, weight, grad_x, grad_weight, grad_bias):
    """What the kernels above give for all rows at once; an empty grad_x is not wanted."""
    n_in, n_out = weight.shape
    a, step = pointer(x, 0), lanes(pointer(x, 0))
    if n_out <= THIN:
        square = scratch(a, step * step + n_in * n_out)
        part = shift(square, step * step)
        thin_sums(pointer(grad_out, 0), a, len(x), n_in, n_out, part, pointer(grad_bias, 0))
        turn_part(part, n_in, n_out, 0, n_in, square, pointer(grad_weight, 0))
        release(square)
    else:
        affine_grad_weight(grad_out, x, grad_weight, grad_bias, False, 0, n_in)
    if grad_x.size:
        affine(grad_out, weight, no_vector(a), grad_x, True, False, 0, len(x))
