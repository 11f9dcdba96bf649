"""fastsoftmax with the caller's buffers: ``out=``, as a training loop uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from .cases import SMOOTHING, Case
from .ours import set_threads

__all__ = [
    "affine",
    "affine_backward",
    "cross_entropy_with_grad",
    "log_softmax",
    "set_threads",
    "softmax",
    "softmax_axis0",
    "softmax_backward",
    "softmax_backward_axis0",
]


# Buffers are written once here: the first touch of fresh memory costs more than the work on it.


def softmax(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.logits)
    z = case.logits
    return lambda: F.softmax(z, out=out)


def softmax_axis0(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.logits)
    z = case.logits
    return lambda: F.softmax(z, axis=0, out=out)


def log_softmax(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.logits)
    z = case.logits
    return lambda: F.log_softmax(z, out=out)


def softmax_backward(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.probs)
    grad, probs = case.grad_probs, case.probs
    return lambda: F.softmax_backward(grad, probs, out=out)


def softmax_backward_axis0(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.probs)
    grad, probs = case.grad_probs, case.probs
    return lambda: F.softmax_backward(grad, probs, axis=0, out=out)


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.logits)
    z, targets = case.logits, case.targets
    return lambda: F.cross_entropy_with_grad(z, targets, out=out)


def smoothed_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.logits)
    z, targets = case.logits, case.targets
    return lambda: F.cross_entropy_with_grad(z, targets, label_smoothing=SMOOTHING, out=out)


def affine(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.grad_out)
    x, weight, bias = case.x, case.weight, case.bias
    return lambda: F.affine(x, weight, bias, out=out)


def affine_backward(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.x), np.ones_like(case.weight), np.ones_like(case.bias)
    grad_out, x, weight = case.grad_out, case.x, case.weight
    return lambda: F.affine_backward(grad_out, x, weight, out=out)
