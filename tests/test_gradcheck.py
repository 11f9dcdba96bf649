"""The gradient check itself: it passes what is right, fails what is wrong, and says where."""

from __future__ import annotations

import numpy as np
import pytest

from fastsoftmax import cross_entropy_with_grad, gradient_check


def square(params):
    return float(np.sum(params**2) / 2), params.copy()


def test_right_gradient_passes(rng):
    result = gradient_check(square, rng.normal(size=(3, 4)), tolerance=1e-9)
    assert result
    assert result.n_checked == 12
    assert "passed" in str(result)


def test_finds_the_one_wrong_entry(rng):
    params = {"weight": rng.normal(size=(3, 4)) + 2, "bias": rng.normal(size=4)}

    def f(p):
        grad = {k: v.copy() for k, v in p.items()}
        grad["weight"][1, 2] *= 1.001
        return sum(float(np.sum(v**2)) / 2 for v in p.values()), grad

    result = gradient_check(f, params)
    assert not result
    assert (result.param, result.index) == ("weight", (1, 2))
    assert result.error == pytest.approx(1e-3, rel=1e-2)
    assert result.analytic == pytest.approx(1.001 * params["weight"][1, 2])
    assert result.numeric == pytest.approx(params["weight"][1, 2], rel=1e-8)
    for part in ("FAILED", "'weight'[1, 2]", "1.0e-03"):
        assert part in str(result)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_nan_and_inf_fail(rng, wrong):
    def f(p):
        grad = p.copy()
        grad[2] = wrong
        return float(np.sum(p**2)) / 2, grad

    result = gradient_check(f, rng.normal(size=4) + 1)
    assert not result
    assert result.index == (2,)
    assert "FAILED" in str(result)


def test_params_are_put_back_exactly(rng):
    params = [rng.normal(size=5), rng.normal(size=(2, 2))]
    before = [p.copy() for p in params]

    def f(ps):
        return sum(float(np.sum(p**3)) for p in ps), [3 * p**2 for p in ps]

    assert gradient_check(f, params)
    for p, b in zip(params, before):
        np.testing.assert_array_equal(p, b)

    def fails(ps):
        if not np.array_equal(ps[0], before[0]):
            raise RuntimeError("in the middle")
        return f(ps)

    with pytest.raises(RuntimeError):
        gradient_check(fails, params)
    np.testing.assert_array_equal(params[0], before[0])


def test_f_may_reuse_its_gradient(rng):
    grad = np.empty((3, 4))
    logits, targets = rng.normal(size=(3, 4)), np.array([0, 1, 2])
    assert gradient_check(lambda z: cross_entropy_with_grad(z, targets, out=grad), logits, tolerance=1e-7)


def test_n_entries(rng):
    calls = 0

    def f(p):
        nonlocal calls
        calls += 1
        return square(p)

    result = gradient_check(f, rng.normal(size=1000), n_entries=10)
    assert result
    assert result.n_checked == 10
    assert calls == 21


def test_float32(rng):
    params = rng.normal(size=6).astype(np.float32)
    assert gradient_check(square, params)
    assert not gradient_check(lambda p: (square(p)[0], 1.1 * p), params)


@pytest.mark.parametrize(
    ("f", "params", "error", "message"),
    [
        (lambda p: (0.0, p), [1.0, 2.0], TypeError, r"parameter 0 must be a float array, got 1\.0"),
        (square, np.arange(3), TypeError, "parameter 0 must be a float array, got an array of shape"),
        (square, np.ones((3, 4)).T, ValueError, "parameter 0 must be C-contiguous and writable"),
        (lambda p: (0.0, np.zeros(2)), np.ones(3), ValueError, r"gradient of shape \(3,\) for parameter 0, got shape"),
        (lambda p: (0.0, {}), {"w": np.ones(3)}, ValueError, r"for parameter 'w', got none"),
        (square, np.ones(0), ValueError, "at least one entry"),
    ],
)
def test_bad_arguments(f, params, error, message):
    with pytest.raises(error, match=message):
        gradient_check(f, params)
