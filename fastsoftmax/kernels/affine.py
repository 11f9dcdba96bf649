"""Matrix products of the affine layer: x @ weight + bias, grad_out @ weight.T, x.T @ grad_out.

Three ways, chosen by shape alone:
(a) Tiles of results in registers, lanes along the columns of the result (`_tile`). The second factor is copied, a panel of
    columns at a time, where its rows lie far apart or where it has to be transposed. The last few columns, if they would fill
    no more than a quarter of a vector, get tiles of their own.
(b) Few columns (at most `THIN`): most of a vector would be empty. x @ weight then has its lanes along n_in, with weight
    transposed once, and x.T @ grad_out is computed as (grad_out.T @ x).T. grad_out @ weight.T, tiles of (a), takes all columns
    of a few rows before the next ones: large results go to memory in whole lines, past the caches.
(c) Few rows (at most `FEW`): x @ weight and x @ weight.T read weight once, as it lies.
Sum order: along the inner index, in blocks of `DEPTH` (for x.T @ grad_out: of rows, see `SLAB` and `thin_rows`) whose sums are
added in order; training steps take large weights in `affine_parts`, added likewise. (b)'s x @ weight and (c)'s x @ weight.T
put index k into lane k % lanes and fold the lanes in a fixed tree.
"""

from __future__ import annotations

import numpy as np

from ._jit import CUBE_OUT, FLAG, INDEX, MATRIX_IN, MATRIX_OUT, VECTOR_IN, VECTOR_OUT, inline, signature
from ._narrow import aligned
from ._simd import (
    constant,
    fence,
    keep_alive,
    lanes,
    larger,
    load,
    load_first,
    misalignment,
    pointer,
    prefetch,
    shift,
    store,
    store_first,
)  # fmt: skip
from ._target import WIDE
from ._tile import (
    FOURS,
    ROWS,
    VECTORS,
    across,
    add_row,
    add_tile,
    multiply_add,
    multiply_add_ahead,
    multiply_add_lanes,
    multiply_add_quarters,
    positive_part,
    store_tile,
    stream_tile,
    tile,
    tile_rows,
)  # fmt: skip
from ._transpose import load_transposed

THIN, FEW = 10, 3
DEPTH = 1024
SLAB = 512
BLOCK = 512  # rows of x that pass through all panels before the next ones do: they stay in the second cache
REST_ROWS, REST_VECTORS = (4, 6) if WIDE else (4, 2)  # the tile of `rest_product`
SPREAD = 32  # vectors from row to row, beyond which panels are copied: each row of a panel is on a page of its own then
# (b)'s tiles: rows of x by classes, classes by vectors of x
LANE_ROWS, LANE_COLUMNS = (2, 10) if WIDE else (1, 5)
OUTER_ROWS, OUTER_VECTORS = (10, 2) if WIDE else (5, 1)
LANE_DEPTH = 25  # vectors: of ten classes 16 KB, half of a first cache (60000 x 784, float64: 34 -> 27 ms; with 52 it was full)
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
def panel_product_ended(acc, a, a_row, n_rows, b, b_vector, b_step, columns, n, out, out_row, begun, biased, bias, relu):
    """The same, and the bias and the rectifier while the results are in registers."""
    height = tile_rows(acc)
    for i in range(0, n_rows, height):
        rows = min(height, n_rows - i)
        to = shift(out, i * out_row)
        ask_for_tile(to, out_row, rows, columns)
        c = multiply_add(acc, shift(a, i * a_row), a_row, 1, rows, b, b_vector, b_step, columns, n)
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
def copy_panel(b, b_row, n, columns, panel):
    """Copy the n x columns panel at b, each vector's n steps side by side; zeros beyond its columns.

    Each row may be on a page of its own, where no CPU foresees the next: so it is asked for, `AHEAD` rows before its turn.
    """
    step = lanes(b)
    zero = constant(b, 0.0, 0.0)
    for k in range(n):
        row = shift(b, k * b_row)
        for j in range(0, columns, step):
            prefetch(row, AHEAD * b_row + j)
            store(panel, j * n + k * step, load_first(row, j, min(step, columns - j), zero))


@inline
def turn_panel(b, b_row, n, columns, panel):
    """The same of the n x columns panel that is transposed at b."""
    step = lanes(b)
    spare = shift(panel, (columns + step - 1) // step * step * n)  # where a square ends that is not all ours
    for j in range(0, columns, step):
        to, width = shift(panel, j * n), min(step, columns - j)
        for k in range(0, n, step):
            depth = min(step, n - k)
            square = shift(to, k * step) if depth == step else spare
            load_transposed(shift(b, j * b_row + k), b_row, width, depth, square)
            if depth < step:
                for t in range(depth):
                    store(to, (k + t) * step, load(spare, t * step))


@inline
def few_rows_transposed(x, n_rows, n_in, weight, n_out, biased, bias, relu, out):
    """out = x @ weight.T + bias for `FEW` rows: weight's rows are read as they lie, lanes along n_in."""
    step = lanes(x)
    for i in range(n_rows):
        p = shift(x, i * n_in)
        for j in range(0, n_out, LANE_COLUMNS):
            columns, to, q = min(LANE_COLUMNS, n_out - j), shift(out, i * n_out + j), shift(weight, j * n_in)
            c = across(multiply_add_lanes(tile(x, 1, LANE_COLUMNS), p, n_in, 1, q, n_in, step, columns, n_in, 0))
            if biased:
                c = add_row(c, shift(bias, j), columns)
            if relu:
                c = positive_part(c)
            store_tile(c, to, n_out, 1, columns)


@inline
def copy_slab(x, x_row, n, width, slab):
    """Copy n rows of `width` values so that what one tile reads of them, ROWS values of each, lies side by side."""
    zero = constant(x, 0.0, 0.0)
    for k in range(0, width, ROWS):
        columns = min(ROWS, width - k)
        for i in range(n):
            store_first(slab, k * n + i * ROWS, load_first(x, i * x_row + k, columns, zero), columns)


@signature(MATRIX_IN, MATRIX_IN, VECTOR_IN, FLAG, FLAG, MATRIX_OUT, INDEX, INDEX)
def affine(x, weight, bias, transposed, relu, out, first, last):
    """Rows [first, last) of out = x @ weight + bias (weight.T if `transposed`), of it the positive part if `relu`.

    An empty bias stands for none.
    """
    n_in, n_out, n_rows, biased = x.shape[1], out.shape[1], last - first, bias.size > 0
    x_, w, b, to = pointer(x, first * n_in), pointer(weight, 0), pointer(bias, 0), pointer(out, first * n_out)
    step = lanes(w)
    if n_out <= THIN and not transposed:
        row = turned_row(w, n_in)
        scratch = np.empty(turned_size(w, n_in, n_out), out.dtype)
        turned = aligned(scratch)
        turn_weight(w, n_in, n_out, turned, row)
        block = thin_rows(w, n_in)
        for i in range(0, n_rows, block):
            rows, p, q = min(block, n_rows - i), shift(x_, i * n_in), shift(to, i * n_out)
            thin_product(p, rows, n_in, turned, row, n_out, biased, b, relu, q, n_rows - i)
        keep_alive(scratch)
        return
    if transposed and n_in <= THIN and not biased and not relu:
        row = turned_row(w, n_out)
        scratch = np.empty(turned_size(w, n_out, n_in), out.dtype)
        turned = aligned(scratch)
        turn_weight(w, n_out, n_in, turned, row)
        thin_spread(x_, n_rows, n_in, turned, row, n_out, to, streams(out))
        keep_alive(scratch)
        return
    if transposed and n_rows <= FEW:
        few_rows_transposed(x_, n_rows, n_in, w, n_out, biased, b, relu, to)
        return
    copied = transposed or (n_rows > 4 * ROWS and n_out > SPREAD * step)
    span = VECTORS * step
    if n_rows <= FEW and not copied:
        vectors = (n_out + step - 1) // step  # reading weight is all the work: not one load more than must be
        span = (7 if (vectors + 6) // 7 == (vectors + 7) // 8 else 8) * step
    whole = n_out - rest(w, n_out) if n_rows > ROWS else n_out
    scratch = np.empty((min(n_in, DEPTH) * VECTORS + step + 1) * step if copied else 0, out.dtype)
    panel = aligned(scratch)
    for i in range(0, n_rows, BLOCK):
        rows = min(BLOCK, n_rows - i)
        for k in range(0, max(n_in, 1), DEPTH):
            depth = min(DEPTH, n_in - k)
            begun, ended = k > 0, k + DEPTH >= n_in
            j = 0
            while j < n_out:
                columns = min(span, whole - j) if j < whole else n_out - j
                p, q, c = shift(x_, i * n_in + k), shift(w, k * n_out + j), shift(to, i * n_out + j)
                q_vector, q_step = step, n_out
                if copied:
                    if transposed:
                        turn_panel(shift(w, j * n_in + k), n_in, depth, columns, panel)
                    else:
                        copy_panel(q, n_out, depth, columns, panel)
                    q, q_vector, q_step = panel, depth * step, step
                add, rectify, add_to = biased and ended, relu and ended, shift(b, j)
                if j == whole:
                    panel_rest_ended(
                        p, n_in, rows, q, q_step, columns, depth, c, n_out, begun, add, add_to, rectify
                    )  # fmt: skip
                elif rows <= FEW and columns <= 7 * step:
                    panel_product_ended(
                        tile(p, 1, 7), p, n_in, rows, q, q_vector, q_step, columns, depth, c, n_out, begun,
                        add, add_to, rectify,
                    )  # fmt: skip
                elif rows <= FEW:
                    panel_product_ended(
                        tile(p, 1, 8), p, n_in, rows, q, q_vector, q_step, columns, depth, c, n_out, begun,
                        add, add_to, rectify,
                    )  # fmt: skip
                elif columns > 2 * step:
                    panel_product_ended(
                        tile(p, ROWS, VECTORS), p, n_in, rows, q, q_vector, q_step, columns, depth, c, n_out, begun,
                        add, add_to, rectify,
                    )  # fmt: skip
                elif columns > step:
                    panel_product_ended(
                        tile(p, ROWS, 2), p, n_in, rows, q, q_vector, q_step, columns, depth, c, n_out, begun,
                        add, add_to, rectify,
                    )  # fmt: skip
                else:
                    panel_product_ended(
                        tile(p, ROWS, 1), p, n_in, rows, q, q_vector, q_step, columns, depth, c, n_out, begun,
                        add, add_to, rectify,
                    )  # fmt: skip
                j += columns
    keep_alive(scratch)


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
    copied, width = n_out > SPREAD * step, last - first
    span, whole = VECTORS * step, n_out if copied else n_out - rest(pointer(x, 0), n_out)
    room = SLAB * (span + width + ROWS) + 2 * step if copied else (REST_ROWS + 1) * step * (width // step + step)
    scratch = np.empty(room if copied or whole < n_out else 0, x.dtype)
    panel = aligned(scratch)
    slab = shift(panel, SLAB * VECTORS * step)
    ones = np.ones(1, x.dtype)
    for i in range(0, max(n_rows, 1), SLAB):
        n, begun = min(SLAB, n_rows - i), adding or i > 0
        a, a_tile, a_step = pointer(x, i * n_in + first), 1, n_in
        if copied:
            copy_slab(a, n_in, n, width, slab)
            a, a_tile, a_step = slab, n, ROWS
        j = 0
        while j < n_out:
            columns = min(span, whole - j) if j < whole else n_out - j
            b, to = pointer(grad_out, i * n_out + j), pointer(grad_weight, first * n_out + j)
            b_vector, b_step = step, n_out
            if copied:
                copy_panel(b, n_out, n, columns, panel)
                b, b_vector, b_step = panel, n * step, step
            if j == whole:
                rest_product(b, n_out, columns, pointer(x, i * n_in + first), n_in, n, width, panel, to, begun)
            else:
                fitting_product(a, a_tile, 1, a_step, width, b, b_vector, b_step, columns, n, to, n_out, begun)
            if first == 0 and grad_bias.size:
                one, to = pointer(ones, 0), pointer(grad_bias, j)
                panel_product(tile(a, 1, VECTORS), one, 0, 0, 0, 1, b, b_vector, b_step, columns, n, to, 0, begun)
            j += columns
    keep_alive(scratch)
    keep_alive(ones)


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
    return turned_row(like, n_in) * n_out + (step + 1) * step


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
    for k in range(0, max(n_in, 1), LANE_DEPTH * step):
        depth = min(LANE_DEPTH * step, n_in - k)
        begun, ended = k > 0, k + depth == n_in
        for j in range(0, n_out, LANE_COLUMNS):
            columns = min(LANE_COLUMNS, n_out - j)
            for i in range(0, n_rows, LANE_ROWS):
                rows, to = min(LANE_ROWS, n_rows - i), shift(out, i * n_out + j)
                p, q = shift(x, i * n_in + k), shift(turned, j * row + k)
                acc = tile(x, LANE_ROWS, LANE_COLUMNS)
                ahead = min(n_rows, n_left - i - rows) * n_in
                c = across(multiply_add_lanes(acc, p, n_in, rows, q, row, step, columns, depth, ahead))
                if begun:
                    c = add_tile(c, to, n_out, rows, columns)
                if biased and ended:
                    c = add_row(c, shift(bias, j), columns)
                if relu and ended:
                    c = positive_part(c)
                store_tile(c, to, n_out, rows, columns)


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
def thin_outer(grad_out, x, n, n_in, n_out, out, begun, ahead):
    """out (+)= grad_out.T @ x over n rows, out being (n_out, n_in); all are pointers.

    Asks for the memory from `ahead` on, as much as x's n rows are: the next rows, in their order in memory. Read by tiles, two
    lines of a row and then two of the next, they would come from memory at a third of the speed.
    """
    step = lanes(x)
    for c in range(0, n_out, OUTER_ROWS):
        rows = min(OUTER_ROWS, n_out - c)
        for j in range(0, n_in, OUTER_VECTORS * step):
            columns, to = min(OUTER_VECTORS * step, n_in - j), shift(out, c * n_in + j)
            g, b, more = shift(grad_out, c), shift(x, j), shift(ahead, j * n)
            if columns <= step:
                last = multiply_add_ahead(tile(x, OUTER_ROWS, 1), g, 1, n_out, rows, b, step, n_in, columns, n, more)
                end_sums(last, to, n_in, rows, columns, begun)
            else:
                acc = tile(x, OUTER_ROWS, OUTER_VECTORS)
                acc = multiply_add_ahead(acc, g, 1, n_out, rows, b, step, n_in, columns, n, more)
                end_sums(acc, to, n_in, rows, columns, begun)


@inline
def add_rows(matrix, n_rows, n_columns, one, out, begun):
    """out (+)= the sum over the rows; `one` points to a 1."""
    step = lanes(matrix)
    for j in range(0, n_columns, step):
        columns = min(step, n_columns - j)
        acc = multiply_add(tile(matrix, 1, 1), one, 0, 0, 1, shift(matrix, j), step, n_columns, columns, n_rows)
        end_sums(acc, shift(out, j), 0, 1, columns, begun)


@signature(MATRIX_IN, MATRIX_IN, CUBE_OUT, MATRIX_OUT, INDEX, INDEX, INDEX)
def thin_grad_weight(grad_out, x, parts, parts_bias, size, first, last):
    """Over rows [first, last): grad_out.T @ x and grad_out.sum(0), into the parts of chunk number first // size."""
    n_in, n_out = x.shape[1], grad_out.shape[1]
    ones, one = np.ones(1, x.dtype), first // size
    to, to_bias = pointer(parts, one * n_in * n_out), pointer(parts_bias, one * n_out)
    block = thin_rows(to, n_in)
    for i in range(first, last, block):
        n, begun = min(block, last - i), i > first
        a, b = pointer(grad_out, i * n_out), pointer(x, i * n_in)
        thin_outer(a, b, n, n_in, n_out, to, begun, shift(b, n * n_in) if i + n < last else b)
        add_rows(a, n, n_out, pointer(ones, 0), to_bias, begun)
    keep_alive(ones)


@signature(CUBE_OUT, MATRIX_OUT, MATRIX_OUT, VECTOR_OUT, INDEX, INDEX)
def add_thin_parts(parts, parts_bias, grad_weight, grad_bias, first, last):
    """Rows [first, last) of grad_weight = the sum of the parts in their order, transposed; grad_bias with the first rows.

    Overwrites the first part.
    """
    n_in, n_out = grad_weight.shape
    p, to = pointer(parts, 0), pointer(grad_weight, 0)
    step, size = lanes(p), n_in * n_out
    scratch = np.empty((step + 1) * step, parts.dtype)
    square, zero = aligned(scratch), constant(p, 0.0, 0.0)
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
    for k in range(first, last, step):
        for c in range(0, n_out, step):
            width = min(step, last - k)
            load_transposed(shift(p, c * n_in + k), n_in, min(step, n_out - c), width, square)
            for j in range(width):
                store_first(to, (k + j) * n_out + c, load(square, j * step), min(step, n_out - c))
    keep_alive(scratch)
