"""Calls drawn at random: valid ones, which must give the right answer, and ones with a single fault and its exception.

`draw` makes a call from a `random.Random` (hypothesis hands out one that shrinks), `check` makes it and judges: the
result against reference.py, or the class of the exception; and in every case that no byte has changed but those of
`out=`, neither of the inputs, nor between their rows, nor around and between the rows of the output.
"""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass, field
from fractions import Fraction
from unittest import mock

import numpy as np
import reference
from long_way import no_small_calls
from tolerance import EXACT, WEIGHTED, assert_products, assert_ulps

import fastsoftmax
from fastsoftmax import _affine, _columns, _rows, functional

ROWS = [0, 1, 2, 3, 7, 8, 9, 16, 17, 33]
COLUMNS = [1, 1, 2, 3, 4, 7, 8, 9, 10, 11, 15, 16, 17, 33, 63, 64, 65, 100, 103, 104]
FLOATS = ["f2", "f4", "f4", "f8", "f8"]
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
SPECIAL = [np.nan, np.inf, -np.inf, -np.inf, 0.0, -0.0, "max", "-max", "tiny", "-tiny"]


class Subclass(np.ndarray):
    """An array class of somebody's own."""


class Convertible:
    """Not an array, but becomes one."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


@dataclass
class Call:
    """A function, its arguments as they are handed over and as they are meant, and what must come of it."""

    function: str
    arguments: list = field(default_factory=list)
    options: dict = field(default_factory=dict)
    plain: list = field(default_factory=list)  # the same as the reference takes them: native, and floats where computed on
    plain_options: dict = field(default_factory=dict)
    roots: list = field(default_factory=list)  # the memory behind the arguments
    lists: list = field(default_factory=list)
    extreme: bool = False  # there are values that overflow or are no numbers
    expects: tuple = ()  # exception classes
    words: list = field(default_factory=list)  # what the message must hold
    settings: dict = field(default_factory=dict)
    alike: np.dtype | None = None  # all arrays are of this dtype, and as kernels take them

    def __str__(self):
        def show(x):
            if isinstance(x, np.ndarray):
                return f"{type(x).__name__}{x.shape} {x.dtype} strides {x.strides}"
            return f"{type(x).__name__} {x!r:.80}"

        parts = [show(a) for a in self.arguments] + [f"{name}={show(value)}" for name, value in self.options.items()]
        wanted = f" expecting {[e.__name__ for e in self.expects]} {self.words}" if self.expects else ""
        return f"{self.function}({', '.join(parts)}) {self.settings}{wanted}"


def _new_call(r, function):
    """Every third is one of those that go the shortest ways, which arrays drawn one by one seldom do together."""
    return Call(function, alike=np.dtype(r.choice(["f4", "f8"])) if r.random() < 0.35 else None)


# ---- values --------------------------------------------------------------------------------------------------------
def _generator(r):
    return np.random.default_rng(r.randrange(2**32))


def numbers(r, call, shape, *, tame=False):
    """An array of random numbers of a random dtype."""
    dtype = call.alike or np.dtype(r.choice(FLOATS) if tame or r.random() < 0.85 else r.choice(INTEGERS))
    rng = _generator(r)
    if dtype.kind != "f":
        info = np.iinfo(dtype)
        wide = not tame and r.random() < 0.2
        low, high = (info.min, info.max) if wide else (max(info.min, -20), 20)
        return rng.integers(low, high, shape, dtype=dtype, endpoint=True)
    a = np.asarray(rng.standard_normal(shape) * r.choice([0.0, 1e-3, 1.0, 1.0, 1.0 if tame else 30.0])).astype(dtype)
    if not tame and r.random() < 0.3 and a.size:
        info = np.finfo(dtype)
        values = {"max": info.max, "-max": -info.max, "tiny": info.smallest_subnormal, "-tiny": -info.smallest_subnormal}
        for _ in range(r.randrange(1, 6)):
            value = r.choice(SPECIAL)
            a.flat[r.randrange(a.size)] = values.get(value, value) if isinstance(value, str) else value
        call.extreme = True
    return a


# ---- what an argument may look like ----------------------------------------------------------------------------------
LAYOUTS = ["plain"] * 4 + [
    "fortran", "strided", "reversed", "swapped", "unaligned", "read-only", "broadcast", "list", "tuple of arrays",
    "matrix", "memmap", "subclass", "convertible", "memoryview",
]  # fmt: skip


def dress(r, call, a, *, numeric=True):
    """(as it is handed over, as it is meant); the memory behind it is noted in the call."""
    layout = "plain" if call.alike else r.choice(LAYOUTS)
    given = root = a
    if layout == "fortran":
        given = root = np.array(a, order="F")
    elif layout == "strided" and a.ndim:
        root = np.full([2 * n + 1 for n in a.shape], 77).astype(a.dtype)
        given = root[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
        given[...] = a
    elif layout == "reversed" and a.ndim:
        backwards = (slice(None, None, -1),) * a.ndim
        root = a[backwards].copy()
        given = root[backwards]
    elif layout == "swapped":
        given = root = a.astype(a.dtype.newbyteorder())
    elif layout == "unaligned":
        root = np.zeros(a.nbytes + 1, np.uint8)
        given = root[1:].view(a.dtype).reshape(a.shape)
        given[...] = a
    elif layout == "read-only":
        given = root = a.copy()
        given.flags.writeable = False
    elif layout == "broadcast" and a.ndim and a.shape[0]:
        root = a[:1].copy()
        given = np.broadcast_to(root, a.shape)
    elif layout == "list" and 0 < a.size < 200 and np.asarray(a.tolist()).dtype.kind in (a.dtype.kind, "i"):
        given = a.tolist()  # unless they become floats, as large unsigned integers among small ones do
        call.lists.append((given, repr(given)))
    elif layout == "tuple of arrays" and a.ndim and a.size:
        given = tuple(a)
    elif layout == "matrix" and a.ndim == 2:
        given = a.view(np.matrix)
    elif layout == "memmap":
        given = a.view(np.memmap)
    elif layout == "subclass":
        given = a.view(Subclass)
    elif layout == "convertible":
        given = Convertible(a)
    elif layout == "memoryview" and a.ndim:
        given = memoryview(a)
    call.roots.append(root)
    plain = np.asarray(given)
    plain = plain.astype(plain.dtype.newbyteorder("="))
    if numeric and plain.dtype.kind in "iu":
        plain = plain.astype(np.float64)
    return given, plain


def add(r, call, a, name=None, *, numeric=True):
    """One more argument, by position or name."""
    given, plain = dress(r, call, a, numeric=numeric)
    if name is None:
        call.arguments.append(given)
        call.plain.append(plain)
    else:
        call.options[name] = given
        call.plain_options[name] = plain
    return plain


def add_out(r, call, dtype, shape, in_place):
    """No out=, or one with poison around and between its rows, or one that overlaps an argument."""
    kind = r.choice(["none", "none", "none", "apart", "apart", "apart", "in place", "overlap"])
    source = call.arguments[in_place] if in_place is not None else None
    if kind == "none":
        return
    fits = isinstance(source, np.ndarray) and not isinstance(source, np.matrix)
    fits = fits and source.dtype == dtype and source.shape == shape
    if kind == "in place" and fits and source.flags.writeable:
        call.options["out"] = source
        return
    if call.alike and kind == "apart":
        call.options["out"] = out = np.full(shape, 77, dtype)
        call.roots.append(out)
        return
    size, item = math.prod(shape), dtype.itemsize
    if kind == "overlap" and fits and source.flags.c_contiguous and size:
        by = r.choice([1, -1, 3, -5, shape[-1] if shape else 1])
        root = np.frombuffer(_generator(r).bytes((size + 2 * abs(by)) * item), np.uint8).copy()
        both = root.view(dtype)
        moved = both[abs(by) :][:size].reshape(shape)
        moved[...] = source
        call.arguments[in_place] = moved
        call.options["out"] = both[abs(by) + by :][:size].reshape(shape)
        call.roots.append(root)
        return
    call.options["out"] = place_apart(r, call, dtype, shape)


def place_apart(r, call, dtype, shape):
    """An array of any layout, with poison around and between its rows."""
    item = dtype.itemsize
    steps = [r.choice([1, 1, 1, 2, -1]) for _ in shape]
    order = sorted(range(len(shape)), key=lambda k: r.random()) if r.random() < 0.3 else list(range(len(shape)))
    strides, stride = [0] * len(shape), item
    first = 0
    for k in reversed(order):
        strides[k] = stride * steps[k]
        first += -strides[k] * max(0, shape[k] - 1) if strides[k] < 0 else 0
        stride *= abs(steps[k]) * max(1, shape[k]) + r.choice([0, 0, 0, 1])
    before = 64 + r.choice([0, 0, item, 1, 3])
    root = np.frombuffer(_generator(r).bytes(before + stride + 64), np.uint8).copy()
    out = np.ndarray(shape, dtype, root, before + first, strides)
    if r.random() < 0.1:
        out = out.view(r.choice([np.memmap, Subclass]))
    call.roots.append(root)
    return out


# ---- functions ---------------------------------------------------------------------------------------------------------
def _shape(r, least=0):
    ndim = r.choice([least, 1, 2, 2, 2, 2, 3, 4])
    shape = [r.choice(ROWS) for _ in range(ndim - 1)] + [r.choice(COLUMNS)] * (ndim > 0)
    if ndim > 2:
        shape = [min(n, 5) for n in shape[:-2]] + shape[-2:]
    if r.random() < 0.3:
        r.shuffle(shape)
    return tuple(shape)


def _axis(r, shape, *, several):
    """An axis as it may be given, and as a tuple; None for both if the classes along those tried are none."""
    ndim = len(shape)
    for _ in range(8):
        if several and (ndim == 0 or r.random() < 0.1):
            given, axes = None, list(range(ndim))
        else:
            axes = [ndim - 1] if r.random() < 0.5 else r.sample(range(ndim), r.randrange(1, ndim + 1) if several else 1)
            signed = [k - ndim if r.random() < 0.5 else k for k in axes]
            given = tuple(signed) if len(axes) > 1 else r.choice([signed[0], np.int64(signed[0])])
        rest = [n for k, n in enumerate(shape) if k not in axes]
        if math.prod(shape[k] for k in axes) or 0 in rest:
            return given, tuple(axes)
    return None, None


def draw_rows(r, function):
    call = _new_call(r, function)
    shape = _shape(r)
    axis, axes = _axis(r, shape, several=True)
    if axes is None:
        shape, axis, axes = (3, 4), 1, (1,)
    z = add(r, call, numbers(r, call, shape))
    if axis != -1 or r.random() < 0.5:
        call.options["axis"] = call.plain_options["axis"] = axis
    if function == "logsumexp":
        call.options["keepdims"] = call.plain_options["keepdims"] = r.random() < 0.5
    else:
        add_out(r, call, z.dtype, shape, 0)
    return call


def draw_backward(r, function):
    call = _new_call(r, function)
    shape = _shape(r)
    axis, axes = _axis(r, shape, several=True)
    if axes is None:
        shape, axis, axes = (3, 4), 1, (1,)
    g = add(r, call, numbers(r, call, shape))
    y = numbers(r, call, shape, tame=True)
    with np.errstate(all="ignore"):
        name = function.removesuffix("_backward")
        y = add(r, call, getattr(reference, name)(y, axis).astype(y.dtype) if y.size else y)
    call.options["axis"] = call.plain_options["axis"] = axis
    add_out(r, call, np.result_type(g, y), shape, r.choice([0, 1]))
    return call


def draw_relu(r, function):
    call = _new_call(r, function)
    shape = _shape(r)
    plain = [add(r, call, numbers(r, call, shape)) for _ in range(2 if function == "relu_backward" else 1)]
    add_out(r, call, np.result_type(*plain), shape, r.randrange(len(plain)))
    return call


def _labels(r, call, lead, n_classes, *, may_ignore):
    """Labels of any integer type that holds them, with some to be ignored."""
    rng = _generator(r)
    kinds = [np.int64] if call.alike and r.random() < 0.7 else [d for d in INTEGERS if np.iinfo(d).max >= n_classes - 1]
    dtype = np.dtype(r.choice(kinds))
    labels = rng.integers(0, max(1, n_classes), lead).astype(dtype)
    ignore = -100
    if may_ignore and r.random() < 0.4:
        ignore = r.choice([-1, 0, 3, 255, -(2**63), 2**63 - 1, 2**64 - 1, 2**70, -(2**70), np.int8(-7)])
        call.options["ignore_index"] = ignore
    ignore = int(ignore)
    if np.iinfo(dtype).min <= ignore <= np.iinfo(dtype).max:
        labels[rng.random(lead) < 0.3] = ignore
    return labels, ignore


def _loss_options(r, call, shape, axis, *, only=None):
    """Targets, weights and options of a loss over classes along `axis`."""
    lead, n_classes = shape[:axis] + shape[axis + 1 :], shape[axis]
    if r.random() < 0.7 or math.prod(shape) == 0:
        labels, ignore = _labels(r, call, lead, n_classes, may_ignore=not only)
        plain = add(r, call, labels, numeric=False)
        as_integers = [-100 if int(t) == ignore else int(t) for t in plain.reshape(-1)]
        call.plain[-1] = np.array(as_integers, np.int64).reshape(lead)
        call.labels = ignore
    else:
        t = np.moveaxis(_generator(r).dirichlet(np.full(n_classes, 0.3), lead), -1, axis)
        if r.random() < 0.3:
            t = np.moveaxis(np.eye(n_classes, dtype=r.choice(INTEGERS))[t.argmax(axis)], -1, axis)
        else:
            t = t.astype(call.alike or r.choice(FLOATS))
        add(r, call, t)
        call.labels = None
    if (only is None and r.random() < 0.3) or (only and r.random() < 0.5):
        add(r, call, _weights(r, call, lead), "sample_weight")
    if only:
        return
    if r.random() < 0.3:
        add(r, call, _weights(r, call, (n_classes,)), "class_weight")
    if r.random() < 0.3:
        given = r.choice([0.0, 0.1, 1, 0.5, np.float32(0.25), Fraction(1, 8), np.array(0.5)])
        call.options["label_smoothing"], call.plain_options["label_smoothing"] = given, float(given)
    if r.random() < 0.6:
        call.options["reduction"] = call.plain_options["reduction"] = r.choice(["mean", "sum", "none"])


def _weights(r, call, shape):
    w = _generator(r).uniform(0.1, 3, shape).astype(np.float64 if call.alike else r.choice(FLOATS))
    if r.random() < 0.2 and w.size:
        w.flat[r.randrange(w.size)] = r.choice([0.0, -1.0, np.nan, np.inf])
        call.extreme = True
    return w


def draw_loss(r, function):
    call = _new_call(r, function)
    shape = _shape(r, least=1)
    axis, axes = _axis(r, shape, several=False)
    if axes is None:
        shape, axis, axes = (3, 4), 1, (1,)
    z = add(r, call, numbers(r, call, shape))
    _loss_options(r, call, shape, axes[0])
    if axis != -1 or r.random() < 0.5:
        call.options["axis"] = call.plain_options["axis"] = axis
    if function == "cross_entropy_with_grad":
        if r.random() < 0.3:
            if call.options.get("reduction") == "none" and r.random() < 0.5:
                rows = shape[: axes[0]] + shape[axes[0] + 1 :]
                add(r, call, _generator(r).standard_normal(rows).astype(r.choice(FLOATS)), "grad_loss")
            else:
                call.options["grad_loss"] = call.plain_options["grad_loss"] = r.choice([0.5, -3, np.float32(2)])
        add_out(r, call, z.dtype, shape, 0)
    return call


def draw_grad_hess(r, function):
    call = _new_call(r, function)
    shape = _shape(r, least=1)
    if shape[-1] == 0:
        shape = (*shape[:-1], 5)
    add(r, call, numbers(r, call, shape))
    _loss_options(r, call, shape, len(shape) - 1, only="sample_weight")
    if r.random() < 0.5:
        call.options["hessian_scale"] = call.plain_options["hessian_scale"] = r.choice([1.0, 2, 0.0, np.float32(1.5)])
    return call


def _product_shapes(r):
    lead = tuple(min(r.choice(ROWS), 5) for _ in range(r.choice([0, 0, 0, 0, 1]))) + (r.choice(ROWS),) * (r.random() < 0.95)
    return lead, r.choice([0, *COLUMNS]), r.choice(COLUMNS)


def draw_product(r, function):
    call = _new_call(r, function)
    lead, n_in, n_out = _product_shapes(r)
    if function == "affine_backward":
        add(r, call, numbers(r, call, (*lead, n_out)))
    x = add(r, call, numbers(r, call, (*lead, n_in)))
    weight = add(r, call, numbers(r, call, (n_in, n_out), tame=True))
    if function == "affine_backward":
        if r.random() < 0.3:
            call.options["need_grad_x"] = call.plain_options["need_grad_x"] = False
        if r.random() < 0.5:
            shapes = [None if "need_grad_x" in call.options else x.shape, weight.shape, (n_out,)]
            shapes = [None if r.random() < 0.2 else shape for shape in shapes]
            dtype = np.result_type(*call.plain)
            call.options["out"] = tuple(None if shape is None else place_apart(r, call, dtype, shape) for shape in shapes)
        return call
    if r.random() < 0.6:
        add(r, call, numbers(r, call, (n_out,), tame=True))
    add_out(r, call, np.result_type(x, weight), (*lead, n_out), 0 if n_in == n_out else None)
    return call


def draw_head(r, function):
    call = _new_call(r, function)
    lead, n_in, n_out = _product_shapes(r)
    add(r, call, numbers(r, call, (*lead, n_in)))
    add(r, call, numbers(r, call, (n_in, n_out), tame=True))
    _loss_options(r, call, (*lead, n_out), len(lead))
    if r.random() < 0.6:
        add(r, call, numbers(r, call, (n_out,), tame=True))
    if function.endswith("grad") and r.random() < 0.3:
        call.options["need_grad_x"] = call.plain_options["need_grad_x"] = False
    return call


FUNCTIONS = {
    "softmax": draw_rows,
    "log_softmax": draw_rows,
    "logsumexp": draw_rows,
    "softmax_backward": draw_backward,
    "log_softmax_backward": draw_backward,
    "cross_entropy": draw_loss,
    "cross_entropy_with_grad": draw_loss,
    "cross_entropy_grad_hess": draw_grad_hess,
    "affine": draw_product,
    "affine_backward": draw_product,
    "relu": draw_relu,
    "relu_backward": draw_relu,
    "linear_cross_entropy": draw_head,
    "linear_cross_entropy_with_grad": draw_head,
}


# ---- faults ------------------------------------------------------------------------------------------------------------
def _dtype_fault(r, call, a):
    other = r.choice(["c8", "c16", "O", "?", "g", "M8[s]", "m8[s]", "U", "S", "V8"])
    if other == "g" and np.dtype("g").itemsize == 8:
        other = "G"
    call.expects = (TypeError,)
    return np.zeros(a.shape, "U3" if other == "U" else "S3" if other == "S" else other)


def _mask_fault(r, call, a):
    call.expects = (TypeError,)
    masked = np.ma.array(a, mask=np.ones(a.shape, bool) if r.random() < 0.5 else False)
    if a.ndim and a.size and r.random() < 0.5:
        return list(masked) if a.ndim > 1 else [np.ma.masked] * len(a)
    return masked


def _kind_fault(r, call, a):
    call.expects = (TypeError,)
    return r.choice([object(), "words", b"bytes", {1.0: 2.0}, {1.0, 2.0}, [None, 1.0], ["a", 1.0], [1j], 10**400])


def _ragged_fault(r, call, a):
    call.expects = (ValueError,)
    return r.choice([[[1.0], [1.0, 2.0]], [[1.0], 2.0], [np.zeros(2), np.zeros(3)], ([1], [1, 2], 3)])


ARRAY_FAULTS = [_dtype_fault, _mask_fault, _kind_fault, _ragged_fault]
AXIS_FAULTS = [1.0, "0", True, [0], 1j, np.array([0, 1]), np.float64(0), object()]


def spoil(r, call):
    """Put one fault into a valid call."""
    arrays = [name for name in ("class_weight", "sample_weight", "bias") if name in call.options]
    places = [*range(len(call.arguments)), *arrays]
    kinds = ["array"] * 3 + ["shape"] * 2
    if "out" in call.options:
        kinds += ["out"] * 4
    has_axis = "axis" in call.options
    loss = "cross_entropy" in call.function
    if has_axis:
        kinds += ["axis"] * 2
    if loss:
        kinds += ["label"] * 3
        if call.function != "cross_entropy_grad_hess":
            kinds += ["option"] * 2
    kind = r.choice(kinds)
    if kind == "array":
        place = r.choice(places)
        plain = call.plain[place] if isinstance(place, int) else call.plain_options[place]
        fault = r.choice(ARRAY_FAULTS)
        if loss and place == _targets_place(call) and fault is _ragged_fault:
            fault = _kind_fault
        _replace(call, place, fault(r, call, plain))
    elif kind == "shape":
        place = r.choice(places)
        plain = call.plain[place] if isinstance(place, int) else call.plain_options[place]
        if plain.ndim == 0 or (place == 0 and (len(call.arguments) == 1 or call.plain[1].ndim == 0)):
            return
        shape, longer = list(plain.shape), 0
        if place == 0 and call.function.startswith(("affine", "linear")):
            longer = plain.ndim - 1
        elif place == 0 and loss:  # another number of classes would do
            longer = 1 if call.options.get("axis", -1) % plain.ndim == 0 else 0
            if plain.ndim == 1:
                return
        shape[longer] += 1
        wrong = np.zeros(shape, plain.dtype)
        if loss and place == _targets_place(call) and wrong.shape == call.plain[0].shape:
            return
        _replace(call, place, wrong)
        call.expects = (ValueError,)
    elif kind == "out":
        _spoil_out(r, call)
    elif kind == "axis":
        ndim = call.plain[0].ndim
        axis = r.choice([ndim, -ndim - 1, 10**30, -(2**63), *AXIS_FAULTS])
        call.options["axis"] = axis
        call.expects = (ValueError,) if type(axis) is int else (TypeError,)
    elif kind == "label":
        _spoil_label(r, call)
    else:
        name, value, error = r.choice(
            [
                *(("reduction", v, ValueError) for v in ("avg", "", None, 1, ["mean"], np.array(["mean", "sum"]))),
                *(("label_smoothing", v, ValueError) for v in (-0.1, 1.5, np.nan, np.inf, -1)),
                *(("label_smoothing", v, TypeError) for v in ("0.1", None, True, 1j, [0.1], np.complex64(0))),
                *(("label_smoothing", v, TypeError) for v in (np.ma.masked, np.array([0.1]), object(), np.array(0j))),
                *(("ignore_index", v, TypeError) for v in (1.5, "1", None, True, [1], np.array([1, 2]), 1j)),
            ]
        )
        call.options[name] = value
        call.expects = (error,)


def _targets_place(call):
    return 2 if call.function.startswith("linear") else 1


def _replace(call, place, value):
    if isinstance(place, int):
        call.arguments[place] = value
    else:
        call.options[place] = value


def _spoil_out(r, call):
    out = call.options["out"]
    if isinstance(out, tuple):  # one of them
        places = [k for k, a in enumerate(out) if a is not None]
        if places:
            k = r.choice(places)
            call.options["out"] = out[k]
            _spoil_out(r, call)
            call.options["out"] = (*out[:k], call.options["out"], *out[k + 1 :])
        return
    kind = r.choice(["read-only", "shape", "dtype", "masked", "matrix", "list", "number"])
    call.expects = (TypeError,)
    if kind == "read-only":
        call.options["out"] = out.view()
        call.options["out"].flags.writeable = False
        call.expects = (ValueError,)
    elif kind == "shape":
        other = [(*out.shape, 1), (1, *out.shape)] + ([(*out.shape[:-1], out.shape[-1] + 1)] if out.ndim else [])
        call.options["out"] = np.zeros(r.choice(other), out.dtype)
        call.expects = (ValueError,)
    elif kind == "dtype":
        other = r.choice([d for d in ("f2", "f4", "f8", "g", "i8", "c16", "O") if np.dtype(d) != out.dtype])
        call.options["out"] = np.zeros(out.shape, r.choice([other, out.dtype.newbyteorder()]))
    elif kind == "matrix":
        call.options["out"] = np.zeros(out.shape, out.dtype)[:, :].view(np.matrix) if out.ndim == 2 else [out]
    elif kind == "masked":
        call.options["out"] = np.ma.zeros(out.shape, out.dtype)
    else:
        call.options["out"] = out.tolist() if kind == "list" else 1.0


def _spoil_label(r, call):
    """One label that is neither a class nor ignored."""
    place = _targets_place(call)
    labels = call.plain[place]
    if call.labels is None or not labels.size:
        return
    axis = call.options.get("axis", -1)
    shape = call.plain[0].shape
    n_classes = shape[axis] if not call.function.startswith("linear") else call.plain[1].shape[1]
    dtype = np.dtype(r.choice(INTEGERS))
    limits = np.iinfo(dtype)
    values = [n_classes, n_classes + 1, -1, -2, limits.max, limits.min, 2**63, 2**53 + 1]
    values = [v for v in values if limits.min <= v <= limits.max and not 0 <= v < n_classes and v != call.labels]
    kept = labels.copy()
    kept[kept == -100] = 0  # fits any type; a class
    if not values or n_classes - 1 > limits.max or call.labels == 0:
        return
    bad = r.choice(values)
    at = np.unravel_index(r.randrange(labels.size), labels.shape)
    given = kept.astype(dtype)
    given[at] = bad
    _replace(call, place, given)
    call.roots.append(given)
    call.expects = (IndexError,)
    row = ", ".join(map(str, at)) if labels.ndim > 1 else str(at[0] if at else 0)
    call.words = [f"row ({row})" if labels.ndim > 1 else f"row {row} ", f"label {bad},", f"{n_classes} classes"]


# ---- the judge -----------------------------------------------------------------------------------------------------------
def draw(r, function=None, *, faults=0.3):
    """A call."""
    function = function or r.choice(list(FUNCTIONS))
    call = FUNCTIONS[function](r, function)
    if r.random() < 0.25:
        call.settings = {"chunk": 64, "threads": r.choice([1, 3]), "stream": r.random() < 0.5, "errors": "raise"}
    if r.random() < faults:
        spoil(r, call)
    return call


@contextlib.contextmanager
def _settings(chunk=None, threads=None, stream=False, errors=None):
    """Chunks and threads, classes shared, and results written past the caches, without the sizes that they are for."""
    if chunk is None:
        yield
        return
    sizes = {"SMALL": chunk, "_LEAST": chunk, "_MOST": chunk} | ({"_STREAM": 0, "_STREAM_ROW": 0, "_ONCE": 0} if stream else {})
    past, alone = ({"SIDE_BY_SIDE": 0, "_PAST": 0}, {"alone": 0}) if stream else ({}, {})
    shared = {name: way._replace(least=0, **alone) for name, way in _columns._SHARED.items()}
    with (
        no_small_calls(),
        mock.patch.multiple(functional, SMALL=chunk, SHORT=chunk),
        mock.patch.multiple(_rows, **sizes),
        mock.patch.multiple(_columns, _CLASSES=0, _SHARED=shared, **past),
        mock.patch.object(_rows, "_plan", _rows._plan.__wrapped__),  # without what it remembers
        mock.patch.multiple(_affine, SMALL_PRODUCT=chunk, CHUNK=chunk),
        fastsoftmax.num_threads(threads),
    ):
        yield


def check(call):
    """Make the call; an AssertionError if it is not as it must be."""
    out = call.options.get("out")
    outs = [a if isinstance(a, np.ndarray) else None for a in (out if isinstance(out, tuple) else (out,))]
    before = [root.tobytes() for root in call.roots]
    kept = [None if a is None else np.array(a, subok=False) for a in outs]
    error = result = None
    with _settings(**call.settings), np.errstate(all=call.settings.get("errors", "warn")):
        try:
            result = getattr(fastsoftmax, call.function)(*call.arguments, **call.options)
        except call.expects as caught:
            error = caught
    if call.expects:
        assert error is not None, f"no {call.expects[0].__name__}"
        for word in call.words:
            assert word in str(error), f"{word!r} is not in {str(error)!r}"
        assert type(error) in (TypeError, ValueError, IndexError), f"{error!r}"
    else:
        results = list(result) if isinstance(result, tuple) else [result]
        for k, a in enumerate(outs, len(results) - len(outs)):  # a loss has none
            if a is not None:
                assert results[k] is a, "the result is not out"
                results[k] = np.array(a, subok=False)
        with np.errstate(all="ignore"):
            judge(call, tuple(results) if isinstance(result, tuple) else results[0])
        for a, old in zip(outs, kept):
            if a is not None:
                np.asarray(a)[...] = old
    for root, old in zip(call.roots, before):
        assert root.tobytes() == old, "memory has changed that is not out's"
    for given, old in call.lists:
        assert repr(given) == old, "a list has changed"


def judge(call, result):
    """Shapes, dtypes and values against the reference."""
    options = {k: v for k, v in call.plain_options.items() if k != "out"}
    JUDGES.get(call.function, _judge_loss)(call, result, options)


def _judge_rows(call, result, options):
    (z,) = call.plain
    truth = getattr(reference, call.function)(z, **options) if z.size else _empty(call, z, options)
    scale = None
    if call.function == "logsumexp" and z.size:
        axis = options.get("axis", -1)
        scale = np.abs(np.max(z.astype(np.longdouble), axis=axis, keepdims=options["keepdims"]))
        scale = np.where(np.isfinite(scale), scale, 0)
    _same(result, truth, z.dtype, EXACT, scale)


def _empty(call, z, options):
    """The reference does not take empty arrays along any axes."""
    if call.function != "logsumexp":
        return z
    axis = options.get("axis", -1)
    axes = tuple(range(z.ndim)) if axis is None else axis
    return np.zeros(np.sum(z, axis=axes, keepdims=options["keepdims"]).shape)


def _same(result, truth, dtype, limit, scale=None):
    result = np.asarray(result)
    assert result.dtype == dtype, f"dtype {result.dtype}, expected {dtype}"
    assert_ulps(result, truth, limit, scale=scale)


def _judge_backward(call, result, options):
    g, y = call.plain
    dtype = np.result_type(g, y)
    assert result.shape == y.shape
    assert result.dtype == dtype
    if call.extreme or not y.size:
        return
    axis = tuple(range(y.ndim)) if options["axis"] is None else options["axis"]
    large = np.abs(g.astype(np.longdouble))
    if call.function == "softmax_backward":
        scale = y * (large + (large * y).sum(axis=axis, keepdims=True))
    else:
        scale = large + np.exp(y.astype(np.longdouble)) * large.sum(axis=axis, keepdims=True)
    _same(result, getattr(reference, call.function)(g, y, axis), dtype, WEIGHTED, scale)


def _judge_relu(call, result, options):
    dtype = np.result_type(*call.plain)
    truth = getattr(reference, call.function)(*call.plain)
    assert result.dtype == dtype
    np.testing.assert_array_equal(np.asarray(result), truth.astype(dtype))


def _judge_product(call, result, options):
    dtype = np.result_type(*(call.plain[:2] if call.function == "affine" else call.plain))  # a bias does not promote
    result = result if isinstance(result, tuple) else (result,)
    truth = getattr(reference, call.function)(*call.plain, **options)
    size = getattr(reference, call.function)(*map(np.abs, call.plain), **options)
    if not isinstance(truth, tuple):
        truth, size = (truth,), (size,)
    for got, wanted, magnitude in zip(result, truth, size, strict=True):
        if wanted is None:
            assert got is None
            continue
        assert (got.shape, got.dtype) == (wanted.shape, dtype)
        if not call.extreme:
            terms = max(map(math.prod, (a.shape[:-1] for a in call.plain[:2])), default=0) + call.plain[1].shape[-1]
            assert_products(got, wanted, (magnitude + np.finfo(dtype).tiny) * (1 + terms / 8))


def _judge_loss(call, result, options):
    head = call.function.startswith("linear")
    grad = call.function.endswith("with_grad")
    if head:
        x, weight, targets, *bias = call.plain
        logits = reference.affine(x, weight, *bias)
        dtype = np.result_type(x, weight)
        need_grad_x = options.pop("need_grad_x", True)
    else:
        logits, targets = call.plain
        dtype = logits.dtype
    axis = options.get("axis", -1)
    loss = result[0] if grad else result
    reduction = options.get("reduction", "mean")
    lead = np.delete(logits.shape, axis)
    if reduction == "none":
        loss = np.asarray(loss)
        assert loss.dtype == dtype
        assert loss.shape == tuple(lead)
    else:
        assert type(loss) is float, type(loss)
    if grad and not head:
        assert (result[1].shape, result[1].dtype) == (logits.shape, dtype)
    elif grad:
        shapes = x.shape if need_grad_x else None, weight.shape, (weight.shape[1],) if bias else None
        assert tuple(None if g is None else g.shape for g in result[1]) == shapes
        assert all(g is None or g.dtype == dtype for g in result[1])
    if not logits.size:
        assert np.isnan(loss) if reduction == "mean" else not np.any(loss)
        return
    weighted = {"class_weight", "sample_weight", "label_smoothing", "grad_loss"} & set(options) or targets.ndim == logits.ndim
    if (weighted or head) and call.extreme:
        return
    per_row = {k: v for k, v in options.items() if k not in ("reduction", "grad_loss")}
    losses, gradient = reference.cross_entropy_with_grad(logits, targets, **options)
    rows = reference.cross_entropy(logits, targets, **per_row, reduction="none")
    limit = WEIGHTED if weighted else EXACT
    # An error d in the logits moves a loss by at most 2 d.
    room = 0
    if head:
        room = 8 * np.abs(reference.affine(np.abs(x), np.abs(weight), *map(np.abs, bias))).max()
        for name in ("class_weight", "sample_weight"):
            room *= max(1, np.max(np.abs(options.get(name, 1)), initial=0))
    if reduction == "none":
        _same(loss, losses, dtype, limit, scale=np.full(loss.shape, room) if head else None)
    else:
        size = np.abs(rows).sum() + room * rows.size
        if reduction == "mean":
            plain = reference.cross_entropy(logits, targets, **per_row, reduction="sum")
            size = size * abs(losses / plain) if plain else size
        # Each row is rounded in the dtype, the sum after each of them in float64.
        allowed = limit[dtype.name] * np.finfo(dtype).eps + rows.size * np.finfo(float).eps
        overflows = np.abs(rows).sum() > 0.2 * np.finfo(float).max  # the sum may, before it is divided
        _reduced(loss, losses, allowed * size + np.finfo(float).smallest_subnormal, overflows)
    if not grad:
        return
    if not head:
        scale = reference.gradient_scale(logits, targets, **options) if weighted else None
        _same(result[1], gradient, dtype, limit, scale)


def _reduced(loss, truth, allowed, overflows):
    if not np.isfinite(np.float64(truth)) or not np.isfinite(loss):
        assert np.isnan(loss) == np.isnan(truth), f"got {loss!r}, expected {truth!r}"
        assert overflows or np.isnan(loss) or loss == np.float64(truth), f"got {loss!r}, expected {truth!r}"
        return
    assert abs(loss - truth) <= allowed, f"got {loss!r}, expected {truth!r}, allowed {allowed!r}"


def _judge_grad_hess(call, result, options):
    logits, targets = call.plain
    for part in result:
        assert (part.shape, part.dtype) == (logits.shape, logits.dtype)
    if call.extreme or not logits.size:
        return
    grad, hess = reference.cross_entropy_grad_hess(logits, targets, **options)
    weight = {k: v for k, v in options.items() if k == "sample_weight"}
    _same(result[0], grad, logits.dtype, WEIGHTED, reference.gradient_scale(logits, targets, reduction="sum", **weight))
    _same(result[1], hess, logits.dtype, WEIGHTED, np.finfo(logits.dtype).tiny)


JUDGES = {
    "softmax": _judge_rows,
    "log_softmax": _judge_rows,
    "logsumexp": _judge_rows,
    "softmax_backward": _judge_backward,
    "log_softmax_backward": _judge_backward,
    "relu": _judge_relu,
    "relu_backward": _judge_relu,
    "affine": _judge_product,
    "affine_backward": _judge_product,
    "cross_entropy_grad_hess": _judge_grad_hess,
}


def run(seeds, function=None):
    """Check the calls of these seeds; how many were made, and how many of them were to fail."""
    made = faulty = 0
    for seed in seeds:
        call = draw(random.Random(seed), function)
        try:
            check(call)
        except Exception as error:
            error.add_note(f"fuzz.run([{seed}], {function!r}): {call}") if hasattr(error, "add_note") else None
            raise AssertionError(f"fuzz.run([{seed}], {function!r}): {call}\n{type(error).__name__}: {error}") from error
        made += 1
        faulty += bool(call.expects)
    return made, faulty
