"""What the three courses share and `fastsoftmax.functional` does not have: it starts from logits, they often do not.

Nothing here repeats a public function; each piece exists once because two or three of the course modules need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray


def say(line: str) -> None:
    """What a course prints: progress under verbose=True or print_cost=True, and the results of a gradient check."""
    print(line)  # noqa: T201


def rows(x: Any) -> Array:
    """Flatten each sample: (n_rows, d1, ..., dk) becomes (n_rows, d1 * ... * dk). A view where NumPy can make one."""
    x = np.asarray(x)
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 would be ambiguous for an empty batch


def labels_if_one_hot(targets: Array) -> Array:
    """One-hot rows as labels, for which the kernel is several times faster; rows of other numbers as they are."""
    n_rows, n_classes = targets.shape
    if n_rows and n_classes and np.count_nonzero(targets) == n_rows:
        labels = targets.argmax(axis=1)
        if (targets[np.arange(n_rows), labels] == 1).all():
            return labels
    return targets


def sigmoid(z: Any) -> Array:
    """1 / (1 + exp(-z)), full relative accuracy at both ends and no overflow: the exponent is never positive."""
    z = np.asarray(z)
    tail = np.exp(-np.abs(z))
    return np.where(z >= 0, tail.dtype.type(1), tail) / (1 + tail)


def sigmoid_backward(grad: Any, z: Any) -> Array:
    """grad * s(z) * s(-z). Not s * (1 - s), whose second factor is 0 long before the slope is."""
    return grad * sigmoid(z) * sigmoid(np.negative(z))


def cross_entropy_from_probs(probs: Any, targets: Any, log: Callable[..., Any] = np.log) -> float:
    """-sum(targets * log(probs)) in float64, where a target of 0 contributes exactly 0 whatever the probability.

    A probability of 0 under a positive target is an infinite loss and is returned as such, without a warning.
    """
    probs, targets = np.asarray(probs), np.asarray(targets)
    logs = np.zeros(probs.shape)
    with np.errstate(divide="ignore"):
        log(probs, out=logs, where=targets != 0, dtype=np.float64)
    return 0.0 - float(np.sum(targets * logs))


def slope(f: Callable[[Array], Any], x: Array, index: tuple[int, ...], h: float, weight: Any = 1.0) -> float:
    """Central difference of sum(weight * f(x)) along x[index]; x is moved in place and put back, whatever f does.

    It divides by the step that was taken: x + h is rounded, and in float32 that is visible.
    """
    old = x[index]
    try:
        x[index] = old + h
        above, right = np.array(f(x)), float(x[index])  # a copy: f may hand out the same buffer twice
        x[index] = old - h
        below, left = np.array(f(x)), float(x[index])
    finally:
        x[index] = old
    return float(np.sum((above - below) * weight)) / (right - left)


def numerical_gradient(f: Callable[[Array], Any], x: Array, h: float, weight: Any = 1.0) -> Array:
    """`slope` at every entry of x, which must be a floating-point array: it is moved in place."""
    if not np.issubdtype(x.dtype, np.inexact):
        raise TypeError(f"a numerical gradient needs a floating-point array to move in place, got dtype {x.dtype}")
    grad = np.empty(x.shape, x.dtype)
    for index in np.ndindex(x.shape):
        grad[index] = slope(f, x, index, h, weight)
    return grad
