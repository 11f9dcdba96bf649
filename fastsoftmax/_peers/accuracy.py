"""Worst errors in ulps, ours beside the peers', on the inputs where the usual formulas lose digits.

The truth is computed in NumPy's long double (64 bits of mantissa on x86) with the formulas that do not cancel: the
largest entries are taken out of the sum and log1p adds them again. One ulp is the spacing of the result's own dtype
at the truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ready
from .cases import Case

OPERATIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_with_grad")

INPUTS: dict[str, tuple[tuple[int, int], str]] = {
    "normal": ((512, 10), "normal logits, 10 classes"),
    "spread": ((512, 100), "standard deviation 30"),
    "confident": ((512, 10), "the target ahead by 20 to 80"),
    "wrong": ((512, 10), "the target behind by 20 to 80"),
    "offset": ((512, 100), "common offset of 1e4 (float32), 1e8 (float64)"),
    "equal": ((64, 1000), "all classes equal"),
    "classes": ((16, 32000), "32,000 classes"),
}


def hard_case(op: str, inputs: str, dtype: str) -> Case:
    """A `Case` on one of `INPUTS`. Row counts are powers of two, so that a mean's 1/n is exact."""
    shape, _ = INPUTS[inputs]
    case = Case(op, shape, dtype)
    n_rows, _ = shape
    rng = np.random.default_rng(5)
    z = rng.standard_normal(shape)
    rows, targets = np.arange(n_rows), rng.integers(0, shape[1], n_rows)
    margin = rng.uniform(20, 80, n_rows)
    if inputs == "spread":
        z *= 30
    elif inputs == "confident":
        z[rows, targets] = z.max(axis=1) + margin
    elif inputs == "wrong":
        z[rows, targets] = z.max(axis=1) - margin
    elif inputs == "offset":
        z += 1e4 if dtype == "float32" else 1e8
    elif inputs == "equal":
        z[:] = z[:, :1]
    case.logits, case.targets = z.astype(dtype), targets
    return case


def truth(case: Case) -> np.ndarray:
    """The exact results for ``case.op``, in long double."""
    z = case.logits.astype(np.longdouble)
    rows = np.arange(case.n_rows)
    z -= z.max(axis=1, keepdims=True)
    e = np.exp(z)
    ties = (z == 0).sum(axis=1)
    others = np.where(z == 0, 0, e).sum(axis=1)  # without the maxima: what 1 + others would lose
    log_sum = np.where(ties == 1, np.log1p(others), np.log(ties + others))
    if case.op == "softmax":
        return e / (ties + others)[:, None]
    if case.op == "log_softmax":
        return z - log_sum[:, None]
    if case.op == "logsumexp":
        return case.logits.max(axis=1) + log_sum
    if case.op == "cross_entropy":
        return log_sum - z[rows, case.targets]
    grad = e / (ties + others)[:, None]
    e[rows, case.targets] = 0
    grad[rows, case.targets] = -e.sum(axis=1) / (ties + others)
    return grad / case.n_rows


def ulps(got: Any, want: np.ndarray, dtype: str) -> float:
    """The worst entry's error, in units in the last place; results in or below the subnormal range are left out."""
    got = np.asarray(got)
    counted = np.abs(want) >= np.finfo(dtype).tiny
    if not counted.any():
        return 0.0
    got, want = got[counted].astype(np.longdouble), want[counted]
    spacing = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got - want) / spacing))


def worst_ulps(op: str, implementation: str, inputs: str, dtype: str) -> float | None:
    """Worst error of one implementation on one of `INPUTS`; None where it is absent."""
    case = hard_case(op, inputs, dtype)
    call = ready(case, implementation, checked=False)
    if call is None:
        return None
    got = call()
    return ulps(got[1] if isinstance(got, tuple) else got, truth(case), dtype)
