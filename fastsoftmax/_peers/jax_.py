"""JAX on the CPU: one jitted function per operation, waited for. XLA allocates the results, it has no ``out=``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from .cases import SMOOTHING, Case

jax.config.update("jax_enable_x64", True)  # else float64 arrays become float32 without a word
jax.config.update("jax_platforms", "cpu")


def set_threads(n_threads: int) -> None:
    """XLA's pool is as wide as the cores the process may use when it starts; nothing changes it later."""


def _jitted(function: Callable[..., Any], *arrays: Any) -> Callable[[], Any]:
    compiled, arguments = jax.jit(function), [jnp.asarray(array) for array in arrays]
    return lambda: jax.block_until_ready(compiled(*arguments))


def _losses(logits: Any, targets: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]


def _mean_loss(logits: Any, targets: Any) -> Any:
    return _losses(logits, targets).mean()


def softmax(case: Case) -> Callable[[], Any]:
    return _jitted(jax.nn.softmax, case.logits)


def softmax_axis0(case: Case) -> Callable[[], Any]:
    return _jitted(lambda z: jax.nn.softmax(z, axis=0), case.logits)


def log_softmax(case: Case) -> Callable[[], Any]:
    return _jitted(jax.nn.log_softmax, case.logits)


def logsumexp(case: Case) -> Callable[[], Any]:
    return _jitted(lambda z: jax.nn.logsumexp(z, axis=1), case.logits)


def softmax_backward(case: Case) -> Callable[[], Any]:
    axis = case.axis
    return _jitted(lambda g, p: p * (g - (g * p).sum(axis=axis, keepdims=True)), case.grad_probs, case.probs)


softmax_backward_axis0 = softmax_backward


def cross_entropy(case: Case) -> Callable[[], Any]:
    return _jitted(_losses, case.logits, case.targets)


def cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    return _jitted(jax.value_and_grad(_mean_loss), case.logits, case.targets)


def smoothed_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    def loss(logits: Any, targets: Any) -> Any:
        log_probs = jax.nn.log_softmax(logits)
        at_target = jnp.take_along_axis(log_probs, targets[:, None], axis=1)
        return -(1 - SMOOTHING) * at_target.mean() - SMOOTHING * log_probs.mean()

    return _jitted(jax.value_and_grad(loss), case.logits, case.targets)


def affine(case: Case) -> Callable[[], Any]:
    return _jitted(lambda x, w, b: x @ w + b, case.x, case.weight, case.bias)


def affine_backward(case: Case) -> Callable[[], Any]:
    return _jitted(lambda g, x, w: (g @ w.T, x.T @ g, g.sum(axis=0)), case.grad_out, case.x, case.weight)


def _head(case: Case, wanted: tuple[int, ...]) -> Callable[[], Any]:
    def loss(x: Any, weight: Any, bias: Any, targets: Any) -> Any:
        return _mean_loss(x @ weight + bias, targets)

    def flat(*arguments: Any) -> Any:
        value, grads = jax.value_and_grad(loss, argnums=wanted)(*arguments)
        return value, *grads

    return _jitted(flat, case.x, case.weight, case.bias, case.targets)


def linear_cross_entropy_with_grad(case: Case) -> Callable[[], Any]:
    return _head(case, (0, 1, 2))


def linear_cross_entropy_grad_weight(case: Case) -> Callable[[], Any]:
    return _head(case, (1, 2))
