"""Gradients against central differences, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, find
from tolerance import assert_same_bits, assert_ulps

import fastsoftmax as fs

STEP = 1e-3
# Fourth order: the error is STEP**4 times a fifth derivative of order 1, rounding is eps / STEP.
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def central_differences(f, x):
    """Gradient of the scalar function ``f`` at ``x``, by the fourth-order formula, one entry at a time."""
    grad = np.empty_like(x)
    for at in np.ndindex(x.shape):

        def moved(steps, at=at):
            y = x.copy()
            y[at] += steps * STEP
            return f(y)

        grad[at] = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * STEP)
    return grad


@pytest.mark.parametrize("case", [c for c in CASES if c.function == "cross_entropy_with_grad"], ids=str)
@pytest.mark.parametrize("n_classes", [1, 2, 10, 20])
def test_loss_gradient(case, n_classes):
    (logits, targets), options = case.make(np.float64, 4, n_classes)
    grad = case.call((logits, targets), options)[1]
    upstream = np.asarray(options.pop("grad_loss", 1.0))

    def loss(z):
        return float(np.sum(upstream * fs.cross_entropy(z, targets, **options)))

    np.testing.assert_allclose(grad, central_differences(loss, logits), **CLOSE)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_vector_jacobian_products(function, axis, rng):
    logits, upstream = rng.standard_normal((2, 4, 5))
    forward, backward = getattr(fs, function), getattr(fs, f"{function}_backward")
    grad = backward(upstream, forward(logits, axis=axis), axis=axis)
    np.testing.assert_allclose(
        grad, central_differences(lambda z: float((upstream * forward(z, axis=axis)).sum()), logits), **CLOSE
    )


def test_softmax_is_the_gradient_of_logsumexp(rng):
    logits = rng.standard_normal((3, 7))
    np.testing.assert_allclose(fs.softmax(logits), central_differences(lambda z: float(fs.logsumexp(z).sum()), logits), **CLOSE)


def test_boosting_gradient_and_hessian(rng):
    logits, targets, weight = rng.standard_normal((3, 5)), np.array([0, 4, 2]), np.array([1.0, 2.0, 0.5])

    def gradient(z):
        return fs.cross_entropy_grad_hess(z, targets, sample_weight=weight)[0]

    def loss(z):
        return float((weight * fs.cross_entropy(z, targets, reduction="none")).sum())

    grad, hess = fs.cross_entropy_grad_hess(logits, targets, sample_weight=weight)
    np.testing.assert_allclose(grad, central_differences(loss, logits), **CLOSE)
    # The diagonal: entry (i, j) of the gradient along entry (i, j) of the logits.
    diagonal = np.empty_like(logits)
    for at in np.ndindex(logits.shape):
        only = np.zeros(logits.shape, dtype=bool)
        only[at] = True
        diagonal[at] = central_differences(lambda z, at=at: float(gradient(z)[at]), logits)[at]
    np.testing.assert_allclose(hess, diagonal, **CLOSE)
    doubled = fs.cross_entropy_grad_hess(logits, targets, sample_weight=weight, hessian_scale=2.0)
    assert_same_bits(doubled, (grad, 2 * hess))


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_affine_gradients(which, rng):
    values = {"x": rng.standard_normal((3, 5)), "weight": rng.standard_normal((5, 4)), "bias": rng.standard_normal(4)}
    upstream = rng.standard_normal((3, 4))

    def loss(v):
        return float((upstream * fs.affine(**{**values, which: v})).sum())

    grads = dict(zip(values, fs.affine_backward(upstream, values["x"], values["weight"])))
    np.testing.assert_allclose(grads[which], central_differences(loss, values[which]), **CLOSE)


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.function == "linear_cross_entropy_with_grad" and c.variant != "no-x"], ids=str
)
def test_linear_cross_entropy_gradients(case, which):
    (x, weight, targets, bias), options = case.make(np.float64, 4, 6)
    values = {"x": x, "weight": weight, "bias": bias}

    def loss(v):
        return fs.linear_cross_entropy(targets=targets, **{**values, which: v}, **options)

    grads = dict(zip(values, fs.linear_cross_entropy_with_grad(x, weight, targets, bias, **options)[1]))
    np.testing.assert_allclose(grads[which], central_differences(loss, values[which]), **CLOSE)


@pytest.mark.parametrize("variant", ["mean", "weighted-smooth"])
def test_linear_cross_entropy_is_affine_then_cross_entropy(variant, dtype):
    case = find("linear_cross_entropy_with_grad", variant)
    (x, weight, targets, bias), options = case.make(dtype, 50, 10)
    loss, grads = case.call((x, weight, targets, bias), options)
    logits = fs.affine(x, weight, bias)
    two_steps, grad_logits = fs.cross_entropy_with_grad(logits, targets, **options)
    close = {"rtol": 200 * np.finfo(dtype).eps, "atol": 20 * np.finfo(dtype).eps}
    np.testing.assert_allclose(loss, two_steps, **close)
    for fused, separate in zip(grads, fs.affine_backward(grad_logits, x, weight), strict=True):
        np.testing.assert_allclose(fused, separate, **close)


def test_gradient_of_a_row_sums_to_nothing(dtype):
    (logits, targets), _ = find("cross_entropy_with_grad", "sum").make(dtype, 50, 10)
    for options in ({}, {"label_smoothing": 0.3}, {"class_weight": np.arange(1, 11)}):
        grad = fs.cross_entropy_with_grad(logits, targets, reduction="sum", **options)[1]
        assert np.abs(grad).max() > 0.5  # there is something to sum
        assert np.abs(grad.sum(axis=1, dtype=np.float64)).max() < 100 * np.finfo(dtype).eps


def test_fused_gradient_is_the_backward_pass_of_its_parts(dtype, rng):
    logits, targets = rng.standard_normal((20, 10)).astype(dtype), rng.integers(0, 10, 20)
    grad_log_probs = np.zeros_like(logits)
    grad_log_probs[np.arange(20), targets] = -1
    by_parts = fs.log_softmax_backward(grad_log_probs, fs.log_softmax(logits))
    fused = fs.cross_entropy_with_grad(logits, targets, reduction="sum")[1]
    np.testing.assert_allclose(by_parts, fused, rtol=0, atol=8 * np.finfo(dtype).eps)


def test_confident_rows_still_have_a_gradient(dtype):
    """p - 1 is a plain zero here; the gradient at the target is minus the others' share."""
    logits = np.zeros((4, 3), dtype=dtype)
    logits[:, 0] = [20, 40, 60, 80]
    probs = fs.softmax(logits)
    assert (probs[1:, 0] - 1 == 0).all()  # what everybody computes
    losses, grad = fs.cross_entropy_with_grad(logits, np.zeros(4, dtype=int), reduction="none")
    expected = 2 * np.exp(-logits[:, 0].astype(np.longdouble))
    expected /= 1 + expected
    assert_ulps(grad[:, 0], -expected, {"float32": 2, "float64": 4})
    assert_ulps(losses, -np.log1p(-expected), {"float32": 2, "float64": 4})
