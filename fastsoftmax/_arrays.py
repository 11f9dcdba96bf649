"""From what people pass to what kernels accept: dtypes, axes, out=, targets, weights. Every error message is here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
Axes = tuple[int, ...]

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
# dtype -> the precision it is computed in
COMPUTED_IN: dict[np.dtype[Any], np.dtype[Any]] = {np.dtype(np.float16): FLOAT32, FLOAT32: FLOAT32, FLOAT64: FLOAT64}
REDUCTIONS = ("mean", "sum", "none")
NOTHING = np.empty(0)  # stands for an array that was not given
NO_LABELS = np.empty(0, np.int64)
C_CONTIGUOUS_ALIGNED = 0x101  # NumPy's flag bits


# ---- arrays of numbers ------------------------------------------------------------------------------------------------
def array(x: ArrayLike, name: str) -> Array:
    """Any array-like as a plain ndarray."""
    if type(x) is np.ndarray:
        return x
    if _is_masked(x):
        raise TypeError(f"{name} must not be a masked array: fill it, or set masked logits to -inf")
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(f"{name} must be an array or a nested sequence with rows of one length, got ragged rows") from None


def _is_masked(x: Any, depth: int = 0) -> bool:
    """Whether it is a masked array, or a list with one in it: NumPy would drop the mask, or warn."""
    if isinstance(x, (list, tuple)) and depth < 64:  # as deep as NumPy goes
        kinds = set(map(type, x))
        if not any(issubclass(kind, (list, tuple, np.ma.MaskedArray)) for kind in kinds):
            return False
        return any(_is_masked(part, depth + 1) for part in x)
    return isinstance(x, np.ma.MaskedArray)


def floats(x: ArrayLike, name: str) -> Array:
    """Any array-like as float16, float32 or float64 in native byte order; integers become float64."""
    a = array(x, name)
    if a.dtype in COMPUTED_IN:
        return a
    if a.dtype.kind == "f" and a.dtype.itemsize <= 8:
        return a.astype(a.dtype.newbyteorder("="))
    if a.dtype.kind in "iu":
        return a.astype(FLOAT64)
    raise TypeError(f"{name} must be float16, float32, float64 or integers, got {_kind_of(x, a)}")


def _kind_of(x: Any, a: Array) -> str:
    return f"dtype {a.dtype}" if isinstance(x, np.ndarray) or a.dtype != object else f"{type(x).__name__}, dtype object"


def contiguous(a: Array, dtype: np.dtype[Any]) -> Array:
    """C-contiguous, aligned, of that dtype: `a` itself or a copy."""
    if a.dtype == dtype and (a.flags.num & 0x101) == C_CONTIGUOUS_ALIGNED:
        return a
    with np.errstate(all="ignore"):  # what a narrower type cannot hold is inf, without a warning
        return np.array(a, dtype, order="C")


def cast(a: Array, dtype: np.dtype[Any]) -> Array:
    """`a` in the dtype that the caller is to get: a copy for float16."""
    return a if a.dtype == dtype else contiguous(a, dtype)


def fill(out: Array, values: Array) -> None:
    """out = values, whatever the layouts."""
    with np.errstate(all="ignore"):
        out[...] = values


def same_shape(a: Array, b: Array, names: str) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{names} must have one shape, got {a.shape} and {b.shape}")


def real(x: Any, name: str) -> float:
    """A finite or infinite Python number, not a string or an array."""
    if type(x) is float:
        return x
    a = array(x, name)
    if a.ndim != 0 or a.dtype.kind not in "iufO":  # objects: fractions, decimals
        raise TypeError(f"{name} must be a number, got {_described(x)}")
    try:
        return float(a.item())
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a number, got {_described(x)}") from None


def integer(x: Any, name: str) -> int:
    if isinstance(x, (bool, np.bool_)) or not hasattr(x, "__index__"):
        raise TypeError(f"{name} must be an integer, got {_described(x)}")
    try:
        return int(x.__index__())
    except TypeError:  # an array of several
        raise TypeError(f"{name} must be an integer, got {_described(x)}") from None


def _described(x: Any) -> str:
    return f"an array of shape {np.shape(x)}" if isinstance(x, np.ndarray) else f"{x!r:.60} ({type(x).__name__})"


# ---- axes: every array becomes a C-contiguous matrix whose rows lie along the axes ------------------------------------
def axes_of(axis: Any, ndim: int) -> Axes:
    """The axes to work along, as non-negative integers: an integer, a tuple, or None for all."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes: list[int] = []
    for a in given:
        k = integer(a, "axis")
        if not -ndim <= k < ndim:
            raise ValueError(f"axis must lie within the array's {ndim} dimensions, got axis {k}")
        axes.append(k % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis must not name a dimension twice, got {axis}")
    return tuple(axes)


def one_axis(axis: Any, ndim: int) -> Axes:
    if ndim == 0:
        raise ValueError("logits must have at least one dimension, the classes; got a single number")
    if axis is None or isinstance(axis, tuple):
        raise TypeError(f"axis must be one integer here, got {axis!r}")
    return axes_of(axis, ndim)


def classes_along(shape: tuple[int, ...], axes: Axes, name: str) -> int:
    """The number of classes; there must be one at least, unless there are no rows."""
    n = math.prod(shape[k] for k in axes)
    if n == 0 and 0 not in lead_shape(shape, axes):
        raise ValueError(f"{name} must have at least 1 class along the axis, got 0: shape {shape}")
    return n


def _rest(ndim: int, axes: Axes) -> Axes:
    return tuple(k for k in range(ndim) if k not in axes)


def lead_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The shape with the axes taken out."""
    return tuple(shape[k] for k in _rest(len(shape), axes))


def are_last(axes: Axes, ndim: int) -> bool:
    """Whether they are the last ones in their order: what lies along them is contiguous in a C-contiguous array."""
    return axes == tuple(range(ndim - len(axes), ndim))


def to_rows(a: Array, axes: Axes, n_classes: int, dtype: np.dtype[Any]) -> Array:
    """A matrix (n_rows, n_classes), C-contiguous, of that dtype: a view of `a` where it can be."""
    if not are_last(axes, a.ndim):
        a = a.transpose(_rest(a.ndim, axes) + axes)
    return contiguous(a, dtype).reshape(-1 if n_classes else 0, n_classes)


def from_rows(matrix: Array, shape: tuple[int, ...], axes: Axes) -> Array:
    """The way back: a view of `matrix` with the given shape."""
    order = _rest(len(shape), axes) + axes
    return matrix.reshape([shape[k] for k in order]).transpose(np.argsort(order))


def is_rows(a: Array, axes: Axes, dtype: np.dtype[Any]) -> bool:
    """Whether `to_rows` gives a view."""
    return are_last(axes, a.ndim) and a.dtype == dtype and (a.flags.num & 0x101) == C_CONTIGUOUS_ALIGNED


def is_columns(a: Array, axes: Axes, dtype: np.dtype[Any]) -> bool:
    """Whether the one axis lies across contiguous runs of elements, as kernels for columns want it."""
    if len(axes) != 1 or a.dtype != dtype or (a.flags.num & 0x101) != C_CONTIGUOUS_ALIGNED:
        return False
    return math.prod(a.shape[axes[0] + 1 :]) > 1


# ---- out= ----------------------------------------------------------------------------------------------------------------
def result_array(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "out") -> Array:
    """`out`, checked, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or isinstance(out, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} must be a NumPy array, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    return out


def result_arrays(out: Any, shapes: tuple[tuple[int, ...] | None, ...], dtype: np.dtype[Any]) -> list[Any]:
    """The same of several results: `out` has an array or None for each. A shape that is None stands for no result."""
    if out is None:
        out = (None,) * len(shapes)
    if not isinstance(out, tuple) or len(out) != len(shapes):
        got = f"{len(out)} of them" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"out must be a tuple of {len(shapes)} arrays or None, got {got}")
    results: list[Any] = []
    for i, (array, shape) in enumerate(zip(out, shapes)):
        if shape is None and array is not None:
            raise ValueError(f"out[{i}] must be None for a result that is not wanted, got {type(array).__name__}")
        results.append(None if shape is None else result_array(array, shape, dtype, f"out[{i}]"))
    return results


def as_they_are(
    out: Any, shapes: tuple[tuple[int, ...] | None, ...], dtype: np.dtype[Any], *inputs: Array
) -> TypeGuard[tuple[Any, ...]]:  # fmt: skip
    """Whether kernels can write to all arrays of the tuple `out`: no where in doubt, and quick.

    (Of three results: 3.9 us, by way of `result_arrays` 5.5.)
    """
    return type(out) is tuple and len(out) == len(shapes) and all(
        a is shape if a is None else (
            type(a) is np.ndarray and a.dtype == dtype and a.shape == shape and a.flags.num & 0x501 == 0x501
            and not overlaps(a, *inputs)
        )
        for a, shape in zip(out, shapes)
    )  # fmt: skip


def direct(out: Array, dtype: np.dtype[Any], *inputs: Array | None) -> Array:
    """`out` itself if kernels can write to it while they read the inputs; else an array to `fill` it from."""
    if out.dtype == dtype and (out.flags.num & 0x101) == C_CONTIGUOUS_ALIGNED and not overlaps(out, *inputs):
        return out
    return np.empty(out.shape, dtype)


def safe_to_fill(out: Array, *inputs: Array) -> bool:
    """Whether rows of `out` may be written while rows of the inputs are still to be read: the same array or none of it."""
    for a in inputs:
        if a is out or not np.may_share_memory(a, out):
            continue
        if a.shape != out.shape or a.strides != out.strides or a.__array_interface__["data"] != out.__array_interface__["data"]:
            return False
    return True


def apart(a: Array, out: Any) -> bool:
    """Whether `out` is `a` itself, or an array of its shape in other memory: quick, and no where in doubt."""
    return out is a or (type(out) is np.ndarray and out.shape == a.shape and not overlaps(out, a))


def overlaps(out: Array, *inputs: Array | None) -> bool:
    """Whether `out` may share memory with an input. Two that own what they hold do not: to ask NumPy takes 0.6 us of 5."""
    owns = out.flags.owndata
    unclear = [a for a in inputs if a is not None and a.size and (a is out or not (owns and a.flags.owndata))]
    return len(unclear) > 0 and any(np.may_share_memory(out, a) for a in unclear)


# ---- targets and weights ---------------------------------------------------------------------------------------------
def targets_of(
    targets: ArrayLike, shape: tuple[int, ...], axes: Axes, dtype: np.dtype[Any], ignore_index: int
) -> tuple[Array, Array, int]:
    """(labels, probabilities, ignore_index) for kernels.

    Of the first two one is empty: int64 indices (n_rows,), or rows of probabilities (n_rows, n_classes).
    """
    a = array(targets, "targets")
    lead = lead_shape(shape, axes)
    n_classes = math.prod(shape[k] for k in axes)
    if a.dtype.kind not in "iuf":
        raise TypeError(f"targets must be class indices (integers) or probabilities (floats), got dtype {a.dtype}")
    if a.shape == shape and a.shape != lead:
        return NO_LABELS, to_rows(floats(a, "targets"), axes, n_classes, dtype), -1
    if a.shape != lead:
        raise ValueError(
            f"targets must have shape {lead} for class indices or {shape} for probabilities, got {a.shape}"
        )
    if a.dtype.kind == "f":
        raise TypeError(f"targets of shape {lead} are class indices and must be integers, got dtype {a.dtype}")
    if a.dtype == np.uint64 or not -(2**63) <= ignore_index < 2**63:  # what int64 cannot hold: by other numbers
        wrong = np.where((a >= 0) & (a < n_classes), a.astype(np.int64), -1)
        a, ignore_index = np.where(a == ignore_index, -2, wrong), -2
    return contiguous(a, np.dtype(np.int64)).reshape(-1), np.empty((0, 0), dtype), ignore_index


def bad_label(targets: ArrayLike, row: int, n_classes: int, ignore_index: int | None) -> NoReturn:
    a = np.asarray(targets)
    place = tuple(int(k) for k in np.unravel_index(row, a.shape)) if a.ndim > 1 else row
    other = "" if ignore_index is None else f" or ignore_index {ignore_index}"
    raise IndexError(
        f"targets: row {place} has label {a.reshape(-1)[row]}, expected 0 <= label < {n_classes} ({n_classes} classes){other}"
    )


def weights(x: ArrayLike | None, shape: tuple[int, ...], name: str) -> Array:
    """float64 weights of that shape, flattened; empty if None."""
    if x is None:
        return NOTHING
    a = floats(x, name)
    if a.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {a.shape}")
    if a.size == 0:
        return NOTHING
    return contiguous(a, FLOAT64).reshape(-1)


def smoothing(x: Any) -> float:
    value = real(x, "label_smoothing")
    if not 0 <= value <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {value}")
    return value


def reduction_of(x: Any) -> str:
    if not isinstance(x, str) or x not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {x!r}")
    return str(x)


def grad_losses(x: Any, lead: tuple[int, ...], reduction: str) -> tuple[float, Array]:
    """(scale, per-row factors or nothing) from `grad_loss`."""
    if x is None:
        return 1.0, NOTHING
    if reduction == "none" and np.ndim(x):
        return 1.0, weights(x, lead, "grad_loss")
    if np.ndim(x):
        raise ValueError(
            f"grad_loss must be a number for reduction {reduction!r}, got shape {np.shape(x)}; rows need reduction 'none'"
        )
    return real(x, "grad_loss"), NOTHING


# ---- products ----------------------------------------------------------------------------------------------------------
def common_dtype(*arrays: Array) -> np.dtype[Any]:
    return np.result_type(*arrays)


def affine_shapes(x: Array, weight: Array, bias: Array | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight must have 2 dimensions (n_in, n_out), got shape {weight.shape}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x must have weight's n_in = {weight.shape[0]} columns, got x {x.shape} and weight {weight.shape}")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias must have shape {weight.shape[1:]}, got {bias.shape}")


def grad_out_shape(grad_out: Array, x: Array, weight: Array) -> None:
    expected = x.shape[:-1] + weight.shape[1:]
    if grad_out.shape != expected:
        raise ValueError(f"grad_out must have shape {expected}, as affine(x, weight) has, got {grad_out.shape}")


# ---- layers ----------------------------------------------------------------------------------------------------------
def from_forward(kept: Array | None, layer: str) -> Array:
    """What a layer kept for its backward pass."""
    if kept is None:
        raise ValueError(f"{layer}.backward needs a forward pass first, there was none")
    return kept


# ---- models: settings and whole data sets ----------------------------------------------------------------------------
def number(name: str, x: Any, *, low: float = -math.inf, below: float = math.inf) -> float:
    """A number in [low, below)."""
    value = real(x, name)
    if not low <= value < below:
        bound = "finite" if low == -math.inf else f"finite and at least {low:g}"
        raise ValueError(f"{name} must be {bound if below == math.inf else f'in [{low:g}, {below:g})'}, got {value}")
    return value


def count(name: str, x: Any, *, low: int = 1) -> int:
    """An integer of at least `low`."""
    value = integer(x, name)
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return value


def parameter_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """float32 or float64."""
    given = np.dtype(dtype).newbyteorder("=")
    if given not in (FLOAT32, FLOAT64):
        raise TypeError(f"dtype must be float32 or float64, got {given}")
    return given


def data_rows(x: ArrayLike, n_in: int | None = None) -> Array:
    """A data set as it is, of any real dtype: rows of `n_in` values. Nothing is copied; batches are converted later."""
    a = array(x, "x")
    if a.dtype.kind not in "buif" or a.dtype.itemsize > 8:
        raise TypeError(f"x must hold integers or floats of at most 64 bits, got dtype {a.dtype}")
    if a.ndim < 2:
        raise ValueError(f"x must have shape (n_rows, ...), got {a.shape}")
    if n_in is not None and row_size(a) != n_in:
        raise ValueError(f"x must have {n_in} values in a row as in training, got {row_size(a)}: shape {a.shape}")
    return a


def row_size(a: Array) -> int:
    return math.prod(a.shape[1:])


def data_targets(targets: ArrayLike, n_rows: int, n_classes: int | None) -> tuple[Array, int]:
    """The targets of a data set, checked before anything is trained on them, and the number of classes."""
    a = array(targets, "targets")
    if a.ndim not in (1, 2) or len(a) != n_rows:
        raise ValueError(f"targets must have shape ({n_rows},) or ({n_rows}, n_classes) like x, got {a.shape}")
    if n_rows == 0:
        raise ValueError("x and targets must have at least one row, got none")
    if a.ndim == 2:
        if a.dtype.kind != "f":
            raise TypeError(f"targets of two dimensions are probabilities and must be floats, got dtype {a.dtype}")
        if n_classes is not None and a.shape[1] != n_classes:
            raise ValueError(f"targets must have {n_classes} columns, one for each class, got {a.shape[1]}")
        return a, a.shape[1]
    if a.dtype.kind not in "iu":
        raise TypeError(f"targets must be integer class indices or 2-D probabilities, got dtype {a.dtype}")
    n_classes = int(a.max()) + 1 if n_classes is None else n_classes
    for row in (int(np.argmin(a)), int(np.argmax(a))):
        if not 0 <= int(a[row]) < n_classes:
            bad_label(a, row, n_classes, None)
    return contiguous(a, np.dtype(np.int64)), n_classes


def data_weights(x: ArrayLike | None, n: int, name: str) -> Array | None:
    """float64 weights of a data set's n rows or classes, or None."""
    return None if x is None else weights(x, (n,), name)


def early_stopping(patience: Any, validation: Any) -> None:
    if patience is not None and count("patience", patience) and validation is None:
        raise ValueError("patience needs a validation set: pass validation=(x, targets)")


def checkpointing(checkpoint: Any, checkpoint_every: Any, resume: bool) -> None:
    if checkpoint_every is not None:
        count("checkpoint_every", checkpoint_every)
    if checkpoint is None and (resume or checkpoint_every is not None):
        raise ValueError("resume and checkpoint_every need a file: pass checkpoint=path")


def not_fitted(model: object) -> NoReturn:
    raise ValueError(f"this {type(model).__name__} has no parameters yet: call fit or partial_fit, or load a file")


def layer_shapes(i: int, weight: Any, bias: Any, n_in: int, n_out: int) -> None:
    """A model's layer must fit its neighbours: kernels do not look."""
    if np.shape(weight) != (n_in, n_out) or np.shape(bias) != (n_out,):
        raise ValueError(
            f"layers[{i}] must have a weight of shape ({n_in}, {n_out}) and a bias of shape ({n_out},), "
            f"got {np.shape(weight)} and {np.shape(bias)}"
        )


def loss_not_finite(loss: float, step: int, learning_rate: float, kept: int) -> NoReturn:
    raise FloatingPointError(
        f"the loss became {loss} at step {step} with learning rate {learning_rate:g}: the model keeps its weights of "
        f"step {kept}, the last known good ones; try a smaller learning rate, and check that x is finite and scaled"
    )


# ---- optimizers ------------------------------------------------------------------------------------------------------
def updatable(params: Sequence[Any]) -> list[Array]:
    """The parameters of an optimizer, checked."""
    for i, param in enumerate(params):
        if not isinstance(param, np.ndarray) or param.dtype not in (FLOAT32, FLOAT64) or not param.flags.writeable:
            raise TypeError(f"params[{i}] must be a writable array of float32 or float64, got {_described(param)}")
    return list(params)


def gradients_of(params: Sequence[Array], grads: Sequence[ArrayLike]) -> list[Array]:
    """The gradients of an optimizer's parameters as kernels take them, in the parameters' dtypes."""
    if len(grads) != len(params):
        raise ValueError(f"grads must be as many as params, {len(params)}, got {len(grads)}")
    checked: list[Array] = []
    for param, grad in zip(params, grads):
        g = array(grad, "grads")
        if g.shape != param.shape:
            raise ValueError(f"grads[{len(checked)}] must have the parameter's shape {param.shape}, got {g.shape}")
        checked.append(contiguous(g, param.dtype))
    return checked


def penalties_of(params: Sequence[Array], l2: Sequence[float] | None) -> list[float]:
    """The L2 penalty's factor for each of an optimizer's parameters."""
    penalties = [0.0] * len(params) if l2 is None else [*map(float, l2)]
    if len(penalties) != len(params):
        raise ValueError(f"l2 must be as many numbers as params, {len(params)}, got {len(penalties)}")
    return penalties


def same_params(slots: Sequence[Sequence[Array]], params: Sequence[Array]) -> None:
    """What an optimizer remembers must belong to the parameters it is given."""
    if len(slots) != len(params):
        raise ValueError(f"params must be the same at every step, got {len(params)} arrays after {len(slots)}")
    for i, (mine, param) in enumerate(zip(slots, params)):
        if any(slot.shape != param.shape or slot.dtype != param.dtype for slot in mine):
            raise ValueError(f"params[{i}] must be the same at every step, got another: {_described(param)}")


# ---- gradient checks -------------------------------------------------------------------------------------------------
def checked_param(param: Any, name: int | str, gradient: Array | None) -> Array:
    """A float array that can be changed in place, with a gradient of its shape."""
    if not isinstance(param, np.ndarray) or param.dtype.kind != "f":
        raise TypeError(f"parameter {name!r} must be a float array, got {_described(param)}")
    if not (param.flags.c_contiguous and param.flags.writeable):
        raise ValueError(f"parameter {name!r} must be C-contiguous and writable: it is changed in place")
    if gradient is None or gradient.shape != param.shape:
        came = "none" if gradient is None else f"shape {gradient.shape}"
        raise ValueError(f"f must return a gradient of shape {param.shape} for parameter {name!r}, got {came}")
    return param


def something_checked(worst: Any) -> Any:
    if worst is None:
        raise ValueError("params must hold at least one entry to check, got none")
    return worst


# ---- the library itself ---------------------------------------------------------------------------------------------------
def kernel_dtype(dtype: Any) -> np.dtype[Any]:
    d = np.dtype(dtype)
    if d not in (FLOAT32, FLOAT64):
        raise TypeError(f"dtypes must be float32 or float64, got {d}")
    return d
