"""NumPy as a careful person writes it: every temporary kept and reused, or allocated, whichever is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import BATCH, LEARNING_RATE, SMOOTHING, Case
from .timing import fastest


def set_threads(n_threads: int) -> None:
    """BLAS reads its number of threads from the environment when it is loaded: see ``bench``."""


def _sum_exp(z: Any, axis: int = 1, m: Any = None, e: Any = None, s: Any = None) -> tuple[Any, Any, Any]:
    """Maximum, exp(z - maximum) and its sum, along `axis`."""
    m = np.maximum.reduce(z, axis=axis, keepdims=True, out=m)
    e = np.subtract(z, m, out=e)
    np.exp(e, out=e)
    s = np.add.reduce(e, axis=axis, keepdims=True, out=s)
    return m, e, s


def _softmax(z: Any, axis: int, *buffers: Any) -> Any:
    _, e, s = _sum_exp(z, axis, *buffers)
    e /= s
    return e


def softmax(case: Case, axis: int = 1) -> Callable[[], Any]:
    z, kept = case.logits, _sum_exp(case.logits, axis)
    return fastest(lambda: _softmax(z, axis), lambda: _softmax(z, axis, *kept))


def softmax_axis0(case: Case) -> Callable[[], Any]:
    return softmax(case, axis=0)


def _log_softmax(z: Any, m: Any = None, shifted: Any = None, s: Any = None, e: Any = None) -> Any:
    m = np.maximum.reduce(z, axis=1, keepdims=True, out=m)
    shifted = np.subtract(z, m, out=shifted)
    e = np.exp(shifted, out=e)
    s = np.add.reduce(e, axis=1, keepdims=True, out=s)
    shifted -= np.log(s, out=s)
    return shifted


def log_softmax(case: Case) -> Callable[[], Any]:
    z, kept = case.logits, (*_sum_exp(case.logits), np.ones_like(case.logits))
    return fastest(lambda: _log_softmax(z), lambda: _log_softmax(z, *kept))


def _logsumexp(z: Any, *buffers: Any) -> Any:
    m, _, s = _sum_exp(z, 1, *buffers)
    return (np.log(s, out=s) + m)[:, 0]


def logsumexp(case: Case) -> Callable[[], Any]:
    z, kept = case.logits, _sum_exp(case.logits)
    return fastest(lambda: _logsumexp(z), lambda: _logsumexp(z, *kept))


def softmax_backward(case: Case) -> Callable[[], Any]:
    subscripts = "ij,ij->j" if case.axis == 0 else "ij,ij->i"

    def backward(out: Any = None) -> Any:
        dots = np.einsum(subscripts, case.grad_probs, case.probs)  # no product array
        out = np.subtract(case.grad_probs, np.expand_dims(dots, case.axis), out=out)
        out *= case.probs
        return out

    kept = np.ones_like(case.probs)
    return fastest(backward, lambda: backward(kept))


softmax_backward_axis0 = softmax_backward


def cross_entropy(case: Case) -> Callable[[], Any]:
    rows, kept = np.arange(case.n_rows), _sum_exp(case.logits)

    def losses(*buffers: Any) -> Any:
        m, _, s = _sum_exp(case.logits, 1, *buffers)
        return np.log(s[:, 0]) - (case.logits[rows, case.targets] - m[:, 0])

    return fastest(losses, lambda: losses(*kept))


def _with_grad(z: Any, targets: Any, rows: Any, *buffers: Any) -> tuple[Any, Any]:
    at_target = z[rows, targets]  # read first: one of the buffers may be z itself
    m, grad, s = _sum_exp(z, 1, *buffers)
    loss = np.mean(np.log(s[:, 0]) - (at_target - m[:, 0]))
    s *= len(z)
    grad /= s
    grad[rows, targets] -= 1 / len(z)
    return loss, grad


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    z, targets, rows, kept = case.logits, case.targets, np.arange(case.n_rows), _sum_exp(case.logits)
    return fastest(lambda: _with_grad(z, targets, rows), lambda: _with_grad(z, targets, rows, *kept))


def smoothed_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    z, targets, rows, kept = case.logits, case.targets, np.arange(case.n_rows), _sum_exp(case.logits)

    def call(*buffers: Any) -> tuple[Any, Any]:
        m, grad, s = _sum_exp(z, 1, *buffers)
        lse, at_target = np.log(s[:, 0]) + m[:, 0], z[rows, targets]
        loss = np.mean(lse) - (1 - SMOOTHING) * np.mean(at_target) - SMOOTHING * np.mean(z)
        s *= len(z)
        grad /= s
        grad -= SMOOTHING / z.size
        grad[rows, targets] -= (1 - SMOOTHING) / len(z)
        return loss, grad

    return fastest(call, lambda: call(*kept))


def affine(case: Case) -> Callable[[], Any]:
    out = np.ones_like(case.grad_out)

    def call() -> Any:
        np.matmul(case.x, case.weight, out=out)
        np.add(out, case.bias, out=out)
        return out

    return call


def affine_backward(case: Case) -> Callable[[], Any]:
    grad_x, grad_weight, grad_bias = np.ones_like(case.x), np.ones_like(case.weight), np.ones_like(case.weight[0])

    def call() -> Any:
        np.matmul(case.grad_out, case.weight.T, out=grad_x)
        np.matmul(case.x.T, case.grad_out, out=grad_weight)
        np.add.reduce(case.grad_out, axis=0, out=grad_bias)
        return grad_x, grad_weight, grad_bias

    return call


def linear_cross_entropy_with_grad(case: Case, need_grad_x: bool = True) -> Callable[[], Any]:
    x, weight, bias, targets, rows = case.x, case.weight, case.bias, case.targets, np.arange(case.n_rows)
    logits = x @ weight
    grad_x, grad_weight, grad_bias = np.ones_like(x), np.ones_like(weight), np.ones_like(bias)
    kept = np.empty_like(logits[:, :1]), logits, np.empty_like(logits[:, :1])  # the gradient takes the logits' place

    def call() -> Any:
        np.matmul(x, weight, out=logits)
        np.add(logits, bias, out=logits)
        loss, grad = _with_grad(logits, targets, rows, *kept)
        np.matmul(x.T, grad, out=grad_weight)
        np.add.reduce(grad, axis=0, out=grad_bias)
        if need_grad_x:
            return loss, np.matmul(grad, weight.T, out=grad_x), grad_weight, grad_bias
        return loss, grad_weight, grad_bias

    return call


def linear_cross_entropy_grad_weight(case: Case) -> Callable[[], Any]:
    return linear_cross_entropy_with_grad(case, need_grad_x=False)


def training_epoch(case: Case) -> Callable[[], Any]:
    """Plain SGD on one hidden layer; every array of a step is kept for the next one."""
    n_rows, n_in, n_hidden, n_classes = case.shape
    rng, dtype = np.random.default_rng(0), case.dtype
    w1 = (rng.standard_normal((n_in, n_hidden)) * np.sqrt(2 / n_in)).astype(dtype)
    w2 = (rng.standard_normal((n_hidden, n_classes)) * np.sqrt(2 / n_hidden)).astype(dtype)
    b1, b2 = np.zeros(n_hidden, dtype), np.zeros(n_classes, dtype)
    grads = [np.empty_like(p) for p in (w1, b1, w2, b2)]
    x, (hidden, grad_hidden) = np.empty((BATCH, n_in), dtype), np.empty((2, BATCH, n_hidden), dtype)
    logits, rows = np.empty((BATCH, n_classes), dtype), np.arange(BATCH)
    kept = _sum_exp(np.ones_like(logits))

    def step(batch: Any) -> None:
        np.take(case.x, batch, axis=0, out=x, mode="clip")
        np.matmul(x, w1, out=hidden)
        np.add(hidden, b1, out=hidden)
        np.maximum(hidden, 0, out=hidden)
        np.matmul(hidden, w2, out=logits)
        np.add(logits, b2, out=logits)
        _, grad = _with_grad(logits, case.targets[batch], rows, *kept)
        np.matmul(grad, w2.T, out=grad_hidden)
        np.matmul(hidden.T, grad, out=grads[2])
        np.add.reduce(grad, axis=0, out=grads[3])
        np.multiply(grad_hidden, hidden > 0, out=grad_hidden)
        np.matmul(x.T, grad_hidden, out=grads[0])
        np.add.reduce(grad_hidden, axis=0, out=grads[1])
        for parameter, grad in zip((w1, b1, w2, b2), grads, strict=True):
            grad *= LEARNING_RATE
            parameter -= grad

    def predict(rows: Any) -> Any:
        return np.argmax(np.maximum(rows @ w1 + b1, 0) @ w2 + b2, axis=1)

    def call() -> Any:
        order = rng.permutation(n_rows)
        for start in range(0, n_rows - BATCH + 1, BATCH):
            step(order[start : start + BATCH])
        return predict

    return call
