"""The right answers, in float64 and without cleverness: an implementation that does not give them is not timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import SMOOTHING, Case

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
"""Largest error, as a share of the largest entry. It tells a right result from a wrong one; ulps are in `accuracy`."""

ACCURACY_OF_AN_EPOCH = 0.9


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def softmax(case: Case) -> np.ndarray:
    z = _wide(case.logits)
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z


def softmax_axis0(case: Case) -> np.ndarray:
    e = np.exp(_wide(case.logits) - case.logits.max(axis=0))
    return e / e.sum(axis=0)


def logsumexp(case: Case) -> np.ndarray:
    m = _wide(case.logits.max(axis=1))
    return m + np.log(np.exp(_wide(case.logits) - m[:, None]).sum(axis=1))


def log_softmax(case: Case) -> np.ndarray:
    return _wide(case.logits) - logsumexp(case)[:, None]


def softmax_backward(case: Case) -> np.ndarray:
    probs, grad = _wide(case.probs), _wide(case.grad_probs)
    return probs * (grad - (grad * probs).sum(axis=case.axis, keepdims=True))


softmax_backward_axis0 = softmax_backward


def cross_entropy(case: Case) -> np.ndarray:
    return logsumexp(case) - case.logits[np.arange(case.n_rows), case.targets]


def cross_entropy_with_grad(case: Case) -> tuple[Any, ...]:
    grad = softmax(case)
    grad[np.arange(case.n_rows), case.targets] -= 1
    grad /= case.n_rows
    return cross_entropy(case).mean(), grad


def smoothed_cross_entropy_with_grad(case: Case) -> tuple[Any, ...]:
    probs, log_probs = softmax(case), log_softmax(case)
    target = np.full(probs.shape, SMOOTHING / case.n_classes)
    target[np.arange(case.n_rows), case.targets] += 1 - SMOOTHING
    return -(target * log_probs).sum(axis=1).mean(), (probs - target) / case.n_rows


def affine(case: Case) -> np.ndarray:
    return _wide(case.x) @ _wide(case.weight) + case.bias


def affine_backward(case: Case) -> tuple[Any, ...]:
    x, weight, grad_out = _wide(case.x), _wide(case.weight), _wide(case.grad_out)
    return grad_out @ weight.T, x.T @ grad_out, grad_out.sum(axis=0)


def linear_cross_entropy_with_grad(case: Case, need_grad_x: bool = True) -> tuple[Any, ...]:
    """By blocks of rows: the logits of a large vocabulary would take gigabytes in float64."""
    weight = _wide(case.weight)
    loss, grad_weight, grad_bias, grads_x = 0.0, np.zeros(weight.shape), np.zeros(weight.shape[1]), []
    for start in range(0, case.n_rows, 1024):
        rows = slice(start, start + 1024)
        x, targets = _wide(case.x[rows]), case.targets[rows]
        head = Case("cross_entropy_with_grad", (len(x), case.n_classes))
        head.logits, head.targets = x @ weight + case.bias, targets  # a cached_property may be set
        block_loss, grad_logits = cross_entropy_with_grad(head)
        share = len(x) / case.n_rows
        grad_logits *= share
        loss += block_loss * share
        grad_weight += x.T @ grad_logits
        grad_bias += grad_logits.sum(axis=0)
        if need_grad_x:
            grads_x.append(grad_logits @ weight.T)
    return (loss, np.concatenate(grads_x), grad_weight, grad_bias) if need_grad_x else (loss, grad_weight, grad_bias)


def linear_cross_entropy_grad_weight(case: Case) -> tuple[Any, ...]:
    return linear_cross_entropy_with_grad(case, need_grad_x=False)


def check(case: Case, got: Any, implementation: str) -> None:
    """Compare an implementation's result with the truth; AssertionError says by how much it is off."""
    if implementation == "copyto":  # the yardstick of bandwidth computes nothing
        return
    who = f"{implementation} {case.op}"
    if case.op == "training_epoch":  # an epoch returns a function from rows to predicted classes
        share = float(np.mean(np.asarray(got(case.x)) == case.targets))
        _demand(share >= ACCURACY_OF_AN_EPOCH, f"{who}: {share:.3f} of the rows right after one epoch")
        return
    if case.truth is None:  # worked out once for all implementations
        case.truth = globals()[case.op](case)
    got, want = (value if isinstance(value, tuple) else (value,) for value in (got, case.truth))
    _demand(len(got) == len(want), f"{who}: {len(got)} results, {len(want)} expected")
    for position, (value, truth) in enumerate(zip(got, want, strict=True)):
        value = np.asarray(value)
        _demand(value.shape == np.shape(truth), f"{who}[{position}]: shape {value.shape}, {np.shape(truth)} expected")
        error = float(np.max(np.abs(value - truth), initial=0) / np.max(np.abs(truth), initial=1e-300))
        _demand(error <= TOLERANCE[case.dtype], f"{who}[{position}]: off by {error:.1e} of the largest")


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
