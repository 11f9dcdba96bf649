"""A small call's way in: what Python would look at, allocate and hand on is done in the compiled entry.

A small batch is all overhead: to look at its arrays, to make a new one and to hand on the kernel's arguments takes Python more
time than the kernel takes (Zen 3, float32, 1 x 10: softmax 1.24 -> 0.59 us, the loss with gradient 1.73 -> 1.00, ReLU 9.2 ->
0.34; of 8 x 16 x 16: an affine layer 3.1 -> 0.6, its gradients 5.3 -> 1.4). Instead of a kernel's arguments an entry then takes
those of a public function. It returns what that function returns, or None for what it is not made for, which goes the way
through Python: other dtypes and layouts, large arrays, shapes that do not fit, whatever is no array.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.numpy_support import as_dtype

from . import _plans
from ._arguments import FAILURE, apart, array_value, dimensions, extent, field, leave_if, product, refuse_if, unlike
from ._linker import INTEGER, NDARRAY, NEW, SCALAR, TUPLE
from ._part import part

_TYPE = object.__basicsize__ - 8  # where an object has the address of its type
_size, _int, _object = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()

Plan = Callable[..., Any]


def _asks_for(plan: Plan) -> list[str]:
    return [*inspect.signature(plan).parameters]


def _has_axis(plan: Plan) -> bool:
    return "axis" in _asks_for(plan)


def arrays_of(sig: Any) -> int:
    """How many of a kernel's arguments are arrays that it reads; those after them that may be written are its results."""
    return next((k for k, kind in enumerate(sig.args) if kind.mutable), len(sig.args))


def _results_of(sig: Any) -> Sequence[Any]:
    return [kind for kind in sig.args if kind.mutable]


def arguments_of(sig: Any, plan: Plan) -> int:
    """How many a small call takes: arrays; an axis, or whether grad_x is needed; and `out`. The last two not of all kernels."""
    has_out = bool(_results_of(sig)) and plan not in _plans.NUMBERS
    return arrays_of(sig) + _has_axis(plan) + (plan is _plans.layer_backward) + has_out


def small_call(python: Any, sig: Any, plan: Plan, objects: Sequence[Any], declined: ir.Block, end: ir.Block) -> SmallCall:
    """The code around a kernel, for as many objects as `arguments_of` says.

    It goes on at `declined` where that is not made for them, or with Python's exception set at `end`.
    """
    form = {_plans.layer: _Layer, _plans.layer_backward: _LayerBackward}.get(plan, _Alike)
    return form(python, sig, plan, objects, declined, end)


class SmallCall(ABC):
    """The code before and after a kernel, which takes `values`; `plan` gives those that follow the arrays."""

    def __init__(
        self, python: Any, sig: Any, plan: Plan, objects: Sequence[Any], declined: ir.Block, end: ir.Block
    ) -> None:  # fmt: skip
        self._python, self._builder, self._declined, self._end = python, python.builder, declined, end
        n, self._has_axis, self._reduces = arrays_of(sig), _has_axis(plan), plan in _plans.NUMBERS
        self._one_axis = plan in _plans.MATRICES
        self._kinds, self._kinds_of_results, self._returns = sig.args[:n], _results_of(sig), sig.return_type
        self._arrays, self._options = list(objects[:n]), list(objects[n:])
        facts = self._facts()
        rest = self._planned(plan, sig, [facts[name] for name in _asks_for(plan)])
        values = [array_value(python, kind, obj) for kind, obj in zip(self._kinds, self._arrays)]
        self._results = self._made()
        self.values = [*self._given(values), *self._places(), *rest]

    # ---- before ----
    @abstractmethod
    def _facts(self) -> dict[str, Any]:
        """What plans may ask for, of arguments that this is made for."""

    @abstractmethod
    def _made(self) -> list[Any]:
        """The objects of the results."""

    def _given(self, values: list[Any]) -> list[Any]:
        """What the kernel reads, of the values of the arrays."""
        return values

    def _places(self) -> list[Any]:
        """What it writes to."""
        return [array_value(self._python, kind, obj) for kind, obj in zip(self._kinds_of_results, self._results)]

    def _planned(self, plan: Plan, sig: Any, facts: Sequence[Any]) -> list[Any]:
        """What the plan gives, if it takes the call."""
        dispatcher, after = part(plan), len(self._kinds) + len(self._kinds_of_results)
        dispatcher.compile(types.Tuple([types.boolean, *sig.args[after:]])(*[types.int64] * len(facts)))
        (compiled,) = dispatcher.overloads.values()
        context = self._python.context
        context.active_code_library.add_linking_library(compiled.library)
        _, planned = context.call_internal_no_propagate(self._builder, compiled.fndesc, compiled.signature, facts)
        taken, *rest = cgutils.unpack_tuple(self._builder, planned)
        self._only_if(taken)
        return rest

    def _new_or_given(self, ndim: Any, shape: Any, in_place: bool) -> Any:
        """A new array, or `out`: apart from the arrays, or `in_place` of one."""
        python, builder, (out,), (kind,) = self._python, self._builder, self._options, self._kinds_of_results
        result = cgutils.alloca_once(builder, _object)
        with builder.if_else(builder.icmp_unsigned("==", out, python.borrow_none())) as (new, given):
            with new:
                builder.store(_new_array(builder, ndim, shape, kind), result)
            with given:
                self._only_if(_is_a(builder, out, NDARRAY))
                self._only_if(builder.not_(unlike(builder, kind, out)))
                self._only_of_shape(out, ndim, shape)
                taken = extent(builder, kind, out)
                for of_array, obj in zip(self._kinds, self._arrays):
                    read = extent(builder, of_array, obj)
                    fine = apart(builder, read, taken)
                    if in_place:  # all are of one dtype and shape then
                        fine = builder.or_(fine, builder.icmp_unsigned("==", read[0], taken[0]))
                    self._only_if(fine)
                python.incref(out)
                builder.store(out, result)
        return self._or_end(builder.load(result))

    # ---- after ----
    def returned(self, failed: Any, value: Any) -> Any:
        """The results, or what the kernel returned, or that and its result; NaN declines."""
        python, builder = self._python, self._builder
        self._drop_if(failed)
        refuse_if(python, failed, "RuntimeError", FAILURE, self._end)
        if not isinstance(value.type, ir.DoubleType):
            return self._together(self._results)
        no_number = builder.fcmp_unordered("uno", value, value)
        self._drop_if(no_number)
        self._only_if(builder.not_(no_number))
        number = python.float_from_double(value)
        self._drop_if(cgutils.is_null(builder, number))
        return self._together([self._or_end(number), *self._results])

    def _together(self, objects: list[Any]) -> Any:
        python, builder = self._python, self._builder
        if len(objects) > 1:
            several = python.tuple_pack(objects)
            for obj in objects:
                python.decref(obj)
            return several
        if not self._reduces:
            return objects[0]
        kind = ir.FunctionType(_object, [_object])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, SCALAR), objects)  # if it has no dimensions

    def _drop_if(self, failed: Any) -> None:
        with self._builder.if_then(failed, likely=False):
            for obj in self._results:
                self._python.decref(obj)

    # ---- looks ----
    def _or_end(self, obj: Any) -> Any:
        leave_if(self._builder, cgutils.is_null(self._builder, obj), self._end)
        return obj

    def _only_if(self, *conditions: Any) -> None:
        leave_if(self._builder, self._builder.not_(reduce(self._builder.and_, conditions)), self._declined)

    def _only_arrays(self) -> None:
        builder = self._builder
        self._only_if(*(_is_a(builder, obj, NDARRAY) for obj in self._arrays))
        self._only_if(*(builder.not_(unlike(builder, kind, obj)) for kind, obj in zip(self._kinds, self._arrays)))

    def _only_of_shape(self, obj: Any, ndim: Any, shape: Any) -> None:
        builder = self._builder
        n, lengths = dimensions(builder, obj)
        self._only_if(builder.icmp_signed("==", n, ndim))
        with cgutils.for_range(builder, ndim) as loop:
            self._only_if(builder.icmp_signed("==", _at(builder, lengths, loop.index), _at(builder, shape, loop.index)))

    def _integer(self, obj: Any) -> Any:
        builder = self._builder
        beyond = cgutils.alloca_once_value(builder, _int(0))
        kind = ir.FunctionType(_size, [_object, beyond.type])
        function = cgutils.get_or_insert_function(builder.module, kind, "PyLong_AsLongLongAndOverflow")
        value = builder.call(function, [obj, beyond])
        self._only_if(builder.icmp_signed("==", builder.load(beyond), _int(0)))
        return value


class _Alike(SmallCall):
    """Of arrays of one shape, or with a number for each row; an axis, if the plan asks for it; and `out`."""

    def _facts(self) -> dict[str, Any]:
        builder, axis = self._builder, None
        if self._has_axis:
            axis = self._axis(self._options.pop(0))
        self._only_arrays()
        (kind, *kinds), (obj, *others) = self._kinds, self._arrays
        self._ndim, self._shape = dimensions(builder, obj)
        size = product(builder, self._ndim, self._shape)
        self._only_if(builder.icmp_signed("!=", self._ndim, _size(0)), builder.icmp_signed("!=", size, _size(0)))
        for another, other in zip(kinds, others):
            if another.dtype == kind.dtype:
                self._only_of_shape(other, self._ndim, self._shape)
            else:
                self._only_if(builder.icmp_signed("==", dimensions(builder, other)[0], _size(another.ndim)))
        ndim, first, last = self._ndim, builder.load(self._shape), _at(builder, self._shape, self._ndim, -1)
        if self._has_axis:  # along all axes an array is a vector
            ndim, first, last = (builder.select(self._all, a, b) for a, b in ((_size(1), ndim), (size, first), (size, last)))
        itemsize = _size(as_dtype(kind.dtype).itemsize)
        return {"axis": axis, "ndim": ndim, "size": size, "itemsize": itemsize, "first": first, "last": last}

    def _axis(self, obj: Any) -> Any:
        """Its number; for None, which is all axes, the last one's, if there may be several."""
        builder = self._builder
        self._all = builder.icmp_unsigned("==", obj, self._python.borrow_none())
        axis = cgutils.alloca_once_value(builder, _size(-1))
        if self._one_axis:
            self._only_if(builder.not_(self._all))
        with builder.if_then(builder.not_(self._all)):
            self._only_if(_is_a(builder, obj, INTEGER))
            builder.store(self._integer(obj), axis)
        return builder.load(axis)

    def _made(self) -> list[Any]:
        if not self._kinds_of_results:
            return []
        if self._reduces:
            (kind,), ndim = self._kinds_of_results, self._builder.sub(self._ndim, _size(1))
            ndim = self._builder.select(self._all, _size(0), ndim)
            return [self._or_end(_new_array(self._builder, ndim, self._shape, kind))]
        return [self._new_or_given(self._ndim, self._shape, in_place=self._returns == types.void)]


class _Layer(SmallCall):
    """Of x, weight, a bias or None, and `out`."""

    def _facts(self) -> dict[str, Any]:
        builder, (x, weight, bias) = self._builder, self._arrays
        self._no_bias = builder.icmp_unsigned("==", bias, self._python.borrow_none())
        self._arrays[2] = bias = builder.select(self._no_bias, x, bias)  # some array, taken for an empty one
        self._only_arrays()
        (n_rows, n_in), (as_many, n_out) = _lengths(builder, x), _lengths(builder, weight)
        ndim, lengths = dimensions(builder, bias)
        self._only_if(builder.or_(self._no_bias, builder.icmp_signed("==", ndim, _size(1))))
        fits = builder.icmp_signed("==", builder.load(lengths), n_out)  # without a dimension there is nothing to load
        self._only_if(builder.icmp_signed("==", n_in, as_many), builder.or_(self._no_bias, fits))
        self._only_if(*(builder.icmp_signed("!=", n, _size(0)) for n in (n_rows, n_in, n_out)))
        self._shape = cgutils.alloca_once(builder, _size, size=2)
        for k, n in enumerate((n_rows, n_out)):
            builder.store(n, builder.gep(self._shape, [_size(k)]))
        return {"n_rows": n_rows, "n_in": n_in, "n_out": n_out}

    def _given(self, values: list[Any]) -> list[Any]:
        return [*values[:2], _or_nothing(self._builder, self._no_bias, values[2])]

    def _made(self) -> list[Any]:
        return [self._new_or_given(_size(2), self._shape, in_place=False)]


class _LayerBackward(SmallCall):
    """Of grad_out, x, weight, whether grad_x is needed, and `out`."""

    def _facts(self) -> dict[str, Any]:
        builder, python, (needed, out) = self._builder, self._python, self._options
        is_needed = python.object_istrue(needed)  # first: what this runs may do anything to the arrays
        leave_if(builder, builder.icmp_signed("==", is_needed, is_needed.type(-1)), self._end)
        self._no_grad_x = builder.icmp_signed("==", is_needed, is_needed.type(0))
        self._only_arrays()
        (n_rows, n_out), (as_many, n_in), (inputs, outputs) = (_lengths(builder, obj) for obj in self._arrays)
        self._only_if(*(builder.icmp_signed("==", a, b) for a, b in ((n_rows, as_many), (n_in, inputs), (n_out, outputs))))
        self._only_if(*(builder.icmp_signed("!=", n, _size(0)) for n in (n_rows, n_in, n_out)))
        (_, of_x), (_, of_weight) = (dimensions(builder, obj) for obj in self._arrays[1:])
        self._shapes = [(_size(2), of_x), (_size(2), of_weight), (_size(1), builder.gep(of_weight, [_size(1)]))]
        self._places_given = self._looked_at(out)
        return {"n_rows": n_rows, "n_in": n_in, "n_out": n_out}

    def _looked_at(self, out: Any) -> list[Any]:
        """The arrays of the tuple `out`, null for each that is to be new."""
        builder, python = self._builder, self._python
        places, none = [cgutils.alloca_once_value(builder, _object(None)) for _ in self._shapes], python.borrow_none()
        with builder.if_then(builder.icmp_unsigned("!=", out, none)):
            self._only_if(_is_a(builder, out, TUPLE))
            self._only_if(builder.icmp_signed("==", python.tuple_size(out), _size(len(places))))
            extents = [extent(builder, *array) for array in zip(self._kinds, self._arrays)]
            for k, (kind, place) in enumerate(zip(self._kinds_of_results, places)):
                obj, nowhere = python.tuple_getitem(out, k), (_size(0), _size(0))
                slots = [cgutils.alloca_once_value(builder, end) for end in nowhere]
                with builder.if_then(builder.icmp_unsigned("!=", obj, none)):
                    self._only_if(_is_a(builder, obj, NDARRAY))
                    self._only_if(builder.not_(unlike(builder, kind, obj)))
                    self._only_of_shape(obj, *self._shapes[k])
                    taken = extent(builder, kind, obj)
                    self._only_if(*(apart(builder, taken, other) for other in extents))
                    if k == 0:
                        self._only_if(builder.not_(self._no_grad_x))
                    for value, slot in zip((*taken, obj), (*slots, place)):
                        builder.store(value, slot)
                extents.append(tuple(builder.load(slot) for slot in slots))
        return [builder.load(place) for place in places]

    def _made(self) -> list[Any]:
        python, builder, results, (of_x, *others) = self._python, self._builder, [], self._places_given
        places = builder.select(self._no_grad_x, python.borrow_none(), of_x), *others
        for given, shape, kind in zip(places, self._shapes, self._kinds_of_results):
            result = cgutils.alloca_once_value(builder, given)
            with builder.if_else(cgutils.is_null(builder, given)) as (new, old):
                with new:
                    builder.store(_new_array(builder, *shape, kind), result)
                with old:
                    python.incref(given)
            results.append(builder.load(result))
        no_room = reduce(builder.or_, [cgutils.is_null(builder, obj) for obj in results])
        with builder.if_then(no_room, likely=False):
            for obj in results:
                python.decref(obj)  # of null: nothing
        leave_if(builder, no_room, self._end)
        return results

    def _places(self) -> list[Any]:
        grad_x, *others = self._results
        builder, kinds = self._builder, self._kinds_of_results
        some = builder.select(self._no_grad_x, self._arrays[1], grad_x)
        places = [array_value(self._python, kind, obj) for kind, obj in zip(kinds, (some, *others))]
        return [_or_nothing(builder, self._no_grad_x, places[0]), *places[1:]]


# ---- objects ----------------------------------------------------------------------------------------------------------------
def _is_a(builder: Any, obj: Any, name: str) -> Any:
    """Whether an object's type is that one, not one derived from it."""
    return builder.icmp_unsigned("==", field(builder, obj, _TYPE, _object), _symbol(builder, name))


def _symbol(builder: Any, name: str) -> Any:
    return builder.module.globals.get(name) or ir.GlobalVariable(builder.module, ir.IntType(8), name)


def _new_array(builder: Any, ndim: Any, lengths: Any, kind: types.Array) -> Any:
    """A new array of these lengths and of a kernel's dtype; null and Python's exception without memory."""
    function = ir.FunctionType(_object, [_object, _int, lengths.type, _int, _object, _object, _int, _int, _object])
    null, zero, number = _object(None), _int(0), _int(as_dtype(kind.dtype).num)
    array_type = _symbol(builder, NDARRAY)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function, NEW),
        [array_type, builder.trunc(ndim, _int), lengths, number, null, null, zero, zero, null],
    )


def _at(builder: Any, lengths: Any, k: Any, more: int = 0) -> Any:
    return builder.load(builder.gep(lengths, [builder.add(k, _size(more))]))


def _lengths(builder: Any, obj: Any) -> list[Any]:
    """A matrix's two."""
    return [_at(builder, dimensions(builder, obj)[1], _size(k)) for k in range(2)]


def _or_nothing(builder: Any, nothing: Any, value: Any) -> Any:
    """An array's value, or an empty one's."""
    return builder.select(nothing, ir.Constant(value.type, None), value)
