"""`scipy.special`'s ``softmax``, ``log_softmax`` and ``logsumexp`` over `fastsoftmax.functional`.

Signatures, defaults (``axis=None``: the whole array), dtype rules and results' shapes are SciPy's, since 1.17. What differs
is the accuracy, the speed, and:

- an all ``-inf`` slice gives NaN without a RuntimeWarning;
- narrow and unsigned integers are converted before the maximum is subtracted (SciPy's difference wraps around);
- in ``logsumexp`` a weight of zero silences its element whatever it is, also where the result is infinite, and the
  sign of an empty sum is 0.

Real arrays in half, single and double precision go through the compiled kernels. Beyond these are complex and long
double input, and ``logsumexp`` with weights other than zeros and ones: `_weighted_logsumexp` serves them with NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import functional as F

__all__ = ["log_softmax", "logsumexp", "softmax"]

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None


def softmax(x: ArrayLike, axis: Axis = None) -> Any:
    """``exp(x) / sum(exp(x))`` over ``axis``, as `scipy.special.softmax` computes it.

    Parameters
    ----------
    x : array_like
    axis : int or tuple of ints, optional
        The axes that sum to one. By default the whole array does, as in SciPy (`fastsoftmax.softmax` normalises rows).

    Returns
    -------
    ndarray or scalar
        Shaped like ``x``. float16, float32 and float64 keep their dtype; of integers it is the dtype of ``np.exp``.

    Raises
    ------
    TypeError
        For booleans, strings and objects.
    numpy.exceptions.AxisError, ValueError
        If ``axis`` is out of range; if it names an axis twice, or has no elements.
    """
    x = _floating(x)
    if _needs_numpy(x.dtype):
        return np.exp(log_softmax(x, axis))
    return _along(F.softmax, x, axis)


def log_softmax(x: ArrayLike, axis: Axis = None) -> Any:
    """``log(softmax(x))`` over ``axis``, as `scipy.special.log_softmax` computes it; parameters as for `softmax`."""
    x = _floating(x)
    if _needs_numpy(x.dtype):
        return x - logsumexp(x, axis, keepdims=True).reshape(_kept_shape(np.shape(x), axis))
    return _along(F.log_softmax, x, axis)


def logsumexp(
    a: ArrayLike, axis: Axis = None, b: ArrayLike | None = None, keepdims: bool = False, return_sign: bool = False
) -> Any:
    """``log(sum(b * exp(a)))`` over ``axis``, as `scipy.special.logsumexp` computes it.

    Parameters
    ----------
    a : array_like
        Real or complex.
    axis : int or tuple of ints, optional
        The axes summed over; by default all.
    b : array_like, optional
        Weights, broadcast against ``a``; they may be zero (the element is left out, even if infinite or NaN),
        negative or complex. Weights of only zeros and ones, a mask, cost little.
    keepdims : bool, default False
    return_sign : bool, default False
        Return the logarithm of the sum's magnitude together with its sign, or complex phase.

    Returns
    -------
    ndarray or scalar, or two of them with ``return_sign``
        The imaginary part of a complex result lies in (-pi, pi]. Real sums below zero are NaN without ``return_sign``.
    """
    if b is None and not return_sign:
        x = np.asarray(a)
        if x.size and x.ndim and x.dtype.kind == "f" and x.dtype.char != "g":
            return _along(F.logsumexp, x, axis, keepdims=keepdims)
    a, b = _promote(a, b)
    axes = _axes(a.ndim, axis)
    rows = _merge(a, axes)
    weights = None if b is None else _merge(b, axes)
    if weights is not None and weights.dtype.kind == "f" and np.all((weights == 0) | (weights == 1)):
        rows, weights = np.where(weights == 0, -np.inf, rows), None
    if weights is None and rows.shape[-1] and not _needs_numpy(a.dtype):
        out = np.asarray(F.logsumexp(rows, axis=-1), dtype=a.dtype)
        sign = np.where(np.isnan(out), out, out > -np.inf).astype(a.dtype) if return_sign else out
    else:
        out, sign = _weighted_logsumexp(rows, weights)
        if return_sign:
            out = out.real
        elif out.dtype.kind == "f":
            out[sign < 0] = np.nan
    shape = _kept_shape(a.shape, axis) if keepdims else tuple(n for i, n in enumerate(a.shape) if i not in axes)
    out = out.reshape(shape)[()]
    return (out, sign.reshape(shape)[()]) if return_sign else out


def _weighted_logsumexp(a: Array, b: Array | None) -> tuple[Array, Array]:
    """Logarithm of ``sum(b * exp(a))`` and the sum's sign (phase) over the last axis; weights and ``a`` may be complex.

    The largest term is set apart, ``sum = b_top * exp(a_top) * (1 + ratio)``, and ``ratio``, the rest, goes through
    ``log1p``: nothing overflows, and terms far below the largest are not lost. Where that is not finite (an infinite
    element, a sum that is zero) IEEE's rules for exp, sum and log decide. The logarithm of a real sum is that of its
    magnitude.
    """
    if a.shape[-1] == 0:
        return np.full(a.shape[:-1], -np.inf, a.dtype), np.zeros(a.shape[:-1], a.dtype)
    with np.errstate(all="ignore"):
        if b is not None:
            a = np.where(b == 0, -np.inf, a).astype(a.dtype, copy=False)
        top = np.argmax(a.real, axis=-1)[..., np.newaxis]
        a_top = np.take_along_axis(a, top, axis=-1)
        rest, terms = np.exp(a - a_top), np.exp(a)
        if b is None:
            b_top = np.ones_like(a_top)
        else:  # never times 1: a complex 1 times an infinity is NaN
            b_top, rest, terms = np.take_along_axis(b, top, axis=-1), b * rest, b * terms
        np.put_along_axis(rest, top, 0, axis=-1)
        ratio = rest.sum(axis=-1, keepdims=True, dtype=a.dtype) / b_top
        total = terms.sum(axis=-1, keepdims=True, dtype=a.dtype)
        if a.dtype.kind == "c":
            out = _complex_log1p(ratio) + np.log(b_top) + a_top
            out = np.where(np.isfinite(out), out, np.log(total))
            inside = np.abs(out.imag) < np.pi
            out.imag[...] = np.where(inside, out.imag, np.pi - (np.pi - out.imag) % (2 * np.pi))
            sign = np.where(total == 0, np.isfinite(out), 1) * np.exp(1j * out.imag)
        else:
            # a ratio below -1: the rest outweighs the top with the other sign, and 1 + ratio = -(1 + (-ratio - 2))
            out = np.log1p(np.where(ratio < -1, -ratio - 2, ratio)) + np.log(np.abs(b_top)) + a_top
            sign = np.where(np.isfinite(out), np.sign(b_top) * np.sign(1 + ratio), np.sign(total))
            out = np.where(np.isfinite(out), out, np.log(np.abs(total)))
    return out[..., 0].astype(a.dtype, copy=False), sign[..., 0].astype(a.dtype, copy=False)


def _complex_log1p(z: Array) -> Array:
    """``log(1 + z)`` whose real part keeps its digits at small ``z``, which NumPy's does not."""
    x, y = z.real, z.imag
    out = np.empty_like(z)
    out.real, out.imag = np.log1p(x * (2 + x) + y * y) / 2, np.arctan2(y, 1 + x)
    return out


def _needs_numpy(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "c" or dtype.char == "g"


def _floating(x: ArrayLike) -> Array:
    """``x`` as an array, integers in the dtype ``np.exp`` gives them: half for 8 bits, single for 16, then double."""
    x = np.asarray(x)
    return x.astype(np.result_type(x.dtype, np.float16)) if x.dtype.kind in "iu" else x


def _promote(a: ArrayLike, b: ArrayLike | None) -> tuple[Array, Array | None]:
    """``a`` and ``b`` in one inexact dtype and one shape; Python scalars adapt to the other's dtype, as in NumPy."""
    given = [x if isinstance(x, (int, float, complex)) else np.asarray(x) for x in (a, b) if x is not None]
    dtype = np.result_type(*given)
    dtype = dtype if dtype.kind in "fcO" else np.result_type(dtype, np.float64)
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=dtype)) for x in given))
    return (arrays[0], arrays[1]) if b is not None else (arrays[0], None)


def _axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    """``axis`` as a tuple of distinct axes from 0; NumPy raises for those that do not exist or occur twice."""
    if axis is None:
        return tuple(range(ndim))
    asked = axis if isinstance(axis, tuple) else (axis,)
    order = np.moveaxis(np.empty((0,) * ndim), asked, range(ndim - len(asked), ndim)) if ndim else None
    return tuple(i % ndim for i in asked) if order is not None else ()


def _merge(x: Array, axes: tuple[int, ...]) -> Array:
    """``x`` with ``axes`` moved to the end and made one."""
    kept = x.ndim - len(axes)
    moved = np.moveaxis(x, axes, range(kept, x.ndim))
    return moved.reshape(*moved.shape[:kept], math.prod(moved.shape[kept:]))


def _kept_shape(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction over ``axis`` with keepdims."""
    axes = _axes(len(shape), axis)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _along(function: Callable[..., Any], x: Array, axis: Axis, **options: Any) -> Any:
    """``function`` along ``axis``, with SciPy's scalars and its AxisError."""
    if x.ndim == 0:
        return function(x.reshape(1), **options).reshape(())[()]
    try:
        return function(x, axis=-1 if axis == x.ndim - 1 else axis, **options)  # -1 takes a shorter way in
    except ValueError:
        _axes(x.ndim, axis)
        raise
