"""Memory that a kernel works on: on the stack, or as much as it asks for.

Not arrays: numba frees those after their last use by name, though their memory is used by its address; making one costs 100 ns;
and code that makes arrays needs numba's runtime to run, which takes numba to be imported (`_linker`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

_LINE = 64  # bytes of a whole vector, and of a line of the caches
_byte, _size = ir.IntType(8), ir.IntType(64)
_address = _byte.as_pointer()


def stack(size: int) -> Any:
    """A function of anything of a dtype: the address of `size` bytes on the stack, aligned to a whole vector.

    One place for each function in which it is called, until that returns.
    """

    def room(typingctx: Any, like: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            with builder.goto_entry_block():  # numba's `alloca_once` would fill it with zeros, each stored by itself
                place = builder.alloca(ir.ArrayType(_byte, size))
            place.align = _LINE
            return builder.bitcast(place, context.get_value_type(sig.return_type))

        return types.CPointer(like.dtype)(like), codegen

    return intrinsic(room)


@intrinsic
def scratch(typingctx: Any, like: Any, n: Any) -> Any:
    """The address of n elements of the dtype of `like`, aligned to a whole vector, to be given back with `release`.

    The C library's: Python's own allocators may want the GIL (tracemalloc does), which a caller may hold who waits for this.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        itemsize = context.get_abi_sizeof(context.get_data_type(like.dtype))
        kind = ir.FunctionType(_address, [_size])
        malloc = cgutils.get_or_insert_function(builder.module, kind, "malloc")
        begin = builder.call(malloc, [builder.add(builder.mul(args[1], _size(itemsize)), _size(2 * _LINE))])
        with builder.if_then(cgutils.is_null(builder, begin), likely=False):
            context.call_conv.return_user_exc(builder, MemoryError, ("a kernel found no memory",))
        end = builder.add(builder.ptrtoint(begin, _size), _size(2 * _LINE))
        place = builder.inttoptr(builder.and_(end, _size(-_LINE)), _address)
        builder.store(begin, _before(builder, place))
        return builder.bitcast(place, context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(like, types.int64), codegen


@intrinsic
def release(typingctx: Any, place: Any) -> Any:
    """Give back what `scratch` gave."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        free = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [_address]), "free")
        builder.call(free, [builder.load(_before(builder, args[0]))])
        return context.get_dummy_value()

    return types.void(place), codegen


@intrinsic
def matrix_at(typingctx: Any, place: Any, n_rows: Any, n_columns: Any) -> Any:
    """What lies there as a matrix."""
    kind = types.Array(place.dtype, 2, "C")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        itemsize = _size(context.get_abi_sizeof(context.get_data_type(place.dtype)))
        shape, strides = args[1:], [builder.mul(args[2], itemsize), itemsize]
        array = context.make_array(kind)(context, builder)
        populate_array(array, args[0], shape, strides, itemsize, meminfo=None)
        return array._getvalue()

    return kind(place, types.int64, types.int64), codegen


@intrinsic
def one_at(typingctx: Any, like: Any) -> Any:
    """The address of a 1 of its dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return cgutils.global_constant(builder, "one", context.get_data_type(like.dtype)(1.0))

    return types.CPointer(like.dtype)(like), codegen


def _before(builder: Any, place: Any) -> Any:
    """Where the C library's own address is kept: just before."""
    return builder.gep(builder.bitcast(place, _address.as_pointer()), [_size(-1)])
