"""The peers: one table of operation -> implementations, for ``python -m fastsoftmax bench`` and for asv alike.

An implementation is a module of this folder with one factory per operation, named after it: ``torch_.softmax(case)``
does all the set-up and returns a callable without arguments that does the work, on the same arrays as everybody else
and into buffers made beforehand where the library allows it. A peer is imported when one of its factories is asked
for and not before; one that is not installed is skipped.

A new operation is one row of ``TABLE``, one factory per implementation, and its truth in ``reference.py``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from .cases import Case, make_case
from .reference import check

__all__ = ["ONE_THREAD", "TABLE", "TRAFFIC", "Case", "absent", "check", "make_case", "ready"]

_OURS = ("fastsoftmax", "fastsoftmax_out")

TABLE: dict[str, tuple[str, ...]] = {
    "softmax": (*_OURS, "numpy", "scipy", "torch", "jax", "sklearn", "copyto"),
    "softmax_axis0": (*_OURS, "numpy", "scipy", "torch", "jax", "copyto"),
    "log_softmax": (*_OURS, "numpy", "scipy", "torch", "jax", "copyto"),
    "logsumexp": ("fastsoftmax", "numpy", "scipy", "torch", "jax", "copyto"),
    "softmax_backward": (*_OURS, "numpy", "torch", "jax", "copyto"),
    "softmax_backward_axis0": (*_OURS, "numpy", "torch", "jax", "copyto"),
    "cross_entropy": ("fastsoftmax", "numpy", "torch", "jax", "sklearn", "copyto"),
    "cross_entropy_with_grad": (*_OURS, "numpy", "torch", "jax", "sklearn", "copyto"),
    "smoothed_cross_entropy_with_grad": (*_OURS, "numpy", "torch", "jax", "copyto"),
    "affine": (*_OURS, "numpy", "torch", "jax"),
    "affine_backward": (*_OURS, "numpy", "torch", "jax"),
    "linear_cross_entropy_with_grad": ("fastsoftmax", "numpy", "torch", "jax"),
    "linear_cross_entropy_grad_weight": ("fastsoftmax", "numpy", "torch", "jax", "copyto"),
    "training_epoch": ("fastsoftmax", "numpy", "torch", "sklearn"),
}

TRAFFIC: dict[str, int] = {
    "softmax": 2,
    "softmax_axis0": 2,
    "log_softmax": 2,
    "logsumexp": 1,
    "softmax_backward": 3,
    "softmax_backward_axis0": 3,
    "cross_entropy": 1,
    "cross_entropy_with_grad": 2,
    "smoothed_cross_entropy_with_grad": 2,
    "linear_cross_entropy_grad_weight": 1,
}
"""How often an operation must move its largest array: reads + writes. ``copyto`` moves that array twice."""

ONE_THREAD = ("scipy", "copyto")
"""They have no threads of their own in any operation here: two threads would measure the same thing again."""

_MODULES = {"fastsoftmax": "ours", "fastsoftmax_out": "ours_out", "copyto": "copyto"}


def absent(implementation: str) -> bool:
    """Whether `implementation` cannot run here: not installed, or switched off with ``FASTSOFTMAX_PEERS=0``."""
    if implementation in _MODULES:
        return False
    return os.environ.get("FASTSOFTMAX_PEERS") == "0" or _module(implementation) is None


def ready(case: Case, implementation: str, checked: bool = True) -> Callable[[], Any] | None:
    """The callable that does ``case.op`` with `implementation`, set up and its result checked; None where it is absent.

    Thread pools that can be told ``case.n_threads`` are told. BLAS and JAX cannot be, from inside: `bench` starts a
    process for each thread count, with BLAS' environment variables set and, for one thread, pinned to one core.
    """
    if absent(implementation):
        return None
    module = _module(implementation)
    module.set_threads(case.n_threads)
    call = getattr(module, case.op)(case)
    if checked:
        check(case, call(), implementation)
    return call


def _module(implementation: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{_MODULES.get(implementation, implementation + '_')}")
    except ImportError:
        if implementation in _MODULES:
            raise
        return None
