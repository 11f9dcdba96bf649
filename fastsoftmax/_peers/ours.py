"""fastsoftmax as most people call it: results are allocated by the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import functional as F
from .._threads import set_num_threads
from .cases import BATCH, LEARNING_RATE, SMOOTHING, Case


def set_threads(n_threads: int) -> None:
    set_num_threads(n_threads)


def softmax(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: F.softmax(z)


def softmax_axis0(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: F.softmax(z, axis=0)


def log_softmax(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: F.log_softmax(z)


def logsumexp(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: F.logsumexp(z)


def softmax_backward(case: Case) -> Callable[[], Any]:
    grad, probs = case.grad_probs, case.probs
    return lambda: F.softmax_backward(grad, probs)


def softmax_backward_axis0(case: Case) -> Callable[[], Any]:
    grad, probs = case.grad_probs, case.probs
    return lambda: F.softmax_backward(grad, probs, axis=0)


def cross_entropy(case: Case) -> Callable[[], Any]:
    z, targets = case.logits, case.targets
    return lambda: F.cross_entropy(z, targets, reduction="none")


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    z, targets = case.logits, case.targets
    return lambda: F.cross_entropy_with_grad(z, targets)


def smoothed_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    z, targets = case.logits, case.targets
    return lambda: F.cross_entropy_with_grad(z, targets, label_smoothing=SMOOTHING)


def affine(case: Case) -> Callable[[], Any]:
    x, weight, bias = case.x, case.weight, case.bias
    return lambda: F.affine(x, weight, bias)


def affine_backward(case: Case) -> Callable[[], Any]:
    grad_out, x, weight = case.grad_out, case.x, case.weight
    return lambda: F.affine_backward(grad_out, x, weight)


def linear_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    def call() -> Any:
        loss, grads = F.linear_cross_entropy_with_grad(case.x, case.weight, case.targets, case.bias)
        return (loss, *grads)

    return call


def linear_cross_entropy_grad_weight(case: Case) -> Callable[[], Any]:
    def call() -> Any:
        loss, grads = F.linear_cross_entropy_with_grad(case.x, case.weight, case.targets, case.bias, need_grad_x=False)
        return (loss, *grads[1:])

    return call


def training_epoch(case: Case) -> Callable[[], Any]:
    from ..models import MLP
    from ..optimizers import SGD

    model = MLP(hidden=(case.shape[2],), optimizer=SGD(LEARNING_RATE))

    def call() -> Any:
        model.fit(case.x, case.targets, epochs=1, batch_size=BATCH)  # shuffled as the others' are
        return model.predict

    return call
