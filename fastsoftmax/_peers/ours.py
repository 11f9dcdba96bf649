"""fastsoftmax as most people call it: results are allocated by the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import functional as F
from .._threads import set_num_threads
from .cases import BATCH, LEARNING_RATE, Case

def set_threads(n_threads: int) -> None:
    set_num_threads(n_threads)


def softmax(case: Case) -> Callable[[], Any]:
    return lambda: F.softmax(case.logits)


def softmax_axis0(case: Case) -> Callable[[], Any]:
    return lambda: F.softmax(case.logits, axis=0)


def log_softmax(case: Case) -> Callable[[], Any]:
    return lambda: F.log_softmax(case.logits)


def logsumexp(case: Case) -> Callable[[], Any]:
    return lambda: F.logsumexp(case.logits)


def softmax_backward(case: Case) -> Callable[[], Any]:
    return lambda: F.softmax_backward(case.grad_probs, case.probs)


def cross_entropy(case: Case) -> Callable[[], Any]:
    return lambda: F.cross_entropy(case.logits, case.targets, reduction="none")


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    return lambda: F.cross_entropy_with_grad(case.logits, case.targets)


def affine(case: Case) -> Callable[[], Any]:
    return lambda: F.affine(case.x, case.weight, case.bias)


def affine_backward(case: Case) -> Callable[[], Any]:
    return lambda: F.affine_backward(case.grad_out, case.x, case.weight)


def linear_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    def call() -> Any:
        loss, grads = F.linear_cross_entropy_with_grad(case.x, case.weight, case.targets, case.bias)
        return (loss, *grads)

    return call


def linear_cross_entropy_grad_weight(case: Case) -> Callable[[], Any]:
    def call() -> Any:
        loss, grads = F.linear_cross_entropy_with_grad(
            case.x, case.weight, case.targets, case.bias, need_grad_x=False
        )
        return (loss, *grads[1:])

    return call


def training_epoch(case: Case) -> Callable[[], Any]:
    from ..models import MLP

    model = MLP(hidden=(case.shape[2],), learning_rate=LEARNING_RATE, batch_size=BATCH, optimizer="sgd")

    def call() -> Any:
        model.partial_fit(case.x, case.targets)
        return model.predict

    return call
