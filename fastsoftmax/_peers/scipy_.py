"""SciPy: ``scipy.special``, which allocates its results and has one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy import special

from .cases import Case


def set_threads(n_threads: int) -> None:
    """scipy.special has one thread."""


def softmax(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: special.softmax(z, axis=1)


def softmax_axis0(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: special.softmax(z, axis=0)


def log_softmax(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: special.log_softmax(z, axis=1)


def logsumexp(case: Case) -> Callable[[], Any]:
    z = case.logits
    return lambda: special.logsumexp(z, axis=1)
