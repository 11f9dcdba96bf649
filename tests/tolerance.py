"""How far from the truth a result may be: the only place where the numbers live."""

from __future__ import annotations

import numpy as np

# Worst element, in units of the last place of the result's dtype.
EXACT = {"float16": 1.0, "float32": 2.0, "float64": 4.0}
# A target that is spread over several classes: the gradient is a difference, the loss a sum over the row.
WEIGHTED = {"float16": 1.0, "float32": 8.0, "float64": 8.0}
# Below the normal range the spacing is absolute: one step of it, of which half is the last rounding. Towards the top of
# that range the digits of a normal number are back, and with them half a step more of what they may be off by.
SUBNORMAL = 1.0, 0.5
# Sums of products (matrix products and what is built on them), in eps times the sum of the absolute values.
PRODUCT = 4.0


def ulps(result, truth, scale=None) -> np.ndarray:
    """Distance of each element of ``result`` from ``truth`` in units in the last place of the result's dtype.

    The unit is the spacing at the truth, or at ``scale`` where that is larger. Infinities and NaN are either the same
    (0) or infinitely far.
    """
    result = np.asarray(result)
    truth = np.asarray(truth, dtype=np.longdouble)
    assert result.shape == truth.shape, f"shape {result.shape}, expected {truth.shape}"
    with np.errstate(all="ignore"):
        rounded = truth.astype(result.dtype)
        magnitude = np.abs(truth) if scale is None else np.maximum(np.abs(truth), np.abs(np.asarray(scale)))
        unit = np.spacing(np.minimum(magnitude, np.finfo(result.dtype).max).astype(result.dtype)).astype(np.longdouble)
        distance = np.abs(result.astype(np.longdouble) - truth) / unit
        special = ~np.isfinite(rounded) | ~np.isfinite(result)
        same = (np.isnan(rounded) & np.isnan(result)) | (rounded == result)
    return np.where(special, np.where(same, 0.0, np.inf), distance).astype(np.float64)


def worst(result, truth, scale=None) -> tuple[float, float]:
    """Worst element among the normal results, and among the subnormal ones, in units in the last place."""
    distance = ulps(result, truth, scale)
    subnormal = np.abs(np.asarray(truth, dtype=np.longdouble)) < np.finfo(np.asarray(result).dtype).tiny
    if scale is not None:
        subnormal &= np.abs(np.asarray(scale)) < np.finfo(np.asarray(result).dtype).tiny
    steps = ulps(result, np.asarray(truth, dtype=np.longdouble).astype(np.asarray(result).dtype))
    return (
        float(np.max(distance, initial=0.0, where=~subnormal)),
        float(np.max(steps, initial=0.0, where=subnormal)),
    )


def assert_ulps(result, truth, limit, *, scale=None, label="") -> None:
    """Fail, naming the worst element, unless every element is within ``limit`` (a number, or a table by dtype)."""
    result = np.asarray(result)
    if isinstance(limit, dict):
        limit = limit[result.dtype.name]
    distance = ulps(result, truth, scale)
    size = np.abs(np.asarray(truth, dtype=np.longdouble)) if scale is None else np.maximum(np.abs(truth), np.abs(scale))
    share = size / np.finfo(result.dtype).tiny
    with np.errstate(invalid="ignore"):
        allowed = np.where(share < 1, np.minimum(limit, SUBNORMAL[0] + SUBNORMAL[1] * share), limit)
    if (distance <= allowed).all():
        return
    at = np.unravel_index(np.argmax(distance / allowed), distance.shape)
    raise AssertionError(
        f"{label}: worst element {distance[at]:.3g} ulps (limit {float(allowed[at]):.3g}) "
        f"at {tuple(int(i) for i in at)}: got {result[at]!r}, expected {np.asarray(truth)[at]!r}; "
        f"{int(np.count_nonzero(distance > allowed))} of {distance.size} beyond the limit"
    )


def assert_products(result, truth, magnitude, *, label="") -> None:
    """Fail unless a sum of products is within ``PRODUCT`` eps of the sum of the absolute values, ``magnitude``.

    The error of a dot product is bounded by the sum of the absolute values of its terms and not by the result, which
    may have cancelled.
    """
    result = np.asarray(result)
    truth = np.asarray(truth, dtype=np.longdouble)
    assert result.shape == truth.shape, f"{label}: shape {result.shape}, expected {truth.shape}"
    eps = np.finfo(result.dtype).eps
    distance = np.abs(result.astype(np.longdouble) - truth)
    allowed = PRODUCT * eps * np.broadcast_to(np.asarray(magnitude, dtype=np.longdouble), truth.shape)
    bad = ~(distance <= allowed)
    if bad.any():
        at = np.unravel_index(np.argmax(np.where(bad, distance, 0)), bad.shape)
        raise AssertionError(f"{label}: at {at} got {result[at]!r}, expected {truth[at]!r}, allowed {allowed[at]!r}")


def assert_same_bits(result, expected, *, label="") -> None:
    """Fail unless two results (arrays, floats, None, or tuples of them) are the same to the last bit."""
    if isinstance(expected, tuple):
        assert isinstance(result, tuple), label
        for i, (r, e) in enumerate(zip(result, expected, strict=True)):
            assert_same_bits(r, e, label=f"{label}[{i}]")
        return
    if expected is None:
        assert result is None, label
        return
    assert type(result) is type(expected), f"{label}: {type(result)}, expected {type(expected)}"
    assert np.shape(result) == np.shape(expected), f"{label}: shape {np.shape(result)}, expected {np.shape(expected)}"
    r, e = np.atleast_1d(result), np.atleast_1d(expected)
    assert r.dtype == e.dtype, f"{label}: {r.dtype}, expected {e.dtype}"
    bits = f"u{r.dtype.itemsize}"
    different = np.ascontiguousarray(r).view(bits) != np.ascontiguousarray(e).view(bits)
    if r.dtype.kind == "f":
        different &= ~(np.isnan(r) & np.isnan(e))  # NaN is NaN: its sign and payload carry no promise
    if different.any():
        at = np.unravel_index(np.argmax(different), different.shape)
        raise AssertionError(
            f"{label}: {int(different.sum())} of {different.size} elements differ, the first at {at}: {r[at]!r} and {e[at]!r}"
        )
