"""What a compiled entry takes from Python: each argument from its object, as it lies there, and no references are counted.

numba's wrapper wants the arguments in a tuple, makes a new integer of each integer, and gives every array a counted reference
and an allocation, 60 ns each. The caller's frame holds its arguments for as long as the call lasts, so an entry only reads
them: numbers, and of arrays address and shape. Where it must be given ndarrays, one of another dtype, layout or number of
dimensions than the kernel's is refused with a TypeError. Where a kernel takes a vector, an array of any shape will do: its
elements as they lie in memory.
"""

from __future__ import annotations

import sys
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.numpy_support import as_dtype

# PyArrayObject's fields and PyArray_Descr's, which follow the head of every Python object: the same in NumPy 1 and 2
_HEAD = object.__basicsize__
_DATA, _NDIM, _SHAPE, _DESCR, _FLAGS = (_HEAD + k for k in (0, 8, 16, 40, 48))
_BYTE_ORDER, _TYPE_NUM = _HEAD + 10, _HEAD + 12
_C_CONTIGUOUS_ALIGNED, _WRITEABLE = 0x101, 0x400
_FOREIGN = ">" if sys.byteorder == "little" else "<"  # the byte order that is not this machine's

FAILURE = "a kernel ran out of memory, or out of bounds where NUMBA_BOUNDSCHECK=1"
_int, _size, _byte = ir.IntType(32), ir.IntType(64), ir.IntType(8)
_object = _byte.as_pointer()


def read(python: Any, kind: types.Type, obj: Any, refused: ir.Block) -> Any:
    """The value of an argument; where it has none, Python's exception is set and the code goes on at `refused`.

    `python` is numba's `PythonAPI` with its builder.
    """
    builder = python.builder
    if isinstance(kind, types.Array):
        return _read_array(python, kind, obj, refused)
    if kind == types.boolean:
        value = python.object_istrue(obj)
        _refuse_if_set(python, builder.icmp_signed("==", value, value.type(-1)), refused)
        return builder.icmp_signed("!=", value, value.type(0))
    if kind == types.int64:
        value = python.long_as_longlong(obj)
        _refuse_if_set(python, builder.icmp_signed("==", value, value.type(-1)), refused)
        return value
    value = python.float_as_double(obj)
    _refuse_if_set(python, builder.fcmp_ordered("==", value, value.type(-1.0)), refused)
    return python.context.cast(builder, value, types.float64, kind)


def leave_if(builder: Any, condition: Any, elsewhere: ir.Block) -> None:
    """Go on at `elsewhere`, which is rare, or here."""
    here = builder.append_basic_block("passed")
    builder.cbranch(condition, elsewhere, here).set_weights([1, 100])
    builder.position_at_end(here)


def refuse_if(python: Any, failed: Any, error: str, message: str, refused: ir.Block) -> None:
    """Set Python's exception and go on at `refused`, or go on here."""
    builder = python.builder
    refuse = builder.append_basic_block("refuse")
    leave_if(builder, failed, refuse)
    with builder.goto_block(refuse):
        python.err_set_string(f"PyExc_{error}", message)
        builder.branch(refused)


def _refuse_if_set(python: Any, suspect: Any, refused: ir.Block) -> None:
    """Go on at `refused` if a suspect number stands for an exception."""
    builder = python.builder
    ask = builder.append_basic_block("ask")
    leave_if(builder, suspect, ask)
    passed = builder.block
    with builder.goto_block(ask):
        builder.cbranch(cgutils.is_not_null(builder, python.err_occurred()), refused, passed)


def _read_array(python: Any, kind: types.Array, obj: Any, refused: ir.Block) -> Any:
    refuse_if(python, unlike(python.builder, kind, obj), "TypeError", f"a kernel takes {kind} here", refused)
    return array_value(python, kind, obj)


# ---- arrays ----------------------------------------------------------------------------------------------------------------
def unlike(builder: Any, kind: types.Array, obj: Any) -> Any:
    """Whether an ndarray is not one of this dtype, layout and number of dimensions."""
    descr = field(builder, obj, _DESCR, _object)
    flags = _int(_C_CONTIGUOUS_ALIGNED | (_WRITEABLE if kind.mutable else 0))
    differences = [
        builder.icmp_signed("!=", field(builder, descr, _TYPE_NUM, _int), _int(as_dtype(kind.dtype).num)),
        builder.icmp_signed("==", field(builder, descr, _BYTE_ORDER, _byte), _byte(ord(_FOREIGN))),
        builder.icmp_signed("!=", builder.and_(field(builder, obj, _FLAGS, _int), flags), flags),
    ]
    if kind.ndim > 1:
        differences.append(builder.icmp_signed("!=", field(builder, obj, _NDIM, _int), _int(kind.ndim)))
    return reduce(builder.or_, differences)


def array_value(python: Any, kind: types.Array, obj: Any) -> Any:
    """The array value that a kernel works on, owned by nobody."""
    builder, context = python.builder, python.context
    ndim, shape = dimensions(builder, obj)
    lengths = [builder.load(builder.gep(shape, [_size(k)])) for k in range(kind.ndim)] if kind.ndim > 1 else [
        product(builder, ndim, shape)
    ]
    itemsize = _size(as_dtype(kind.dtype).itemsize)
    strides, step = [], itemsize
    for n in reversed(lengths):
        strides.insert(0, step)
        step = builder.mul(step, n)
    array = context.make_array(kind)(context, builder)
    array.data = field(builder, obj, _DATA, array.data.type)
    array.shape, array.strides = cgutils.pack_array(builder, lengths), cgutils.pack_array(builder, strides)
    array.itemsize, array.nitems = itemsize, builder.udiv(step, itemsize)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array._getvalue()


def extent(builder: Any, kind: types.Array, obj: Any) -> tuple[Any, Any]:
    """The addresses where an array that is not `unlike` this kind begins and where it ends."""
    start, itemsize = field(builder, obj, _DATA, _size), _size(as_dtype(kind.dtype).itemsize)
    return start, builder.add(start, builder.mul(product(builder, *dimensions(builder, obj)), itemsize))


def apart(builder: Any, one: tuple[Any, Any], other: tuple[Any, Any]) -> Any:
    """Whether two arrays with these extents have no byte in common."""
    return builder.or_(builder.icmp_unsigned("<=", one[1], other[0]), builder.icmp_unsigned("<=", other[1], one[0]))


def dimensions(builder: Any, obj: Any) -> tuple[Any, Any]:
    """How many an array has, and the address of its lengths."""
    return builder.sext(field(builder, obj, _NDIM, _int), _size), field(builder, obj, _SHAPE, _size.as_pointer())


def product(builder: Any, ndim: Any, shape: Any) -> Any:
    """Of its lengths: how many elements it has."""
    size = cgutils.alloca_once_value(builder, _size(1))
    with cgutils.for_range(builder, ndim) as loop:
        builder.store(builder.mul(builder.load(size), builder.load(builder.gep(shape, [loop.index]))), size)
    return builder.load(size)


def field(builder: Any, base: Any, offset: int, kind: ir.Type) -> Any:
    address = builder.gep(builder.bitcast(base, _object), [_size(offset)])
    return builder.load(builder.bitcast(address, kind.as_pointer()))
