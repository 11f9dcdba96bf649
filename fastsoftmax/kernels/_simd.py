"""The vector vocabulary: explicit 512-bit vectors as numba values.

A `Vector` is `<16 x float>` or `<8 x double>` (or a mask of as many bits). The lane count is a fact of the source, not of
the CPU: LLVM splits a vector in two or four on AVX2 or SSE by itself. So the order of every reduction, and with it every bit
of every result, is the same on each machine that has FMA. A plain numba loop gives none of this: its `exp` is a scalar call
and its running maximum is never vectorised.

Kernels address memory by raw pointers (`pointer(array, k)`: the k-th element of a C-contiguous array), and by element
offsets from them. Nothing here checks bounds. Helpers called in a loop take pointers, not arrays: numba counts references
to an array it passes, two atomic operations each time (fused loss-gradient at 10 classes: 0.90 -> 0.70 ns an element).
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from ._target import PERMUTES, WIDE

LANES = {types.float32: 16, types.float64: 8}
_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_IR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.boolean: _I1}
_NAME = {types.float32: "f32", types.float64: "f64"}
_BITS = {types.float32: (32, 23), types.float64: (64, 52)}  # width, mantissa


class Vector(types.Type):
    """`lanes` values of `dtype` side by side in one register; of `boolean`: a mask."""

    def __init__(self, dtype: types.Type, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_IR[self.dtype], self.lanes)

    @property
    def suffix(self) -> str:
        """How LLVM's intrinsics name the type."""
        return f"v{self.lanes}{_NAME[self.dtype]}"

    @property
    def mask(self) -> Vector:
        return Vector(types.boolean, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


def vector_of(dtype: types.Type) -> Vector:
    return Vector(dtype, LANES[dtype])


V32, V64 = vector_of(types.float32), vector_of(types.float64)


# ---- emitting LLVM ---------------------------------------------------------------------------------------------------
def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return _shuffle(builder, one, one, [0] * lanes)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


class _First(NamedTuple):
    """The first lanes of a vector: how many, all if there are no more, and as a mask."""

    n: Any
    mask: Any


def _first(builder: Any, n: Any, lanes: int) -> _First:
    most = ir.Constant(_I64, lanes)
    least = builder.trunc(builder.select(builder.icmp_signed("<", n, most), n, most), _I32)
    iota = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    return _First(n, builder.icmp_signed("<", iota, _splat(builder, least, lanes)))


def _address(builder: Any, pointer: Any, offset: Any, vector: Vector) -> Any:
    return builder.bitcast(builder.gep(pointer, [offset]), vector.llvm.as_pointer())


def _align(vector: Vector) -> int:
    return _BITS[vector.dtype][0] // 8


def _masked_load(builder: Any, address: Any, vector: Vector, first: _First, fill: Any) -> Any:
    align = ir.Constant(_I32, _align(vector))
    return _call(builder, f"llvm.masked.load.{vector.suffix}.p0", vector.llvm, address, align, first.mask, fill)


def _masked_store(builder: Any, address: Any, value: Any, vector: Vector, first: _First) -> None:
    if WIDE:
        align = ir.Constant(_I32, _align(vector))
        name = f"llvm.masked.store.{vector.suffix}.p0"
        _call(builder, name, ir.VoidType(), value, address, align, first.mask)
        return
    with builder.if_else(builder.icmp_signed(">=", first.n, ir.Constant(_I64, vector.lanes))) as (whole, part):
        with whole:
            builder.store(value, address, align=_align(vector))
        with part:
            _store_in_pieces(builder, address, value, vector, first.n)


def _store_in_pieces(builder: Any, address: Any, value: Any, vector: Vector, n: Any) -> None:
    """The first n lanes, fewer than all, or none if n < 0: half of them if there are as many, of what is left a half, ...

    Processors without 512-bit vectors may take dozens of operations for a masked store (Zen 3, gradients of a product of
    128 x 784 x 10, float32: 255 -> 96 us).
    """
    n = builder.select(builder.icmp_signed("<", n, ir.Constant(_I64, 0)), ir.Constant(_I64, 0), n)
    element = builder.bitcast(address, _IR[vector.dtype].as_pointer())
    width = vector.lanes // 2
    while width:
        low, high = (_shuffle(builder, value, value, list(range(k, k + width))) for k in (0, width))
        here = builder.icmp_unsigned("!=", builder.and_(n, ir.Constant(_I64, width)), ir.Constant(_I64, 0))
        with builder.if_then(here):
            builder.store(low, builder.bitcast(element, low.type.as_pointer()), align=_align(vector))
        value = builder.select(here, high, low)
        element = builder.select(here, builder.gep(element, [ir.Constant(_I64, width)]), element)
        width //= 2


def _stream(builder: Any, address: Any, value: Any) -> None:
    write = builder.store(value, address, align=64)
    write.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))


# ---- operators: a + b, a - b, a * b, a / b, -a, a < b, a == b, mask & mask ------------------------------------------
class _Binary(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
        a, b = args
        if isinstance(a, Vector) and a == b:
            return signature(a, a, a)


class _Compare(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
        a, b = args
        if isinstance(a, Vector) and a == b and a.dtype is not types.boolean:
            return signature(a.mask, a, a)


def _define(op: Any, template: Any, emit: Any) -> None:
    infer_global(op)(type(f"_{op.__name__}", (template,), {}))

    @lower_builtin(op, Vector, Vector)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


_define(operator.add, _Binary, lambda b, x, y: b.fadd(x, y))
_define(operator.sub, _Binary, lambda b, x, y: b.fsub(x, y))
_define(operator.mul, _Binary, lambda b, x, y: b.fmul(x, y))
_define(operator.truediv, _Binary, lambda b, x, y: b.fdiv(x, y))
_define(operator.and_, _Binary, lambda b, x, y: b.and_(x, y))
_define(operator.or_, _Binary, lambda b, x, y: b.or_(x, y))
_define(operator.lt, _Compare, lambda b, x, y: b.fcmp_ordered("<", x, y))
_define(operator.eq, _Compare, lambda b, x, y: b.fcmp_ordered("==", x, y))


@infer_global(operator.neg)
class _Negate(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
        if isinstance(args[0], Vector):
            return signature(args[0], args[0])


@lower_builtin(operator.neg, Vector)
def _lower_negate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


# ---- memory ----------------------------------------------------------------------------------------------------------
@intrinsic
def pointer(typingctx: Any, array: Any, k: Any) -> Any:
    """The address of element k (counted in memory order) of a C-contiguous array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]])

    return types.CPointer(array.dtype)(array, types.int64), codegen


@intrinsic
def shift(typingctx: Any, p: Any, k: Any) -> Any:
    """The address k elements after p."""
    return p(p, types.int64), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


@intrinsic
def misalignment(typingctx: Any, p: Any, vectors: Any) -> Any:
    """How many elements p lies after an address that is a multiple of so many whole vectors (64 bytes), a power of two."""
    size = _BITS[p.dtype][0] // 8

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        last = builder.sub(builder.mul(args[1], ir.Constant(_I64, 64)), ir.Constant(_I64, 1))
        offset = builder.and_(builder.ptrtoint(args[0], _I64), last)
        return builder.udiv(offset, ir.Constant(_I64, size))

    return types.int64(p, types.int64), codegen


@intrinsic
def lanes(typingctx: Any, p: Any) -> Any:
    """How many values of p's type one vector holds: 16 or 8."""
    count = LANES[p.dtype]
    return types.int64(p), lambda context, builder, sig, args: ir.Constant(_I64, count)


@intrinsic
def item(typingctx: Any, p: Any, k: Any) -> Any:
    """p[k], a scalar."""
    return p.dtype(p, types.int64), lambda context, builder, sig, args: builder.load(builder.gep(args[0], [args[1]]))


@intrinsic
def put(typingctx: Any, p: Any, k: Any, value: Any) -> Any:
    """p[k] = value, a scalar of p's type."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(p, types.int64, p.dtype), codegen


@intrinsic
def load(typingctx: Any, p: Any, k: Any) -> Any:
    """p[k], p[k+1], ... as one vector."""
    vector = vector_of(p.dtype)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(builder, *args, vector), align=_align(vector))

    return vector(p, types.int64), codegen


@intrinsic
def load_first(typingctx: Any, p: Any, k: Any, n: Any, fill: Any) -> Any:
    """The first n lanes of `load(p, k)`, the other lanes from `fill`; memory beyond n is not touched."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = _first(builder, args[2], fill.lanes)
        return _masked_load(builder, _address(builder, args[0], args[1], fill), fill, first, args[3])

    return fill(p, types.int64, types.int64, fill), codegen


@intrinsic
def store(typingctx: Any, p: Any, k: Any, value: Any) -> Any:
    """Write a vector to p[k], p[k+1], ..."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(builder, args[0], args[1], value), align=_align(value))
        return context.get_dummy_value()

    return types.void(p, types.int64, value), codegen


@intrinsic
def store_first(typingctx: Any, p: Any, k: Any, value: Any, n: Any) -> Any:
    """Write the first n lanes only."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = _first(builder, args[3], value.lanes)
        _masked_store(builder, _address(builder, args[0], args[1], value), args[2], value, first)
        return context.get_dummy_value()

    return types.void(p, types.int64, value, types.int64), codegen


@intrinsic
def stream(typingctx: Any, p: Any, k: Any, value: Any) -> Any:
    """Write a vector past the caches; the address must be a multiple of 64 bytes.

    An ordinary store of a line that is not in cache reads it first: for outputs beyond the last-level cache that is a third
    of all traffic.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _stream(builder, _address(builder, args[0], args[1], value), args[2])
        return context.get_dummy_value()

    return types.void(p, types.int64, value), codegen


def _prefetch(p: Any, write: int) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(builder.gep(args[0], [args[1]]), ir.IntType(8).as_pointer())
        intent, near, data = (ir.Constant(_I32, n) for n in (write, 3, 1))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, intent, near, data)
        return context.get_dummy_value()

    return types.void(p, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, p: Any, k: Any) -> Any:
    """Ask for the line of p[k]; never faults."""
    return _prefetch(p, 0)


@intrinsic
def prefetch_to_write(typingctx: Any, p: Any, k: Any) -> Any:
    """The same for a line that will be written."""
    return _prefetch(p, 1)


@intrinsic
def load_labels(typingctx: Any, like: Any, labels: Any, k: Any, n: Any) -> Any:
    """n int64 labels as a vector of `like`'s type (exact below 2**24); -1 in the other lanes."""
    vector = vector_of(like.dtype)
    integers = ir.VectorType(_I64, vector.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(builder.gep(args[1], [args[2]]), integers.as_pointer())
        name = f"llvm.masked.load.v{vector.lanes}i64.p0"
        mask, other = _first(builder, args[3], vector.lanes).mask, ir.Constant(integers, [-1] * vector.lanes)
        value = _call(builder, name, integers, address, ir.Constant(_I32, 8), mask, other)
        return builder.sitofp(value, vector.llvm)

    return vector(like, types.CPointer(types.int64), types.int64, types.int64), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make streamed stores visible to other threads before anything that follows."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def load_bytes(typingctx: Any, p: Any, k: Any, like: Any) -> Any:
    """The unsigned bytes p[k], p[k+1], ... as a vector of `like`'s type (a vector or a pointer), exactly."""
    vector = like if isinstance(like, Vector) else vector_of(like.dtype)
    packed = ir.VectorType(ir.IntType(8), vector.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = builder.bitcast(builder.gep(args[0], [args[1]]), packed.as_pointer())
        return builder.uitofp(builder.load(address, align=1), vector.llvm)

    return vector(p, types.int64, like), codegen


# ---- making and taking apart ------------------------------------------------------------------------------------------
@intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """A vector with the same value in every lane."""
    vector = vector_of(scalar)
    return vector(scalar), lambda context, builder, sig, args: _splat(builder, args[0], vector.lanes)


def _constant(context: Any, builder: Any, vector: Vector, value: Any) -> Any:
    if vector.dtype is types.float32:
        value = builder.fptrunc(value, _IR[types.float32])
    return _splat(builder, value, vector.lanes)


@intrinsic
def constant(typingctx: Any, like: Any, for_float32: Any, for_float64: Any) -> Any:
    """The constant that belongs to `like`'s precision, in every lane; `like` is a vector or a pointer."""
    vector = like if isinstance(like, Vector) else vector_of(like.dtype)
    which = 1 if vector.dtype is types.float32 else 2

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _constant(context, builder, vector, args[which])

    return vector(like, types.float64, types.float64), codegen


@intrinsic
def number(typingctx: Any, like: Any, value: Any) -> Any:
    """A float64 rounded to the scalar type that `like` (vector or pointer) is made of."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fptrunc(args[1], _IR[types.float32]) if like.dtype is types.float32 else args[1]

    return like.dtype(like, types.float64), codegen


@intrinsic
def lane(typingctx: Any, value: Any, k: Any) -> Any:
    """Lane k as a scalar."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(*args)

    return value.dtype(value, types.int64), codegen


@intrinsic
def with_lane(typingctx: Any, value: Any, k: Any, scalar: Any) -> Any:
    """The vector with another number in lane k. A vector read where scalars were just stored waits for all stores before.

    Chosen by comparing: `insert_element` at a lane not known beforehand goes through memory where vectors are not 512 bits.
    """
    integers = ir.VectorType(ir.IntType(_BITS[value.dtype][0]), value.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        k = _splat(builder, builder.trunc(args[1], integers.element) if integers.element.width == 32 else args[1], value.lanes)
        here = builder.icmp_signed("==", k, ir.Constant(integers, list(range(value.lanes))))
        return builder.select(here, _splat(builder, args[2], value.lanes), args[0])

    return value(value, types.int64, value.dtype), codegen


@intrinsic
def widen(typingctx: Any, value: Any) -> Any:
    """16 floats as two vectors of 8 doubles: lanes 0..7 and lanes 8..15."""
    if value != V32:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = [_shuffle(builder, args[0], args[0], list(range(k, k + 8))) for k in (0, 8)]
        return context.make_tuple(builder, sig.return_type, [builder.fpext(h, V64.llvm) for h in halves])

    return types.UniTuple(V64, 2)(value), codegen


@intrinsic
def narrow(typingctx: Any, low: Any, high: Any) -> Any:
    """Two vectors of 8 doubles rounded to one of 16 floats."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = [builder.fptrunc(a, ir.VectorType(_IR[types.float32], 8)) for a in args]
        return _shuffle(builder, *halves, list(range(16)))

    return V32(V64, V64), codegen


@intrinsic
def load_wide(typingctx: Any, p: Any, k: Any) -> Any:
    """8 values at p[k] as doubles, whatever p's type."""
    narrow = Vector(p.dtype, 8)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(_address(builder, *args, narrow), align=_align(narrow))
        return builder.fpext(value, V64.llvm) if p.dtype is types.float32 else value

    return V64(p, types.int64), codegen


@intrinsic
def load_wide_first(typingctx: Any, p: Any, k: Any, n: Any, fill: Any) -> Any:
    """The first n lanes of `load_wide(p, k)`, the others the scalar double `fill`."""
    narrow = Vector(p.dtype, 8)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.fptrunc(args[3], _IR[types.float32]) if p.dtype is types.float32 else args[3]
        address, first = _address(builder, args[0], args[1], narrow), _first(builder, args[2], 8)
        value = _masked_load(builder, address, narrow, first, _splat(builder, value, 8))
        return builder.fpext(value, V64.llvm) if p.dtype is types.float32 else value

    return V64(p, types.int64, types.int64, types.float64), codegen


@intrinsic
def store_narrow_first(typingctx: Any, p: Any, k: Any, value: Any, n: Any) -> Any:
    """Round 8 doubles to p's type and write the first n."""
    narrow = Vector(p.dtype, 8)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rounded = builder.fptrunc(args[2], narrow.llvm) if p.dtype is types.float32 else args[2]
        address, first = _address(builder, args[0], args[1], narrow), _first(builder, args[3], 8)
        _masked_store(builder, address, rounded, narrow, first)
        return context.get_dummy_value()

    return types.void(p, types.int64, V64, types.int64), codegen


# ---- arithmetic --------------------------------------------------------------------------------------------------------
@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU has FMA (`llvm.fma` would be a library call elsewhere, 15 times slower)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fmuladd.{a.suffix}", a.llvm, *args)

    return a(a, a, a), codegen


@intrinsic
def exact_fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once on every CPU: for error-free transformations only."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fma.{a.suffix}", a.llvm, *args)

    return a(a, a, a), codegen


@intrinsic
def root(typingctx: Any, value: Any) -> Any:
    """The square root in each lane, correctly rounded."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.sqrt.{value.suffix}", value.llvm, *args)

    return value(value), codegen


@intrinsic
def polynomial(typingctx: Any, x: Any, for_float32: Any, for_float64: Any) -> Any:
    """The polynomial with these coefficients, lowest power first, by Estrin's scheme: half the latency of Horner's rule."""
    which, coefficients = (1, for_float32) if x.dtype is types.float32 else (2, for_float64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        power = args[0]
        terms = [builder.extract_value(args[which], i) for i in range(len(coefficients))]
        terms = [_constant(context, builder, x, t) for t in terms]
        while len(terms) > 1:
            paired = [
                _call(builder, f"llvm.fmuladd.{x.suffix}", x.llvm, terms[i + 1], power, terms[i])
                for i in range(0, len(terms) - 1, 2)
            ]
            terms = paired + terms[len(terms) - len(terms) % 2 :]
            power = builder.fmul(power, power)
        return terms[0]

    return x(x, for_float32, for_float64), codegen


@intrinsic
def horner(typingctx: Any, x: Any, for_float32: Any, for_float64: Any) -> Any:
    """The same by Horner's rule, with fewer operations (Zen 4, float64, with sums: 0.58 -> 0.57 ns an element)."""
    which, coefficients = (1, for_float32) if x.dtype is types.float32 else (2, for_float64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        terms = [builder.extract_value(args[which], i) for i in range(len(coefficients))]
        *terms, value = [_constant(context, builder, x, t) for t in terms]
        for term in reversed(terms):
            value = _call(builder, f"llvm.fmuladd.{x.suffix}", x.llvm, args[0], value, term)
        return value

    return x(x, for_float32, for_float64), codegen


@intrinsic
def any_lane(typingctx: Any, mask: Any) -> Any:
    """Whether the mask is set in any lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def select(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """a where the mask is set, else b."""
    return a(mask, a, a), lambda context, builder, sig, args: builder.select(*args)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """One `vmaxps`; where a is NaN the result is b."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """The maximum in each lane; a NaN in `a` is passed over (the sums that follow carry it on)."""
    return a(a, a), lambda context, builder, sig, args: _larger(builder, *args)


def _halves(builder: Any, value: Any, width: int, combine: Any) -> Any:
    """Fold lane k with lane k + width/2, again and again: one fixed tree."""
    while width > 1:
        width //= 2
        lanes_ = list(range(width, 2 * width)) + list(range(width))
        other = _shuffle(builder, value, value, (lanes_ * 16)[: value.type.count])
        value = combine(value, other)
    return builder.extract_element(value, ir.Constant(_I32, 0))


@intrinsic
def largest(typingctx: Any, value: Any) -> Any:
    """The maximum over the lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _halves(builder, args[0], value.lanes, lambda a, b: _larger(builder, a, b))

    return value.dtype(value), codegen


def _across(builder: Any, values: list[Any], combine: Any) -> Any:
    """One vector whose lane k combines all lanes of values[k]: halves are folded, pair by pair, in the tree of `_halves`."""
    count = values[0].type.count
    width = count
    while width > 1:
        half = width // 2
        pairs = [(a, b) for a, b in zip(values[::2], values[1::2] + values[-1:])]
        values = [combine(*_both_halves(builder, a, b, width)) for a, b in pairs]
        width = half
    return values[0]


def _both_halves(builder: Any, a: Any, b: Any, width: int) -> tuple[Any, Any]:
    """The first halves of a's runs of `width` lanes, then of b's; and the second."""
    first = [s + k for s in range(0, 2 * a.type.count, width) for k in range(width // 2)]
    return _shuffle(builder, a, b, first), _shuffle(builder, a, b, [k + width // 2 for k in first])


@intrinsic
def halves(typingctx: Any, a: Any, b: Any, width: Any) -> Any:
    """The first halves of a's runs of `width` lanes, a literal, then of b's; and the second: of two folds, one is saved."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    run = width.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.make_tuple(builder, sig.return_type, _both_halves(builder, args[0], args[1], run))

    return types.UniTuple(a, 2)(a, b, width), codegen


def _of_eight(combine: Any) -> Any:
    def of_eight(typingctx: Any, p: Any) -> Any:
        vector = vector_of(p.dtype)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            places = [_address(builder, args[0], ir.Constant(_I64, k * vector.lanes), vector) for k in range(8)]
            return _across(builder, [builder.load(place, align=_align(vector)) for place in places], partial(combine, builder))

        return vector(p), codegen

    return intrinsic(of_eight)


# `largest` and `total` of each of the eight vectors at p, in lanes 0..7: a third of the operations
eight_largest = _of_eight(_larger)
eight_totals = _of_eight(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def total(typingctx: Any, value: Any) -> Any:
    """The sum over the lanes: lane k with lane k + half, again and again."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _halves(builder, args[0], value.lanes, builder.fadd)

    return value.dtype(value), codegen


@intrinsic
def rotate_half(typingctx: Any, value: Any, width: Any) -> Any:
    """Lane k + width where lane k was, for a literal width: one level of a hand-written tree."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    step = width.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        order = [(k + step) % value.lanes for k in range(value.lanes)]
        return _shuffle(builder, args[0], args[0], order)

    return value(value, width), codegen


@intrinsic
def power_of_two(typingctx: Any, t: Any, for_float32: Any, for_float64: Any) -> Any:
    """eighths[k % 8] * 2**(k // 8), for the integer k in the low bits of t and a table of eight numbers within [1, 2)."""
    which = 1 if t.dtype is types.float32 else 2
    width, mantissa = _BITS[t.dtype]
    integer = ir.IntType(width)
    integers = ir.VectorType(integer, t.lanes)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits, by = builder.bitcast(args[0], integers), mantissa - 3
        table = []
        for i in range(8):  # of an integer moved to the exponent the last three bits lie in the mantissa: taken off here
            value = builder.extract_value(args[which], i)
            value = builder.bitcast(builder.fptrunc(value, _IR[t.dtype]) if width == 32 else value, integer)
            table.append(builder.sub(value, ir.Constant(integer, i << by)))
        found = _lookup(builder, table, bits)
        shifted = builder.shl(bits, ir.Constant(integers, [by] * t.lanes))
        return builder.bitcast(builder.add(found, shifted), t.llvm)

    return t(t, for_float32, for_float64), codegen


@intrinsic
def eighth(typingctx: Any, t: Any, table: Any) -> Any:
    """table[k % 8] of doubles, for the integer k in the low bits of t."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.VectorType(_I64, t.lanes))
        entries = [builder.bitcast(builder.extract_value(args[1], i), _I64) for i in range(8)]
        return builder.bitcast(_lookup(builder, entries, bits), t.llvm)

    return t(t, table), codegen


def _lookup(builder: Any, table: list[Any], index: Any) -> Any:
    """table[index % 8] in each lane, of integers: one permutation where there is one for such vectors."""
    kind, (integer, lanes_) = index.type, (index.type.element, index.type.count)
    if WIDE:
        name, vector = {32: ("sf", V32.llvm), 64: ("df", V64.llvm)}[integer.width]
        values = builder.bitcast(_gathered(builder, table * (lanes_ // 8)), vector)
        return builder.bitcast(_call(builder, f"llvm.x86.avx512.permvar.{name}.512", vector, values, index), kind)
    if PERMUTES:
        eight = ir.VectorType(_I32, 8)

        def permute(entries: list[Any], where: Any) -> Any:
            return _call(builder, "llvm.x86.avx2.permd", eight, _gathered(builder, entries), where)

        if integer.width == 32:
            halves = [_shuffle(builder, index, index, list(range(k, k + 8))) for k in (0, 8)]
            return _shuffle(builder, *(permute(table, half) for half in halves), list(range(16)))
        # of doubles both halves of each entry, as integers of 32 bits: they are found for all eight at once
        words = _shuffle(builder, *[builder.bitcast(index, ir.VectorType(_I32, 16))] * 2, [0, 2, 8, 10, 4, 6, 12, 14])
        low = permute([builder.trunc(entry, _I32) for entry in table], words)
        high = permute([builder.trunc(builder.lshr(entry, ir.Constant(_I64, 32)), _I32) for entry in table], words)
        order = [0, 1, 4, 5, 2, 3, 6, 7]
        return builder.bitcast(_shuffle(builder, low, high, [k for i in order for k in (i, i + 8)]), kind)
    result, values = ir.Constant(kind, ir.Undefined), _gathered(builder, table)
    for k in range(lanes_):
        at = builder.and_(builder.extract_element(index, ir.Constant(_I32, k)), ir.Constant(integer, 7))
        result = builder.insert_element(result, builder.extract_element(values, at), ir.Constant(_I32, k))
    return result


def _gathered(builder: Any, values: list[Any]) -> Any:
    result = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
    for k, value in enumerate(values):
        result = builder.insert_element(result, value, ir.Constant(_I32, k))
    return result


@intrinsic
def split_exponent(typingctx: Any, value: Any) -> Any:
    """(k, 2**-k, f) with value == 2**k * f and f within [sqrt(1/2), sqrt(2)), for positive normal doubles."""
    if value != V64:
        return None
    integers = ir.VectorType(_I64, 8)

    def const(n: int) -> ir.Constant:
        return ir.Constant(integers, [n] * 8)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], integers)
        moved = builder.add(bits, const(0x3FF0000000000000 - 0x3FE6A09E667F3BCD))
        exponent = builder.lshr(moved, const(52))  # biased k
        # to a double without a 64-bit conversion, which AVX2 lacks: put it into the mantissa of 2**52
        k = builder.bitcast(builder.or_(exponent, const(0x4330000000000000)), V64.llvm)
        k = builder.fsub(k, ir.Constant(V64.llvm, [float(2**52 + 1023)] * 8))
        inverse = builder.bitcast(builder.shl(builder.sub(const(2046), exponent), const(52)), V64.llvm)
        return context.make_tuple(builder, sig.return_type, [k, inverse, builder.fmul(args[0], inverse)])

    return types.UniTuple(V64, 3)(value), codegen
