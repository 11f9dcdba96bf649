"""Optimizers that update parameters in place.

``step(params, grads, l2)`` changes the arrays of ``params`` and nothing else the caller owns. Whatever an optimizer
remembers (velocities, moments) is made at its first step. One fused pass over the parameters does all of an update.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays
from ._program import NOW, Caller, Program
from ._threads import COST
from .kernels import KERNELS

__all__ = ["SGD", "Adam", "Optimizer"]

Array = NDArray[np.floating]


class Optimizer:
    """What SGD and Adam share: the step over all parameters and the state that a checkpoint must keep."""

    _settings: tuple[str, ...]  # the constructor's arguments, saved with a model
    _n_slots: int  # arrays remembered for each parameter
    _kernel: str  # that takes a parameter, its gradient, its slots, its penalty, and the step's factors

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = _arrays.number("learning_rate", learning_rate, low=0.0)
        self.n_steps = 0
        self.slots: list[list[Array]] = []
        self._params: list[Array] = []
        self._factors = np.empty(4)  # of this step, see `_rule`

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
        if len(params) != len(self._params) or not all(map(operator.is_, params, self._params)):
            self._bind(params)
        grads, penalties = _arrays.gradients_of(self._params, grads), _arrays.penalties_of(self._params, l2)
        self._advance()
        self._update(NOW, grads, penalties)

    def record(
        self, program: Program, params: Sequence[Array], grads: Sequence[Array], l2: Sequence[float]
    ) -> Callable[[], Any]:
        """Make `step` part of a program; returns what is to be called before each of its runs."""
        if type(self).step is not Optimizer.step:  # somebody's own
            program.python(lambda: self.step(params, grads, l2))
            return lambda: None
        self._bind(params)
        self._update(program, [program.plain(g, p.dtype) for p, g in zip(params, grads)], l2)
        return self._advance

    def _advance(self) -> None:
        self.n_steps += 1
        factors = self._rule()
        self._factors[: len(factors)] = factors

    def _update(self, via: Caller, grads: Sequence[Array], penalties: Sequence[float]) -> None:
        for param, grad, slots, penalty in zip(self._params, grads, self.slots, penalties):
            values, n = via.plain(param, param.dtype), param.size
            via.shares(KERNELS[self._kernel][param.dtype], (values, grad, *slots, penalty, self._factors), n, n * COST)
            if values is not param:
                via.python(partial(np.copyto, param, values))

    def _bind(self, params: Sequence[Array]) -> None:
        """Check the parameters, once, and keep them and their slots together."""
        params = _arrays.updatable(params)
        if not self.slots:
            self.slots = [[np.zeros_like(p, order="C") for _ in range(self._n_slots)] for p in params]
        _arrays.same_params(self.slots, params)
        self._params = params

    def _rule(self) -> tuple[float, ...]:
        """This step's factors, as the kernel takes them."""
        raise NotImplementedError

    def fresh(self) -> Optimizer:
        """A copy with the same settings that has not taken a step yet."""
        return type(self)(**self.settings())

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self._settings}

    def set_state(self, n_steps: int, slots: list[list[Array]]) -> None:
        """Go on from a state that was kept: the steps taken, and for each parameter what it remembers."""
        self.n_steps, self.slots, self._params = n_steps, slots, []

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
        self._n_slots, self._kernel = (1, "momentum_update") if self.momentum else (0, "sgd_update")

    def _rule(self) -> tuple[float, ...]:
        return float(self.learning_rate), self.momentum, float(self.nesterov)


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
    _n_slots, _kernel = 2, "adam_update"

    def __init__(
        self, learning_rate: float = 0.001, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = _arrays.number("beta1", beta1, low=0.0, below=1.0)
        self.beta2 = _arrays.number("beta2", beta2, low=0.0, below=1.0)
        self.epsilon = _arrays.number("epsilon", epsilon, low=0.0)

    def _rule(self) -> tuple[float, ...]:
        # m_hat / (sqrt(v_hat) + epsilon) = m * rate / (sqrt(v) + epsilon * root): both corrections become scalars
        root = math.sqrt(1.0 - self.beta2**self.n_steps)
        rate = float(self.learning_rate) * root / (1.0 - self.beta1**self.n_steps)
        return rate, self.beta1, self.beta2, self.epsilon * root
