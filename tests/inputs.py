"""Makers of inputs, each with the reason why it is in the tests, and the memory layouts an array may come in."""

from __future__ import annotations

import numpy as np


def _logits(rng, dtype, n_rows, n_classes, spread=1.0):
    return (rng.standard_normal((n_rows, n_classes)) * spread).astype(dtype)


def _labels(rng, n_rows, n_classes):
    return rng.integers(0, n_classes, size=n_rows)


def normal(rng, dtype, n_rows, n_classes):
    return _logits(rng, dtype, n_rows, n_classes), _labels(rng, n_rows, n_classes)


def spread_30(rng, dtype, n_rows, n_classes):
    """Differences near 100: half an ulp of z - m is there 1e2 ulps of its exponential, unless it is carried."""
    return _logits(rng, dtype, n_rows, n_classes, 30.0), _labels(rng, n_rows, n_classes)


def confident(rng, dtype, n_rows, n_classes):
    """The target leads by 20 to 80: losses and gradients down to e-35, where 1 - p and lse - z are a plain zero."""
    z, targets = normal(rng, dtype, n_rows, n_classes)
    z[np.arange(n_rows), targets] = z.max(axis=1) + np.linspace(20, 80, n_rows)
    return z, targets


def confidently_wrong(rng, dtype, n_rows, n_classes):
    """Another class leads by 20 to 80: large losses, a gradient of -1 at the target."""
    z, targets = normal(rng, dtype, n_rows, n_classes)
    z[np.arange(n_rows), (targets + 1) % n_classes] = z.max(axis=1) + np.linspace(20, 80, n_rows)
    return z, targets


def all_equal(rng, dtype, n_rows, n_classes):
    """The maximum is attained by every class: log(k), where the log1p form alone would be wrong by its assumption."""
    z = np.repeat(_logits(rng, dtype, n_rows, 1, 5.0), n_classes, axis=1)
    return z, _labels(rng, n_rows, n_classes)


def ties(rng, dtype, n_rows, n_classes):
    """Integers: several maxima, exactly representable differences."""
    z = rng.integers(-3, 4, size=(n_rows, n_classes)).astype(dtype)
    return z, _labels(rng, n_rows, n_classes)


def offset(rng, dtype, n_rows, n_classes):
    """A common offset on which exp overflows, and beside which the loss is lost when it is taken as lse - z."""
    z, targets = normal(rng, dtype, n_rows, n_classes)
    return (z + np.dtype(dtype).type(1e4 if np.dtype(dtype) == np.float32 else 1e8)).astype(dtype), targets


def underflow(rng, dtype, n_rows, n_classes):
    """Differences across the whole subnormal range of exp and beyond it."""
    z, targets = normal(rng, dtype, n_rows, n_classes)
    low, high = (-110, -80) if np.dtype(dtype) == np.float32 else (-760, -690)
    z[:, 1:] = np.linspace(low, high, n_rows * (n_classes - 1)).reshape(n_rows, -1)
    z[:, 0] = 0
    return z, targets


# (name, maker, rows, classes): 10 is a short row, 100 and 1,000 are full vectors and a tail, 16 has no tail.
EXACTNESS = [
    ("normal", normal, 2000, 10),
    ("normal", normal, 600, 16),
    ("normal", normal, 200, 100),
    ("normal", normal, 60, 1000),
    ("normal", normal, 3, 32_000),
    ("normal", normal, 1, 1_000_000),
    ("spread 30", spread_30, 2000, 10),
    ("spread 30", spread_30, 60, 1000),
    ("spread 30", spread_30, 3, 32_000),
    ("confident", confident, 2000, 10),
    ("confident", confident, 60, 1000),
    ("confidently wrong", confidently_wrong, 2000, 10),
    ("confidently wrong", confidently_wrong, 60, 1000),
    ("all equal", all_equal, 100, 10),
    ("all equal", all_equal, 20, 1000),
    ("ties", ties, 500, 10),
    ("ties", ties, 60, 1000),
    ("offset", offset, 1000, 10),
    ("offset", offset, 60, 1000),
    ("underflow", underflow, 200, 10),
    ("underflow", underflow, 10, 1000),
]


def _strided(a):
    big = np.full((a.shape[0] * 2, *a.shape[1:-1], a.shape[-1] * 3), 7, dtype=a.dtype) if a.ndim > 1 else None
    if big is None:
        big = np.full(a.shape[0] * 3, 7, dtype=a.dtype)
        view = big[::3]
    else:
        view = big[::2, ..., ::3]
    view[...] = a
    return view


def _reversed(a):
    index = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[index])[index]


def _transposed(a):
    return np.ascontiguousarray(a.T).T


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a):
    buffer = np.zeros(a.nbytes + 1, dtype=np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


# What an array may look like in memory; every maker returns the same values.
LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": _strided,
    "reversed": _reversed,
    "transposed": _transposed,
    "read-only": _read_only,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": _unaligned,
}
