"""Deep Learning from Scratch: the book's own numbers and checks, its formulas in plain NumPy, and torch's autograd."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from fastsoftmax.dropin import dlfs


def book_softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def one_hot(labels, n_classes):
    return np.eye(n_classes)[labels]


# The book's numbers ---------------------------------------------------------------------------------------------------

# Section 4.2.2: the digit is a 2; the first output says so with 0.6, the second says 7.
T = np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
SAYS_2 = np.array([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0])
SAYS_7 = np.array([0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0])


@pytest.mark.parametrize(("y", "with_delta"), [(SAYS_2, 0.510825457099338), (SAYS_7, 2.302584092994546)])
def test_cross_entropy_error_gives_the_books_numbers_with_its_1e_7_and_exact_ones_without(y, with_delta):
    assert dlfs.cross_entropy_error(y, T, delta=1e-7) == pytest.approx(with_delta, rel=1e-15)
    exact = dlfs.cross_entropy_error(y, T)
    assert isinstance(exact, float)
    assert exact == -math.log(y[2])
    assert exact > with_delta


def test_softmax_gives_the_books_numbers():
    """Section 3.5: outputs of [0.3, 2.9, 4.0], and of inputs near 1000 that overflow without the shift."""
    expected = [0.01821127, 0.24519181, 0.73659691]
    np.testing.assert_allclose(dlfs.softmax(np.array([0.3, 2.9, 4.0])), expected, rtol=0, atol=5e-9)
    shifted = [9.99954600e-01, 4.53978686e-05, 2.06106005e-09]
    np.testing.assert_allclose(dlfs.softmax(np.array([1010, 1000, 990])), shifted, rtol=5e-9)


# cross_entropy_error --------------------------------------------------------------------------------------------------


def test_cross_entropy_error_takes_labels_and_one_hot_rows_alike(rng):
    y, labels = book_softmax(rng.standard_normal((6, 4))), rng.integers(0, 4, 6)
    expected = -np.log(y[np.arange(6), labels]).mean()
    for t in (labels, labels.astype(np.uint8), one_hot(labels, 4), one_hot(labels, 4).astype(int)):
        assert dlfs.cross_entropy_error(y, t) == pytest.approx(expected, rel=1e-14)
    assert dlfs.cross_entropy_error(y[0], labels[:1]) == pytest.approx(-math.log(y[0, labels[0]]), rel=1e-15)


def test_cross_entropy_error_is_exact_at_zero_probabilities():
    y = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert dlfs.cross_entropy_error(y, np.array([0, 1])) == math.log(2) / 2  # 0 where t = 0 and y = 0, no warning
    assert dlfs.cross_entropy_error(y, np.array([1, 1])) == math.inf  # the book's formula says 8.4 here
    assert math.copysign(1, dlfs.cross_entropy_error(y[:1], np.array([0]))) == 1  # 0.0, not -0.0
    assert dlfs.cross_entropy_error(np.array([1e-300, 1.0]), np.array([1, 0])) == pytest.approx(300 * math.log(10))


def test_cross_entropy_error_of_float32_is_summed_in_float64():
    y = np.full((1, 1000), 0.001, np.float32)
    expected = -math.log(float(y[0, 0]))
    assert dlfs.cross_entropy_error(y, np.full((1, 1000), 0.001)) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(dlfs.cross_entropy_error(np.empty((0, 3)), np.empty(0, int)))  # the mean over nothing


def test_cross_entropy_error_of_soft_targets_is_the_sum_not_the_largest(rng):
    y, t = book_softmax(rng.standard_normal((5, 3))), book_softmax(rng.standard_normal((5, 3)))
    assert dlfs.cross_entropy_error(y, t) == pytest.approx(-np.sum(t * np.log(y)) / 5, rel=1e-14)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_an_index_error(label):
    """NumPy indexing would take -1 for the last class."""
    with pytest.raises(IndexError, match=rf"row 1 has label {label}.*4 classes"):
        dlfs.cross_entropy_error(np.full((3, 4), 0.25), np.array([0, label, 1]))


# Layers ---------------------------------------------------------------------------------------------------------------


def test_affine_is_the_books_formula_flattens_images_and_sees_weights_changed_in_place(rng):
    x, W, b = rng.standard_normal((5, 2, 3, 4)), rng.standard_normal((24, 7)), rng.standard_normal(7)
    layer = dlfs.Affine(W, b)
    flat, dout = x.reshape(5, 24), rng.standard_normal((5, 7))
    np.testing.assert_allclose(layer.forward(x), flat @ W + b, rtol=1e-12, atol=1e-12)
    dx = layer.backward(dout)
    assert dx.shape == x.shape
    np.testing.assert_allclose(dx.reshape(5, 24), dout @ W.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.dW, flat.T @ dout, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.db, dout.sum(axis=0), rtol=1e-12, atol=1e-12)

    first, kept = layer.dW, layer.dW.copy()
    W *= 2
    b -= 1
    np.testing.assert_allclose(layer.forward(x), flat @ W + b, rtol=1e-12, atol=1e-12)
    layer.backward(2 * dout)
    assert not np.shares_memory(layer.dW, first)
    np.testing.assert_array_equal(first, kept)


def test_relu_is_the_books_and_does_not_write_into_dout(rng):
    x, dout = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    x[0, 0] = 0.0
    layer = dlfs.Relu()
    assert layer.mask is None
    np.testing.assert_array_equal(layer.forward(x), np.where(x > 0, x, 0))
    np.testing.assert_array_equal(layer.mask, x <= 0)
    before = dout.copy()
    np.testing.assert_array_equal(layer.backward(dout), np.where(x > 0, dout, 0))
    np.testing.assert_array_equal(dout, before)


def test_sigmoid_neither_overflows_nor_loses_its_slope():
    x = np.array([-1000.0, -40.0, -1.0, 0.0, 1.0, 40.0, 1000.0])
    layer = dlfs.Sigmoid()
    with np.errstate(over="raise"):
        out = layer.forward(x)
    np.testing.assert_allclose(out, [0, math.exp(-40), 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1, 1], rtol=1e-15)
    slope = layer.backward(np.ones(7))
    assert slope[5] == pytest.approx(math.exp(-40), rel=1e-15)  # out * (1 - out) is 0 there
    np.testing.assert_array_equal(slope, slope[::-1])


@pytest.mark.parametrize("shape", [(2, 2), (5, 10), (100, 3)])
@pytest.mark.parametrize(
    "kind", ["labels", "one-hot", "one-hot uint8", "one-hot bool", "soft", "nearly one-hot", "uneven"]
)
def test_softmax_with_loss_is_the_books_formula(rng, shape, kind):
    n, c = shape
    x, labels = 3 * rng.standard_normal(shape), rng.integers(0, c, n)
    rows = book_softmax(rng.standard_normal(shape)) if kind == "soft" else one_hot(labels, c)
    if kind == "nearly one-hot":  # one number a row, not all of them 1
        rows[0] *= 0.5
    if kind == "uneven":  # as many numbers as rows at n = 2, not one in each
        rows[:] = 0
        rows[0, :2] = 1
    t = {"labels": labels, "one-hot uint8": rows.astype(np.uint8), "one-hot bool": rows > 0}.get(kind, rows)
    layer = dlfs.SoftmaxWithLoss()
    y = book_softmax(x)
    assert layer.forward(x, t) == pytest.approx(-np.sum(rows * np.log(y)) / n, rel=1e-12)
    np.testing.assert_allclose(layer.y, y, rtol=1e-13)
    assert layer.t is t
    gradient = (y * rows.sum(axis=1, keepdims=True) - rows) / n  # rows that do not add up to 1 weigh less
    np.testing.assert_allclose(layer.backward(), gradient, rtol=1e-12, atol=1e-14)


def test_backward_honours_dout_and_returns_an_array_of_its_own(rng):
    """The book's layer ignores dout; and a layer before may write into what it is handed, as the book's Relu does."""
    x, t = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    layer = dlfs.SoftmaxWithLoss()
    layer.forward(x, t)
    once = layer.backward()
    kept = once.copy()
    np.testing.assert_allclose(layer.backward(0.3), 0.3 * kept, rtol=1e-15)
    np.testing.assert_array_equal(layer.backward(dout=0), np.zeros((6, 4)))
    once[...] = 99.0
    np.testing.assert_array_equal(layer.backward(1), kept)
    numerical = dlfs.numerical_gradient(lambda z: 0.3 * dlfs.SoftmaxWithLoss().forward(z, t), x)
    np.testing.assert_allclose(layer.backward(0.3), numerical, rtol=0, atol=1e-9)


def test_one_sample_may_be_a_vector(rng):
    x = rng.standard_normal(5)
    for t in (np.array([2]), one_hot(2, 5)):
        layer = dlfs.SoftmaxWithLoss()
        assert layer.forward(x, t) == pytest.approx(-math.log(book_softmax(x)[2]), rel=1e-13)
        np.testing.assert_allclose(layer.backward(), book_softmax(x) - one_hot(2, 5), rtol=1e-12, atol=1e-14)


def test_the_docstring_says_why():
    text = " ".join(dlfs.SoftmaxWithLoss.backward.__doc__.split())
    for words in ("Why the division by the batch size", "1 / batch_size", "Why dout is 1", "derivative of the loss"):
        assert words in text


def test_a_confident_net_keeps_its_gradient_where_the_books_formula_has_none():
    """One logit 40 above: 1 - p is 4e-18, p - 1 rounds to 0, and 1e-7 inside the logarithm makes the loss negative."""
    x, t = np.array([[40.0, 0.0]]), np.array([0])
    y = book_softmax(x)
    assert (y - one_hot(t, 2))[0, 0] == 0
    assert -np.log(y[0, 0] + 1e-7) < 0
    layer = dlfs.SoftmaxWithLoss()
    assert layer.forward(x, t) == pytest.approx(math.exp(-40), rel=1e-14)
    np.testing.assert_allclose(layer.backward(), [[-math.exp(-40), math.exp(-40)]], rtol=1e-14)


# numerical_gradient and the networks ----------------------------------------------------------------------------------


def test_numerical_gradient_gives_the_books_numbers():
    """Section 4.4: the gradient of x0^2 + x1^2 at (3, 4), (0, 2) and (3, 0)."""
    f = lambda x: np.sum(x**2)  # noqa: E731
    for point, expected in (([3.0, 4.0], [6.0, 8.0]), ([0.0, 2.0], [0.0, 4.0]), ([3.0, 0.0], [6.0, 0.0])):
        x = np.array(point)
        np.testing.assert_allclose(dlfs.numerical_gradient(f, x), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(x, point)
    cube = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(dlfs.numerical_gradient(f, cube), 2 * cube, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("targets", ["labels", "one-hot"])
def test_two_layer_net_passes_the_books_gradient_check(rng, targets):
    """Chapter 5's script: mean |difference| for each parameter; the book reports 1e-7 to 1e-10, for three images."""
    np.random.seed(0)
    net = dlfs.TwoLayerNet(input_size=30, hidden_size=12, output_size=10)
    x, labels = rng.random((3, 30)), rng.integers(0, 10, 3)
    t = labels if targets == "labels" else one_hot(labels, 10)
    numerical, analytic = net.numerical_gradient(x, t), net.gradient(x, t)
    assert sorted(analytic) == ["W1", "W2", "b1", "b2"]
    for name in analytic:
        assert np.abs(analytic[name]).max() > 1e-5  # something to compare
        assert np.mean(np.abs(analytic[name] - numerical[name])) < 1e-9


def test_two_layer_net_looks_like_the_books():
    np.random.seed(1)
    net = dlfs.TwoLayerNet(6, 4, 3, weight_init_std=0.1)
    np.random.seed(1)
    np.testing.assert_array_equal(net.params["W1"], 0.1 * np.random.randn(6, 4))
    np.testing.assert_array_equal(net.params["W2"], 0.1 * np.random.randn(4, 3))
    assert list(net.layers) == ["Affine1", "Relu1", "Affine2"]
    assert isinstance(net.lastLayer, dlfs.SoftmaxWithLoss)
    x = np.random.default_rng(0).standard_normal((5, 6))
    scores = np.maximum(x @ net.params["W1"], 0) @ net.params["W2"]
    np.testing.assert_allclose(net.predict(x), scores, rtol=1e-12, atol=1e-14)  # scores, not probabilities
    labels = scores.argmax(axis=1)
    assert net.accuracy(x, labels) == net.accuracy(x, one_hot(labels, 3)) == 1.0
    assert net.accuracy(x, (labels + 1) % 3) == 0.0


def test_training_as_in_chapter_5_follows_a_plain_numpy_loop(rng):
    """The book's loop, updates in place through params; the same in NumPy beside it, for 40 steps."""
    x, t = rng.standard_normal((60, 8)), rng.integers(0, 3, 60)
    np.random.seed(4)
    net = dlfs.TwoLayerNet(8, 16, 3, weight_init_std=0.3)
    mine = copy.deepcopy(net.params)
    losses, expected = [], []
    for step in range(40):
        batch = np.arange(20) + 20 * (step % 3)
        for name, grad in net.gradient(x[batch], t[batch]).items():
            net.params[name] -= 0.5 * grad
        losses.append(net.lastLayer.loss)

        hidden = np.maximum(x[batch] @ mine["W1"] + mine["b1"], 0)
        y = book_softmax(hidden @ mine["W2"] + mine["b2"])
        expected.append(-np.log(y[np.arange(20), t[batch]]).mean())
        dy = (y - one_hot(t[batch], 3)) / 20
        dhidden = dy @ mine["W2"].T * (hidden > 0)
        mine["W1"] -= 0.5 * x[batch].T @ dhidden
        mine["b1"] -= 0.5 * dhidden.sum(axis=0)
        mine["W2"] -= 0.5 * hidden.T @ dy
        mine["b2"] -= 0.5 * dy.sum(axis=0)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    assert losses[-1] < 0.8 * losses[0]
    for name in mine:
        np.testing.assert_allclose(net.params[name], mine[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("weight_decay_lambda", [0, 0.1])
def test_multi_layer_net_passes_the_books_gradient_check(rng, activation, weight_decay_lambda):
    np.random.seed(2)
    net = dlfs.MultiLayerNet(9, [7, 6, 5], 4, activation, activation, weight_decay_lambda)
    assert list(net.layers) == [
        *("Affine1", "Activation_function1", "Affine2", "Activation_function2"),
        *("Affine3", "Activation_function3", "Affine4"),
    ]
    x, t = rng.standard_normal((8, 9)), rng.integers(0, 4, 8)
    grads = net.gradient(x, t)
    kept = {name: grad.copy() for name, grad in grads.items()}
    numerical = net.numerical_gradient(x, t)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, kept[name])  # they survived thousands of later calls
        np.testing.assert_allclose(grad, numerical[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("std", "expected"), [("he", [2, 2]), ("relu", [2, 2]), ("xavier", [1, 1]), ("Sigmoid", [1, 1]), (0.01, None)]
)
def test_multi_layer_net_draws_the_books_first_weights(std, expected):
    np.random.seed(6)
    net = dlfs.MultiLayerNet(50, [40], 3, weight_init_std=std)
    np.random.seed(6)
    scale = [0.01, 0.01] if expected is None else [math.sqrt(expected[0] / 50), math.sqrt(expected[1] / 40)]
    np.testing.assert_allclose(net.params["W1"], scale[0] * np.random.randn(50, 40), rtol=1e-15)
    np.testing.assert_allclose(net.params["W2"], scale[1] * np.random.randn(40, 3), rtol=1e-15)


def test_networks_agree_with_autograd(rng):
    torch = pytest.importorskip("torch")
    np.random.seed(7)
    net = dlfs.MultiLayerNet(11, [13, 9], 5, weight_decay_lambda=0.2)
    x, t = rng.standard_normal((17, 11)), rng.integers(0, 5, 17)
    params = {name: torch.tensor(value, requires_grad=True) for name, value in net.params.items()}
    h = torch.tensor(x)
    for i in (1, 2, 3):
        h = h @ params[f"W{i}"] + params[f"b{i}"]
        h = torch.relu(h) if i < 3 else h
    decay = 0.1 * sum((params[f"W{i}"] ** 2).sum() for i in (1, 2, 3))
    total = torch.nn.functional.cross_entropy(h, torch.tensor(t)) + decay
    total.backward()
    assert net.loss(x, t) == pytest.approx(total.item(), rel=1e-13)
    for name, grad in net.gradient(x, t).items():
        np.testing.assert_allclose(grad, params[name].grad.numpy(), rtol=1e-11, atol=1e-13)


def test_float32_networks_stay_float32(rng):
    net = dlfs.TwoLayerNet(6, 5, 3)
    for name in net.params:
        layer = net.layers["Affine" + name[1]]
        net.params[name] = net.params[name].astype(np.float32)
        setattr(layer, name[0], net.params[name])
    grads = net.gradient(rng.standard_normal((4, 6)).astype(np.float32), np.array([0, 1, 2, 1]))
    assert {grad.dtype for grad in grads.values()} == {np.dtype(np.float32)}
    assert net.lastLayer.backward(np.float64(0.5)).dtype == np.float32
