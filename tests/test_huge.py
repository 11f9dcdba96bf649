"""Arrays of more than 2**31 elements, within 20 GB: every element is checked, both ends and the middle with it.

The data repeat after a period that is no power of two, and rows have the same bits whatever is around them: so the whole
result is the result of one period, again and again. Run with ``pytest -m huge``, nothing beside it.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

import fastsoftmax as fs

pytestmark = pytest.mark.huge

SIZE = 2**31 + 2**20  # elements at least
PERIOD = 999_983  # elements, about
BUDGET = 20e9  # bytes


@pytest.fixture(autouse=True)
def _within_the_budget():
    yield
    if sys.platform == "linux":
        import resource

        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BUDGET


def period(n_classes, seed=0):
    """Logits and labels of one period."""
    rng = np.random.default_rng(seed)
    n = PERIOD // n_classes
    return (5 * rng.standard_normal((n, n_classes))).astype(np.float32), rng.integers(0, min(n_classes, 256), n, np.uint8)


def repeated(part, n, axis=0):
    """`part` again and again along the axis, up to length n."""
    shape = list(part.shape)
    shape[axis] = n
    result = np.empty(shape, part.dtype)
    for there, here in pieces(result, part, axis):
        there[...] = here
    return result


def pieces(whole, part, axis=0):
    p, n = part.shape[axis], whole.shape[axis]
    whole, part = np.moveaxis(whole, axis, 0), np.moveaxis(part, axis, 0)
    for i in range(0, n, p):
        yield whole[i : i + p], part[: n - i]


def assert_repeats(whole, part, axis=0):
    assert all(np.array_equal(there, here) for there, here in pieces(whole, part, axis))


@pytest.mark.parametrize("n_classes", [1, 10, 1000])
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax])
def test_rows_in_place(function, n_classes):
    """With one class there are more than 2**31 rows."""
    part, _ = period(n_classes)
    z = repeated(part, -(-SIZE // n_classes))
    assert z.size > 2**31
    assert function(z, out=z) is z
    assert_repeats(z, function(part))


@pytest.mark.parametrize("n_classes", [10, 1000])
@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax])
def test_columns_in_place(function, n_classes):
    part = np.ascontiguousarray(period(n_classes)[0].T)
    z = repeated(part, -(-SIZE // n_classes), axis=1)
    function(z, axis=0, out=z)
    assert_repeats(z, function(part, axis=0), axis=1)


@pytest.mark.parametrize("n_classes", [1, 1000])
def test_logsumexp(n_classes):
    part, _ = period(n_classes)
    assert_repeats(fs.logsumexp(repeated(part, -(-SIZE // n_classes))), fs.logsumexp(part))


@pytest.mark.parametrize("n_classes", [10, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_in_place(n_classes, smoothing):
    part, labels = period(n_classes)
    n = -(-SIZE // n_classes)
    z, targets = repeated(part, n), repeated(labels, n)
    options = {"label_smoothing": smoothing, "reduction": "sum"}
    expected, gradient = fs.cross_entropy_with_grad(part, labels, **options)
    loss, grad = fs.cross_entropy_with_grad(z, targets, out=z, **options)
    assert grad is z
    assert loss == pytest.approx(expected * n / len(part), rel=1e-3)
    assert_repeats(z, gradient)


def test_a_bad_label_at_the_far_end():
    z = np.zeros((SIZE // 10, 10), np.float32)
    targets = np.zeros(len(z), np.uint8)
    targets[-1] = 10
    with pytest.raises(IndexError, match=f"row {len(z) - 1} has label 10"):
        fs.cross_entropy(z, targets)
    assert not z[:: len(z) - 1].any()


def test_relu_in_place():
    part = period(1)[0].reshape(-1)
    x = repeated(part, SIZE)
    fs.relu(x, out=x)
    assert_repeats(x, np.maximum(part, 0))


@pytest.mark.parametrize("n_out", [4, 40])
def test_products_of_a_huge_x(n_out):
    n_in = 1000
    part, labels = period(n_in)
    labels = labels % n_out
    rng = np.random.default_rng(1)
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in [(n_in, n_out), (n_out,)])
    n = -(-SIZE // n_in)
    x, targets = repeated(part, n), repeated(labels, n)
    out = fs.affine(x, weight, bias)
    assert_repeats(out, fs.affine(part, weight, bias))
    _, grad_weight, grad_bias = fs.affine_backward(out, x, weight, need_grad_x=False)
    _, one_weight, one_bias = fs.affine_backward(out[: len(part)], part, weight, need_grad_x=False)
    periods = n / len(part)
    np.testing.assert_allclose(grad_bias, one_bias * periods, rtol=1e-2, atol=1e-3 * np.abs(one_bias).max() * periods)
    np.testing.assert_allclose(grad_weight, one_weight * periods, rtol=1e-2, atol=1e-2 * np.abs(one_weight).max() * periods)
    loss, (_, grad_weight, _) = fs.linear_cross_entropy_with_grad(x, weight, targets, bias, need_grad_x=False)
    one_loss, (_, one_weight, _) = fs.linear_cross_entropy_with_grad(part, weight, labels, bias, need_grad_x=False)
    assert loss == pytest.approx(one_loss, rel=1e-3)
    np.testing.assert_allclose(grad_weight, one_weight, rtol=1e-2, atol=1e-2 * np.abs(one_weight).max())


def test_a_huge_product():
    rng = np.random.default_rng(2)
    part, weight = rng.standard_normal((997, 2)).astype(np.float32), rng.standard_normal((2, 1000)).astype(np.float32)
    out = np.empty((-(-SIZE // 1000), 1000), np.float32)
    fs.affine(repeated(part, len(out)), weight, out=out)
    assert_repeats(out, fs.affine(part, weight))
