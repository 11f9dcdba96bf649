"""How a compiled entry takes arrays: as they lie in the NumPy object, without a reference of its own.

numba gives every array argument a counted reference, an allocation and 60 ns each. The caller's frame holds its arguments
for as long as the call lasts, so an entry reads address and shape and counts nothing. It must be given ndarrays; one of
another dtype, layout or number of dimensions than the kernel's is refused with a TypeError. Where a kernel takes a vector,
an array of any shape will do: its elements as they lie in memory.
"""

from __future__ import annotations

import sys
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import NativeValue, models, register_model, unbox
from numba.np.numpy_support import as_dtype

# PyArrayObject's fields and PyArray_Descr's, which follow the head of every Python object: the same in NumPy 1 and 2
_HEAD = object.__basicsize__
_DATA, _NDIM, _SHAPE, _DESCR, _FLAGS = (_HEAD + k for k in (0, 8, 16, 40, 48))
_BYTE_ORDER, _TYPE_NUM = _HEAD + 10, _HEAD + 12
_C_CONTIGUOUS_ALIGNED, _WRITEABLE = 0x101, 0x400
_FOREIGN = ">" if sys.byteorder == "little" else "<"  # the byte order that is not this machine's

_int, _size, _byte = ir.IntType(32), ir.IntType(64), ir.IntType(8)


class Borrowed(types.Type):
    """Address and lengths of an array of type `array`."""

    def __init__(self, array: types.Array) -> None:
        self.array = array
        super().__init__(f"Borrowed({array})")


@register_model(Borrowed)
class _BorrowedModel(models.StructModel):
    def __init__(self, dmm: Any, fe_type: Borrowed) -> None:
        array = fe_type.array
        members = [("data", types.CPointer(array.dtype)), ("shape", types.UniTuple(types.intp, array.ndim))]
        super().__init__(dmm, fe_type, members)


@unbox(Borrowed)
def _read(typ: Borrowed, obj: Any, c: Any) -> NativeValue:
    array, builder = typ.array, c.builder

    def field(base: Any, offset: int, kind: Any) -> Any:
        address = builder.gep(builder.bitcast(base, _byte.as_pointer()), [_size(offset)])
        return builder.load(builder.bitcast(address, kind.as_pointer()))

    descr = field(obj, _DESCR, _byte.as_pointer())
    flags = _C_CONTIGUOUS_ALIGNED | (_WRITEABLE if array.mutable else 0)
    ndim = field(obj, _NDIM, _int)
    differences = [
        builder.icmp_signed("!=", field(descr, _TYPE_NUM, _int), _int(as_dtype(array.dtype).num)),
        builder.icmp_signed("==", field(descr, _BYTE_ORDER, _byte), _byte(ord(_FOREIGN))),
        builder.icmp_signed("!=", builder.and_(field(obj, _FLAGS, _int), _int(flags)), _int(flags)),
    ]
    if array.ndim > 1:
        differences.append(builder.icmp_signed("!=", ndim, _int(array.ndim)))
    failed = reduce(builder.or_, differences)
    result = cgutils.create_struct_proxy(typ)(c.context, builder)
    with builder.if_else(failed, likely=False) as (refuse, read):
        with refuse:
            c.pyapi.err_set_string("PyExc_TypeError", f"a kernel takes {array} here")
        with read:
            result.data = field(obj, _DATA, result.data.type)
            shape = field(obj, _SHAPE, _size.as_pointer())
            if array.ndim == 1:
                length = cgutils.alloca_once_value(builder, _size(1))
                with cgutils.for_range(builder, ndim) as loop:
                    this = builder.load(builder.gep(shape, [loop.index]))
                    builder.store(builder.mul(builder.load(length), this), length)
                lengths = [builder.load(length)]
            else:
                lengths = [builder.load(builder.gep(shape, [_size(k)])) for k in range(array.ndim)]
            result.shape = cgutils.pack_array(builder, lengths)
    return NativeValue(result._getvalue(), is_error=failed)


def as_array(context: Any, builder: Any, typ: Borrowed, value: Any) -> Any:
    """The array value that a kernel works on, owned by nobody."""
    borrowed = cgutils.create_struct_proxy(typ)(context, builder, value)
    array = context.make_array(typ.array)(context, builder)
    itemsize = _size(as_dtype(typ.array.dtype).itemsize)
    lengths, strides, step = cgutils.unpack_tuple(builder, borrowed.shape), [], itemsize
    for length in reversed(lengths):
        strides.insert(0, step)
        step = builder.mul(step, length)
    array.data, array.shape, array.itemsize = borrowed.data, borrowed.shape, itemsize
    array.strides, array.nitems = cgutils.pack_array(builder, strides), builder.udiv(step, itemsize)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array._getvalue()
