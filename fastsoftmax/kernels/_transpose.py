"""Rows across lanes: matrices transposed on their way into registers, and back.

On the way in, a piece of 128 bits of each row at a time: loads put the pieces of four rows side by side in a vector, and only
the elements within pieces are left to be shuffled, half the shuffles of a square of vectors (8192 x 10, float64: 102 -> 94 us).
On the way back whole vectors are written: four times as many stores of pieces take longer than the shuffles (float32: 3 us).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._jit import inline
from ._simd import (
    _I64,
    Vector,
    _address,
    _align,
    _first,
    _masked_load,
    _masked_store,
    _shuffle,
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
def _load_piece_columns(typingctx: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any, tile: Any) -> Any:
    """`load_transposed` of as many columns as fit into 128 bits of a vector, of which n_columns are there."""
    vector, i64 = vector_of(tile.dtype), types.int64
    group = vector.lanes // 4
    piece = Vector(p.dtype, group)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, stride_, rows_, columns_, target = args

        def columns(row: Any, load: Any) -> None:
            starts = [builder.mul(row(ir.Constant(_I64, r)), stride_) for r in range(vector.lanes)]
            rows, vectors = [load(_address(builder, source, start, piece)) for start in starts], []
            for g in range(group):
                a, b, c, d = rows[g::group]
                halves = [_shuffle(builder, x, y, [*range(2 * group)]) for x, y in ((a, b), (c, d))]
                value = _shuffle(builder, *halves, [*range(4 * group)])
                vectors.append(value if p.dtype == tile.dtype else builder.fpext(value, vector.llvm))
            for c, column in enumerate(_turn_pieces(builder, vectors)):
                builder.store(column, _address(builder, target, ir.Constant(_I64, c * vector.lanes), vector), align=64)

        all_rows = builder.icmp_signed(">=", rows_, ir.Constant(_I64, vector.lanes))
        all_columns = builder.icmp_signed(">=", columns_, ir.Constant(_I64, group))
        with builder.if_else(builder.and_(all_rows, all_columns)) as (whole, part):
            with whole:
                columns(lambda r: r, lambda address: builder.load(address, align=_align(piece)))
            with part:
                last = builder.sub(rows_, ir.Constant(_I64, 1))
                mask, zero = _first(builder, columns_, group), ir.Constant(piece.llvm, None)
                columns(
                    lambda r: builder.select(builder.icmp_signed("<", r, last), r, last),
                    lambda address: _masked_load(builder, address, piece, mask, zero),
                )
        return context.get_dummy_value()

    return types.void(p, i64, i64, i64, tile), codegen


@inline
def load_transposed(p: Any, stride: Any, n_rows: Any, n_columns: Any, tile: Any) -> None:
    """Column c of n_rows rows of n_columns values at p, `stride` apart, becomes the vector at tile[c * lanes].

    Lanes beyond n_rows repeat the last row; a whole piece of columns is always written. Floats may become doubles. The last
    piece overlaps the one before.
    """
    step = lanes(tile)
    group = step // 4
    for c in range(0, n_columns, group):
        k = max(0, min(c, n_columns - group))
        _load_piece_columns(shift(p, k), stride, n_rows, min(group, n_columns), shift(tile, k * step))


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


@intrinsic
def store_transposed(typingctx: Any, tile: Any, p: Any, stride: Any, n_rows: Any, n_columns: Any) -> Any:
    """The way back: writes n_columns values of each of n_rows rows at p; those of a row in order, the rows in order."""
    vector = vector_of(tile.dtype)
    there = Vector(p.dtype, vector.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, stride_, rows_, columns_ = args
        columns = []
        for c in range(vector.lanes):
            address = _address(builder, source, ir.Constant(_I64, c * vector.lanes), vector)
            columns.append(builder.load(address, align=64))
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

    return types.void(tile, p, types.int64, types.int64, types.int64), codegen
