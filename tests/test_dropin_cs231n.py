"""CS231n's own numbers, as its notebooks print them, its way of checking gradients, its formulas in plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsoftmax._peers.courses import course_cases
from fastsoftmax.dropin import cs231n


def rel_error(x, y):
    """The notebooks' measure of agreement: the worst entry, relative, with a floor of 1e-8."""
    x, y = np.asarray(x), np.asarray(y)
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y))))


def textbook_softmax_loss(W, X, y, reg):
    """The assignment's formula, one sample at a time, with nothing shared with the library."""
    loss, dW = 0.0, np.zeros_like(W)
    for row, label in zip(X, y):
        scores = row @ W
        exps = np.exp(scores - scores.max())
        probs = exps / exps.sum()
        loss -= math.log(probs[label])
        probs[label] -= 1
        dW += np.outer(row, probs)
    return loss / len(X) + reg * np.sum(W * W), dW / len(X) + 2 * reg * W


# Numbers printed in the course's notebooks ----------------------------------------------------------------------------


def test_affine_forward_gives_the_notebooks_numbers():
    x = np.linspace(-0.1, 0.5, num=240).reshape(2, 4, 5, 6)
    w = np.linspace(-0.2, 0.3, num=360).reshape(120, 3)
    b = np.linspace(-0.3, 0.1, num=3)
    out, cache = cs231n.affine_forward(x, w, b)
    expected = [[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]]
    assert rel_error(out, expected) < 5e-9
    assert cache[0] is x
    assert cache[1] is w
    assert cache[2] is b


def test_relu_forward_gives_the_notebooks_numbers():
    x = np.linspace(-0.5, 0.5, num=12).reshape(3, 4)
    out, cache = cs231n.relu_forward(x)
    expected = [[0, 0, 0, 0], [0, 0, 0.04545454, 0.13636364], [0.22727273, 0.31818182, 0.40909091, 0.5]]
    assert rel_error(out, expected) < 1e-7
    assert cache is x


def toy_net_and_data():
    np.random.seed(0)
    net = cs231n.TwoLayerNet(4, 10, 3, std=1e-1)
    np.random.seed(1)
    return net, 10 * np.random.randn(5, 4), np.array([0, 1, 2, 2, 1])


def test_two_layer_net_gives_the_notebooks_scores_and_loss():
    net, X, y = toy_net_and_data()
    scores = [
        [-0.81233741, -1.27654624, -0.70335995],
        [-0.17129677, -1.18803311, -0.47310444],
        [-0.51590475, -1.01354314, -0.8504215],
        [-0.15419291, -0.48629638, -0.52901952],
        [-0.00618733, -0.12435261, -0.15226949],
    ]
    np.testing.assert_allclose(net.loss(X), scores, rtol=0, atol=1e-8)
    loss, _ = net.loss(X, y, reg=0.05)
    assert isinstance(loss, float)
    assert loss == pytest.approx(1.30378789133, abs=1e-11)


def test_two_layer_net_trains_to_the_published_final_loss():
    """100 steps on the toy data from the notebook's seed. Many published notebooks begin and end at these numbers: the
    order of the random draws, the updates and the decay of the rate are all the course's."""
    _, X, y = toy_net_and_data()
    np.random.seed(0)
    net = cs231n.TwoLayerNet(4, 10, 3, std=1e-1)
    history = net.train(X, y, X, y, learning_rate=1e-1, reg=5e-6, num_iters=100)
    assert history["loss_history"][0] == pytest.approx(1.241994, abs=5e-7)
    assert history["loss_history"][-1] == pytest.approx(0.017149607938732, abs=1e-14)
    assert len(history["loss_history"]) == 100
    np.testing.assert_array_equal(net.predict(X), y)


def test_two_layer_net_trains_as_the_assignments_loop_does():
    """The same seed, the same draws, the same decay: epochs of 2.5 steps decay the rate at steps 0, 5, 10, ..."""
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((25, 4)), rng.integers(0, 3, 25)
    np.random.seed(5)
    net = cs231n.TwoLayerNet(4, 6, 3, std=0.5)
    history = net.train(X, y, X[:10], y[:10], learning_rate=0.3, reg=0.01, num_iters=12, batch_size=10)

    np.random.seed(5)
    W1, W2 = 0.5 * np.random.randn(4, 6), 0.5 * np.random.randn(6, 3)
    b1, b2, rate, losses = np.zeros(6), np.zeros(3), 0.3, []
    for it in range(12):
        batch = np.random.choice(25, 10)
        hidden = np.maximum(X[batch] @ W1 + b1, 0)
        exps = np.exp(hidden @ W2 + b2)
        probs = exps / exps.sum(axis=1, keepdims=True)
        losses.append(-np.log(probs[range(10), y[batch]]).mean() + 0.01 * (np.sum(W1 * W1) + np.sum(W2 * W2)))
        dscores = (probs - np.eye(3)[y[batch]]) / 10
        dhidden = dscores @ W2.T * (hidden > 0)
        W1 -= rate * (X[batch].T @ dhidden + 0.02 * W1)
        W2 -= rate * (hidden.T @ dscores + 0.02 * W2)
        b1 -= rate * dhidden.sum(axis=0)
        b2 -= rate * dscores.sum(axis=0)
        if it % 2.5 == 0:
            rate *= 0.95

    np.testing.assert_allclose(history["loss_history"], losses, rtol=1e-12)
    np.testing.assert_allclose(net.params["W1"], W1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(net.params["b2"], b2, rtol=0, atol=1e-12)
    assert len(history["train_acc_history"]) == len(history["val_acc_history"]) == 3
    assert all(0 <= accuracy <= 1 for accuracy in history["val_acc_history"])


def fc_net_and_data():
    net = cs231n.TwoLayerNetFC(input_dim=5, hidden_dim=50, num_classes=7)
    net.params["W1"] = np.linspace(-0.7, 0.3, num=250).reshape(5, 50)
    net.params["b1"] = np.linspace(-0.1, 0.9, num=50)
    net.params["W2"] = np.linspace(-0.3, 0.4, num=350).reshape(50, 7)
    net.params["b2"] = np.linspace(-0.9, 0.1, num=7)
    return net, np.linspace(-5.5, 4.5, num=15).reshape(5, 3).T, np.array([0, 5, 1])


def test_two_layer_net_fc_gives_the_notebooks_scores_and_losses():
    net, X, y = fc_net_and_data()
    scores = [
        [11.53165108, 12.2917344, 13.05181771, 13.81190102, 14.57198434, 15.33206765, 16.09215096],
        [12.05769098, 12.74614105, 13.43459113, 14.1230412, 14.81149128, 15.49994135, 16.18839143],
        [12.58373087, 13.20054771, 13.81736455, 14.43418138, 15.05099822, 15.66781506, 16.2846319],
    ]
    np.testing.assert_allclose(net.loss(X), scores, rtol=0, atol=1e-8)
    assert net.loss(X, y)[0] == pytest.approx(3.4702243556, abs=1e-10)
    net.reg = 1.0  # half a factor in this network, a whole one in the older
    assert net.loss(X, y)[0] == pytest.approx(26.5948426952, abs=1e-10)


@pytest.mark.parametrize("n_classes", [2, 10, 100])
def test_first_loss_of_small_weights_is_log_of_the_number_of_classes(rng, n_classes):
    """The notebook's sanity check: about 2.302 for the ten classes of CIFAR-10."""
    W = rng.standard_normal((60, n_classes)) * 1e-6
    loss, _ = cs231n.softmax_loss_vectorized(W, rng.standard_normal((50, 60)), rng.integers(0, n_classes, 50), 0.0)
    assert loss == pytest.approx(math.log(n_classes), abs=1e-4)


# The course's gradient checks -----------------------------------------------------------------------------------------


def test_affine_backward_passes_the_courses_check(rng):
    x, w, b = rng.standard_normal((10, 2, 3)), rng.standard_normal((6, 5)), rng.standard_normal(5)
    dout = rng.standard_normal((10, 5))
    check = cs231n.eval_numerical_gradient_array
    dx, dw, db = cs231n.affine_backward(dout, cs231n.affine_forward(x, w, b)[1])
    assert dx.shape == x.shape
    assert rel_error(dx, check(lambda x: cs231n.affine_forward(x, w, b)[0], x, dout)) < 1e-8
    assert rel_error(dw, check(lambda w: cs231n.affine_forward(x, w, b)[0], w, dout)) < 1e-8
    assert rel_error(db, check(lambda b: cs231n.affine_forward(x, w, b)[0], b, dout)) < 1e-8


def test_affine_relu_backward_passes_the_courses_check(rng):
    x, w, b = rng.standard_normal((2, 3, 4)), rng.standard_normal((12, 10)), rng.standard_normal(10)
    dout = rng.standard_normal((2, 10))
    check = cs231n.eval_numerical_gradient_array
    out, cache = cs231n.affine_relu_forward(x, w, b)
    assert (out == 0).any()
    assert (out > 0).any()
    dx, dw, db = cs231n.affine_relu_backward(dout, cache)
    assert rel_error(dx, check(lambda x: cs231n.affine_relu_forward(x, w, b)[0], x, dout)) < 1e-7
    assert rel_error(dw, check(lambda w: cs231n.affine_relu_forward(x, w, b)[0], w, dout)) < 1e-7
    assert rel_error(db, check(lambda b: cs231n.affine_relu_forward(x, w, b)[0], b, dout)) < 1e-7


def test_relu_backward_is_the_textbooks_and_leaves_dout_alone(rng):
    x, dout = rng.standard_normal((10, 10)), rng.standard_normal((10, 10))
    x[0, :3] = 0.0  # at 0 the gradient is 0
    before = dout.copy()
    dx = cs231n.relu_backward(dout, x)
    np.testing.assert_array_equal(dx, np.where(x > 0, dout, 0))
    np.testing.assert_array_equal(dout, before)
    assert not np.shares_memory(dx, dout)


def test_softmax_loss_passes_the_courses_check(rng):
    x, y = 0.001 * rng.standard_normal((50, 10)), rng.integers(0, 10, 50)
    loss, dx = cs231n.softmax_loss(x, y)
    numerical = cs231n.eval_numerical_gradient(lambda x: cs231n.softmax_loss(x, y)[0], x, verbose=False)
    assert loss == pytest.approx(2.3, abs=0.01)
    assert rel_error(dx, numerical) < 1e-6


@pytest.mark.parametrize("reg", [0.0, 0.7])
@pytest.mark.parametrize("make", [toy_net_and_data, fc_net_and_data])
def test_networks_pass_the_courses_check(make, reg):
    """The gradients are taken first and compared after many more calls of loss: they must have survived them."""
    net, X, y = make()
    if isinstance(net, cs231n.TwoLayerNetFC):
        net.reg = reg
        loss = lambda _=None: net.loss(X, y)  # noqa: E731
    else:
        loss = lambda _=None: net.loss(X, y, reg)  # noqa: E731
    grads = loss()[1]
    assert list(grads) == ["W1", "b1", "W2", "b2"]
    for name, grad in grads.items():
        numerical = cs231n.eval_numerical_gradient(lambda _: loss()[0], net.params[name], verbose=False)
        assert grad.shape == net.params[name].shape
        assert rel_error(grad, numerical) < 1e-6, name


def test_grad_check_sparse_prints_small_errors_for_a_right_gradient_and_large_for_a_wrong_one(rng, capsys):
    W, X, y = rng.standard_normal((8, 4)), rng.standard_normal((20, 8)), rng.integers(0, 4, 20)
    f = lambda W: cs231n.softmax_loss_naive(W, X, y, 0.1)[0]  # noqa: E731
    dW = cs231n.softmax_loss_naive(W, X, y, 0.1)[1]
    before = W.copy()
    for grad, right in ((dW, True), (2 * dW, False)):
        cs231n.grad_check_sparse(f, W, grad, num_checks=7)
        lines = capsys.readouterr().out.splitlines()
        errors = [float(line.split("relative error:")[1]) for line in lines]
        assert len(errors) == 7
        assert all((error < 1e-6) == right for error in errors), lines
    np.testing.assert_array_equal(W, before)


def test_eval_numerical_gradient_finds_known_derivatives_and_restores_x(capsys):
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    before = x.copy()
    grad = cs231n.eval_numerical_gradient(lambda x: float(np.sum(x**3)), x)
    np.testing.assert_allclose(grad, 3 * x**2, rtol=1e-8)
    assert len(capsys.readouterr().out.splitlines()) == x.size  # verbose=True is the course's default
    np.testing.assert_array_equal(x, before)

    def breaks(_):
        raise KeyError("somebody's bug")

    with pytest.raises(KeyError):
        cs231n.eval_numerical_gradient(breaks, x, verbose=False)
    np.testing.assert_array_equal(x, before)


def test_numerical_gradient_of_an_integer_array_is_refused():
    """Moving an integer by 1e-5 does nothing: the course's function returns zeros there."""
    with pytest.raises(TypeError, match=r"floating-point array.*int64"):
        cs231n.eval_numerical_gradient(lambda x: float(np.sum(x)), np.arange(3, dtype=np.int64), verbose=False)


# The course's formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [cs231n.softmax_loss_naive, cs231n.softmax_loss_vectorized])
@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 5, 3), (64, 785, 10), (33, 17, 100)])
def test_linear_softmax_loss_is_the_assignments_to_1e_12(rng, function, shape):
    n, d, c = shape
    W, X, y = rng.standard_normal((d, c)), rng.standard_normal((n, d)), rng.integers(0, c, n)
    loss, dW = function(W, X, y, 0.01)
    expected_loss, expected_dW = textbook_softmax_loss(W, X, y, 0.01)
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(dW, expected_dW, rtol=1e-12, atol=1e-12 * np.abs(expected_dW).max())


def test_scores_that_overflow_the_naive_formula(rng):
    X, W, y = np.eye(3), np.diag([1000.0, -1000.0, 800.0]), np.array([0, 1, 2])
    with np.errstate(over="ignore", invalid="ignore"):
        exps = np.exp(X @ W)
        assert np.isnan(exps / exps.sum(axis=1, keepdims=True)).any()
    loss, dW = cs231n.softmax_loss_vectorized(W, X, y, 0.0)
    assert loss == pytest.approx((1000 + math.log(2)) / 3, rel=1e-15)  # row 1: two classes tie, 1000 above its own
    assert np.isfinite(dW).all()


def test_labels_of_any_integer_type_and_out_of_range(rng):
    W, X, y = rng.standard_normal((5, 4)), rng.standard_normal((9, 5)), rng.integers(0, 4, 9)
    expected, expected_dW = cs231n.softmax_loss_vectorized(W, X, y, 0.1)
    for dtype in (np.uint8, np.int8, np.int32, np.uint64):
        loss, dW = cs231n.softmax_loss_vectorized(W, X, y.astype(dtype), 0.1)
        assert loss == expected
        np.testing.assert_array_equal(dW, expected_dW)
    with pytest.raises(IndexError):
        cs231n.softmax_loss_vectorized(W, X, np.full(9, 4), 0.1)


def test_weights_changed_in_place_are_seen_and_gradients_do_not_alias(rng):
    W, X, y = rng.standard_normal((6, 3)), rng.standard_normal((8, 6)), rng.integers(0, 3, 8)
    first_loss, first = cs231n.softmax_loss_vectorized(W, X, y, 0.1)
    kept = first.copy()
    W *= 0.5
    second_loss, second = cs231n.softmax_loss_vectorized(W, X, y, 0.1)
    assert second_loss == pytest.approx(textbook_softmax_loss(W, X, y, 0.1)[0], rel=1e-12)
    assert second_loss != first_loss
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)

    net, X, y = toy_net_and_data()
    _, grads = net.loss(X, y, reg=0.1)
    kept = {name: grad.copy() for name, grad in grads.items()}
    net.params["W1"] += 1.0
    net.params["b2"] -= 1.0
    _, other = net.loss(X, y, reg=0.1)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, kept[name])
        assert not np.shares_memory(grad, other[name])
        assert not np.shares_memory(grad, net.params[name])
    assert not np.array_equal(grads["W2"], other["W2"])


def test_softmax_classifier_trains_as_a_plain_loop_does(rng, capsys):
    """The same seed, the same draws: after 60 steps the weights are those of the assignment written out in NumPy."""
    X = rng.standard_normal((300, 12))
    y = (X[:, :3] + 0.1 * rng.standard_normal((300, 3))).argmax(axis=1)
    X = np.hstack([X, np.ones((300, 1))])  # the bias

    np.random.seed(3)
    classifier = cs231n.Softmax()
    losses = classifier.train(X, y, learning_rate=0.5, reg=1e-3, num_iters=60, batch_size=50, verbose=True)
    np.random.seed(3)
    W, expected = 0.001 * np.random.randn(13, 3), []
    for _ in range(60):
        batch = np.random.choice(300, 50)
        loss, dW = textbook_softmax_loss(W, X[batch], y[batch], 1e-3)
        W -= 0.5 * dW
        expected.append(loss)

    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    np.testing.assert_allclose(classifier.W, W, rtol=0, atol=1e-11)
    assert np.mean(classifier.predict(X) == y) > 0.9
    assert capsys.readouterr().out.startswith("iteration 0 / 60: loss 1.")


def test_linear_classifier_leaves_the_loss_to_subclasses(rng):
    with pytest.raises(NotImplementedError):
        cs231n.LinearClassifier().train(rng.standard_normal((4, 2)), np.array([0, 1, 0, 1]), num_iters=1)


def test_networks_agree_with_autograd():
    torch = pytest.importorskip("torch")
    net, X, y = fc_net_and_data()
    net.reg = 0.3
    params = {name: torch.tensor(value, requires_grad=True) for name, value in net.params.items()}
    hidden = torch.relu(torch.tensor(X) @ params["W1"] + params["b1"])
    scores = hidden @ params["W2"] + params["b2"]
    penalty = 0.15 * ((params["W1"] ** 2).sum() + (params["W2"] ** 2).sum())
    total = torch.nn.functional.cross_entropy(scores, torch.tensor(y)) + penalty
    total.backward()
    loss, grads = net.loss(X, y)
    assert loss == pytest.approx(total.item(), rel=1e-13)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, params[name].grad.numpy(), rtol=1e-12, atol=1e-13)


def test_images_are_flattened_and_an_empty_batch_has_a_shape(rng):
    net = cs231n.TwoLayerNetFC(input_dim=2 * 3 * 4, hidden_dim=5, num_classes=3, weight_scale=0.1)
    X = rng.standard_normal((6, 2, 3, 4))
    np.testing.assert_array_equal(net.loss(X), net.loss(X.reshape(6, 24)))
    out, cache = cs231n.affine_forward(X[:0], net.params["W1"], net.params["b1"])
    assert out.shape == (0, 5)
    dx, dw, db = cs231n.affine_backward(out, cache)
    assert dx.shape == (0, 2, 3, 4)
    assert not dw.any()
    assert not db.any()


def assert_same(actual, expected, rtol):
    """Numbers, arrays, tuples and dicts of them; relative to the largest entry of an array."""
    if isinstance(expected, dict):
        assert sorted(actual) == sorted(expected)
        actual, expected = ([side[name] for name in sorted(side)] for side in (actual, expected))
    if isinstance(expected, tuple | list):
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, rtol)
    else:
        assert np.shape(actual) == np.shape(expected)
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-11), (np.float32, 1e-4)])
def test_both_sides_of_the_benchmark_cases_of_the_courses_do_the_same(dtype, rtol):
    cases = course_cases(dtype)
    assert {label.split()[0] for label in cases} == {"cs231n", "dlfs", "dlai"}
    for theirs, ours in cases.values():
        assert_same(ours(), theirs(), rtol)
