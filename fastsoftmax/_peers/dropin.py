"""What the drop-in modules replace, for ``python -m fastsoftmax bench --dropin``: a call before and after the change.

A new case is one entry of a list below: a label and two factories without arguments. A factory does the set-up, imports
included, and returns the callable to be timed; one that needs a library that is not installed raises ImportError. Both
callables of a case work on the same arrays and return the same numbers, which the tests compare.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastsoftmax import functional as F

from .courses import course_cases

__all__ = ["DropinCase", "dropin_cases"]

Call = Callable[[], Any]
Factory = Callable[[], Call]
Array = NDArray[Any]


class DropinCase(NamedTuple):
    """One line of the table."""

    label: str
    theirs: Factory
    ours: Factory


def dropin_cases(dtype: DTypeLike = np.float64) -> list[DropinCase]:
    """Every case, on arrays of this dtype where the replaced library allows it."""
    rng = np.random.default_rng(0)
    makers = (_scipy, _torch, _sklearn, _boosting)
    cases = [case for maker in makers for case in maker(rng, np.dtype(dtype))]
    for label, (theirs, ours) in course_cases(dtype).items():
        cases.append(DropinCase(label, _ready(theirs), _ready(ours)))
    return cases


def _ready(call: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    """A factory of a call that is ready already."""
    return lambda: call


def _logits(rng: np.random.Generator, dtype: np.dtype, *shape: int) -> Array:
    return rng.normal(scale=5.0, size=shape).astype(dtype)


def _scipy(rng: np.random.Generator, dtype: np.dtype) -> list[DropinCase]:
    def case(name: str, shape: tuple[int, ...]) -> DropinCase:
        x = _logits(rng, dtype, *shape)

        def theirs() -> Call:
            from scipy import special

            return lambda: getattr(special, name)(x, axis=1)

        def ours() -> Call:
            from fastsoftmax.dropin import scipy

            function = getattr(scipy, name)
            return lambda: function(x, axis=1)

        return DropinCase(f"scipy {name} {shape}", theirs, ours)

    return [
        case(name, shape) for name in ("softmax", "log_softmax", "logsumexp") for shape in ((128, 10), (1024, 1000))
    ]


def _torch(rng: np.random.Generator, dtype: np.dtype) -> list[DropinCase]:
    def module(n_rows: int, n_classes: int) -> DropinCase:
        x, y = _logits(rng, dtype, n_rows, n_classes), rng.integers(0, n_classes, n_rows)

        def step(criterion: Any) -> Call:
            import torch

            logits, target = torch.tensor(x, requires_grad=True), torch.tensor(y)

            def call() -> tuple[float, Array]:
                logits.grad = None
                loss = criterion(logits, target)
                loss.backward()
                return loss.item(), logits.grad.numpy()

            return call

        def theirs() -> Call:
            import torch

            return step(torch.nn.CrossEntropyLoss())

        def ours() -> Call:
            from fastsoftmax.dropin.torch import CrossEntropyLoss

            return step(CrossEntropyLoss())

        return DropinCase(f"torch CrossEntropyLoss ({n_rows}, {n_classes}), backward", theirs, ours)

    def functional(name: str, label: str, *args: Any) -> DropinCase:
        def theirs() -> Call:
            import torch

            function = getattr(torch.nn.functional, name, None)
            if function is None:
                raise ImportError(f"this torch has no {name}")
            tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
            return lambda: function(*tensors).numpy()

        def ours() -> Call:
            from fastsoftmax.dropin import torch

            function = getattr(torch, name)
            return lambda: function(*args)

        return DropinCase(f"torch {label}", theirs, ours)

    x, y = _logits(rng, dtype, 1024, 1000), rng.integers(0, 1000, 1024)
    images, weight, labels = (
        _logits(rng, dtype, 2048, 784),
        _logits(rng, dtype, 10, 784) / 100,
        rng.integers(0, 10, 2048),
    )
    volume, segments = _logits(rng, dtype, 8, 21, 64, 64), rng.integers(0, 21, (8, 64, 64))
    return [
        module(128, 10),
        module(8192, 10),
        module(1024, 1000),
        functional("softmax", "softmax (1024, 1000)", x, 1),
        functional("cross_entropy", "cross_entropy (1024, 1000)", x, y),
        functional("cross_entropy", "cross_entropy (8, 21, 64, 64)", volume, segments),
        functional("linear_cross_entropy", "linear_cross_entropy (2048, 784) x 10", images, weight, labels),
    ]


def _sklearn(rng: np.random.Generator, dtype: np.dtype) -> list[DropinCase]:
    x = rng.random((8000, 784))
    y = np.argmax(x[:, :10] + x[:, 10:20] - 0.3 * rng.random((8000, 10)), axis=1)

    def estimator(name: str, module: str, **params: Any) -> DropinCase:
        def fit(package: str) -> Call:
            import importlib

            model = getattr(importlib.import_module(package), name)(**params)
            coefficients = "coef_" if name == "LogisticRegression" else "coefs_"

            def call() -> Any:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the iterations are few on purpose
                    return getattr(model.fit(x, y), coefficients)

            return call

        return DropinCase(
            f"sklearn {name}.fit (8000, 784) x 10", lambda: fit(module), lambda: fit("fastsoftmax.sklearn")
        )

    return [
        estimator("LogisticRegression", "sklearn.linear_model", max_iter=20),
        estimator("MLPClassifier", "sklearn.neural_network", max_iter=1, batch_size=128, random_state=0),
    ]


def _boosting(rng: np.random.Generator, dtype: np.dtype) -> list[DropinCase]:
    x, y = _logits(rng, dtype, 20_000, 10), rng.integers(0, 10, 20_000)

    def numpy_objective() -> tuple[Array, Array]:
        """Gradient and hessian as custom objectives are written by hand."""
        e = np.exp(x - x.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        grad = p.copy()
        grad[np.arange(len(y)), y] -= 1
        return grad, np.maximum(2 * p * (1 - p), 1e-16)

    return [
        DropinCase(
            "boosting objective (20000, 10), by hand in NumPy",
            lambda: numpy_objective,
            lambda: lambda: F.cross_entropy_grad_hess(x, y, hessian_scale=2.0),
        )
    ]
