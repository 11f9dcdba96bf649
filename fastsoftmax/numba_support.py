"""softmax, log_softmax, logsumexp and cross_entropy inside a user's own @njit and prange code.

numba calls `init` through the `numba_extensions` entry point before its first compilation in a process. It tells numba what
``fastsoftmax.softmax(x)`` compiles to: the same kernels, the same bits. Supported there: float32 and float64 arrays of one or
two dimensions, along the last axis, other options at their defaults. scipy.special.softmax and log_softmax are taught to numba
too, if SciPy is loaded by then and nobody else has: of a vector, or of a matrix with axis=-1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.typing.templates import builtin_registry
from numba.extending import overload, register_jitable

from . import functional


def init() -> None:
    """Register the overloads, once. It runs for every user of numba in the environment: light, and never an error."""
    if _known(functional.softmax):
        return
    for name in ("softmax", "log_softmax"):
        overload(getattr(functional, name), prefer_literal=True)(_rows(name))
    overload(functional.logsumexp, prefer_literal=True)(_logsumexp)
    overload(functional.cross_entropy)(_cross_entropy)
    special = sys.modules.get("scipy.special")
    for name in ("softmax", "log_softmax"):
        function = getattr(special, name, None)
        if function is not None and not _known(function):
            overload(function, prefer_literal=True)(_scipy_rows(name))


def _known(function: Any) -> bool:
    """Whether somebody has taught numba this function already."""
    return any(known is function for known, _ in builtin_registry.globals)


def _floats(x: Any) -> bool:
    return isinstance(x, types.Array) and x.dtype in (types.float32, types.float64) and x.ndim in (1, 2)


def _value(argument: Any) -> Any:
    """A literal's or a default's value; anything else as it is."""
    return getattr(argument, "literal_value", getattr(argument, "value", argument))


def _is_none(argument: Any) -> bool:
    return _value(argument) is None or isinstance(argument, types.NoneType)


def _kernel(name: str) -> Callable[..., Any]:
    """The kernel as a function to compile into the caller; imported when the first user function needs it."""
    from .kernels import softmax

    return getattr(softmax, name)


def _fill(name: str) -> Callable[..., Any]:
    """x -> the kernel's result for a vector or matrix of any layout."""
    kernel = _kernel(name)

    def fill(x: Any) -> Any:
        z = np.ascontiguousarray(x)
        n = z.shape[-1]
        result = np.empty_like(z)
        if z.size:
            kernel(z.reshape(-1), result.reshape(-1), n, False, 0, z.size // n)
        return result

    return fill


def _rows(name: str) -> Callable[..., Any]:
    def choose(logits, axis=-1, out=None):
        if not _floats(logits) or _value(axis) not in (-1, logits.ndim - 1) or not _is_none(out):
            return None
        fill = register_jitable(_fill(name))
        return lambda logits, axis=-1, out=None: fill(logits)

    return choose


def _scipy_rows(name: str) -> Callable[..., Any]:
    def choose(x, axis=None):
        last = x.ndim == 1 if _is_none(axis) else _value(axis) in (-1, x.ndim - 1)
        if not _floats(x) or not last:
            return None
        fill = register_jitable(_fill(name))
        return lambda x, axis=None: fill(x)

    return choose


def _logsumexp(logits, axis=-1, keepdims=False):
    if not _floats(logits) or _value(axis) not in (-1, logits.ndim - 1) or _value(keepdims) is not False:
        return None
    kernel, vector = _kernel("logsumexp"), logits.ndim == 1

    def implementation(logits, axis=-1, keepdims=False):
        z = np.ascontiguousarray(logits)
        n = z.shape[-1]
        rows = 1 if vector else z.shape[0]
        lse = np.full(rows, -np.inf, z.dtype)
        if z.size:
            kernel(z.reshape(-1), lse, n, 0, rows)
        return lse[0] if vector else lse

    return implementation


def _cross_entropy(
    logits, targets, axis=-1, class_weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):
    """The mean loss of class indices: one for a vector of logits, one a row for a matrix."""
    labels = targets.dtype if isinstance(targets, types.Array) and targets.ndim == 1 else targets
    defaults = (axis, -1), (label_smoothing, 0.0), (reduction, "mean")
    if (
        not _floats(logits) or not isinstance(labels, types.Integer) or (labels is targets) != (logits.ndim == 1)
        or not (_is_none(class_weight) and _is_none(sample_weight)) or any(_value(a) != b for a, b in defaults)
    ):  # fmt: skip
        return None
    from .kernels.cross_entropy import check_targets, cross_entropy

    vector = logits.ndim == 1

    def implementation(
        logits, targets, axis=-1, class_weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0,
        reduction="mean",
    ):  # fmt: skip
        z = np.ascontiguousarray(logits)
        n = z.shape[-1]
        rows = 1 if vector else z.shape[0]
        labels = np.empty(rows, np.int64)
        labels[:] = targets
        none = np.empty(0, np.float64)
        bad, count = check_targets(labels, n, ignore_index, none, none)
        if bad >= 0:
            raise IndexError("targets: a label is neither a class nor ignore_index")
        if count == 0:
            return np.nan
        losses = np.empty(0, z.dtype)
        return cross_entropy(z.reshape((rows, n)), labels, none, none, ignore_index, losses, 0, rows) / count

    return implementation
