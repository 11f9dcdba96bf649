"""Rows across lanes: matrices transposed on their way into registers, and back.

On the way in, a piece of 128 bits of each row at a time: loads put the pieces of four rows side by side in a vector, and only
the elements within pieces are left to be shuffled, half the shuffles of a square of vectors (8192 x 10, float64: 102 -> 94 us).
On the way back whole vectors are written: four times as many stores of pieces take longer than the shuffles (float32: 3 us).
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


@intrinsic
def _load_piece_columns(typingctx: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any, tile: Any, most: Any) -> Any:
    """`load_transposed` of as many columns as fit into 128 bits of a vector, of which n_columns are there."""
    vector, i64 = vector_of(tile.dtype), types.int64
    group = vector.lanes // 4
    piece = Vector(p.dtype, group)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, stride_, rows_, columns_, target, most_ = args
        result = cgutils.alloca_once_value(builder, most_)

        def columns(row: Any, load: Any, there: Any) -> None:
            starts = [builder.mul(row(ir.Constant(_I64, r)), stride_) for r in range(vector.lanes)]
            rows, vectors = [load(_address(builder, source, start, piece)) for start in starts], []
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

        all_rows = builder.icmp_signed(">=", rows_, ir.Constant(_I64, vector.lanes))
        all_columns = builder.icmp_signed(">=", columns_, ir.Constant(_I64, group))
        with builder.if_else(builder.and_(all_rows, all_columns)) as (whole, part):
            with whole:
                columns(lambda r: r, lambda address: builder.load(address, align=_align(piece)), lambda c, new, old: new)
            with part:
                last = builder.sub(rows_, ir.Constant(_I64, 1))
                mask, zero = _first(builder, columns_, group), ir.Constant(piece.llvm, None)
                columns(
                    lambda r: builder.select(builder.icmp_signed("<", r, last), r, last),
                    lambda address: _masked_load(builder, address, piece, mask, zero),
                    lambda c, new, old: builder.select(builder.icmp_signed("<", ir.Constant(_I64, c), columns_), new, old),
                )
        return builder.load(result)

    return most(p, i64, i64, i64, tile, most), codegen


@inline
def load_transposed(p: Any, stride: Any, n_rows: Any, n_columns: Any, tile: Any) -> Any:
    """Column c of n_rows rows of n_columns values at p, `stride` apart, becomes the vector at tile[c * lanes].

    Returns the maximum in each lane, NaN passed over. Lanes beyond n_rows repeat the last row; a whole piece of columns is
    always written. Floats may become doubles. The last piece overlaps the one before.
    """
    step, most = lanes(tile), constant(tile, -np.inf, -np.inf)
    group = step // 4
    for c in range(0, n_columns, group):
        k = max(0, min(c, n_columns - group))
        most = _load_piece_columns(shift(p, k), stride, n_rows, min(group, n_columns), shift(tile, k * step), most)
    return most


def _square(builder: Any, columns: list[Any]) -> list[Any]:
    """The rows of a square of vectors."""
    n = len(columns)
    group = n // 4

    def pieces(a: Any, b: Any, odd: int) -> Any:
        order = []
        for source in (0, n):
            for piece in (odd, odd + 2):
                order += list(range(source + piece * group, source + (piece + 1) * group))
        return _shuffle(builder, a, b, order)

    parts = [_turn_pieces(builder, columns[i : i + group]) for i in range(0, n, group)]
    even, odd = ([[pieces(a, b, which) for a, b in zip(*two)] for two in (parts[:2], parts[2:])] for which in (0, 1))
    return [pieces(a, b, which) for which in (0, 1) for half in (even, odd) for a, b in zip(*half)]


@inline
def store_transposed(value: Any, source: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any) -> None:
    """The way back: writes n_columns values of each of n_rows rows at p, of which column c is the vector value(source, c).

    source[0] has as many lanes. A square at a time; the last one overlaps the one before, so that no square is a part.
    A few columns at the end are written in pieces (8192 x 10, float64, Zen 5: 214 -> 198 cycles a tile).
    """
    step = lanes(source[0])
    group, rest = step // 4, n_columns % step
    few = n_columns > step and 0 < rest <= group
    in_squares = n_columns - rest if few else n_columns
    for c in range(0, in_squares, step):
        k = max(0, min(c, in_squares - step))
        _store_square(value, source, k, shift(p, k), stride, n_rows, min(step, n_columns))
    if few:
        _store_piece_columns(value, source, n_columns - group, shift(p, n_columns - group), stride, n_rows)


@intrinsic
def _store_piece_columns(typingctx: Any, value: Any, source: Any, first: Any, p: Any, stride: Any, n_rows: Any) -> Any:
    """As many columns as fit into 128 bits of a vector, from `first` on."""
    column, i64 = value.get_call_type(typingctx, (source, types.int64), {}), types.int64
    vector = column.return_type
    group = vector.lanes // 4
    there = Vector(p.dtype, group)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source_, first_, target, stride_, rows_ = args
        compute = context.get_function(value, column)
        columns = [compute(builder, (source_, builder.add(first_, ir.Constant(_I64, c)))) for c in range(group)]
        turned = _turn_pieces(builder, columns)

        def store(r: int) -> None:
            row = _shuffle(builder, turned[r % group], turned[r % group], [r // group * group + c for c in range(group)])
            row = row if p.dtype is vector.dtype else builder.fptrunc(row, there.llvm)
            address = _address(builder, target, builder.mul(ir.Constant(_I64, r), stride_), there)
            builder.store(row, address, align=_align(there))

        whole = builder.icmp_signed(">=", rows_, ir.Constant(_I64, vector.lanes))
        with builder.if_else(whole) as (all_rows, some):
            with all_rows:
                for r in range(vector.lanes):
                    store(r)
            with some:
                for r in range(vector.lanes):
                    with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, r), rows_)):
                        store(r)
        return context.get_dummy_value()

    return types.void(value, source, i64, p, i64, i64), codegen


@intrinsic
def _store_square(
    typingctx: Any, value: Any, source: Any, first: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any
) -> Any:  # fmt: skip
    """A square of vectors from column `first` on, of which n_columns are there; values in order, the rows in order.

    The last column stands for those that are not: what lies there may be subnormal, and slow.
    """
    column = value.get_call_type(typingctx, (source, types.int64), {})
    vector = column.return_type
    there = Vector(p.dtype, vector.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, source_, first_, target, stride_, rows_, columns_ = args
        compute = context.get_function(value, column)
        last = builder.sub(columns_, ir.Constant(_I64, 1))
        numbers = [ir.Constant(_I64, c) for c in range(vector.lanes)]
        numbers = [builder.add(first_, builder.select(builder.icmp_signed("<", c, last), c, last)) for c in numbers]
        columns = [compute(builder, (source_, c)) for c in numbers]
        lanes_, mask = ir.Constant(_I64, vector.lanes), _first(builder, columns_, vector.lanes)
        # A masked store that misses the cache waits for its line: 500000 x 10 took 11.7 ms with 16 of them a tile, 6.3 ms
        # without. Where rows lie one after the other a whole vector may spill into the next row, which is written after it.
        end = builder.mul(rows_, stride_)
        spill = builder.select(builder.icmp_signed("==", columns_, stride_), end, ir.Constant(_I64, 0))
        whole = builder.add(builder.sub(end, stride_), lanes_)
        limit = builder.select(builder.icmp_signed("==", columns_, lanes_), whole, spill)
        for r, row in enumerate(_square(builder, columns)):
            row = row if there == vector else builder.fptrunc(row, there.llvm)
            start = builder.mul(ir.Constant(_I64, r), stride_)
            address = _address(builder, target, start, there)
            fits = builder.icmp_signed("<=", builder.add(start, lanes_), limit)
            with builder.if_else(fits) as (unmasked, masked):
                with unmasked:
                    builder.store(row, address, align=_align(there))
                with masked, builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, r), rows_)):
                    _masked_store(builder, address, row, there, mask)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(value, source, i64, p, i64, i64, i64), codegen
