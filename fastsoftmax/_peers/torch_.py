"""torch on the CPU, eager: the functions, without autograd where they allow it, into kept tensors or fresh ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .cases import BATCH, LEARNING_RATE, SMOOTHING, Case
from .timing import fastest

_tensor = torch.from_numpy  # shares the memory
_softmax_backward = torch.ops.aten._softmax_backward_data


def set_threads(n_threads: int) -> None:
    torch.set_num_threads(n_threads)


def softmax(case: Case, dim: int = 1) -> Callable[[], Any]:
    z = _tensor(case.logits)
    out = torch.ones_like(z)
    return fastest(lambda: torch.softmax(z, dim), lambda: torch.softmax(z, dim, out=out))


def softmax_axis0(case: Case) -> Callable[[], Any]:
    return softmax(case, dim=0)


def log_softmax(case: Case) -> Callable[[], Any]:
    z = _tensor(case.logits)
    out = torch.ones_like(z)
    return fastest(lambda: torch.log_softmax(z, 1), lambda: torch.log_softmax(z, 1, out=out))


def logsumexp(case: Case) -> Callable[[], Any]:
    z = _tensor(case.logits)
    return lambda: torch.logsumexp(z, 1)


def softmax_backward(case: Case) -> Callable[[], Any]:
    grad, probs = _tensor(case.grad_probs), _tensor(case.probs)
    out = torch.ones_like(probs)
    return fastest(
        lambda: _softmax_backward(grad, probs, case.axis, probs.dtype),
        lambda: _softmax_backward.out(grad, probs, case.axis, probs.dtype, grad_input=out),
    )


softmax_backward_axis0 = softmax_backward


def cross_entropy(case: Case) -> Callable[[], Any]:
    z, targets = _tensor(case.logits), _tensor(case.targets)
    return lambda: F.cross_entropy(z, targets, reduction="none")


def _with_grad(z: Any, targets: Any, rows: Any, out: Any = None) -> tuple[Any, Any]:
    """Without autograd: the log-softmax becomes the gradient in place."""
    log_probs = torch.log_softmax(z, 1, out=out)
    loss = F.nll_loss(log_probs, targets)
    grad = log_probs.exp_()
    grad[rows, targets] -= 1
    grad /= len(z)
    return loss, grad


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    z, targets, rows = _tensor(case.logits), _tensor(case.targets), torch.arange(case.n_rows)
    out, leaf = torch.ones_like(z), z.detach().requires_grad_()

    def autograd() -> Any:
        loss = F.cross_entropy(leaf, targets)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    return fastest(lambda: _with_grad(z, targets, rows), lambda: _with_grad(z, targets, rows, out), autograd)


def smoothed_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    z, targets, rows = _tensor(case.logits), _tensor(case.targets), torch.arange(case.n_rows)
    out, leaf = torch.ones_like(z), z.detach().requires_grad_()

    def closed(out: Any = None) -> tuple[Any, Any]:
        log_probs = torch.log_softmax(z, 1, out=out)
        loss = (1 - SMOOTHING) * F.nll_loss(log_probs, targets) - SMOOTHING * log_probs.mean()
        grad = log_probs.exp_()
        grad -= SMOOTHING / case.n_classes
        grad[rows, targets] -= 1 - SMOOTHING
        grad /= case.n_rows
        return loss, grad

    def autograd() -> Any:
        loss = F.cross_entropy(leaf, targets, label_smoothing=SMOOTHING)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    return fastest(closed, lambda: closed(out), autograd)


def affine(case: Case) -> Callable[[], Any]:
    x, weight, bias = _tensor(case.x), _tensor(case.weight), _tensor(case.bias)
    out = torch.addmm(bias, x, weight)
    return lambda: torch.addmm(bias, x, weight, out=out)


def affine_backward(case: Case) -> Callable[[], Any]:
    x, weight, grad_out = _tensor(case.x), _tensor(case.weight), _tensor(case.grad_out)
    out = torch.ones_like(x), torch.ones_like(weight), torch.ones_like(weight[0])

    def call() -> Any:
        torch.mm(grad_out, weight.t(), out=out[0])
        torch.mm(x.t(), grad_out, out=out[1])
        torch.sum(grad_out, 0, out=out[2])
        return out

    return call


def linear_cross_entropy_with_grad(case: Case, need_grad_x: bool = True) -> Callable[[], Any]:
    x, weight, bias, targets = _tensor(case.x), _tensor(case.weight), _tensor(case.bias), _tensor(case.targets)
    rows = torch.arange(case.n_rows)
    logits, out = torch.mm(x, weight), (torch.ones_like(weight), torch.ones_like(bias), torch.ones_like(x))

    def call() -> Any:
        torch.addmm(bias, x, weight, out=logits)
        loss, grad = _with_grad(logits, targets, rows, logits)
        torch.mm(x.t(), grad, out=out[0])
        torch.sum(grad, 0, out=out[1])
        if need_grad_x:
            return loss, torch.mm(grad, weight.t(), out=out[2]), *out[:2]
        return loss, *out[:2]

    return call


def linear_cross_entropy_grad_weight(case: Case) -> Callable[[], Any]:
    return linear_cross_entropy_with_grad(case, need_grad_x=False)


def training_epoch(case: Case) -> Callable[[], Any]:
    n_rows, n_in, n_hidden, n_classes = case.shape
    x, targets = _tensor(case.x), _tensor(case.targets)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(n_in, n_hidden), torch.nn.ReLU(), torch.nn.Linear(n_hidden, n_classes)
    ).to(x.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    @torch.no_grad()
    def predict(rows: np.ndarray) -> Any:
        return model(_tensor(rows)).argmax(1).numpy()

    def call() -> Any:
        order = torch.randperm(n_rows)
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), targets[batch]).backward()
            optimizer.step()
        return predict

    return call
