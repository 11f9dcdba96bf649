"""Both sides of every line of ``bench --dropin`` do the same work: they return the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fastsoftmax._peers.dropin import dropin_cases

CASES = dropin_cases()


def numbers(result):
    """Every array of a nested result, in order."""
    if isinstance(result, dict):
        return [a for key in sorted(result) for a in numbers(result[key])]
    if isinstance(result, (list, tuple)):
        return [a for part in result for a in numbers(part)]
    return [np.asarray(result)]


@pytest.fixture(autouse=True)
def _one_blas_thread():
    """OpenMP's threads spin: on a busy machine they cost far more than the work. Numbers are compared here, not speeds."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_theirs_and_ours_agree(case):
    try:
        theirs = case.theirs()
    except ImportError as missing:
        pytest.skip(f"not installed: {missing}")
    expected, result = numbers(theirs()), numbers(case.ours()())
    assert len(result) == len(expected)
    for mine, its in zip(result, expected):
        np.testing.assert_allclose(mine, its, rtol=1e-6, atol=1e-9)


def test_labels_are_unique():
    assert len({case.label for case in CASES}) == len(CASES)
