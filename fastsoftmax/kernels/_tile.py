"""Register tiles: `rows` x `vectors` vectors of partial sums that stay in registers while a product runs over its inner index.

Every element of a tile is one chain of fused multiply-adds in the order of the inner index, whatever the tile's shape. So the
shape may follow the CPU (`ROWS` x `VECTORS` fill its registers) and no bit of any result depends on it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from ._simd import (
    _I32,
    _I64,
    Vector,
    _across,
    _address,
    _align,
    _call,
    _first,
    _larger,
    _masked_load,
    _masked_store,
    _shuffle,
    _splat,
    _stream,
    vector_of,
)  # fmt: skip
from ._target import WIDE, ZEN

# 24 of 32 registers hold sums, or 12 of 16 (a vector is two registers then), and leave room for one step's operands.
ROWS, VECTORS = (8, 3) if WIDE else (6, 1)
EIGHT = 8  # values, at least ROWS
FIRST, SECOND = 3, 2  # caches, as LLVM counts them
FOURS = 16 if WIDE else 12  # rows of a tile with quarters of four rows in a vector; 32 rows of 4 KB would not fit a first cache


class Tile(types.Type):
    """`rows` x `vectors` vectors of `dtype`."""

    def __init__(self, dtype: types.Type, rows: int, vectors: int) -> None:
        self.dtype, self.rows, self.vectors = dtype, rows, vectors
        super().__init__(name=f"Tile({dtype}, {rows}, {vectors})")

    @property
    def llvm(self) -> ir.ArrayType:
        return ir.ArrayType(vector_of(self.dtype).llvm, self.rows * self.vectors)


@register_model(Tile)
class _TileModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Tile) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


def _pack(builder: Any, tile: Tile, values: list[Any]) -> Any:
    packed = ir.Constant(tile.llvm, ir.Undefined)
    for i, value in enumerate(values):
        packed = builder.insert_value(packed, value, i)
    return packed


def _unpack(builder: Any, tile: Tile, packed: Any) -> list[Any]:
    return [builder.extract_value(packed, i) for i in range(tile.rows * tile.vectors)]


def _clamped(builder: Any, k: int, n: Any) -> Any:
    """min(k, n - 1): beyond an edge, the last row again."""
    index = ir.Constant(_I64, k)
    last = builder.sub(n, ir.Constant(_I64, 1))
    return builder.select(builder.icmp_signed("<", index, last), index, last)


@intrinsic
def tile(typingctx: Any, p: Any, rows: Any, vectors: Any) -> Any:
    """A tile of zeros of p's type; rows and vectors are literals."""
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    result = Tile(p.dtype, rows.literal_value, vectors.literal_value)
    return result(p, rows, vectors), lambda context, builder, sig, args: ir.Constant(result.llvm, None)


@intrinsic
def tile_rows(typingctx: Any, acc: Any) -> Any:
    """How many rows the tile has."""
    return types.int64(acc), lambda context, builder, sig, args: ir.Constant(_I64, acc.rows)


@intrinsic
def tile_vectors(typingctx: Any, acc: Any) -> Any:
    """How many vectors a row of the tile has."""
    return types.int64(acc), lambda context, builder, sig, args: ir.Constant(_I64, acc.vectors)


def _firsts(builder: Any, tile: Tile, columns: Any) -> list[Any]:
    """For each vector of a row, the lanes that lie within `columns`."""
    count = vector_of(tile.dtype).lanes
    return [_first(builder, builder.sub(columns, ir.Constant(_I64, v * count)), count) for v in range(tile.vectors)]


def _once(builder: Any) -> None:
    """Keep LLVM from unrolling the loop around this.

    It would ask for the broadcasts of two steps at once, for which there are no registers left, and pass half of the sums
    through memory: 2.5 times the time. An empty assembler statement that must not be made to depend on more conditions.
    """
    mark = builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)
    mark.attributes.add("convergent")
    mark.attributes.add("nounwind")


def _multiply_add(acc: Tile, ahead: bool) -> Any:
    vector = vector_of(acc.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        packed, a, a_row, a_step, rows, b, b_vector, b_step, columns, n = args[:10]
        sums = []
        for value in _unpack(builder, acc, packed):  # stack slots, which LLVM turns into registers
            slot = cgutils.alloca_once(builder, vector.llvm)
            builder.store(value, slot)
            sums.append(slot)
        a_rows = [builder.gep(a, [builder.mul(_clamped(builder, r, rows), a_row)]) for r in range(acc.rows)]
        b_vectors = [builder.gep(b, [builder.mul(ir.Constant(_I64, v), b_vector)]) for v in range(acc.vectors)]
        firsts, zero = _firsts(builder, acc, columns), ir.Constant(vector.llvm, None)

        def run(load: Any) -> None:
            with cgutils.for_range(builder, n, intp=_I64) as loop:
                _once(builder)
                a_at, b_at = builder.mul(loop.index, a_step), builder.mul(loop.index, b_step)
                step = [load(_address(builder, p, b_at, vector), first) for p, first in zip(b_vectors, firsts)]
                if ahead:
                    at = builder.mul(loop.index, args[12])
                    for v in range(acc.vectors):
                        place = builder.add(at, builder.mul(ir.Constant(_I64, v), args[11]))
                        _ask(builder, builder.gep(args[10], [place]), SECOND)
                for r, p in enumerate(a_rows):
                    factor = _splat(builder, builder.load(builder.gep(p, [a_at])), vector.lanes)
                    for slot, value in zip(sums[r * acc.vectors :], step):
                        name = f"llvm.fmuladd.{vector.suffix}"
                        builder.store(_call(builder, name, vector.llvm, factor, value, builder.load(slot)), slot)

        def masked(address: Any, first: Any) -> Any:
            return _masked_load(builder, address, vector, first, zero)

        if WIDE:
            run(masked)
        else:  # masks take registers of the sums
            whole = builder.icmp_signed(">=", columns, ir.Constant(_I64, acc.vectors * vector.lanes))
            copied = builder.icmp_signed(">", b_vector, ir.Constant(_I64, vector.lanes))
            with builder.if_else(builder.or_(whole, copied)) as (all_lanes, some):
                with all_lanes:
                    run(lambda address, first: builder.load(address, align=_align(vector)))
                with some:
                    run(masked)
        return _pack(builder, acc, [builder.load(slot) for slot in sums])

    return codegen


def _at(builder: Any, p: Any, vector: Any) -> Any:
    """Where a vector begins."""
    return _address(builder, p, ir.Constant(_I64, 0), vector)


def _equidistant(builder: Any, p: Any, distance: Any, count: int) -> list[Any]:
    """`count` places from p on, three from one address: as many as need no register but that for the distance.

    LLVM is kept from knowing what the next three have to do with these. It would keep a register for each place, and, as there
    are too few, most of them in memory.
    """
    byte = ir.IntType(8).as_pointer()
    start, size = builder.bitcast(p, byte), ir.Constant(_I64, 4 if p.type.pointee == ir.FloatType() else 8)
    step, places = builder.mul(distance, size), []
    for k in range(count):
        if k % 3 == 0:
            start = builder.gep(start, [builder.mul(step, ir.Constant(_I64, 3))]) if k else start
            start = builder.asm(ir.FunctionType(byte, [byte]), "", "=r,0", [start], False)
        places.append(builder.bitcast(builder.gep(start, [builder.mul(step, ir.Constant(_I64, k % 3))]), p.type))
    return places


def _ask(builder: Any, p: Any, cache: int) -> None:
    """Ask for the line at p, into the `FIRST` cache or only the `SECOND`."""
    read, near, data = (ir.Constant(_I32, k) for k in (0, cache, 1))
    address = builder.bitcast(p, ir.IntType(8).as_pointer())
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, near, data)


@intrinsic
def multiply_add(
    typingctx: Any, acc: Any, a: Any, a_row: Any, a_step: Any, rows: Any,
    b: Any, b_vector: Any, b_step: Any, columns: Any, n: Any,
) -> Any:  # fmt: skip
    """acc[r, v] += sum over t < n of a[r * a_row + t * a_step] * (the vector at b[v * b_vector + t * b_step]).

    Only `rows` rows are valid: beyond, the last one is read again. Of the vectors, only the first `columns` lanes are read,
    unless they lie further than their lanes apart: b is a copied panel then, which has all that `acc` has.
    """
    i64 = types.int64
    return acc(acc, a, i64, i64, i64, b, i64, i64, i64, i64), _multiply_add(acc, ahead=False)


@intrinsic
def multiply_add_ahead(
    typingctx: Any, acc: Any, a: Any, a_row: Any, a_step: Any, rows: Any,
    b: Any, b_vector: Any, b_step: Any, columns: Any, n: Any, ahead: Any, ahead_vector: Any, ahead_step: Any,
) -> Any:  # fmt: skip
    """The same, and asks for as many vectors at ahead[v * ahead_vector + t * ahead_step]."""
    i64 = types.int64
    return acc(acc, a, i64, i64, i64, b, i64, i64, i64, i64, ahead, i64, i64), _multiply_add(acc, ahead=True)


@intrinsic
def multiply_add_lanes(
    typingctx: Any, acc: Any, a: Any, a_row: Any, rows: Any, b: Any, b_vector: Any, b_step: Any, columns: Any, n: Any,
    after: Any, ahead: Any,
) -> Any:  # fmt: skip
    """acc[r, v] += sum over t of (vector t of the n values at a[r * a_row]) * (the vector at b[v * b_vector + t * b_step]).

    Only `rows` rows and `columns` vectors are valid: beyond, the last one is read again.

    Products of rows by rows: every tile element is a vector of partial sums, `across` adds up its lanes. Asks for the memory
    that lies `after` elements behind what it reads of a, into the first cache (Zen 5, affine, 60000 x 784 x 10: 6.1 -> 5.3 ms,
    in float64 13.0 -> 11.8), and on Zen for that `ahead` elements behind, into the second, where it does not displace b. Others
    foresee it better (Ice Lake: 14.6 ms, 17.7 when asked, 32.8 and 39.9).
    """
    vector, i64 = vector_of(acc.dtype), types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        packed, a_, a_row_, rows_, b_, b_vector_, b_step_, columns_, n_, after_, ahead_ = args
        count = ir.Constant(_I64, vector.lanes)
        sums = []
        for value in _unpack(builder, acc, packed):
            slot = cgutils.alloca_once(builder, vector.llvm)
            builder.store(value, slot)
            sums.append(slot)
        full = builder.sdiv(n_, count)
        inside = builder.and_(
            builder.icmp_signed("==", rows_, ir.Constant(_I64, acc.rows)),
            builder.icmp_signed("==", columns_, ir.Constant(_I64, acc.vectors)),
        )

        def add(a_rows: list[Any], b_vectors: list[Any], load: Any) -> None:
            factors = [load(_at(builder, p, vector)) for p in a_rows]
            for v, p in enumerate(b_vectors):
                value = load(_at(builder, p, vector))
                for r, factor in enumerate(factors):
                    slot = sums[r * acc.vectors + v]
                    name = f"llvm.fmuladd.{vector.suffix}"
                    builder.store(_call(builder, name, vector.llvm, factor, value, builder.load(slot)), slot)

        def whole(address: Any) -> Any:
            return builder.load(address, align=_align(vector))

        def run(rows: Any, vectors: Any) -> None:
            """rows(p, k) gives the places of k rows from p on, vectors(p, k) those of k vectors."""
            with cgutils.for_range(builder, full, intp=_I64) as loop:
                at, b_at = builder.mul(loop.index, count), builder.mul(loop.index, b_step_)
                p, q = builder.gep(a_, [at]), builder.gep(b_, [b_at])
                add(rows(p, acc.rows), vectors(q, acc.vectors), whole)
                for row in rows(builder.gep(p, [after_]), acc.rows):
                    _ask(builder, row, FIRST)
                for row in rows(builder.gep(p, [ahead_]), acc.rows) if ZEN else []:
                    _ask(builder, row, SECOND)

        def clamped(distance: Any, last: Any) -> Any:
            distances = [builder.mul(_clamped(builder, k, last), distance) for k in range(max(acc.rows, acc.vectors))]
            return lambda p, k: [builder.gep(p, [d]) for d in distances[:k]]

        a_rows, b_vectors = clamped(a_row_, rows_), clamped(b_vector_, columns_)
        with builder.if_else(inside) as (all_there, some):
            with all_there:
                run(lambda p, k: _equidistant(builder, p, a_row_, k), lambda p, k: _equidistant(builder, p, b_vector_, k))
            with some:
                run(a_rows, b_vectors)
        left = builder.sub(n_, builder.mul(full, count))
        with builder.if_then(builder.icmp_signed(">", left, ir.Constant(_I64, 0))):
            first, zero = _first(builder, left, vector.lanes), ir.Constant(vector.llvm, None)
            p, q = builder.gep(a_, [builder.mul(full, count)]), builder.gep(b_, [builder.mul(full, b_step_)])
            places = a_rows(p, acc.rows), b_vectors(q, acc.vectors)
            add(*places, lambda address: _masked_load(builder, address, vector, first, zero))
        return _pack(builder, acc, [builder.load(slot) for slot in sums])

    return acc(acc, a, i64, i64, b, i64, i64, i64, i64, i64, i64), codegen


@intrinsic
def multiply_add_quarters(
    typingctx: Any, acc: Any, a: Any, a_row: Any, rows: Any, b: Any, b_step: Any, columns: Any, n: Any
) -> Any:
    """What `multiply_add` makes of an empty tile one vector wide where only a quarter of its lanes, or fewer, are `columns`.

    Four rows share a vector of sums: a quarter of the multiplications, in the same chains. acc's rows are a multiple of four.
    """
    vector, i64 = vector_of(acc.dtype), types.int64
    quarter = Vector(acc.dtype, vector.lanes // 4)
    size = quarter.lanes

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, a_, a_row_, rows_, b_, b_step_, columns_, n_ = args
        a_rows = [builder.gep(a_, [builder.mul(_clamped(builder, r, rows_), a_row_)]) for r in range(acc.rows)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector.llvm, None)) for _ in a_rows[::4]]
        first, zero, count = _first(builder, columns_, size), ir.Constant(quarter.llvm, None), ir.Constant(_I64, size)

        def joined(t: Any, load: Any) -> list[Any]:
            """Steps [t, t + size) of a, four rows to a vector."""
            read = [load(_address(builder, p, t, quarter)) for p in a_rows]
            pairs = [_shuffle(builder, x, y, [*range(2 * size)]) for x, y in zip(read[::2], read[1::2])]
            return [_shuffle(builder, x, y, [*range(4 * size)]) for x, y in zip(pairs[::2], pairs[1::2])]

        def step(t: Any, s: int, factors: list[Any]) -> None:
            at = builder.mul(builder.add(t, ir.Constant(_I64, s)), b_step_)
            value = _masked_load(builder, _address(builder, b_, at, quarter), quarter, first, zero)
            value = _shuffle(builder, value, value, [*range(size)] * 4)
            for slot, x in zip(sums, factors):
                factor = _shuffle(builder, x, x, [lane // size * size + s for lane in range(vector.lanes)])
                name = f"llvm.fmuladd.{vector.suffix}"
                builder.store(_call(builder, name, vector.llvm, factor, value, builder.load(slot)), slot)

        whole = builder.mul(builder.sdiv(n_, count), count)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), whole, count, _I64) as (t, _):
            _once(builder)
            factors = joined(t, lambda address: builder.load(address, align=_align(vector)))
            for s in range(size):
                step(t, s, factors)
        left = builder.sub(n_, whole)
        with builder.if_then(builder.icmp_signed(">", left, ir.Constant(_I64, 0))):
            inside = _first(builder, left, size)
            factors = joined(whole, lambda address: _masked_load(builder, address, quarter, inside, zero))
            for s in range(size - 1):
                with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, s), left)):
                    step(whole, s, factors)
        ended = [builder.load(slot) for slot in sums]
        moved = [[(lane + q * size) % vector.lanes for lane in range(vector.lanes)] for q in range(4)]
        return _pack(builder, acc, [_shuffle(builder, x, x, lanes) for x in ended for lanes in moved])

    return acc(acc, a, i64, i64, b, i64, i64, i64), codegen


@intrinsic
def across(typingctx: Any, acc: Any) -> Any:
    """The tile whose element k of row r is the sum over the lanes of acc[r, k]; beyond acc's vectors it is of no meaning."""
    count = vector_of(acc.dtype).lanes
    result = Tile(acc.dtype, acc.rows, -(-acc.vectors // count))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = _unpack(builder, acc, args[0])
        sums = []
        for row in range(0, len(values), acc.vectors):
            for k in range(0, acc.vectors, count):
                sums.append(_across(builder, values[row + k : row + min(k + count, acc.vectors)], builder.fadd))
        return _pack(builder, result, sums)

    return result(acc), codegen


def _row(builder: Any, tile: Tile, p: Any, firsts: list[Any]) -> list[Any]:
    """tile.vectors vectors at p."""
    vector = vector_of(tile.dtype)
    values = []
    for v, first in enumerate(firsts):
        address = _address(builder, p, ir.Constant(_I64, v * vector.lanes), vector)
        values.append(_masked_load(builder, address, vector, first, ir.Constant(vector.llvm, None)))
    return values


@intrinsic
def add_row(typingctx: Any, acc: Any, p: Any, columns: Any) -> Any:
    """Add the `columns` values at p to every row: the bias."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        row = _row(builder, acc, args[1], _firsts(builder, acc, args[2]))
        values = _unpack(builder, acc, args[0])
        return _pack(builder, acc, [builder.fadd(x, row[i % acc.vectors]) for i, x in enumerate(values)])

    return acc(acc, p, types.int64), codegen


@intrinsic
def add_tile(typingctx: Any, acc: Any, p: Any, stride: Any, rows: Any, columns: Any) -> Any:
    """Add what is in memory at p: `rows` rows of `columns` values, `stride` apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        packed, p_, stride_, rows_, columns_ = args
        values, firsts = _unpack(builder, acc, packed), _firsts(builder, acc, columns_)
        for r in range(acc.rows):
            row = builder.gep(p_, [builder.mul(_clamped(builder, r, rows_), stride_)])
            for v, value in enumerate(_row(builder, acc, row, firsts)):
                values[r * acc.vectors + v] = builder.fadd(value, values[r * acc.vectors + v])
        return _pack(builder, acc, values)

    return acc(acc, p, types.int64, types.int64, types.int64), codegen


@intrinsic
def positive_part(typingctx: Any, acc: Any) -> Any:
    """max(acc, 0); NaN stays NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(vector_of(acc.dtype).llvm, None)
        return _pack(builder, acc, [_larger(builder, zero, x) for x in _unpack(builder, acc, args[0])])

    return acc(acc), codegen


@intrinsic
def store_tile(typingctx: Any, acc: Any, p: Any, stride: Any, rows: Any, columns: Any) -> Any:
    """Write the first `rows` rows to p, `stride` apart, `columns` values of each."""
    vector, i64 = vector_of(acc.dtype), types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        packed, p_, stride_, rows_, columns_ = args
        values, firsts = _unpack(builder, acc, packed), _firsts(builder, acc, columns_)
        for r in range(acc.rows):
            with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, r), rows_)):
                row = builder.gep(p_, [builder.mul(ir.Constant(_I64, r), stride_)])
                for v, first in enumerate(firsts):
                    address = _address(builder, row, ir.Constant(_I64, v * vector.lanes), vector)
                    _masked_store(builder, address, values[r * acc.vectors + v], vector, first)
        return context.get_dummy_value()

    return types.void(acc, p, i64, i64, i64), codegen


@intrinsic
def stream_tile(typingctx: Any, acc: Any, p: Any, stride: Any, rows: Any) -> Any:
    """Write whole vectors of the first `rows` rows past the caches; each begins at a multiple of 64 bytes."""
    vector, i64 = vector_of(acc.dtype), types.int64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        packed, p_, stride_, rows_ = args
        values = _unpack(builder, acc, packed)
        for r in range(acc.rows):
            with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, r), rows_)):
                row = builder.gep(p_, [builder.mul(ir.Constant(_I64, r), stride_)])
                for v in range(acc.vectors):
                    address = _address(builder, row, ir.Constant(_I64, v * vector.lanes), vector)
                    _stream(builder, address, values[r * acc.vectors + v])
        return context.get_dummy_value()

    return types.void(acc, p, i64, i64), codegen


@intrinsic
def copy_eight(typingctx: Any, p: Any, k: Any, to: Any, j: Any) -> Any:
    """to[j], to[j + 1], ... = p[k], p[k + 1], ...: eight values."""
    vector = Vector(p.dtype, EIGHT)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        p_, k_, to_, j_ = args
        value = builder.load(_address(builder, p_, k_, vector), align=_align(vector))
        builder.store(value, _address(builder, to_, j_, vector), align=_align(vector))
        return context.get_dummy_value()

    return types.void(p, types.int64, to, types.int64), codegen
