"""Optimizers that update parameters in place.

``step(params, grads, l2)`` changes the arrays of ``params`` and nothing else the caller owns. Whatever an optimizer
remembers (velocities, moments) is made at its first step. One fused pass over the parameters does all of an update.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays
from .kernels import KERNELS

__all__ = ["SGD", "Adam", "Optimizer"]

Array = NDArray[np.floating]

RELEASE_GIL = 1 << 17  # elements, 30 us: below, handing the GIL over costs more than it gives


class Optimizer:
    """What SGD and Adam share: the step over all parameters and the state that a checkpoint must keep."""

    _settings: tuple[str, ...]  # the constructor's arguments, saved with a model
    _n_slots: int  # arrays remembered for each parameter

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = _arrays.number("learning_rate", learning_rate, low=0.0)
        self.n_steps = 0
        self.slots: list[list[Array]] = []

    def step(self, params: Sequence[Array], grads: Sequence[Array], l2: Sequence[float] | None = None) -> None:
        """Update every array of ``params`` in place.

        Parameters
        ----------
        params, grads : sequences of ndarray
            Alike in number and shapes, float32 or float64, and the same parameters at every step. ``grads`` are not
            changed.
        l2 : sequence of float, optional
            For each parameter, the factor of its penalty ``l2 / 2 * sum(param**2)``, whose gradient is added.

        Raises
        ------
        TypeError, ValueError
            Arrays that do not fit, found before anything is changed.
        """
        if not self.slots:
            self.slots = [[np.zeros_like(p, order="C") for _ in range(self._n_slots)] for p in params]
        arrays = _arrays.update_arrays(params, grads, self.slots)
        self.n_steps += 1
        for i, (param, (flat, *others)) in enumerate(zip(params, arrays)):
            name, settings = self._update(0.0 if l2 is None else float(l2[i]))
            KERNELS[name][flat.dtype](flat, *others, *settings, 0, flat.size, flat.size > RELEASE_GIL)
            if not np.may_share_memory(flat, param):
                param[...] = flat.reshape(param.shape)

    def _update(self, l2: float) -> tuple[str, tuple[Any, ...]]:
        """The kernel of one update, and its arguments between the arrays and the range."""
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

    def _update(self, l2: float) -> tuple[str, tuple[Any, ...]]:
        if self.momentum:
            return "momentum_update", (float(self.learning_rate), l2, self.momentum, self.nesterov)
        return "sgd_update", (float(self.learning_rate), l2)


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

    def _update(self, l2: float) -> tuple[str, tuple[Any, ...]]:
        # m_hat / (sqrt(v_hat) + epsilon) = m * rate / (sqrt(v) + epsilon * root): both corrections become scalars
        root = math.sqrt(1.0 - self.beta2**self.n_steps)
        rate = float(self.learning_rate) * root / (1.0 - self.beta1**self.n_steps)
        return "adam_update", (rate, l2, self.beta1, self.beta2, self.epsilon * root)
