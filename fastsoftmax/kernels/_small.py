"""A small call's way in: what Python would look at, allocate and hand on is done in the compiled entry.

A small batch is all overhead: to look at its arrays, to make a new one and to hand on the kernel's arguments takes Python more
time than the kernel takes (Zen 3, 1 x 10, float32: softmax 1.24 -> 0.59 us, the loss with gradient 1.73 -> 1.00). Instead of a
kernel's arguments an entry then takes those of a public function: arrays, `axis` and `out`, which may be None. It returns
what that function returns, or None for what it is not made for, which goes the way through Python: other dtypes and layouts,
large arrays, shapes that do not fit, whatever is no array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.numpy_support import as_dtype

from ._arguments import FAILURE, array_value, dimensions, field, product, refuse_if, unlike
from ._layout import LEAST_INNER, SHORT, SMALL
from ._linker import INTEGER, NDARRAY, NEW, NEW_LIKE, SCALAR
from ._part import part

_TYPE = object.__basicsize__ - 8  # where an object has the address of its type
_size, _int, _object = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()


# ---- what it takes, and the kernel's arguments after the arrays -------------------------------------------------------------
# Functions of axis, the first array's number of dimensions, elements, bytes of one, first and last length, which are not 0.
# Calls are small for which one thread is enough: see `SMALL` and `SHORT`.
def along_rows(axis, ndim, size, itemsize, first, last):
    """Vectors, n_classes, streaming, and all rows; along the first axis if there is one row."""
    one_row = (axis == 0 or axis == -ndim) and size == first
    n = first if one_row else last
    return (one_row or axis == -1 or axis == ndim - 1) and size * itemsize <= SHORT, n, False, 0, size // n


def along_columns(axis, ndim, size, itemsize, first, last):
    """Vectors, n_classes, how many columns lie side by side, and all strips of 64 bytes of them."""
    inner = size // first
    taken = (axis == 0 or axis == -ndim) and inner >= LEAST_INNER and size * itemsize <= SHORT
    return taken, first, inner, 0, (inner * itemsize + 63) // 64


def backward_along_rows(axis, ndim, size, itemsize, first, last):
    one_row = (axis == 0 or axis == -ndim) and size == first
    n = first if one_row else last
    return (one_row or axis == -1 or axis == ndim - 1) and size <= SMALL, n, False, 0, size // n


def backward_along_columns(axis, ndim, size, itemsize, first, last):
    inner = size // first
    taken = (axis == 0 or axis == -ndim) and inner >= LEAST_INNER and size <= SMALL
    return taken, first, inner, 0, (inner * itemsize + 63) // 64


def a_number_each_row(axis, ndim, size, itemsize, first, last):
    """Vectors, n_classes, and all rows; the result is without their axis."""
    return (axis == -1 or axis == ndim - 1) and size <= SMALL, last, 0, size // last


def matrix(axis, ndim, size, itemsize, first, last):
    """Matrices alone."""
    return ((axis == -1 or axis == 1) and size <= SMALL,)


def arrays_of(sig: Any) -> int:
    """How many of a kernel's arguments are arrays that it reads; one after them, if there is any, is for its result."""
    return next((k for k, kind in enumerate(sig.args) if kind.mutable), len(sig.args))


def arguments_of(sig: Any, plan: Callable[..., Any]) -> int:
    """How many a small call takes: arrays, axis, and `out` if that may be given."""
    n = arrays_of(sig)
    return n + 1 + (n < len(sig.args) and plan is not a_number_each_row)


def compiled_plan(plan: Callable[..., Any], sig: Any) -> Any:
    dispatcher = part(plan)
    dispatcher.compile(types.Tuple([types.boolean, *sig.args[arrays_of(sig) + 1 :]])(*[types.int64] * 6))
    (compiled,) = dispatcher.overloads.values()
    return compiled


# ---- the way in -------------------------------------------------------------------------------------------------------------
def _is_a(builder: Any, obj: Any, name: str) -> Any:
    """Whether an object's type is that one, not one derived from it."""
    return builder.icmp_unsigned("==", field(builder, obj, _TYPE, _object), _symbol(builder, name))


def _symbol(builder: Any, name: str) -> Any:
    return builder.module.globals.get(name) or ir.GlobalVariable(builder.module, ir.IntType(8), name)


def _new_of_lengths(builder: Any, ndim: Any, lengths: Any, kind: types.Array) -> Any:
    """A new array of these lengths and of a kernel's dtype; null and Python's exception without memory."""
    function = ir.FunctionType(_object, [_object, _int, lengths.type, _int, _object, _object, _int, _int, _object])
    null, zero, number = _object(None), _int(0), _int(as_dtype(kind.dtype).num)
    array_type = _symbol(builder, NDARRAY)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function, NEW),
        [array_type, builder.trunc(ndim, _int), lengths, number, null, null, zero, zero, null],
    )


def _new_like(builder: Any, obj: Any) -> Any:
    """A new array of an array's shape and dtype, in C order, likewise."""
    kind = ir.FunctionType(_object, [_object, _int, _object, _int])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, NEW_LIKE), [obj, _int(0), _object(None), _int(0)])


class SmallCall:
    """The code before and after a kernel, which takes `values`; `plan` gives those that follow the arrays.

    It goes on at `declined` instead, or with Python's exception set at `end`. `objects` are as many as `arguments_of` says.
    """

    def __init__(
        self, python: Any, sig: Any, plan: Callable[..., Any], objects: Sequence[Any], declined: ir.Block, end: ir.Block
    ) -> None:
        self._python, self._builder, self._declined, self._end = python, python.builder, declined, end
        n = arrays_of(sig)
        builder, kinds, (*arrays, axis), out = python.builder, sig.args[:n], objects[: n + 1], objects[n + 1 :]
        self._only_if(*(_is_a(builder, obj, NDARRAY) for obj in arrays), _is_a(builder, axis, INTEGER))
        self._only_if(*(builder.not_(unlike(builder, kind, obj)) for kind, obj in zip(kinds, arrays)))
        ndim, shape = dimensions(builder, arrays[0])
        size = product(builder, ndim, shape)
        self._only_if(builder.icmp_signed("!=", ndim, _size(0)), builder.icmp_signed("!=", size, _size(0)))
        for kind, obj in zip(kinds[1:], arrays[1:]):
            if kind.dtype == kinds[0].dtype:
                self._only_of_shape(obj, ndim, shape)
            else:
                self._only_if(builder.icmp_signed("==", dimensions(builder, obj)[0], _size(kind.ndim)))
        before = builder.sub(ndim, _size(1))
        facts = [
            self._integer(axis), ndim, size, _size(as_dtype(kinds[0].dtype).itemsize), builder.load(shape),
            builder.load(builder.gep(shape, [before])),
        ]  # fmt: skip
        compiled = compiled_plan(plan, sig)
        python.context.active_code_library.add_linking_library(compiled.library)
        _, planned = python.context.call_internal_no_propagate(builder, compiled.fndesc, compiled.signature, facts)
        taken, *rest = cgutils.unpack_tuple(builder, planned)
        self._only_if(taken)
        self._reduces, self._result, written = plan is a_number_each_row, None, []
        if n < len(sig.args):
            kind, result = sig.args[n], cgutils.alloca_once(builder, _object)
            if self._reduces:
                builder.store(_new_of_lengths(builder, before, shape, kind), result)
            else:
                in_place = sig.return_type == types.void
                self._new_or_given(kind, out[0], ndim, shape, list(zip(kinds, arrays)), in_place, result)
            self._result = builder.load(result)
            self._end_if(cgutils.is_null(builder, self._result))
            written = [array_value(python, kind, self._result)]
        self.values = [*(array_value(python, kind, obj) for kind, obj in zip(kinds, arrays)), *written, *rest]

    def _new_or_given(
        self, kind: types.Array, out: Any, ndim: Any, shape: Any, arrays: list[tuple[Any, Any]], in_place: bool, result: Any
    ) -> None:
        """Store where the result will be: a new array like the first one, or `out`, in one of the arrays or plainly not."""
        python, builder = self._python, self._builder
        with builder.if_else(builder.icmp_unsigned("==", out, python.borrow_none())) as (new, given):
            with new:
                builder.store(_new_like(builder, arrays[0][1]), result)
            with given:
                self._only_if(_is_a(builder, out, NDARRAY))
                self._only_if(builder.not_(unlike(builder, kind, out, owned=True)))
                self._only_of_shape(out, ndim, shape)
                for of_array, obj in arrays:
                    apart = builder.not_(unlike(builder, of_array, obj, owned=True))
                    same = builder.icmp_unsigned("==", obj, out)
                    self._only_if(builder.or_(apart, same) if in_place else builder.and_(apart, builder.not_(same)))
                python.incref(out)
                builder.store(out, result)

    def returned(self, failed: Any, value: Any) -> Any:
        """The result, or what the kernel returned, or that and the result; NaN declines."""
        python, builder, result = self._python, self._builder, self._result
        self._drop_if(failed)
        refuse_if(python, failed, "RuntimeError", FAILURE, self._end)
        if not isinstance(value.type, ir.DoubleType):
            return self._scalar(result) if self._reduces else result
        no_number = builder.fcmp_unordered("uno", value, value)
        self._drop_if(no_number)
        self._only_if(builder.not_(no_number))
        number = python.float_from_double(value)
        if result is None:
            return number
        self._drop_if(cgutils.is_null(builder, number))
        self._end_if(cgutils.is_null(builder, number))
        pair = python.tuple_pack([number, result])
        python.decref(number)
        python.decref(result)
        return pair

    def _drop_if(self, failed: Any) -> None:
        if self._result is not None:
            with self._builder.if_then(failed, likely=False):
                self._python.decref(self._result)

    def _scalar(self, result: Any) -> Any:
        """An array without dimensions becomes a scalar."""
        function = cgutils.get_or_insert_function(self._builder.module, ir.FunctionType(_object, [_object]), SCALAR)
        return self._builder.call(function, [result])

    def _end_if(self, failed: Any) -> None:
        passed = self._builder.append_basic_block("passed")
        self._builder.cbranch(failed, self._end, passed).set_weights([1, 100])
        self._builder.position_at_end(passed)

    def _only_if(self, *conditions: Any) -> None:
        passed = self._builder.append_basic_block("passed")
        condition = reduce(self._builder.and_, conditions)
        self._builder.cbranch(condition, passed, self._declined).set_weights([100, 1])
        self._builder.position_at_end(passed)

    def _only_of_shape(self, obj: Any, ndim: Any, shape: Any) -> None:
        builder = self._builder
        n, lengths = dimensions(builder, obj)
        self._only_if(builder.icmp_signed("==", n, ndim))
        with cgutils.for_range(builder, ndim) as loop:
            a, b = (builder.load(builder.gep(p, [loop.index])) for p in (lengths, shape))
            self._only_if(builder.icmp_signed("==", a, b))

    def _integer(self, obj: Any) -> Any:
        builder = self._builder
        beyond = cgutils.alloca_once_value(builder, _int(0))
        kind = ir.FunctionType(_size, [_object, beyond.type])
        function = cgutils.get_or_insert_function(builder.module, kind, "PyLong_AsLongLongAndOverflow")
        value = builder.call(function, [obj, beyond])
        self._only_if(builder.icmp_signed("==", builder.load(beyond), _int(0)))
        return value
