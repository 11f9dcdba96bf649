"""The compiled kernels, built at first use.

``kernel("softmax_narrow", dtype)`` returns a compiled function. Nothing here imports numba until a kernel has to be compiled:
those that lie on the disk need llvmlite alone (`_linker`), and ``import fastsoftmax`` costs what NumPy costs. A new kernel is
one function in a module of this folder and one entry in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np

from ._layout import (
    AWAKE,
    BOARD,
    CHUNKS,
    CLOSED,
    FEWER,
    IGNORED,
    JOB,
    JOB_BOARD,
    JOB_HELPERS,
    JOB_HOLDS,
    JOB_LONG,
    JOB_RECORD,
    JOB_RESULTS,
    JOB_ROWS,
    NARROW,
    NARROW32,
    OF_JOB,
    RECORD,
    SHORT,
    SIDE_BY_SIDE,
    SMALL,
    SMALL_PRODUCT,
    UNTIL,
    WAKES,
    WORKER,
)  # fmt: skip
from ._lock import building

__all__ = [
    "AWAKE", "BOARD", "BY_WIDTH", "CHUNKS", "CLOSED", "FEWER", "IGNORED", "JOB", "JOB_BOARD", "JOB_HELPERS", "JOB_HOLDS",
    "JOB_LONG", "JOB_RECORD", "JOB_RESULTS", "JOB_ROWS", "KERNELS", "MODULES", "NARROW", "NARROW32", "OF_JOB",
    "RECORD", "SHORT", "SIDE_BY_SIDE", "SMALL", "SMALL_PRODUCT", "UNTIL", "WAKES", "WORKER", "ByWidth", "Kernel", "build_all",
    "built", "environment", "kernel",
]  # fmt: skip

# kernel name -> the module of this folder that defines the function of that name.
MODULES: dict[str, str] = {
    "softmax_narrow": "softmax",
    "softmax_wide": "softmax",
    "log_softmax_narrow": "softmax",
    "log_softmax_wide": "softmax",
    "logsumexp_narrow": "softmax",
    "logsumexp_wide": "softmax",
    "exp": "softmax",
    "softmax_columns": "columns",
    "log_softmax_columns": "columns",
    "turn": "turn",
    "check_targets": "cross_entropy",
    "cross_entropy_narrow": "cross_entropy",
    "cross_entropy_wide": "cross_entropy",
    "cross_entropy_with_grad_narrow": "cross_entropy",
    "cross_entropy_with_grad_wide": "cross_entropy",
    "cross_entropy_columns": "cross_entropy",
    "cross_entropy_with_grad_columns": "cross_entropy",
    "mean_cross_entropy_narrow": "cross_entropy",
    "mean_cross_entropy_wide": "cross_entropy",
    "mean_cross_entropy_with_grad_narrow": "cross_entropy",
    "mean_cross_entropy_with_grad_wide": "cross_entropy",
    "soft_cross_entropy": "soft_cross_entropy",
    "soft_cross_entropy_with_grad": "soft_cross_entropy",
    "softmax_backward": "backward",
    "log_softmax_backward": "backward",
    "softmax_backward_columns": "backward_columns",
    "log_softmax_backward_columns": "backward_columns",
    "shared_maxima": "shared_columns",
    "shared_sums": "shared_columns",
    "shared_factors": "shared_columns",
    "shared_softmax": "shared_columns",
    "shared_log_softmax": "shared_columns",
    "shared_products": "shared_columns",
    "shared_dots": "shared_columns",
    "shared_softmax_backward": "shared_columns",
    "softmax_hessian": "backward",
    "relu": "elementwise",
    "relu_backward": "elementwise",
    "sgd_update": "elementwise",
    "momentum_update": "elementwise",
    "adam_update": "elementwise",
    "gather": "elementwise",
    "gather_bytes": "elementwise",
    "affine": "affine",
    "affine_backward": "affine",
    "affine_parts": "affine",
    "add_parts": "affine",
    "affine_grad_weight": "affine",
    "thin_grad_weight": "affine",
    "add_thin_parts": "affine",
    "linear_cross_entropy": "linear_cross_entropy",
    "play": "program",
    "rewind": "program",
    "serve": "pool",
    "wake": "pool",
}


_OF_NO_DTYPE, _FLOAT64 = {"check_targets", "play", "rewind", "serve", "wake"}, np.dtype(np.float64)


class Kernel(dict[np.dtype, Callable[..., Any]]):
    """One kernel's compiled functions by dtype; a missing one is compiled (or loaded from the disk) when looked up.

    A dict, because the look-up stands in front of every call: ``KERNELS["relu"][dtype]`` costs about 30 ns. In front of small
    ones not even that: they try `small`, the function that was asked for last (`_small`).
    """

    def __init__(self, name: str, module: str) -> None:
        super().__init__()
        self.name = name
        self.module = module
        self.small: Callable[..., Any] = _declined

    def __missing__(self, dtype: np.dtype) -> Callable[..., Any]:
        with building():
            if not self._found(dtype):  # another thread may have built it while this one waited
                own = self._own(dtype)
                self[dtype] = self[own] = self._built(own)
        return self[dtype]

    def find(self, dtype: np.dtype) -> bool:
        """Load the function from the disk if it is there and not built yet; whether there is one now."""
        with building():
            return self._found(dtype)

    def _found(self, dtype: np.dtype) -> bool:
        own = self._own(dtype)
        if (function := self.get(own) or self._loaded(own)) is None:
            return False
        self[dtype] = self[own] = function
        return True

    def _own(self, dtype: np.dtype) -> np.dtype:
        """What it is compiled for."""
        return _FLOAT64 if self.name in _OF_NO_DTYPE else dtype

    def _loaded(self, dtype: np.dtype) -> Callable[..., Any] | None:
        """From the disk, if it is there."""
        cache = import_module("._cache", __name__)
        name = cache.name_of(self.name, dtype)
        if (code := cache.load(name)) is None:
            return None
        return import_module("._linker", __name__).link(code, name)

    def _built(self, dtype: np.dtype) -> Callable[..., Any]:
        jit = import_module("._jit", __name__)
        module = import_module("." + self.module, __name__)
        return jit.build(getattr(module, self.name), dtype)

    def of(self, dtype: np.dtype, n: int = 0) -> Callable[..., Any]:
        """The function for that dtype, whatever the number of classes."""
        return self[dtype]

    def latest(self, dtype: np.dtype, n: int = 0) -> Callable[..., Any] | None:
        """The same, from now on that for small calls; None if it has not been built."""
        if (function := self.get(dtype)) is not None:
            self.small = function
        return function


class ByWidth:
    """Two kernels that do the same to rows of few classes and of many; they are chosen as those of one are by dtype.

    Few users have both, and a first call compiles one of them (Ice Lake, softmax, float32: 8.0 s as one kernel, 4.7 so).
    """

    def __init__(self, name: str, least: int) -> None:
        self.narrow, self.wide = KERNELS[name + "_narrow"], KERNELS[name + "_wide"]
        self._least = {np.dtype(np.float32): least, _FLOAT64: NARROW}  # classes of wide rows
        self.small: Callable[..., Any] = _declined

    def of(self, dtype: np.dtype, n: int) -> Callable[..., Any]:
        return (self.narrow if n < self._least[dtype] else self.wide)[dtype]

    def latest(self, dtype: np.dtype, n: int) -> Callable[..., Any] | None:
        if (function := (self.narrow if n < self._least.get(dtype, 0) else self.wide).get(dtype)) is not None:
            self.small = function
        return function


def _declined(*arguments: Any) -> None:
    """Nothing has been asked for yet."""


KERNELS: dict[str, Kernel] = {name: Kernel(name, module) for name, module in MODULES.items()}
BY_WIDTH: dict[str, ByWidth] = {
    "softmax": ByWidth("softmax", NARROW32),
    "log_softmax": ByWidth("log_softmax", NARROW32),
    "logsumexp": ByWidth("logsumexp", NARROW32),
    "cross_entropy": ByWidth("cross_entropy", NARROW),
    "cross_entropy_with_grad": ByWidth("cross_entropy_with_grad", NARROW),
    "mean_cross_entropy": ByWidth("mean_cross_entropy", NARROW),
    "mean_cross_entropy_with_grad": ByWidth("mean_cross_entropy_with_grad", NARROW),
}


def kernel(name: str, dtype: np.dtype | str) -> Callable[..., Any]:
    """The compiled kernel of that name for that dtype (float32 or float64).

    It takes the kernel's own arguments, arrays as `_arguments` says, and one more, last: `job`, True to let other Python
    threads run meanwhile. Small calls keep the GIL: beside a busy Python thread, giving it away costs up to 5 ms a call.
    """
    return KERNELS[name][np.dtype(dtype)]


def build_all(dtypes: Iterable[np.dtype | str] = ("float32", "float64")) -> None:
    """Build every kernel for the given dtypes."""
    for dtype in dtypes:
        for name in KERNELS:
            kernel(name, dtype)


def built() -> list[tuple[str, str]]:
    """The (kernel, dtype) pairs built so far in this process."""
    return [(name, dtype.name) for name, by_dtype in KERNELS.items() for dtype in by_dtype]


def environment() -> dict[str, str]:
    """What compiles the kernels, for which CPU, and where they are kept."""
    import llvmlite

    from ._cache import folder, numba_version, processor

    cache = str(folder() or "none")
    return {"numba": numba_version(), "llvmlite": llvmlite.__version__, "cpu": processor(), "cache": cache}
