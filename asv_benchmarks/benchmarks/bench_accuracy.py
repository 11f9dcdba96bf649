"""Worst errors in ulps on hard inputs, beside the peers'."""

from __future__ import annotations

from typing import Any

from fastsoftmax._peers.accuracy import INPUTS, OPERATIONS

from .common import DTYPES, bench


class Accuracy:
    params = (
        ["fastsoftmax", "numpy", "scipy", "torch", "jax", "sklearn"],
        list(OPERATIONS),
        list(INPUTS),
        DTYPES,
    )
    param_names = ("implementation", "op", "inputs", "dtype")
    unit = "ulps"
    timeout = 600

    def setup_cache(self) -> dict[tuple[Any, ...], float]:
        cells = bench("--accuracy", "--dtype", ",".join(DTYPES))
        return {
            (implementation, cell["op"], cell["inputs"], cell["dtype"]): value
            for cell in cells
            for implementation, value in cell["ulps"].items()
            if value is not None
        }

    def setup(self, found: dict[tuple[Any, ...], float], *key: Any) -> None:
        if key not in found:
            raise NotImplementedError("not installed, or has no such operation")

    def track_worst_ulps(self, found: dict[tuple[Any, ...], float], *key: Any) -> float:
        return found[key]
