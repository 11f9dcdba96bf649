"""Rows across lanes: matrices transposed on their way into registers, and back.

On the way in, half a vector of each row at a time, where there are so many columns, or a quarter: loads put the pieces of two
or four rows side by side in a vector, and little is left to be shuffled (8192 x 10, float64: squares of whole vectors 102 us,
quarters 94; float32, Zen 5, quarters 56 cycles a tile of some 200, halves 33).
On the way back in whole vectors as far as there are columns for more than half of one: more stores of pieces take longer than
the shuffles (float32, 8192 x 10: 3 us).
What is done with the columns is done on the way, while they are in registers: a pass over the tile just before or after waits
for its stores (softmax, Zen 5: 27.5 -> 25.2 us, float64 57 -> 51).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import inline
from ._simd import (
    _I64,
    Vector,
    _address,
    _align,
    _first,
    _larger,
    _masked_load,
    _masked_store,
    _shuffle,
    constant,
    lanes,
    shift,
    vector_of,
)  # fmt: skip


def _turn_pieces(builder: Any, vectors: list[Any]) -> list[Any]:
    """Transpose the squares that the first 128-bit pieces of these vectors make, the second ones, and so on."""
    group = len(vectors)  # elements of a piece
    n = 4 * group

    def pairs(a: Any, b: Any, high: int, run: int) -> Any:
        """Interleave the low (or high) halves of each piece, in runs of `run` elements."""
        order = []
        for piece in range(0, n, group):
            for k in range(0, group // 2, run):
                start = piece + high * (group // 2) + k
                order += list(range(start, start + run)) + list(range(n + start, n + start + run))
        return _shuffle(builder, a, b, order)

    run = 1
    while run < group:
        following = list(vectors)
        for base in range(0, group, 2 * run):
            for k in range(run):
                a, b = vectors[base + k], vectors[base + run + k]
                following[base + 2 * k] = pairs(a, b, 0, run)
                following[base + 2 * k + 1] = pairs(a, b, 1, run)
        vectors, run = following, 2 * run
    return vectors


def _rows_at(builder: Any, p: Any, stride: Any, count: int) -> list[Any]:
    """Where `count` rows begin.

    Four are reckoned from one address, of which LLVM is not told that it comes from p: it would keep ready the distances of
    all rows, for which there are too few registers (the way back, 8 to 15 cycles a tile).
    """
    rows = []
    for r in range(0, count, 4):
        if r:
            p = builder.gep(p, [builder.shl(stride, ir.Constant(_I64, 2))])
            p = builder.asm(ir.FunctionType(p.type, [p.type]), "", "=r,0", [p], False)
        rows += [builder.gep(p, [builder.mul(stride, ir.Constant(_I64, k))]) for k in range(4)]
    return rows


def _load(builder: Any, p: Any, vector: Vector) -> Any:
    return builder.load(builder.bitcast(p, vector.llvm.as_pointer()), align=_align(vector))


def _pieces(builder: Any, a: Any, b: Any, odd: int) -> Any:
    """The first and third 128-bit pieces of both, or the second and fourth."""
    n = a.type.count
    group = n // 4
    order = []
    for source in (0, n):
        for piece in (odd, odd + 2):
            order += list(range(source + piece * group, source + (piece + 1) * group))
    return _shuffle(builder, a, b, order)


@intrinsic
def _load_quarter(typingctx: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any, tile: Any, most: Any) -> Any:
    """`load_transposed` of as many columns as fit into a quarter of a vector, of which n_columns are there."""
    vector, i64 = vector_of(tile.dtype), types.int64
    group = vector.lanes // 4
    piece = Vector(p.dtype, group)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, stride_, rows_, columns_, target, most_ = args
        result = cgutils.alloca_once_value(builder, most_)

        def columns(starts: list[Any], load: Any, there: Any) -> None:
            rows, vectors = [load(start) for start in starts], []
            for g in range(group):
                a, b, c, d = rows[g::group]
                halves = [_shuffle(builder, x, y, [*range(2 * group)]) for x, y in ((a, b), (c, d))]
                value = _shuffle(builder, *halves, [*range(4 * group)])
                vectors.append(value if p.dtype == tile.dtype else builder.fpext(value, vector.llvm))
            value = most_
            for c, column in enumerate(_turn_pieces(builder, vectors)):
                builder.store(column, _address(builder, target, ir.Constant(_I64, c * vector.lanes), vector), align=64)
                value = there(c, _larger(builder, column, value), value)
            builder.store(value, result)

        def masked(start: Any) -> Any:
            first, zero = _first(builder, columns_, group), ir.Constant(piece.llvm, None)
            return _masked_load(builder, builder.bitcast(start, piece.llvm.as_pointer()), piece, first, zero)

        all_rows = builder.icmp_signed(">=", rows_, ir.Constant(_I64, vector.lanes))
        all_columns = builder.icmp_signed(">=", columns_, ir.Constant(_I64, group))
        with builder.if_else(builder.and_(all_rows, all_columns)) as (whole, part):
            with whole:
                starts = _rows_at(builder, source, stride_, vector.lanes)
                columns(starts, lambda start: _load(builder, start, piece), lambda c, new, old: new)
            with part:
                last, starts = builder.sub(rows_, ir.Constant(_I64, 1)), []
                for r in (ir.Constant(_I64, k) for k in range(vector.lanes)):
                    row = builder.select(builder.icmp_signed("<", r, last), r, last)
                    starts.append(builder.gep(source, [builder.mul(row, stride_)]))
                columns(
                    starts,
                    masked,
                    lambda c, new, old: builder.select(builder.icmp_signed("<", ir.Constant(_I64, c), columns_), new, old),
                )
        return builder.load(result)

    return most(p, i64, i64, i64, tile, most), codegen


@intrinsic
def _load_half(typingctx: Any, p: Any, stride: Any, tile: Any, most: Any) -> Any:
    """The same of as many columns as fit into half a vector, all there, as all rows are."""
    vector, i64 = vector_of(tile.dtype), types.int64
    group = vector.lanes // 4
    half = Vector(p.dtype, 2 * group)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, stride_, target, value = args
        rows = [_load(builder, at, half) for at in _rows_at(builder, source, stride_, vector.lanes)]
        parts = []
        for first in (0, 2 * group):
            vectors = [_shuffle(builder, rows[r], rows[r + group], [*range(4 * group)]) for r in range(first, first + group)]
            if p.dtype != tile.dtype:
                vectors = [builder.fpext(x, vector.llvm) for x in vectors]
            parts.append(_turn_pieces(builder, vectors))
        columns = [_pieces(builder, a, b, odd) for odd in (0, 1) for a, b in zip(*parts)]
        most_ = [value, value]
        for c, column in enumerate(columns):
            builder.store(column, _address(builder, target, ir.Constant(_I64, c * vector.lanes), vector), align=64)
            most_[c % 2] = _larger(builder, column, most_[c % 2])
        return _larger(builder, *most_)

    return most(p, i64, tile, most), codegen


@inline
def load_transposed(p: Any, stride: Any, n_rows: Any, n_columns: Any, tile: Any) -> Any:
    """Column c of n_rows rows of n_columns values at p, `stride` apart, becomes the vector at tile[c * lanes].

    Returns the maximum in each lane, NaN passed over. Lanes beyond n_rows repeat the last row; a whole quarter of a vector of
    columns is always written. Floats may become doubles. The last piece overlaps the one before.
    """
    step, most = lanes(tile), constant(tile, -np.inf, -np.inf)
    half, quarter = step // 2, step // 4
    if n_rows >= step and n_columns >= half:
        for c in range(0, n_columns, half):
            k = min(c, n_columns - half)
            most = _load_half(shift(p, k), stride, shift(tile, k * step), most)
    else:
        for c in range(0, n_columns, quarter):
            k = max(0, min(c, n_columns - quarter))
            most = _load_quarter(shift(p, k), stride, n_rows, min(quarter, n_columns), shift(tile, k * step), most)
    return most


def _rows_of(builder: Any, columns: list[Any]) -> list[Any]:
    """The rows of a matrix of a quarter as many columns as a vector has lanes, of half as many, or of as many."""
    n = columns[0].type.count
    group = n // 4
    parts = [_turn_pieces(builder, columns[i : i + group]) for i in range(0, len(columns), group)]
    if len(parts) == 4:
        twos = parts[:2], parts[2:]
        even, odd = ([[_pieces(builder, a, b, which) for a, b in zip(*two)] for two in twos] for which in (0, 1))
        return [_pieces(builder, a, b, which) for which in (0, 1) for half in (even, odd) for a, b in zip(*half)]
    rows = []
    for piece in range(0, n, group):
        for s in range(group):
            order = [source * n + piece + k for source in range(len(parts)) for k in range(group)]
            rows.append(_shuffle(builder, parts[0][s], parts[-1][s], order))
    return rows


@inline
def store_transposed(value: Any, source: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any) -> None:
    """The way back: writes n_columns values of each of n_rows rows at p, of which column c is the vector value(source, c).

    Rows that a vector has no lanes for are not written, but what is written may spill into them: they are written later.
    source[0] has as many lanes. A square at a time, and what is left over in half of one or a quarter (softmax, float32, Zen 5,
    cycles a tile, of 8 classes in a square 175, so 125, of 4 137 and 99); the last one overlaps the one before, so that none is
    a part.
    """
    step = lanes(source[0])
    half, quarter, rest = step // 2, step // 4, n_columns % step
    in_squares = n_columns if rest > half else n_columns - rest
    for c in range(0, in_squares, step):
        k = max(0, min(c, in_squares - step))
        _store_square(value, source, k, shift(p, k), stride, n_rows, min(step, n_columns))
    if in_squares < n_columns:
        if rest > quarter:
            k = max(0, n_columns - half)
            _store_half(value, source, k, shift(p, k), stride, n_rows, min(half, n_columns))
        else:
            k = max(0, n_columns - quarter)
            _store_quarter(value, source, k, shift(p, k), stride, n_rows, min(quarter, n_columns))


def _storing(quarters: int) -> Any:
    """Writes columns from `first` on, as many as fill so many quarters of a vector."""

    def store(
        typingctx: Any, value: Any, source: Any, first: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any
    ) -> Any:  # fmt: skip
        """n_columns of them are there; values in order, the rows in order.

        The last column stands for those that are not: what lies there may be subnormal, and slow.
        """
        column = value.get_call_type(typingctx, (source, types.int64), {})
        vector = column.return_type
        width = vector.lanes // 4 * quarters
        there = Vector(p.dtype, width)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _, source_, first_, target, stride_, rows_, columns_ = args
            compute = context.get_function(value, column)
            last = builder.sub(columns_, ir.Constant(_I64, 1))
            columns = []
            for k in range(width):
                c = ir.Constant(_I64, k)
                if k > width // 2 or quarters == 1:  # so many are always there, see `store_transposed`
                    c = builder.select(builder.icmp_signed("<", c, last), c, last)
                columns.append(compute(builder, (source_, builder.add(first_, c))))
            width_, first = ir.Constant(_I64, width), _first(builder, columns_, width)
            # A masked store that misses the cache waits for its line: 500000 x 10 took 11.7 ms with 16 of them a tile, 6.3 ms
            # without. Where rows lie one after the other a whole vector may spill into the next row, which is written after it.
            # Only a last tile is looked at row by row: with a branch for each row, some processes took twice the time (few
            # classes, 8192 x 3, float64: 23 or 51 us).
            end = builder.mul(rows_, stride_)
            spill = builder.select(builder.icmp_signed("==", columns_, stride_), end, ir.Constant(_I64, 0))
            whole = builder.add(builder.sub(end, stride_), width_)
            limit = builder.select(builder.icmp_signed("==", columns_, width_), whole, spill)
            starts = [builder.bitcast(at, there.llvm.as_pointer()) for at in _rows_at(builder, target, stride_, vector.lanes)]
            rows = _rows_of(builder, columns)
            if p.dtype is not vector.dtype:
                rows = [builder.fptrunc(row, there.llvm) for row in rows]

            def fits(r: int) -> Any:
                start = builder.mul(ir.Constant(_I64, r), stride_)
                return builder.icmp_signed("<=", builder.add(start, width_), limit)

            with builder.if_else(fits(vector.lanes - 1)) as (all_rows, some):
                with all_rows:
                    for start, row in zip(starts, rows):
                        builder.store(row, start, align=_align(there))
                with some:
                    for r, (start, row) in enumerate(zip(starts, rows)):
                        with builder.if_else(fits(r)) as (unmasked, masked):
                            with unmasked:
                                builder.store(row, start, align=_align(there))
                            with masked, builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, r), rows_)):
                                _masked_store(builder, start, row, there, first)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(value, source, i64, p, i64, i64, i64), codegen

    return intrinsic(store)


_store_quarter, _store_half, _store_square = _storing(1), _storing(2), _storing(4)
