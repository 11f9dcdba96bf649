"""The public functions: validate, pick the kernel, return.

Everywhere: float32 and float64 are computed in their own precision, float16 in float32; integers and lists become float64;
anything else is a TypeError. Inputs are never written to, unless given as `out=`. Results are the same bits on every run,
for every number of threads, every memory layout, and whatever other rows are in the batch (matrix products: as their
docstrings say).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
from numpy import empty, ndarray  # looked up in NumPy each time they took 20 to 50 ns of a call
from numpy.typing import ArrayLike, NDArray

from . import _affine, _arrays
from ._arrays import COMPUTED_IN, FLOAT64, NO_LABELS, NOTHING
from ._columns import FEW_STRIPS, down_columns, fill_from_rows, to_rows
from ._rows import LIGHT_COST, SOFT_COST, over_rows, softmax_streams, streams, streams_once, sum_over_rows
from ._threads import get_num_threads, in_order, num_threads, set_num_threads
from .kernels import BY_WIDTH, IGNORED, KERNELS, NARROW, SHORT, SMALL, ByWidth, Kernel, build_all, environment

__all__ = [
    "affine", "affine_backward", "cross_entropy", "cross_entropy_grad_hess", "cross_entropy_with_grad",
    "get_num_threads", "linear_cross_entropy", "linear_cross_entropy_with_grad", "log_softmax", "log_softmax_backward",
    "logsumexp", "num_threads", "relu", "relu_backward", "set_num_threads", "show_config", "softmax",
    "softmax_backward", "warmup",
]  # fmt: skip

Array = NDArray[Any]
Reduction = Literal["mean", "sum", "none"]

_softmax, _log_softmax, _lse = BY_WIDTH["softmax"], BY_WIDTH["log_softmax"], BY_WIDTH["logsumexp"]
_softmax_down, _log_softmax_down = KERNELS["softmax_columns"], KERNELS["log_softmax_columns"]
_softmax_backward, _softmax_backward_down = KERNELS["softmax_backward"], KERNELS["softmax_backward_columns"]
_log_softmax_backward, _log_softmax_backward_down = KERNELS["log_softmax_backward"], KERNELS["log_softmax_backward_columns"]
_check_targets, _loss, _gradient = KERNELS["check_targets"], BY_WIDTH["cross_entropy"], BY_WIDTH["cross_entropy_with_grad"]
_loss_down, _gradient_down = KERNELS["cross_entropy_columns"], KERNELS["cross_entropy_with_grad_columns"]
_mean, _mean_and_gradient = BY_WIDTH["mean_cross_entropy"], BY_WIDTH["mean_cross_entropy_with_grad"]
_layer, _layer_backward = KERNELS["affine"], KERNELS["affine_backward"]
_relu, _relu_backward = KERNELS["relu"], KERNELS["relu_backward"]
_INT64 = np.dtype(np.int64)
_INTEGERS = {np.dtype(kind) for kind in ("i1", "i2", "i4", "u1", "u2", "u4")}  # that int64 holds, beside itself
_NONE = {dtype: empty((0, 0), dtype) for dtype in (_arrays.FLOAT32, FLOAT64)}

_FIRST, _SECOND, _LAST = 0, 1, -1  # axes that need no look at the array, compared by identity: another 0 takes the long way
_SHARP, _MEAN = 0.0, "mean"  # options left out, likewise
_TURNED = 1 << 12  # elements, see `_is_to_be_turned`


# ---- softmax and its relatives ----------------------------------------------------------------------------------------
def _along_rows(name: str, logits: ArrayLike, axis: Any, out: Any) -> Array:
    """A kernel (rows in, rows out) along the axes of an array of any layout."""
    x = _arrays.floats(logits, "logits")
    axes, dtype = _arrays.axes_of(axis, x.ndim), COMPUTED_IN[x.dtype]
    n_classes = _arrays.classes_along(x.shape, axes, "logits")
    if out is None and x.size and _arrays.are_last(axes, x.ndim):
        as_taken = _arrays.contiguous(x, dtype)  # a copy is where the result may be, too
        rows = as_taken if len(axes) == 1 else as_taken.reshape(-1, n_classes)
        if (result := _as_it_lies(name, rows, _LAST, None if as_taken is x else rows)) is not None:
            result = _arrays.cast(result, x.dtype)
            return result if len(axes) == 1 else result.reshape(x.shape)
    result = _arrays.result_array(out, x.shape, x.dtype)
    if x.size == 0:
        return result
    if _arrays.is_columns(x, axes, dtype) and _arrays.is_columns(result, axes, dtype) and (
        out is None or _arrays.safe_to_fill(result, x)
    ):
        inner = math.prod(x.shape[axes[0] + 1 :])
        down_columns(name, (x, result), n_classes, inner)
        return result
    rows = to_rows(x, axes, n_classes, dtype)
    direct = _arrays.is_rows(result, axes, dtype) and (out is None or _arrays.safe_to_fill(result, rows))
    target = result.reshape(rows.shape) if direct else np.empty_like(rows)
    kernel = BY_WIDTH[name].of(dtype, n_classes)
    streaming = _streams(name, target, n_classes) and (out is None or not np.may_share_memory(target, rows))
    over_rows(kernel, (rows, target, n_classes, streaming), rows.shape)
    if not direct:
        fill_from_rows(result, target, axes)
    return result


def _streams(name: str, result: Array, n_classes: int) -> bool:
    """log_softmax writes its result once, softmax puts exponentials there first."""
    return softmax_streams(result, n_classes) if name == "softmax" else streams_once(result, n_classes, 2)


def _as_it_lies(name: str, logits: Any, axis: Any, out: Any) -> Array | None:
    """The result for an array that kernels take as it lies in memory, None for any other."""
    if type(logits) is not ndarray or not (size := logits.size) or not (shape := logits.shape):
        return None
    if axis is None or axis is _LAST or (inner := _side_by_side(shape, axis)) == 1:
        n_classes, how = size if axis is None else shape[axis], 0
        kernel, n_rows = BY_WIDTH[name].latest(dtype := logits.dtype, n_classes), size // n_classes
    elif inner:
        n_classes, how = shape[axis], inner
        kernel = KERNELS[name + "_columns"].latest(dtype := logits.dtype)
        n_rows = size // (n_classes * inner) * -(-inner // (64 // logits.itemsize))
    else:
        return None
    if kernel is None or not (out is None or _arrays.apart(logits, out)):
        return None
    result = empty(shape, dtype) if out is None else out
    try:
        if logits.nbytes <= SHORT or (how and size <= SMALL and n_rows < FEW_STRIPS):
            kernel(logits, result, n_classes, how, 0, n_rows, 0)
        elif how:
            down_columns(name, (logits, result), n_classes, how, 0)
        else:
            streaming = size > SMALL and _streams(name, result, n_classes) and result is not logits
            over_rows(kernel, (logits, result, n_classes, streaming), (n_rows, n_classes), 1, 0)
    except TypeError:  # not C-contiguous, not aligned, ...
        return None
    return result


def _side_by_side(shape: tuple[int, ...], axis: Any) -> int:
    """How many columns lie side by side, of an array of that shape: 1 if it has its classes in rows. 0 if that is no axis."""
    if type(axis) is not int or not -len(shape) <= axis < len(shape):
        return 0
    return math.prod(shape[axis % len(shape) + 1 :])


def _is_to_be_turned(logits: Any, axis: Any) -> TypeGuard[Array]:
    """Whether it is a small matrix with the classes down its columns: rows that NumPy copies go a shorter way then."""
    return axis is _FIRST and type(logits) is ndarray and logits.ndim == 2 and 0 < logits.size <= _TURNED


def _small(kernel: Kernel | ByWidth, logits: Any, *arguments: Any) -> Any:
    """A small call, if it is the kernel's first one of that dtype and as many classes, or after another such one's."""
    if type(logits) is not ndarray or logits.dtype not in _NONE or not 0 < logits.size <= SMALL or not logits.ndim:
        return None
    axis = arguments[0] if type(arguments[0]) is int and -logits.ndim <= arguments[0] < logits.ndim else -1
    function = kernel.of(logits.dtype, logits.size if arguments[0] is None else logits.shape[axis])
    if function is kernel.small:  # has been tried
        return None
    kernel.small = function
    return function(logits, *arguments)


def softmax(logits: ArrayLike, axis: int | tuple[int, ...] | None = -1, *, out: Array | None = None) -> Array:
    r"""Probabilities from logits: ``exp(z - max z) / sum(exp(z - max z))`` along an axis.

    Parameters
    ----------
    logits : array_like, any shape
        float16, float32, float64, or integers (which become float64). -inf masks a class.
    axis : int, tuple of int, or None; default: -1
        The axis along which probabilities sum to one. None: over the whole array at once. The default, -1, is per row of a
        matrix (n_rows, n_classes).
    out : ndarray, optional
        Where to put the result; of logits' shape and the result's dtype. May be `logits` itself.

    Returns
    -------
    ndarray
        Of logits' shape and dtype. Within 2 ulps in float32 and 4 in float64. Masked classes are exactly 0; a row with +inf
        or NaN, or of -inf alone, is NaN.

    Raises
    ------
    TypeError
        For other dtypes, masked arrays, an axis that is no integer.
    ValueError
        For an axis outside the array, no classes, or an `out` that does not fit.

    Notes
    -----
    Dividing by the sum over a whole batch, ``e = np.exp(z - z.max()); e / e.sum()``, is the most common bug of hand-written
    softmax; with the maximum of the whole batch, rows far below it also underflow to 0 / 0.
    For the rounding error of z - max z, which others drop and lose 30 to 130 ulps by, see Blanchard, Higham and Higham,
    "Accurately computing the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41 (2021).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmax
    >>> softmax([[1000.0, 1000.0], [0.0, -np.inf]])
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    if (probs := _softmax.small(logits, axis, out)) is not None:
        return probs
    if (probs := _softmax_down.small(logits, axis, out)) is not None:
        return probs
    probs = _as_it_lies("softmax", logits, axis, out)
    return _along_rows("softmax", logits, axis, out) if probs is None else probs


def log_softmax(logits: ArrayLike, axis: int | tuple[int, ...] | None = -1, *, out: Array | None = None) -> Array:
    r"""Logarithms of the softmax: ``(z - max z) - log1p(sum of the other exp(z - max z))``.

    Two terms of one sign, so nothing cancels: for logits (0, -40) the larger class has -4.2e-18, where
    ``z - logsumexp(z)`` gives 0.

    Parameters
    ----------
    logits : array_like, any shape
    axis : int, tuple of int, or None; default: -1
    out : ndarray, optional
        As for `softmax`.

    Returns
    -------
    ndarray
        Of logits' shape and dtype; masked classes (-inf) are -inf.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> from fastsoftmax import log_softmax
    >>> log_softmax([0.0, -40.0])
    array([-4.24835426e-18, -4.00000000e+01])
    """
    if (log_probs := _log_softmax.small(logits, axis, out)) is not None:
        return log_probs
    if (log_probs := _log_softmax_down.small(logits, axis, out)) is not None:
        return log_probs
    log_probs = _as_it_lies("log_softmax", logits, axis, out)
    return _along_rows("log_softmax", logits, axis, out) if log_probs is None else log_probs


def logsumexp(logits: ArrayLike, axis: int | tuple[int, ...] | None = -1, *, keepdims: bool = False) -> Any:
    r"""``log(sum(exp(z)))`` along an axis, as ``max z + log1p(sum of the other exp(z - max z))``.

    Parameters
    ----------
    logits : array_like, any shape
    axis : int, tuple of int, or None; default: -1
        As for `softmax`.
    keepdims : bool, default: False
        Keep the summed axes, with length 1.

    Returns
    -------
    ndarray or scalar
        logits' shape without the axes; a NumPy scalar where nothing is left of the shape. A row of -inf alone gives -inf,
        +inf gives inf, NaN gives NaN; no classes at all give -inf.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Examples
    --------
    >>> from fastsoftmax import logsumexp
    >>> float(logsumexp([1000.0, 1000.0]))
    1000.6931471805599
    """
    if (lse := _lse.small(logits, axis)) is not None or (lse := _small(_lse, logits, axis)) is not None:
        if not keepdims:
            return lse
        shape = np.shape(logits)
        return np.reshape(lse, (1,) * len(shape) if axis is None else (*shape[:-1], 1))
    if _is_to_be_turned(logits, axis):  # 10 x 8: 13 -> 3.2 us
        lse = logsumexp(logits.T.copy())
        return lse[None] if keepdims else lse
    x = _arrays.floats(logits, "logits")
    axes = _arrays.axes_of(axis, x.ndim)
    n_classes = math.prod(x.shape[k] for k in axes)
    dtype = COMPUTED_IN[x.dtype]
    rows = to_rows(x, axes, n_classes, dtype)
    lead = _arrays.lead_shape(x.shape, axes)
    values = empty(math.prod(lead), dtype)
    if x.size:
        over_rows(_lse.of(dtype, n_classes), (rows, values, n_classes), rows.shape)
    else:
        values.fill(-np.inf)
    shape = tuple(1 if k in axes else s for k, s in enumerate(x.shape)) if keepdims else lead
    return _arrays.cast(values, x.dtype).reshape(shape)[()]


def _backward_as_it_lies(name: str, grad: Any, result: Any, axis: Any, out: Any) -> Array | None:
    """What `_as_it_lies` is for the backward passes."""
    if not (
        type(grad) is type(result) is ndarray and (shape := grad.shape) == result.shape and (size := grad.size) and shape
        and (out is None or (_arrays.apart(grad, out) and _arrays.apart(result, out)))
    ):  # fmt: skip
        return None
    inner = 1 if axis is None or axis is _LAST else _side_by_side(shape, axis)
    if not inner:
        return None
    kernel = KERNELS[name if inner == 1 else name + "_columns"].latest(dtype := grad.dtype)
    if kernel is None:
        return None
    n_classes, grad_logits = size if axis is None else shape[axis], empty(shape, dtype) if out is None else out
    try:
        if inner > 1:
            down_columns(name, (grad, result, grad_logits), n_classes, inner)
        else:
            streaming = size > SMALL and streams_once(grad_logits, n_classes, 3) and out is not grad and out is not result
            arguments, shape = (grad, result, grad_logits, n_classes, streaming), (size // n_classes, n_classes)
            over_rows(kernel, arguments, shape, cost=LIGHT_COST)
    except TypeError:  # of two dtypes, not C-contiguous, not aligned, ...
        return None
    return grad_logits


def _backward(name: str, grad: ArrayLike, result: ArrayLike, axis: Any, out: Any, names: tuple[str, str]) -> Array:
    g, y = _arrays.floats(grad, names[0]), _arrays.floats(result, names[1])
    _arrays.same_shape(g, y, " and ".join(names))
    axes = _arrays.axes_of(axis, y.ndim)
    n_classes = _arrays.classes_along(y.shape, axes, names[1])
    dtype_out = _arrays.common_dtype(g, y)
    grad_logits = _arrays.result_array(out, y.shape, dtype_out)
    if y.size == 0:
        return grad_logits
    dtype = COMPUTED_IN[dtype_out]
    if all(_arrays.is_columns(a, axes, dtype) for a in (g, y, grad_logits)) and (
        out is None or _arrays.safe_to_fill(grad_logits, g, y)
    ):
        inner = math.prod(y.shape[axes[0] + 1 :])
        down_columns(name, (g, y, grad_logits), n_classes, inner)
        return grad_logits
    g_rows, y_rows = (to_rows(a, axes, n_classes, dtype) for a in (g, y))
    direct = _arrays.is_rows(grad_logits, axes, dtype) and (
        out is None or _arrays.safe_to_fill(grad_logits, g_rows, y_rows)
    )
    target = grad_logits.reshape(y_rows.shape) if direct else np.empty_like(y_rows)
    streaming = streams_once(target, n_classes, 3) and not _arrays.overlaps(target, g_rows, y_rows)
    over_rows(KERNELS[name][dtype], (g_rows, y_rows, target, n_classes, streaming), y_rows.shape, cost=LIGHT_COST)
    if not direct:
        fill_from_rows(grad_logits, target, axes)
    return grad_logits


def softmax_backward(
    grad_probs: ArrayLike, probs: ArrayLike, axis: int | tuple[int, ...] | None = -1, *, out: Array | None = None
) -> Array:
    r"""Gradient of a loss for the logits, from its gradient for the probabilities: ``p * (g - sum(g * p))``.

    This is the vector-Jacobian product: the Jacobian ``diag(p) - p p^T``, (n_classes, n_classes) for every row, is never
    built. (Flattened over a batch it would be (n_rows * n_classes)^2, the shapes people find not to align.)

    Parameters
    ----------
    grad_probs, probs : array_like of one shape
        d(loss)/d(probs), and the result of `softmax`.
    axis : int, tuple of int, or None; default: -1
        The axis given to `softmax`.
    out : ndarray, optional
        Where to put the result; may be either input.

    Returns
    -------
    ndarray
        d(loss)/d(logits), of probs' shape.

    Raises
    ------
    TypeError, ValueError
        As `softmax`; also if the two shapes differ.

    Examples
    --------
    >>> from fastsoftmax import softmax, softmax_backward
    >>> p = softmax([[0.0, 0.0]])
    >>> softmax_backward([[1.0, 0.0]], p)
    array([[ 0.25, -0.25]])
    """
    if (grad_logits := _softmax_backward.small(grad_probs, probs, axis, out)) is not None:
        return grad_logits
    if (grad_logits := _softmax_backward_down.small(grad_probs, probs, axis, out)) is not None:
        return grad_logits
    if (grad_logits := _backward_as_it_lies("softmax_backward", grad_probs, probs, axis, out)) is not None:
        return grad_logits
    return _backward("softmax_backward", grad_probs, probs, axis, out, ("grad_probs", "probs"))


def log_softmax_backward(
    grad_log_probs: ArrayLike, log_probs: ArrayLike, axis: int | tuple[int, ...] | None = -1, *, out: Array | None = None
) -> Array:
    r"""Gradient for the logits from the gradient for the log-probabilities: ``g - exp(log_probs) * sum(g)``.

    Parameters
    ----------
    grad_log_probs, log_probs : array_like of one shape
        d(loss)/d(log_probs), and the result of `log_softmax`.
    axis : int, tuple of int, or None; default: -1
    out : ndarray, optional
        As for `softmax_backward`.

    Returns
    -------
    ndarray
        d(loss)/d(logits), of log_probs' shape.

    Raises
    ------
    TypeError, ValueError
        As `softmax_backward`.

    Examples
    --------
    >>> from fastsoftmax import log_softmax, log_softmax_backward
    >>> log_softmax_backward([[1.0, 0.0]], log_softmax([[0.0, 0.0]]))
    array([[ 0.5, -0.5]])
    """
    if (grad_logits := _log_softmax_backward.small(grad_log_probs, log_probs, axis, out)) is not None:
        return grad_logits
    if (grad_logits := _log_softmax_backward_down.small(grad_log_probs, log_probs, axis, out)) is not None:
        return grad_logits
    if (grad_logits := _backward_as_it_lies("log_softmax_backward", grad_log_probs, log_probs, axis, out)) is not None:
        return grad_logits
    return _backward("log_softmax_backward", grad_log_probs, log_probs, axis, out, ("grad_log_probs", "log_probs"))


# ---- cross-entropy ----------------------------------------------------------------------------------------------------
class _Loss(NamedTuple):
    """The checked arguments of a cross-entropy, as kernels take them."""

    labels: Array
    probs: Array
    class_weight: Array
    sample_weight: Array
    ignore_index: int
    smoothing: float
    reduction: str
    denominator: float
    lead: tuple[int, ...]


def _loss_arguments(
    targets: ArrayLike, shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any, class_weight: ArrayLike | None,
    sample_weight: ArrayLike | None, ignore_index: int, label_smoothing: float, reduction: str,
) -> _Loss:  # fmt: skip
    """Check everything that is not logits, and find what the mean divides by."""
    ignore_index = _arrays.integer(ignore_index, "ignore_index")
    labels, probs, ignore = _arrays.targets_of(targets, shape, axes, dtype, ignore_index)
    lead = _arrays.lead_shape(shape, axes)
    n_classes = _arrays.classes_along(shape, axes, "logits")
    reduction = _arrays.reduction_of(reduction)
    by_class = _arrays.weights(class_weight, (n_classes,), "class_weight")
    by_row = _arrays.weights(sample_weight, lead, "sample_weight")
    smoothing = _arrays.smoothing(label_smoothing)
    if probs.size:
        denominator = _weight_of_rows(len(probs), by_row)
    else:
        bad, denominator = _check_targets[FLOAT64](labels, n_classes, ignore, by_class, by_row, False)
        if bad >= 0:
            _arrays.bad_label(targets, bad, n_classes, ignore_index)
    return _Loss(labels, probs, by_class, by_row, ignore, smoothing, reduction, denominator, lead)


def _plain_loss(
    shape: tuple[int, ...], soft: Any, targets: Any, class_weight: Any, sample_weight: Any, ignore_index: Any,
    label_smoothing: Any, reduction: Any,
) -> tuple[Array, Array | None, Array, Array, float] | None:  # fmt: skip
    """Labels, probabilities, weights and what the mean divides by, where kernels take them as they are but for their types.

    None elsewhere. Probabilities are made `soft`, a dtype; there are none if that is None. A call on 1 x 10 is all overhead:
    its loss, summed, takes 1.9 us if what it is given is looked at in this order, options left out being known by identity,
    and 18 the long way, as arrays of three dimensions; one-hot rows of 8 x 10 take 5, and 21.
    """
    if (
        type(targets) is ndarray
        and (class_weight is None or (type(class_weight) is ndarray and class_weight.shape == shape[-1:]))
        and (sample_weight is None or (type(sample_weight) is ndarray and sample_weight.shape == shape[:-1]))
        and (label_smoothing is _SHARP or (type(label_smoothing) is float and 0.0 <= label_smoothing <= 1.0))
        and (ignore_index is IGNORED or (type(ignore_index) is int and -(2**63) <= ignore_index < 2**63))
        and type(reduction) is str and reduction in _arrays.REDUCTIONS
    ):  # fmt: skip
        by_class = NOTHING if class_weight is None else _doubles(class_weight)
        by_row = NOTHING if sample_weight is None else _doubles(sample_weight)
        try:
            if targets.shape == shape[:-1] and ((kind := targets.dtype) == _INT64 or kind in _INTEGERS):
                labels, probs = targets if kind == _INT64 else targets.astype(_INT64), None
                bad, denominator = _check_targets[FLOAT64](labels, shape[-1], ignore_index, by_class, by_row, 0)
                if bad >= 0:
                    _arrays.bad_label(targets, bad, shape[-1], ignore_index)
            elif soft is not None and targets.shape == shape and targets.dtype in _NONE and targets.size:
                labels, probs = NO_LABELS, _arrays.contiguous(targets, soft)
                denominator = _weight_of_rows(shape[0], by_row)
            else:
                return None
        except TypeError:  # not C-contiguous, not aligned, weights that are no float64
            return None
        return labels, probs, by_class, by_row, denominator
    return None


def _doubles(weight: Array) -> Array:
    """Weights as kernels take them, if they are float32 (class weights of 8 x 10 logits: 38 -> 5.5 us)."""
    return weight.astype(FLOAT64) if weight.dtype == _arrays.FLOAT32 else weight


def _weight_of_rows(n_rows: int, by_row: Array) -> float:
    """What the mean divides by where targets are probabilities."""
    return _check_targets[FLOAT64](np.zeros(n_rows, np.int64), 1, -1, NOTHING, by_row, 0)[1] if by_row.size else float(n_rows)


def _is_down(shape: tuple[int, ...], axis: Any, class_weight: Any, sample_weight: Any, label_smoothing: Any) -> bool:
    """Whether kernels take the losses of labels down the columns of such a matrix (10 x 8192, float32: 91 -> 42 us)."""
    return (
        axis is _FIRST and shape[0] < NARROW
        and class_weight is None and sample_weight is None and label_smoothing is _SHARP
    )  # fmt: skip


def _turned(logits: Any, targets: Any, axis: Any) -> tuple[Array, Array] | None:
    """Logits and targets as rows, where logits are to be turned (10 x 5, float32, weighted, with gradient: 35 -> 11 us)."""
    if not _is_to_be_turned(logits, axis) or type(targets) is not ndarray:
        return None
    if targets.shape != logits.shape[1:] and targets.shape != logits.shape:
        return None
    return logits.T.copy(), targets.T.copy()


def _flattened(logits: Any, targets: Any, axis: Any, by_row: Any) -> tuple[Array, Array, Array | None, Any] | None:
    """Logits, targets and weights of rows as those of a matrix, where there are more dimensions and all fits; logits' shape."""
    if (
        type(logits) is type(targets) is ndarray and logits.ndim > 2 and type(axis) is int and axis in (-1, logits.ndim - 1)
        and logits.size and logits.dtype in _NONE and targets.shape in (logits.shape[:-1], logits.shape)
        and (by_row is None or (type(by_row) is ndarray and by_row.shape == logits.shape[:-1]))
    ):  # fmt: skip
        rows = logits.reshape(-1, logits.shape[-1])
        labels = targets.reshape(rows.shape if targets.ndim == logits.ndim else -1)
        return rows, labels, None if by_row is None else by_row.reshape(-1), logits.shape
    return None


def _loss_of(
    plain: tuple[Array, Array | None, Array, Array, float], dtype: Any, ignore_index: int, smoothing: float, reduction: str
) -> _Loss:  # fmt: skip
    """What `_loss_arguments` gives, of targets and weights as kernels take them (smoothed, 128 x 10, float32: 16 -> 5 us)."""
    labels, probs, by_class, by_row, denominator = plain
    lead = labels.shape if probs is None else probs.shape[:1]
    probs = _NONE[dtype] if probs is None else probs
    return _Loss(labels, probs, by_class, by_row, ignore_index, smoothing, reduction, denominator, lead)


def _loss_problem(
    logits: ArrayLike, targets: ArrayLike, axis: Any, *options: Any
) -> tuple[Array, Array, tuple[int, ...], _Loss]:
    """(logits as an array, as rows, where their classes are, everything else)"""
    x = _arrays.floats(logits, "logits")
    axes = _arrays.one_axis(axis, x.ndim)
    dtype = COMPUTED_IN[x.dtype]
    loss = _loss_arguments(targets, x.shape, axes, dtype, *options)
    return x, to_rows(x, axes, x.shape[axes[0]], dtype), axes, loss


def _losses(reduction: str, n_rows: int, dtype: Any) -> Array:
    """Where kernels put each row's loss, if they are asked for."""
    return empty(n_rows, dtype) if reduction == "none" else _NONE[dtype]


def _reduced(reduction: str, total: float, denominator: float, losses: Array) -> Any:
    if reduction == "mean":
        return total / denominator if denominator else float("nan")
    return total if reduction == "sum" else losses


def _reduced_as(loss: _Loss, total: float, losses: Array, dtype: Any) -> Any:
    if loss.reduction == "none":
        losses = _arrays.cast(losses, dtype).reshape(loss.lead)[()]
    return _reduced(loss.reduction, total, loss.denominator, losses)


def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = IGNORED, label_smoothing: float = _SHARP,
    reduction: Reduction = "mean",
) -> Any:  # fmt: skip
    r"""Softmax cross-entropy from logits: per row ``log1p(sum of the other exp(z - max z)) - (z_target - max z)``.

    Never from probabilities (log(0)), never as ``logsumexp(z) - z_target`` (which cancels): a confident row has its loss of
    1e-20, not 0, and a hopeless one its loss of 800, not inf.

    Parameters
    ----------
    logits : array_like
        Any shape with at least one dimension; (n_rows, n_classes) as a rule.
    targets : array_like
        Class indices of any integer type, of logits' shape without `axis`; or probabilities (one-hot rows among them) of
        logits' shape.
    axis : int, default: -1
        Where the classes are.
    class_weight : array_like (n_classes,), optional
        Factor for each class, as torch's `weight`.
    sample_weight : array_like, optional
        Factor for each row, of logits' shape without `axis`.
    ignore_index : int, default: -100
        Rows with this index contribute exactly 0 to loss and gradient, even if they hold NaN. Not for probabilities.
    label_smoothing : float in [0, 1], default: 0.0
        e: the target becomes ``(1 - e) * target + e / n_classes``.
    reduction : "mean", "sum" or "none"; default: "mean"
        "mean" divides by the sum of the rows' weights, ``class_weight[target] * sample_weight`` (for probabilities: by the
        sum of `sample_weight`); the mean over nothing is NaN, as in torch.

    Returns
    -------
    float, or ndarray for "none"
        In nats. Reduced losses are summed in float64 in a fixed order; per-row losses have logits' dtype and `targets`' shape.

    Raises
    ------
    TypeError, ValueError
        For dtypes, shapes or options that do not fit; before anything is written.
    IndexError
        For a label that is neither a class nor `ignore_index`: names the row.

    Notes
    -----
    The definitions of weights, smoothing and means are torch.nn.functional.cross_entropy's.

    Examples
    --------
    >>> from fastsoftmax import cross_entropy
    >>> cross_entropy([[0.0, 50.0]], [1])
    1.928749847963918e-22
    """
    if (
        class_weight is None and sample_weight is None and label_smoothing is _SHARP and ignore_index is IGNORED
        and reduction is _MEAN
        and ((value := _mean.small(logits, targets, axis)) is not None
             or (value := _small(_mean, logits, targets, axis)) is not None)
    ):  # fmt: skip
        return value
    if axis is _SECOND and type(logits) is ndarray and logits.ndim == 2:
        axis = _LAST
    if (
        type(logits) is ndarray and (dtype := logits.dtype) in _NONE and len(shape := logits.shape) == 2
        and (size := logits.size)
        and (axis is _LAST or (
            _is_down(shape, axis, class_weight, sample_weight, label_smoothing) and (shape := shape[::-1])
        ))
        and (plain := _plain_loss(
            shape, dtype if axis is _LAST else None, targets, class_weight, sample_weight, ignore_index, label_smoothing,
            reduction,
        )) is not None
    ):  # fmt: skip
        labels, probs, by_class, by_row, denominator = plain
        losses = empty(shape[0], dtype) if reduction == "none" else _NONE[dtype]
        try:
            if label_smoothing or probs is not None:
                loss = _loss_of(plain, dtype, ignore_index, label_smoothing, reduction)
                total = _total_loss(logits, loss, losses)
            else:
                kernel = (_loss if axis is _LAST else _loss_down).of(dtype, shape[1])
                given = logits, labels, by_class, by_row, ignore_index, losses
                total = kernel(*given, 0, shape[0], 0) if size <= SMALL else sum_over_rows(kernel, given, shape)
            return _reduced(reduction, total, denominator, losses)
        except TypeError:  # not C-contiguous, not aligned
            pass
    if (flat := _flattened(logits, targets, axis, sample_weight)) is not None:  # 2 x 4 x 10, float32: 18 -> 4.3 us
        with contextlib.suppress(IndexError):  # its place in the array is told below
            loss = cross_entropy(
                *flat[:2], class_weight=class_weight, sample_weight=flat[2], ignore_index=ignore_index,
                label_smoothing=label_smoothing, reduction=reduction,
            )  # fmt: skip
            return loss.reshape(flat[3][:-1]) if reduction == "none" else loss
    if (rows_of := _turned(logits, targets, axis)) is not None:
        return cross_entropy(
            *rows_of, class_weight=class_weight, sample_weight=sample_weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction,
        )  # fmt: skip
    options = class_weight, sample_weight, ignore_index, label_smoothing, reduction
    x, rows, _, loss = _loss_problem(logits, targets, axis, *options)
    losses = _losses(reduction, len(rows), rows.dtype)
    return _reduced_as(loss, _total_loss(rows, loss, losses) if rows.size else 0.0, losses, x.dtype)


def _total_loss(rows: Array, loss: _Loss, losses: Array) -> float:
    labels, probs, by_class, by_row, ignore_index, smoothing, *_ = loss
    arguments: tuple[Any, ...] = (by_class, by_row, ignore_index, losses)
    if probs.size or smoothing:
        kernel = KERNELS["soft_cross_entropy"][rows.dtype]
        return sum_over_rows(kernel, (rows, labels, probs, smoothing, *arguments), rows.shape, SOFT_COST)
    return sum_over_rows(_loss.of(rows.dtype, rows.shape[1]), (rows, labels, *arguments), rows.shape)


def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, *, axis: int = -1, class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = IGNORED, label_smoothing: float = _SHARP,
    reduction: Reduction = "mean", grad_loss: ArrayLike | None = None, out: Array | None = None,
) -> tuple[Any, Array]:  # fmt: skip
    r"""The loss of `cross_entropy` and its gradient for the logits, in one pass over the logits.

    ``grad = weight * (softmax(z) - target) * grad_loss / divisor``, with the same weights and divisor as the loss, so the
    1/n of the mean is in it, once. At the target it is computed as minus the other classes' share, never as ``p - 1``: it does
    not die when the model is confident.

    Parameters
    ----------
    logits : array_like
    targets : array_like
    axis : int, default: -1
    class_weight : array_like (n_classes,), optional
    sample_weight : array_like, optional
    ignore_index : int, default: -100
    label_smoothing : float in [0, 1], default: 0.0
    reduction : "mean", "sum" or "none"; default: "mean"
        As for `cross_entropy`.
    grad_loss : float, or array_like of one factor a row for reduction "none"; optional
        d(objective)/d(loss), multiplied into the gradient; 1 if not given.
    out : ndarray, optional
        Where to put the gradient; may be `logits` itself.

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy`.
    grad_logits : ndarray
        Of logits' shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`; nothing is written then.

    Notes
    -----
    Where a model agrees with probabilities or smoothed labels the gradient all but cancels. It keeps its digits: float32 is
    computed in float64 there, float64 in twice its precision, which takes 2 to 3 and 2 to 5 times as long as plain labels.

    Examples
    --------
    >>> from fastsoftmax import cross_entropy_with_grad
    >>> loss, grad = cross_entropy_with_grad([[0.0, 50.0]], [1])
    >>> grad
    array([[ 1.92874985e-22, -1.92874985e-22]])
    """
    if (
        class_weight is None and sample_weight is None and grad_loss is None and label_smoothing is _SHARP
        and ignore_index is IGNORED and reduction is _MEAN
        and ((result := _mean_and_gradient.small(logits, targets, axis, out)) is not None
             or (result := _small(_mean_and_gradient, logits, targets, axis, out)) is not None)
    ):  # fmt: skip
        return result
    if axis is _SECOND and type(logits) is ndarray and logits.ndim == 2:
        axis = _LAST
    if (
        type(logits) is ndarray and (dtype := logits.dtype) in _NONE
        and len(shape := logits.shape) == 2 and logits.size
        and (axis is _LAST or (
            _is_down(shape, axis, class_weight, sample_weight, label_smoothing) and (shape := shape[::-1])
        ))
        and (plain := _plain_loss(
            shape, dtype if axis is _LAST else None, targets, class_weight, sample_weight, ignore_index, label_smoothing,
            reduction,
        )) is not None
        and (factors := _arrays.grad_losses(grad_loss, shape[:1], reduction))
        and (out is None or (_arrays.apart(logits, out) and not _arrays.overlaps(out, *plain[:4], factors[1])))
    ):  # fmt: skip
        losses = empty(shape[0], dtype) if reduction == "none" else _NONE[dtype]
        grad = empty(logits.shape, dtype) if out is None else out
        labels, probs, by_class, by_row, denominator = plain
        divisor = denominator if reduction == "mean" else 1.0
        try:
            if label_smoothing or probs is not None:
                loss = _loss_of(plain, dtype, ignore_index, label_smoothing, reduction)
                total = _fill_gradient(logits, loss, *factors, losses, grad)
            else:
                given = logits, labels, by_class, by_row, ignore_index, *factors[::-1], divisor, losses, grad
                if axis is _LAST:
                    streaming = streams(grad, shape[1]) and grad is not logits
                    total = sum_over_rows(_gradient.of(dtype, shape[1]), (*given, streaming), shape)
                else:
                    total = sum_over_rows(_gradient_down[dtype], given, shape)
            return _reduced(reduction, total, denominator, losses), grad
        except TypeError:  # not C-contiguous, not aligned, an `out` that does not fit
            pass
    if (
        (grad_loss is None or type(grad_loss) is float)
        and (flat := _flattened(logits, targets, axis, sample_weight)) is not None
        and (out is None or _arrays.as_they_are((out,), flat[3:], flat[0].dtype))
    ):  # fmt: skip
        rows, labels, weights, shape = flat
        grad = empty(shape, rows.dtype) if out is None else out
        with contextlib.suppress(IndexError):  # its place in the array is told below
            value, _ = cross_entropy_with_grad(
                rows, labels, class_weight=class_weight, sample_weight=weights, ignore_index=ignore_index,
                label_smoothing=label_smoothing, reduction=reduction, grad_loss=grad_loss,
                out=rows if out is logits else grad.reshape(rows.shape),
            )  # fmt: skip
            return value.reshape(shape[:-1]) if reduction == "none" else value, grad
    if out is None and (rows_of := _turned(logits, targets, axis)) is not None:
        value, grad = cross_entropy_with_grad(
            *rows_of, class_weight=class_weight, sample_weight=sample_weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, reduction=reduction, grad_loss=grad_loss,
        )  # fmt: skip
        return value, grad.T.copy()
    options = class_weight, sample_weight, ignore_index, label_smoothing, reduction
    x, rows, axes, loss = _loss_problem(logits, targets, axis, *options)
    dtype = rows.dtype
    scale, by_row = _arrays.grad_losses(grad_loss, loss.lead, loss.reduction)
    grad = _arrays.result_array(out, x.shape, x.dtype)
    losses = _losses(loss.reduction, len(rows), dtype)
    total = 0.0
    if rows.size:
        direct = _arrays.is_rows(grad, axes, dtype) and (
            out is None
            or _arrays.safe_to_fill(grad, rows, loss.probs, loss.class_weight, loss.sample_weight, loss.labels, by_row)
        )
        target = grad.reshape(rows.shape) if direct else np.empty_like(rows)
        total = _fill_gradient(rows, loss, scale, by_row, losses, target)
        if not direct:
            fill_from_rows(grad, target, axes)
    return _reduced_as(loss, total, losses, x.dtype), grad


def _fill_gradient(rows: Array, loss: _Loss, scale: float, by_row: Array, losses: Array, grad: Array) -> float:
    labels, probs, by_class, by_sample, ignore_index, smoothing, reduction, denominator, _ = loss
    if reduction != "mean":
        denominator = 1.0
    arguments: tuple[Any, ...] = (by_class, by_sample, ignore_index, by_row, scale, denominator, losses, grad)
    if probs.size or smoothing:
        kernel = KERNELS["soft_cross_entropy_with_grad"][rows.dtype]
        return sum_over_rows(kernel, (rows, labels, probs, smoothing, *arguments), rows.shape, SOFT_COST)
    streaming = streams(grad, rows.shape[1]) and not np.may_share_memory(grad, rows)
    return sum_over_rows(_gradient.of(rows.dtype, rows.shape[1]), (rows, labels, *arguments, streaming), rows.shape)


def cross_entropy_grad_hess(
    logits: ArrayLike, targets: ArrayLike, *, sample_weight: ArrayLike | None = None, hessian_scale: float = 1.0
) -> tuple[Array, Array]:
    r"""Gradient and diagonal of the Hessian of the summed cross-entropy: what boosting libraries ask of an objective.

    ``grad = w * (p - target)`` and ``diag_hess = hessian_scale * w * p * (1 - p)``, p the softmax of a row, w its weight;
    1 - p is taken as the share of the other classes.

    Parameters
    ----------
    logits : array_like (..., n_classes)
    targets : array_like
        Class indices or probabilities, as for `cross_entropy`.
    sample_weight : array_like, optional
        One factor a row.
    hessian_scale : float, default: 1.0
        XGBoost multiplies by 2, LightGBM by n_classes / (n_classes - 1), scikit-learn by 1.

    Returns
    -------
    grad, diag_hess : ndarray
        Of logits' shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    Examples
    --------
    >>> from fastsoftmax import cross_entropy_grad_hess
    >>> cross_entropy_grad_hess([[0.0, 0.0]], [1])
    (array([[ 0.5, -0.5]]), array([[0.25, 0.25]]))
    """
    factor = _arrays.real(hessian_scale, "hessian_scale")
    x = _arrays.floats(logits, "logits")
    _, grad = cross_entropy_with_grad(x, targets, sample_weight=sample_weight, reduction="sum")
    axes = _arrays.one_axis(-1, x.ndim)
    dtype = COMPUTED_IN[x.dtype]
    rows = to_rows(x, axes, x.shape[-1], dtype)
    by_row = _arrays.weights(sample_weight, x.shape[:-1], "sample_weight")
    hess = np.empty_like(rows)
    if rows.size:
        over_rows(KERNELS["softmax_hessian"][dtype], (rows, by_row, factor, hess), rows.shape)
    return grad, _arrays.cast(hess, x.dtype).reshape(x.shape)


# ---- products ----------------------------------------------------------------------------------------------------------
def affine(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, out: Array | None = None) -> Array:
    r"""``x @ weight + bias``: the scores of a linear layer.

    Parameters
    ----------
    x : array_like (..., n_in)
    weight : array_like (n_in, n_out)
    bias : array_like (n_out,), optional
    out : ndarray (..., n_out), optional
        Where to put the result; must not share memory with the inputs.

    Returns
    -------
    ndarray (..., n_out)

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit.

    Notes
    -----
    No BLAS is called. Sums have one order, which depends on the shapes alone: not on the number of threads, nor, with FMA, on
    the processor.

    Examples
    --------
    >>> from fastsoftmax import affine
    >>> affine([[1.0, 2.0]], [[1.0], [10.0]], [0.5])
    array([[21.5]])
    """
    if (
        (scores := _layer.small(x, weight, bias, out)) is not None
        or (scores := _small(_layer, x, weight, bias, out)) is not None
    ):  # fmt: skip
        return scores
    if plain := _plain_layer(x, weight, bias, out):
        a, w, b, rows = plain
        if rows is None or (rows.flags.writeable and not _arrays.overlaps(rows, a, w, b)):
            scores = empty((*np.shape(x)[:-1], w.shape[1]), a.dtype) if out is None else out
            _affine.affine(a, w, b, _as_rows(scores) if rows is None else rows)
            return scores
    x, weight, b = _affine_inputs(x, weight, bias)
    dtype = _arrays.common_dtype(x, weight)
    result = _arrays.result_array(out, x.shape[:-1] + weight.shape[1:], dtype)
    if result.size:
        rows, w, b = _as_matrices(COMPUTED_IN[dtype], x, weight, b)
        target = _arrays.direct(result, rows.dtype, rows, w, b)
        _affine.affine(rows, w, b, target.reshape(len(rows), w.shape[1]))
        if target is not result:
            _arrays.fill(result, target)
    return result


def _plain_layer(x: Any, weight: Any, bias: Any, out: Any) -> tuple[Array, Array, Array | None, Array | None] | None:
    """The arguments if nothing needs converting: all float32 or float64, not empty, C-contiguous, aligned, of shapes that fit.

    x and `out` as matrices. Small products are all overhead (1 x 784 x 100: 4.2 us, 11.4 without this).
    """
    if (
        type(x) is ndarray and type(weight) is ndarray and x.dtype in _NONE and weight.dtype is x.dtype
        and weight.ndim == 2 and x.shape[-1:] == weight.shape[:1] and x.size and weight.size
        and x.flags.num & weight.flags.num & 0x101 == 0x101
        and (bias is None or (
            type(bias) is ndarray and bias.dtype is x.dtype and bias.shape == weight.shape[1:]
            and bias.flags.num & 0x101 == 0x101
        ))
        and (out is None or (
            type(out) is ndarray and out.dtype is x.dtype and out.shape == (*x.shape[:-1], weight.shape[1])
            and out.flags.num & 0x101 == 0x101
        ))
    ):  # fmt: skip
        return _as_rows(x), weight, bias, None if out is None else _as_rows(out)
    return None


def _as_rows(a: Array) -> Array:
    """A C-contiguous array as a matrix of its rows, in the same memory."""
    return a if a.ndim == 2 else a.reshape(-1, a.shape[-1])


def _as_matrices(dtype: Any, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
    """As kernels take them: x as a matrix, all C-contiguous and of one dtype."""
    rows = _arrays.contiguous(x, dtype).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    b = None if bias is None else _arrays.contiguous(bias, dtype)
    return rows, _arrays.contiguous(weight, dtype), b


def _affine_inputs(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None) -> tuple[Array, Array, Array | None]:
    a, w = _arrays.floats(x, "x"), _arrays.floats(weight, "weight")
    b = None if bias is None else _arrays.floats(bias, "bias")
    _arrays.affine_shapes(a, w, b)
    return a, w, b


def affine_backward(
    grad_out: ArrayLike, x: ArrayLike, weight: ArrayLike, *, need_grad_x: bool = True,
    out: tuple[Array | None, Array | None, Array | None] | None = None,
) -> tuple[Array | None, Array, Array]:  # fmt: skip
    r"""Gradients of a linear layer: ``grad_out @ weight.T``, ``x.T @ grad_out``, and grad_out summed over the rows.

    Nothing is divided by the number of rows: that belongs to the loss (see `cross_entropy_with_grad`), once.

    Parameters
    ----------
    grad_out : array_like (..., n_out)
        d(loss)/d(affine(x, weight, bias)).
    x : array_like (..., n_in)
    weight : array_like (n_in, n_out)
    need_grad_x : bool, default: True
        False for a first layer: saves half of the work.
    out : tuple of three ndarrays, optional
        Where to put grad_x, grad_weight and grad_bias; None for a new array, and for a grad_x that is not needed. They must
        not share memory with each other.

    Returns
    -------
    grad_x : ndarray (..., n_in), or None
    grad_weight : ndarray (n_in, n_out)
    grad_bias : ndarray (n_out,)

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit.

    Notes
    -----
    Sums have one order, as `affine`'s have. With more than 10 outputs, grad_x of 3 rows at most has one of its own.

    Examples
    --------
    >>> from fastsoftmax import affine_backward
    >>> grad_x, grad_weight, grad_bias = affine_backward([[1.0]], [[1.0, 2.0]], [[3.0], [4.0]])
    >>> grad_x, grad_weight, grad_bias
    (array([[3., 4.]]), array([[1.],
           [2.]]), array([1.]))
    """
    if (
        (gradients := _layer_backward.small(grad_out, x, weight, need_grad_x, out)) is not None
        or (gradients := _small(_layer_backward, grad_out, x, weight, need_grad_x, out)) is not None
    ):  # fmt: skip
        return gradients
    if (plain := _plain_layer(x, weight, None, grad_out)) and (g := plain[3]) is not None:
        a, w = plain[:2]
        shapes = np.shape(x) if need_grad_x else None, w.shape, w.shape[1:]
        if out is None or _arrays.as_they_are(out, shapes, a.dtype, g, a, w):
            made: Any = out or [None if shape is None else empty(shape, a.dtype) for shape in shapes]
            grad_x, grad_weight, grad_bias = made
            _affine.affine_backward(g, a, w, None if grad_x is None else _as_rows(grad_x), grad_weight, grad_bias)
            return grad_x, grad_weight, grad_bias
    x, weight, _ = _affine_inputs(x, weight, None)
    g = _arrays.floats(grad_out, "grad_out")
    _arrays.grad_out_shape(g, x, weight)
    dtype = _arrays.common_dtype(g, x, weight)
    rows, w, _ = _as_matrices(COMPUTED_IN[dtype], x, weight, None)
    g_rows = _arrays.contiguous(g, rows.dtype).reshape(len(rows), w.shape[1])
    results = _arrays.result_arrays(out, (x.shape if need_grad_x else None, w.shape, w.shape[1:]), dtype)
    targets: list[Any] = [r if r is None else _arrays.direct(r, rows.dtype, g_rows, rows, w) for r in results]
    grad_x = None if targets[0] is None else targets[0].reshape(rows.shape)
    _affine.affine_backward(g_rows, rows, w, grad_x, targets[1], targets[2])
    for result, target in zip(results, targets):
        if target is not result:
            _arrays.fill(result, target)
    return results[0], results[1], results[2]


def relu(x: ArrayLike, *, out: Array | None = None) -> Array:
    r"""``max(x, 0)``; NaN stays NaN.

    Parameters
    ----------
    x : array_like, any shape
    out : ndarray, optional
        Where to put the result; may be `x` itself.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        For dtypes and an `out` that do not fit.

    Examples
    --------
    >>> from fastsoftmax import relu
    >>> relu([-1.0, 2.0])
    array([0., 2.])
    """
    if (result := _relu.small(x, out)) is not None or (result := _small(_relu, x, out)) is not None:
        return result
    a = _arrays.floats(x, "x")
    return _elementwise("relu", (a,), _arrays.result_array(out, a.shape, a.dtype))


def relu_backward(grad_out: ArrayLike, x: ArrayLike, *, out: Array | None = None) -> Array:
    r"""Gradient of `relu`: `grad_out` where ``x > 0``, else 0.

    Parameters
    ----------
    grad_out, x : array_like of one shape
        `x` may be relu's input or its output.
    out : ndarray, optional
        Where to put the result; may be either input.

    Returns
    -------
    ndarray
        d(loss)/d(x).

    Raises
    ------
    TypeError, ValueError
        For dtypes, shapes and an `out` that do not fit.

    Examples
    --------
    >>> from fastsoftmax import relu_backward
    >>> relu_backward([10.0, 10.0], [-1.0, 2.0])
    array([ 0., 10.])
    """
    if (
        (grad_x := _relu_backward.small(grad_out, x, out)) is not None
        or (grad_x := _small(_relu_backward, grad_out, x, out)) is not None
    ):  # fmt: skip
        return grad_x
    g, a = _arrays.floats(grad_out, "grad_out"), _arrays.floats(x, "x")
    _arrays.same_shape(g, a, "grad_out and x")
    dtype = _arrays.common_dtype(g, a)
    return _elementwise("relu_backward", (g, a), _arrays.result_array(out, a.shape, dtype))


def _elementwise(name: str, inputs: tuple[Array, ...], result: Array) -> Array:
    dtype = COMPUTED_IN[result.dtype]
    flat = [_arrays.contiguous(a, dtype).reshape(-1) for a in inputs]
    whole = (0,) if result.ndim == 0 else tuple(range(result.ndim))
    direct = result.ndim > 0 and _arrays.is_rows(result, whole, dtype)
    direct = direct and all(_arrays.safe_to_fill(result.reshape(-1), a) for a in flat)
    target = result.reshape(-1) if direct else empty(result.size, dtype)
    over_rows(KERNELS[name][dtype], (*flat, target), (result.size, 1), SMALL, cost=LIGHT_COST)
    if not direct:
        _arrays.fill(result, target.reshape(result.shape))
    return result


# ---- the classifier head -------------------------------------------------------------------------------------------------
def linear_cross_entropy(
    x: ArrayLike, weight: ArrayLike, targets: ArrayLike, bias: ArrayLike | None = None, *,
    class_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, reduction: Reduction = "mean",
) -> Any:  # fmt: skip
    r"""``cross_entropy(x @ weight + bias, targets, ...)``, block by block: the logits are never stored whole.

    Parameters
    ----------
    x : array_like (n_rows, n_in)
    weight : array_like (n_in, n_classes)
    targets : array_like
        Class indices (n_rows,) or probabilities (n_rows, n_classes).
    bias : array_like (n_classes,), optional
    class_weight : array_like (n_classes,), optional
    sample_weight : array_like, optional
    ignore_index : int, default: -100
    label_smoothing : float in [0, 1], default: 0.0
    reduction : "mean", "sum" or "none"; default: "mean"
        As for `cross_entropy`.

    Returns
    -------
    float, or ndarray for "none"

    Raises
    ------
    TypeError, ValueError, IndexError
        As `affine` and `cross_entropy`.

    Examples
    --------
    >>> from fastsoftmax import linear_cross_entropy
    >>> round(linear_cross_entropy([[1.0]], [[0.0, 0.0]], [1]), 6)
    0.693147
    """
    loss, _ = _head(
        x, weight, targets, bias, class_weight, sample_weight, ignore_index, label_smoothing, reduction, False, False
    )
    return loss


def linear_cross_entropy_with_grad(
    x: ArrayLike, weight: ArrayLike, targets: ArrayLike, bias: ArrayLike | None = None, *,
    class_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, reduction: Reduction = "mean", need_grad_x: bool = True,
) -> tuple[Any, tuple[Array | None, Array, Array | None]]:  # fmt: skip
    r"""The loss of `linear_cross_entropy` and its gradients for x, weight and bias, in one pass over x.

    Parameters
    ----------
    x : array_like (n_rows, n_in)
    weight : array_like (n_in, n_classes)
    targets : array_like
    bias : array_like (n_classes,), optional
    class_weight : array_like (n_classes,), optional
    sample_weight : array_like, optional
    ignore_index : int, default: -100
    label_smoothing : float in [0, 1], default: 0.0
    reduction : "mean", "sum" or "none"; default: "mean"
        As for `linear_cross_entropy`. With reduction "none" the gradients are those of the sum.
    need_grad_x : bool, default: True
        False where x is data: grad_x is then None.

    Returns
    -------
    loss : float or ndarray
    (grad_x, grad_weight, grad_bias) : ndarrays of x's, weight's and bias' shapes
        grad_bias is None if no bias was given.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `affine` and `cross_entropy`.

    Examples
    --------
    >>> from fastsoftmax import linear_cross_entropy_with_grad
    >>> loss, (grad_x, grad_weight, grad_bias) = linear_cross_entropy_with_grad([[1.0]], [[0.0, 0.0]], [1], [0.0, 0.0])
    >>> grad_weight
    array([[ 0.5, -0.5]])
    """
    loss, grads = _head(
        x, weight, targets, bias, class_weight, sample_weight, ignore_index, label_smoothing, reduction, True, need_grad_x
    )
    return loss, grads


def _head(
    x: Any, weight: Any, targets: Any, bias: Any, class_weight: Any, sample_weight: Any, ignore_index: int,
    label_smoothing: float, reduction: str, need_grads: bool, need_grad_x: bool,
) -> tuple[Any, tuple[Any, Any, Any]]:  # fmt: skip
    """(loss, gradients) of the classifier head, a block of rows at a time."""
    options = class_weight, sample_weight, ignore_index, label_smoothing, reduction
    if _plain_layer(x, weight, bias, None) and (
        plain := _plain_loss((len(x), weight.shape[1]), x.dtype, targets, *options)
    ) is not None:
        rows, w, b, dtype = x, weight, bias, x.dtype
        loss = _loss_of(plain, dtype, ignore_index, label_smoothing, reduction)
    else:
        x, weight, b = _affine_inputs(x, weight, bias)
        dtype = _arrays.common_dtype(x, weight)
        rows, w, b = _as_matrices(COMPUTED_IN[dtype], x, weight, b)
        loss = _loss_arguments(targets, x.shape[:-1] + w.shape[1:], (x.ndim - 1,), rows.dtype, *options)
    (n_rows, n_in), n_out = rows.shape, w.shape[1]
    losses = _losses(loss.reduction, n_rows, rows.dtype)
    grad_x = empty(rows.shape, rows.dtype) if need_grads and need_grad_x else None
    new = empty if n_rows else np.zeros
    grad_weight = new(w.shape, w.dtype) if need_grads else None
    grad_bias = new(n_out, w.dtype) if need_grads else None
    total = 0.0
    if n_rows and n_out and n_in and n_out <= _affine.THIN and not (loss.probs.size or loss.smoothing):
        sums = _affine.thin_head(
            rows, w, b, loss.labels, loss.class_weight, loss.sample_weight, loss.ignore_index, 1.0,
            loss.denominator if loss.reduction == "mean" else 1.0, losses, grad_x, grad_weight, grad_bias,
        )  # fmt: skip
        total = in_order(sums)
    elif n_rows and n_out:
        size = _affine.wide_head_rows(n_in, n_out, w.itemsize)
        buffer = empty((min(size, n_rows), n_out), w.dtype)
        for first in range(0, n_rows, size):
            block = slice(first, first + size)
            logits = _affine.affine(rows[block], w, b, buffer[: n_rows - first])
            some = loss._replace(
                labels=loss.labels[block], probs=loss.probs[block], sample_weight=loss.sample_weight[block]
            )
            if grad_weight is None or grad_bias is None:
                total += _total_loss(logits, some, losses[block])
                continue
            total += _fill_gradient(logits, some, 1.0, NOTHING, losses[block], logits)
            _affine.affine_grad_weight(logits, rows[block], grad_weight, grad_bias, adding=first > 0)
            if grad_x is not None:
                _affine.affine_grad_x(logits, w, grad_x[block])
    if grad_x is not None and rows is not x:
        grad_x = _arrays.cast(grad_x, dtype).reshape(x.shape)
    if dtype != rows.dtype and grad_weight is not None and grad_bias is not None:
        grad_weight, grad_bias = _arrays.cast(grad_weight, dtype), _arrays.cast(grad_bias, dtype)
    return _reduced_as(loss, total, losses, dtype), (grad_x, grad_weight, None if b is None else grad_bias)


# ---- the library itself ---------------------------------------------------------------------------------------------------
def warmup(dtypes: Iterable[Any] = ("float32", "float64")) -> None:
    """Compile every kernel, or load it from the disk cache: once half a minute to two a dtype, not seconds at first calls.

    ``python -m fastsoftmax warmup`` does the same on several processors.

    Parameters
    ----------
    dtypes : iterable of dtype
        float32, float64 or both.

    Raises
    ------
    TypeError
        For another dtype.
    """
    for dtype in dtypes:
        build_all([_arrays.kernel_dtype(dtype)])


def show_config() -> None:
    """Print versions, CPU, threads, cache folder and the BLAS that NumPy brings."""
    from . import __version__

    with contextlib.redirect_stdout(None):
        blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    kernels = environment()
    rows = {
        "fastsoftmax": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": f"{np.__version__}, BLAS {blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip(),
        "numba": f"{kernels['numba']}, llvmlite {kernels['llvmlite']}",
        "CPU": f"{_cpu_model()} (LLVM: {kernels['cpu']})",
        "threads": f"{get_num_threads()} of {os.cpu_count()} processors",
        "cache": kernels["cache"],
    }
    for name, value in rows.items():
        print(f"{name:12}{value}")


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
