"""Optimizers that update parameters in place.

``step(params, grads, l2)`` changes the arrays of ``params`` and nothing else the caller owns. Whatever an optimizer
remembers (velocities, moments, scratch) is made at its first step and reused: later steps allocate nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays

__all__ = ["SGD", "Adam", "Optimizer"]

Array = NDArray[np.floating]


class Optimizer:
    """What SGD and Adam share: the step over all parameters and the state that a checkpoint must keep."""

    _settings: tuple[str, ...]  # the constructor's arguments, saved with a model
    _n_slots: int  # arrays remembered for each parameter

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = _arrays.number("learning_rate", learning_rate, low=0.0)
        self.n_steps = 0
        self.slots: list[list[Array]] = []
        self._scratch: Array | None = None

    def step(self, params: Sequence[Array], grads: Sequence[Array], l2: Sequence[float] | None = None) -> None:
        """Update every array of ``params`` in place.

        Parameters
        ----------
        params, grads : sequences of ndarray
            Alike in number, shapes and dtypes, and the same parameters at every step. ``grads`` are not changed.
        l2 : sequence of float, optional
            For each parameter, the factor of its penalty ``l2 / 2 * sum(param**2)``, whose gradient is added.
        """
        if self._scratch is None:  # two arrays as large as the largest parameter serve all of them
            self._scratch = np.empty((2, max(p.size for p in params)), np.result_type(*params))
        if len(self.slots) != len(params):
            self.slots = [[np.zeros_like(p) for _ in range(self._n_slots)] for p in params]
        self.n_steps += 1
        for i, (param, grad) in enumerate(zip(params, grads)):
            penalised, scratch = self._scratch[:, : param.size].reshape(2, *param.shape)
            if l2 is not None and l2[i]:
                np.multiply(param, l2[i], out=penalised)
                grad = np.add(penalised, grad, out=penalised)
            self._update(param, grad, self.slots[i], scratch)

    def _update(self, param: Array, grad: Array, slots: list[Array], scratch: Array) -> None:
        raise NotImplementedError

    def fresh(self) -> Optimizer:
        """A copy with the same settings that has not taken a step yet."""
        return type(self)(**self.settings())

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self._settings}

    def copy_state(self, other: Optimizer) -> None:
        """Take over another optimizer's memory, in place where the arrays exist already."""
        self.n_steps = other.n_steps
        if len(self.slots) != len(other.slots):
            self.slots = copy.deepcopy(other.slots)
        for mine, theirs in zip(self.slots, other.slots):
            for a, b in zip(mine, theirs):
                np.copyto(a, b)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

    ``v = momentum * v + g``, then ``param -= learning_rate * v``, or with Nesterov's momentum
    ``param -= learning_rate * (g + momentum * v)`` (Sutskever et al. 2013, in PyTorch's form).

    Parameters
    ----------
    learning_rate : float, default 0.1
    momentum : float, default 0.0
        In [0, 1). It multiplies the effective learning rate by up to ``1 / (1 - momentum)``.
    nesterov : bool, default False
    """

    _settings = ("learning_rate", "momentum", "nesterov")

    def __init__(self, learning_rate: float = 0.1, *, momentum: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(learning_rate)
        self.momentum = _arrays.number("momentum", momentum, low=0.0, below=1.0)
        self.nesterov = bool(nesterov)
        self._n_slots = 1 if momentum else 0

    def _update(self, param: Array, grad: Array, slots: list[Array], scratch: Array) -> None:
        if self.momentum:
            (velocity,) = slots
            np.multiply(velocity, self.momentum, out=velocity)
            np.add(velocity, grad, out=velocity)
            if self.nesterov:
                np.multiply(velocity, self.momentum, out=scratch)
                grad = np.add(scratch, grad, out=scratch)
            else:
                grad = velocity
        np.multiply(grad, self.learning_rate, out=scratch)
        np.subtract(param, scratch, out=param)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with its bias correction.

    ``m = beta1 * m + (1 - beta1) * g``, ``v = beta2 * v + (1 - beta2) * g**2``, then
    ``param -= learning_rate * m_hat / (sqrt(v_hat) + epsilon)`` with ``m_hat = m / (1 - beta1**t)`` and
    ``v_hat = v / (1 - beta2**t)``. The L2 penalty goes through the gradient, as in the paper.

    Parameters
    ----------
    learning_rate : float, default 0.001
    beta1, beta2 : float, default 0.9 and 0.999
    epsilon : float, default 1e-8
    """

    _settings = ("learning_rate", "beta1", "beta2", "epsilon")
    _n_slots = 2

    def __init__(
        self, learning_rate: float = 0.001, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = _arrays.number("beta1", beta1, low=0.0, below=1.0)
        self.beta2 = _arrays.number("beta2", beta2, low=0.0, below=1.0)
        self.epsilon = _arrays.number("epsilon", epsilon, low=0.0)

    def _update(self, param: Array, grad: Array, slots: list[Array], scratch: Array) -> None:
        m, v = slots
        np.multiply(m, self.beta1, out=m)
        np.multiply(grad, 1.0 - self.beta1, out=scratch)
        np.add(m, scratch, out=m)
        np.multiply(v, self.beta2, out=v)
        np.multiply(grad, grad, out=scratch)
        np.multiply(scratch, 1.0 - self.beta2, out=scratch)
        np.add(v, scratch, out=v)
        # m_hat / (sqrt(v_hat) + eps) = m * (root / (1 - beta1^t)) / (sqrt(v) + eps * root), root = sqrt(1 - beta2^t):
        # both corrections become scalars
        root = float(np.sqrt(1.0 - self.beta2**self.n_steps))
        np.sqrt(v, out=scratch)
        np.add(scratch, self.epsilon * root, out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, self.learning_rate * root / (1.0 - self.beta1**self.n_steps), out=scratch)
        np.subtract(param, scratch, out=param)
