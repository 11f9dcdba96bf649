"""The affine layer's products, the classifier head over them, and the small passes of a training step."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from tolerance import PRODUCT

import fastsoftmax as fs
from fastsoftmax import _affine
from fastsoftmax._program import Program
from fastsoftmax.kernels import SMALL_PRODUCT, kernel

GUARD = 77.0
# (n_rows, n_in, n_out): each crosses an edge of a tile, a block, a copied panel or a vector, or has nothing to do
SHAPES = [
    (1, 1, 1), (1, 784, 100), (2, 40, 300), (3, 5, 49), (5, 0, 3), (0, 5, 3), (0, 5, 30), (7, 1100, 12), (9, 20, 130),
    (17, 33, 5), (40, 600, 1100), (65, 49, 10), (128, 1000, 10), (270, 17, 1), (300, 2100, 8), (530, 30, 11),
    (130, 129, 47), (13, 1030, 33), (18, 1031, 20), (33, 50, 34), (1030, 19, 17), (9, 600, 18), (40, 3, 2), (38, 1280, 20),
    (27, 40, 514), (50, 70, 3), (37, 420, 2), (1, 520, 530), (2, 260, 1031), (3, 1050, 520), (4, 520, 517), (17, 520, 560),
    (1, 30, 20011), (23, 40, 9007), (600, 300, 34),
]  # fmt: skip


def guarded(shape, dtype):
    """An array between two guard zones, filled with NaN; and the function that checks the zones."""
    size = int(np.prod(shape))
    around = np.full(size + 128, GUARD, dtype)
    inside = around[64 : 64 + size].reshape(shape)
    inside[...] = np.nan

    def check():
        assert (around[:64] == GUARD).all()
        assert (around[64 + size :] == GUARD).all()

    return inside, check


def assert_product(result, a, b, extra=0.0):
    """result == a @ b + extra within PRODUCT eps of the sum of the absolute values."""
    exact_a, exact_b = a.astype(np.longdouble), b.astype(np.longdouble)
    truth = exact_a @ exact_b + extra
    size = np.abs(exact_a) @ np.abs(exact_b) + np.abs(extra)
    assert result.shape == truth.shape
    assert (np.abs(result - truth) <= PRODUCT * np.finfo(result.dtype).eps * size).all()


def make(shape, dtype, rng):
    n_rows, n_in, n_out = shape
    draw = [rng.standard_normal(s).astype(dtype) for s in ((n_rows, n_in), (n_in, n_out), n_out, (n_rows, n_out))]
    return draw  # x, weight, bias, grad_out


@pytest.mark.parametrize(
    "shape", [(1, 700, 11), (3, 33, 47), (128, 784, 100), (5, 1, 20), (17, 40, 256), (40, 130, 49)], ids=str
)  # fmt: skip
def test_forward_in_parts_of_the_inputs(shape, dtype, rng):
    """As in training steps; of an odd number of parts, the last one shorter, in one piece or each by itself."""
    x, weight, bias, _ = make(shape, dtype, rng)
    n_rows, n_in, n_out = shape
    size = -(-n_in // 3)
    n_parts = -(-n_in // size)
    parts, check = guarded((n_parts, n_rows, n_out), dtype)
    kernel("affine_parts", dtype)(x, weight, parts, size, 0, n_in, 0)
    check()
    others = np.full_like(parts, np.nan)
    for first in range(0, n_in, size):
        kernel("affine_parts", dtype)(x, weight, others, size, first, min(n_in, first + size), 0)
    np.testing.assert_array_equal(parts, others)
    (plain, check), (rectified, check_rectified) = (guarded((n_rows, n_out), dtype) for _ in range(2))
    for first in range(0, n_rows, 7):
        kernel("add_parts", dtype)(parts, bias, False, plain, first, min(n_rows, first + 7), 0)
        kernel("add_parts", dtype)(parts, bias, True, rectified, first, min(n_rows, first + 7), 0)
    assert_product(plain, x, weight, bias)
    np.testing.assert_array_equal(rectified, np.maximum(plain, 0))
    check()
    check_rectified()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, dtype, rng):
    x, weight, bias, grad_out = make(shape, dtype, rng)
    out, check = guarded(grad_out.shape, dtype)
    _affine.affine(x, weight, bias, out)
    assert_product(out, x, weight, bias)
    check()
    without, check = guarded(grad_out.shape, dtype)
    _affine.affine(x, weight, None, without)
    assert_product(without, x, weight)
    check()


@pytest.mark.parametrize("n_rows", [37, 600])
@pytest.mark.parametrize("n_out", [17, 20, 34, 50, 100])
def test_the_columns_beside_it_change_no_bit_of_a_column(n_out, n_rows, dtype, rng):
    x, weight, bias, grad_out = make((n_rows, 1030, n_out + 16), dtype, rng)
    alone = [np.ascontiguousarray(a[..., :n_out]) for a in (weight, bias, grad_out)]
    wide, narrow = fs.affine(x, weight, bias), fs.affine(x, *alone[:2])
    np.testing.assert_array_equal(narrow, wide[:, :n_out])
    np.testing.assert_array_equal(
        fs.affine_backward(alone[2], x, alone[0])[1], fs.affine_backward(grad_out, x, weight)[1][:, :n_out]
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape, dtype, rng):
    x, weight, bias, grad_out = make(shape, dtype, rng)
    (grad_x, check_x), (grad_weight, check_weight), (grad_bias, check_bias) = (
        guarded(a.shape, dtype) for a in (x, weight, bias)
    )
    _affine.affine_grad_x(grad_out, weight, grad_x)
    _affine.affine_grad_weight(grad_out, x, grad_weight, grad_bias)
    assert_product(grad_x, grad_out, weight.T)
    assert_product(grad_weight, x.T, grad_out)
    assert_product(grad_bias, np.ones(len(x), dtype), grad_out)
    for check in (check_x, check_weight, check_bias):
        check()


@pytest.mark.parametrize("shape", [(17, 33, 5), (300, 40, 21), (9, 0, 4), (2, 33, 21)], ids=str)
def test_gradients_are_added_to_what_is_there(shape, dtype, rng):
    x, weight, bias, grad_out = make(shape, dtype, rng)
    grad_weight, grad_bias = weight.copy(), bias.copy()
    _affine.affine_grad_weight(grad_out, x, grad_weight, grad_bias, adding=True)
    assert_product(grad_weight, x.T, grad_out, weight)
    assert_product(grad_bias, np.ones(len(x), dtype), grad_out, bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_relu_in_the_product_is_relu_after_it(shape, dtype, rng):
    x, weight, bias, grad_out = make(shape, dtype, rng)
    plain, rectified = np.empty_like(grad_out), np.empty_like(grad_out)
    _affine.affine(x, weight, bias, plain)
    _affine.affine(x, weight, bias, rectified, relu=True)
    np.testing.assert_array_equal(rectified, np.maximum(plain, 0))


@pytest.mark.parametrize("n_out", [1, 10, 11, 100, 600])
def test_a_row_does_not_depend_on_the_other_rows(n_out, dtype, rng):
    x, weight, bias, _ = make((300, 1050, n_out), dtype, rng)
    together = fs.affine(x, weight, bias)
    for some in (slice(0, 1), slice(7, 9), slice(20, 25), slice(40, 63), slice(100, 299)):
        np.testing.assert_array_equal(fs.affine(x[some], weight, bias), together[some])


@pytest.mark.parametrize("shape", [(30000, 100, 10), (4000, 300, 40), (600, 600, 700)], ids=str)
def test_bits_do_not_depend_on_threads(shape, dtype, rng):
    x, weight, bias, grad_out = make(shape, dtype, rng)
    assert _affine._chunks(len(x), x.size * shape[2], _affine.GRAIN, SMALL_PRODUCT)[0] > 1, "a shape of one chunk shows nothing"
    targets = rng.integers(0, shape[2], len(x))

    def everything():
        loss, grads = fs.linear_cross_entropy_with_grad(x, weight, targets, bias)
        return [np.float64(loss), *grads, fs.affine(x, weight, bias), *fs.affine_backward(grad_out, x, weight)]

    with fs.num_threads(1):
        alone = everything()
    for n in (2, 5, 64):
        with fs.num_threads(n):
            for a, b in zip(alone, everything(), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "threads", "chunks"),
    [((20, 100, 50), 64, 1), ((200, 3072, 50), 1, 1), ((200, 3072, 50), 2, 2), ((200, 3072, 50), 4, 4),
     ((200, 3072, 50), 64, 7), ((30000, 784, 12), 2, 32), ((30000, 784, 12), 64, 63)],
)  # fmt: skip
def test_a_product_is_shared_between_many_threads(shape, threads, chunks, dtype, rng):
    x, weight, _, out = make(shape, dtype, rng)
    with fs.num_threads(threads):
        program = Program()
    _affine.affine(x, weight, None, out, via=program)
    assert [call.n_chunks for call in program.calls] == [chunks]


@pytest.mark.parametrize("offset", [0, 1])
def test_a_large_gradient_is_that_of_its_parts(offset, dtype, rng):
    """Beyond the last-level cache it is written another way, in whole lines: the result may begin anywhere in one."""
    n_in, n_out = 784, 10
    n_rows = (36 << 20) // (n_in * dtype.itemsize) + 3
    weight, grad_out = rng.standard_normal((n_in, n_out)).astype(dtype), rng.standard_normal((n_rows, n_out)).astype(dtype)
    around = np.full(n_rows * n_in + 17, GUARD, dtype)
    grad_x = around[offset : offset + n_rows * n_in].reshape(n_rows, n_in)
    grad_x[...] = np.nan
    _affine.affine_grad_x(grad_out, weight, grad_x)
    assert (around[:offset] == GUARD).all()
    assert (around[offset + n_rows * n_in :] == GUARD).all()
    for first in range(0, n_rows, 1000):
        part = np.empty_like(grad_x[first : first + 1000])
        _affine.affine_grad_x(grad_out[first : first + 1000], weight, part)
        np.testing.assert_array_equal(grad_x[first : first + 1000], part)


HEADS = [(1, 1, 1), (2, 3, 1), (17, 33, 5), (1, 4, 10), (3, 2, 11), (5, 6, 70)]


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"label_smoothing": 0.1}, {"ignore_index": 0}], ids=str)
@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_gradients_of_the_head_are_differences_of_its_loss(shape, options, rng):
    x, weight, bias, _ = make(shape, np.float64, rng)
    targets = rng.integers(0, shape[2], shape[0])
    targets[-1] = shape[2] - 1
    if shape[2] == 1:
        options = {k: v for k, v in options.items() if k != "ignore_index"}  # else nothing would be left
    weights = {"class_weight": rng.random(shape[2]) + 0.5, "sample_weight": rng.random(shape[0]) + 0.5}

    def loss():
        return fs.linear_cross_entropy(x, weight, targets, bias, **options, **weights)

    value, grads = fs.linear_cross_entropy_with_grad(x, weight, targets, bias, **options, **weights)
    assert value == loss()
    step = 1e-3
    for param, grad in zip((x, weight, bias), grads, strict=True):
        largest = max(np.abs(grad).max(), 1e-3)
        for at in [tuple(rng.integers(0, param.shape)) for _ in range(12)]:
            kept, values = param[at], {}
            for k in (-2, -1, 1, 2):
                param[at] = kept + k * step
                values[k] = loss()
            param[at] = kept
            numeric = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
            assert abs(numeric - grad[at]) <= 1e-7 * largest


@pytest.mark.parametrize("n_out", [2, 10, 11, 100])
def test_losses_of_the_head_are_those_of_its_logits(n_out, dtype, rng):
    """To the bit: so the head has cross_entropy's error bounds."""
    x, weight, bias, _ = make((200, 50, n_out), dtype, rng)
    x *= 5
    targets = rng.integers(0, n_out, 200)
    targets[::7] = -100
    options = {"class_weight": rng.random(n_out), "sample_weight": rng.random(200), "reduction": "none"}
    logits = fs.affine(x, weight, bias)
    losses, (_, _, grad_bias) = fs.linear_cross_entropy_with_grad(x, weight, targets, bias, **options)
    expected, grad_logits = fs.cross_entropy_with_grad(logits, targets, **options)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(fs.linear_cross_entropy(x, weight, targets, bias, **options), expected)
    assert_product(grad_bias, np.ones(200, dtype), grad_logits)
    probs = fs.softmax(rng.standard_normal((200, n_out)).astype(dtype))
    expected = fs.cross_entropy(logits, probs, **options)
    np.testing.assert_array_equal(fs.linear_cross_entropy(x, weight, probs, bias, **options), expected)


OPTIONS = ["class_weight", "sample_weight", "label_smoothing", "ignore_index", "reduction"]


@pytest.mark.parametrize("given", [(), *((name,) for name in OPTIONS), OPTIONS[:2], OPTIONS], ids="+".join)
@pytest.mark.parametrize("n_out", [10, 11])
def test_options_of_the_head_are_those_of_the_loss(n_out, given, dtype, rng):
    x, weight, bias, _ = make((40, 20, n_out), dtype, rng)
    targets = rng.integers(0, n_out, 40)
    every = {"class_weight": rng.random(n_out), "sample_weight": rng.random(40), "label_smoothing": 0.2, "ignore_index": 1}
    options = {name: (every | {"reduction": "sum"})[name] for name in given}
    loss, grad_logits = fs.cross_entropy_with_grad(logits := fs.affine(x, weight, bias), targets, **options)
    assert given == () or loss != fs.cross_entropy(logits, targets)
    result, grads = fs.linear_cross_entropy_with_grad(x, weight, targets, bias, **options)
    near = 40 * float(np.finfo(dtype).eps)
    assert result == fs.linear_cross_entropy(x, weight, targets, bias, **options) == pytest.approx(loss, rel=near)
    for grad, expected in zip(grads, fs.affine_backward(grad_logits, x, weight)):
        np.testing.assert_allclose(grad, expected, rtol=0, atol=near * np.abs(expected).max())


def test_empty_batch(dtype):
    x, weight, bias = np.empty((0, 4), dtype), np.ones((4, 3), dtype), np.ones(3, dtype)
    loss, (grad_x, grad_weight, grad_bias) = fs.linear_cross_entropy_with_grad(x, weight, np.empty(0, np.int64), bias)
    assert np.isnan(loss)
    assert grad_x.shape == (0, 4)
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_the_logits_of_many_classes_are_never_stored_whole():
    n_rows, n_in, n_out = 2000, 8, 20000
    x, weight = np.ones((n_rows, n_in), np.float32), np.ones((n_in, n_out), np.float32)
    targets = np.arange(n_rows)
    fs.linear_cross_entropy_with_grad(x[:2], weight, targets[:2])  # compiled
    tracemalloc.start()
    try:
        loss, grads = fs.linear_cross_entropy_with_grad(x, weight, targets)
        extra = tracemalloc.get_traced_memory()[1] - sum(g.nbytes for g in grads if g is not None)
    finally:
        tracemalloc.stop()
    assert loss == pytest.approx(np.log(n_out))
    assert extra <= 64 << 20, "the whole logits are 160 MB"


# ---- the small passes ----------------------------------------------------------------------------------------------
SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 40, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_relu_and_its_gradient_in_place(size, dtype, rng):
    x, grad = rng.standard_normal((2, size)).astype(dtype)
    expected = np.where(x > 0, grad, 0)
    fs.relu_backward(grad, x, out=grad)
    np.testing.assert_array_equal(grad, expected)
    expected = np.maximum(x, 0)
    fs.relu(x, out=x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_updates(size, l2, dtype, rng):
    close = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
    start, grad = rng.standard_normal((2, size)).astype(dtype)
    slope = grad + l2 * start.astype(np.float64)

    param, check = guarded(size, dtype)
    param[:] = start
    kernel("sgd_update", dtype)(param, grad, l2, np.array([0.5]), 0, size, False)
    np.testing.assert_allclose(param, start - 0.5 * slope, **close)
    check()

    for nesterov in (False, True):
        param[:], velocity = start, np.full(size, 0.25, dtype)
        factors = np.array([0.5, 0.75, nesterov])
        kernel("momentum_update", dtype)(param, grad, velocity, l2, factors, 0, size, False)
        speed = 0.75 * 0.25 + slope
        np.testing.assert_allclose(velocity, speed, **close)
        np.testing.assert_allclose(param, start - 0.5 * (0.75 * speed + slope if nesterov else speed), **close)
        check()

    param[:], mean, square = start, np.full(size, 0.5, dtype), np.full(size, 0.25, dtype)
    factors = np.array([0.5, 0.9, 0.999, 1e-3])
    kernel("adam_update", dtype)(param, grad, mean, square, l2, factors, 0, size, False)
    m, v = 0.9 * 0.5 + 0.1 * slope, 0.999 * 0.25 + 0.001 * slope**2
    np.testing.assert_allclose(mean, m, **close)
    np.testing.assert_allclose(square, v, **close)
    np.testing.assert_allclose(param, start - 0.5 * m / (np.sqrt(v) + 1e-3), **close)
    check()


@pytest.mark.parametrize("n_in", [1, 15, 16, 17, 50])
def test_mini_batches(n_in, dtype, rng):
    rows = rng.integers(0, 30, 9)
    images = rng.integers(0, 256, (30, n_in), dtype=np.uint8)
    out, check = guarded((9, n_in), dtype)
    kernel("gather_bytes", dtype)(images, rows, 1 / 255, out, 0, 9, False)
    np.testing.assert_array_equal(out, np.multiply(images[rows], 1 / 255, dtype=dtype))
    check()
    x = rng.standard_normal((30, n_in)).astype(dtype)
    kernel("gather", dtype)(x, rows, 0.5, out, 0, 9, False)
    np.testing.assert_array_equal(out, x[rows] * dtype.type(0.5))
    check()
