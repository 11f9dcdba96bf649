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
from ._linker import INTEGER, NDARRAY, NEW_LIKE
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


def matrix(axis, ndim, size, itemsize, first, last):
    """Matrices alone."""
    return ((axis == -1 or axis == 1) and size <= SMALL,)


def arrays_of(sig: Any) -> int:
    """How many of a kernel's arguments are arrays that it reads; the one after them is for its result."""
    return next(k for k, kind in enumerate(sig.args) if kind.mutable)


def compiled_plan(plan: Callable[..., Any], sig: Any) -> Any:
    dispatcher = part(plan)
    dispatcher.compile(types.Tuple([types.boolean, *sig.args[arrays_of(sig) + 1 :]])(*[types.int64] * 6))
    (compiled,) = dispatcher.overloads.values()
    return compiled


# ---- the way in -------------------------------------------------------------------------------------------------------------
def _is_a(builder: Any, obj: Any, name: str) -> Any:
    """Whether an object's type is that one, not one derived from it."""
    symbol = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, ir.IntType(8), name)
    return builder.icmp_unsigned("==", field(builder, obj, _TYPE, _object), symbol)


def _new_like(builder: Any, obj: Any) -> Any:
    """A new array of an array's shape and dtype, in C order; null and Python's exception without memory."""
    kind = ir.FunctionType(_object, [_object, _int, _object, _int])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, NEW_LIKE), [obj, _int(0), _object(None), _int(0)])


class SmallCall:
    """The code before and after a kernel, which takes `values`; `plan` gives those that follow the arrays.

    It goes on at `declined` instead, or with Python's exception set at `end`. `objects` are the arrays, axis and out.
    """

    def __init__(
        self, python: Any, sig: Any, plan: Any, objects: Sequence[Any], declined: ir.Block, end: ir.Block
    ) -> None:
        self._python, self._builder, self._declined, self._end = python, python.builder, declined, end
        builder, (*arrays, axis, out) = python.builder, objects
        kinds, out_kind = sig.args[: len(arrays)], sig.args[len(arrays)]
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
        facts = [
            self._integer(axis), ndim, size, _size(as_dtype(kinds[0].dtype).itemsize), builder.load(shape),
            builder.load(builder.gep(shape, [builder.sub(ndim, _size(1))])),
        ]  # fmt: skip
        python.context.active_code_library.add_linking_library(plan.library)
        _, planned = python.context.call_internal_no_propagate(builder, plan.fndesc, plan.signature, facts)
        taken, *rest = cgutils.unpack_tuple(builder, planned)
        self._only_if(taken)
        result = cgutils.alloca_once(builder, _object)
        with builder.if_else(builder.icmp_unsigned("==", out, python.borrow_none())) as (new, given):
            with new:
                builder.store(_new_like(builder, arrays[0]), result)
            with given:
                self._only_if(_is_a(builder, out, NDARRAY))
                self._only_if(builder.not_(unlike(builder, out_kind, out, owned=True)))
                self._only_of_shape(out, ndim, shape)
                for kind, obj in zip(kinds, arrays):  # in place, or in memory that is plainly not the input's
                    apart = builder.not_(unlike(builder, kind, obj, owned=True))
                    same = builder.icmp_unsigned("==", obj, out)
                    in_place = sig.return_type == types.void
                    self._only_if(builder.or_(apart, same) if in_place else builder.and_(apart, builder.not_(same)))
                python.incref(out)
                builder.store(out, result)
        self._result = builder.load(result)
        self._end_if(cgutils.is_null(builder, self._result))
        self.values = [array_value(python, kind, obj) for kind, obj in zip(kinds, arrays)]
        self.values += [array_value(python, out_kind, self._result), *rest]

    def returned(self, failed: Any, value: Any) -> Any:
        """The result, or what the kernel returned and the result; NaN declines."""
        python, builder = self._python, self._builder
        with builder.if_then(failed, likely=False):
            python.decref(self._result)
        refuse_if(python, failed, "RuntimeError", FAILURE, self._end)
        if not isinstance(value.type, ir.DoubleType):
            return self._result
        with builder.if_then(builder.fcmp_unordered("uno", value, value), likely=False):
            python.decref(self._result)
            builder.branch(self._declined)
        number = python.float_from_double(value)
        with builder.if_then(cgutils.is_null(builder, number), likely=False):
            python.decref(self._result)
        self._end_if(cgutils.is_null(builder, number))
        pair = python.tuple_pack([number, self._result])
        python.decref(number)
        python.decref(self._result)
        return pair

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
