"""deeplearning.ai: the numbers its notebooks print for seeded inputs, central differences, torch, and a trained net."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsoftmax.datasets import load_digits
from fastsoftmax.dropin import dlai


def course_softmax(Z):
    e = np.exp(Z - Z.max(axis=0, keepdims=True))
    return e / e.sum(axis=0, keepdims=True)


def one_hot_columns(labels, n_classes):
    return np.eye(n_classes)[:, labels]


def central_differences(f, x, h=1e-6):
    grad = np.empty_like(x)
    for index in np.ndindex(x.shape):
        old = x[index]
        x[index] = old + h
        above = f()
        x[index] = old - h
        grad[index] = (above - f()) / (2 * h)
        x[index] = old
    return grad


def print_like(actual, expected):
    """The notebooks print eight decimals."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1.01e-8)


# The numbers that the notebooks print, "Building your Deep Neural Network: Step by Step" ------------------------------


def normal(seed, *shapes):
    """The notebooks' test cases: np.random.seed(seed), then one randn a shape."""
    rng = np.random.RandomState(seed)
    return [rng.randn(*shape) for shape in shapes]


def test_linear_forward():
    A, W, b = normal(1, (3, 2), (1, 3), (1, 1))
    Z, cache = dlai.linear_forward(A, W, b)
    print_like(Z, [[3.26295337, -1.23429987]])
    assert cache[0] is A
    assert cache[1] is W
    assert cache[2] is b


def test_linear_activation_forward():
    A_prev, W, b = normal(2, (3, 2), (1, 3), (1, 1))
    A, _ = dlai.linear_activation_forward(A_prev, W, b, "sigmoid")
    print_like(A, [[0.96890023, 0.11013289]])
    A, (linear_cache, activation_cache) = dlai.linear_activation_forward(A_prev, W, b, activation="relu")
    print_like(A, [[3.43896131, 0.0]])
    assert linear_cache[0] is A_prev
    assert activation_cache.shape == (1, 2)


def test_L_model_forward():
    X, W1, b1, W2, b2, W3, b3 = normal(6, (5, 4), (4, 5), (4, 1), (3, 4), (3, 1), (1, 3), (1, 1))
    AL, caches = dlai.L_model_forward(X, {"W1": W1, "b1": b1, "W2": W2, "b2": b2, "W3": W3, "b3": b3})
    print_like(AL, [[0.03921668, 0.70498921, 0.19734387, 0.04728177]])
    assert len(caches) == 3


@pytest.mark.parametrize(
    ("Y", "expected"), [([[1, 1, 1]], 0.41493159961539694), ([[1, 1, 0]], 0.2797765635793422)], ids=["older", "newer"]
)
def test_compute_cost(Y, expected):
    cost = dlai.compute_cost(np.array([[0.8, 0.9, 0.4]]), np.array(Y))
    assert cost == pytest.approx(expected, rel=1e-15)
    assert cost.shape == ()  # the notebooks assert it


def test_compute_cost_of_a_small_wrong_probability():
    assert dlai.compute_cost(np.array([[1e-20]]), np.array([[0]])) == 1e-20  # log(1 - 1e-20) is 0


def test_linear_backward():
    dZ, A, W, b = normal(1, (1, 2), (3, 2), (1, 3), (1, 1))
    dA_prev, dW, db = dlai.linear_backward(dZ, (A, W, b))
    print_like(dA_prev, [[0.51822968, -0.19517421], [-0.40506361, 0.15255393], [2.37496825, -0.89445391]])
    print_like(dW, [[-0.10076895, 1.40685096, 1.64992505]])
    print_like(db, [[0.50629448]])


@pytest.mark.parametrize(
    ("activation", "dA_prev", "dW", "db"),
    [
        (
            "sigmoid",
            [[0.11017994, 0.01105339], [0.09466817, 0.00949723], [-0.05743092, -0.00576154]],
            [[0.10266786, 0.09778551, -0.01968084]],
            [[-0.05729622]],
        ),
        (
            "relu",
            [[0.44090989, 0.0], [0.37883606, 0.0], [-0.2298228, 0.0]],
            [[0.44513824, 0.37371418, -0.10478989]],
            [[-0.20837892]],
        ),
    ],
)
def test_linear_activation_backward(activation, dA_prev, dW, db):
    dA, A, W, b, Z = normal(2, (1, 2), (3, 2), (1, 3), (1, 1), (1, 2))
    before = dA.copy()
    actual = dlai.linear_activation_backward(dA, ((A, W, b), Z), activation)
    for got, expected in zip(actual, (dA_prev, dW, db)):
        print_like(got, expected)
    np.testing.assert_array_equal(dA, before)


def test_L_model_backward():
    """The notebook's AL is random and not the sigmoid of its cache: 1.79 is no probability. The numbers are its all the
    same."""
    AL, A1, W1, b1, Z1, A2, W2, b2, Z2 = normal(
        3, (1, 2), (4, 2), (3, 4), (3, 1), (3, 2), (3, 2), (1, 3), (1, 1), (1, 2)
    )
    grads = dlai.L_model_backward(AL, np.array([[1, 0]]), [((A1, W1, b1), Z1), ((A2, W2, b2), Z2)])
    assert sorted(grads) == ["dA0", "dA1", "dW1", "dW2", "db1", "db2"]
    print_like(grads["dA0"], [[0, 0.52257901], [0, -0.3269206], [0, -0.32070404], [0, -0.74079187]])
    print_like(grads["dA1"], [[0.12913162, -0.44014127], [-0.14175655, 0.48317296], [0.01663708, -0.05670698]])
    dW1 = [[0.41010002, 0.07807203, 0.13798444, 0.10502167], [0] * 4, [0.05283652, 0.01005865, 0.01777766, 0.0135308]]
    print_like(grads["dW1"], dW1)
    print_like(grads["dW2"], [[-0.39202432, -0.13325855, -0.04601089]])
    print_like(grads["db1"], [[-0.22007063], [0], [-0.02835349]])
    print_like(grads["db2"], [[0.15187861]])


def test_initialize_parameters_deep_draws_the_courses_numbers_and_leaves_yours_alone():
    """The notebook prints them for seed 3 and a scale of 0.01; the scale of the course's helpers is 1 / sqrt(n_in)."""
    np.random.seed(11)
    yours = np.random.rand(2)
    np.random.seed(11)
    first = np.random.rand()
    parameters = dlai.initialize_parameters_deep([5, 4, 3], seed=3)
    assert [first, np.random.rand()] == list(yours)
    print_like(
        parameters["W1"][:2] * math.sqrt(5) * 0.01,
        [
            [0.01788628, 0.0043651, 0.00096497, -0.01863493, -0.00277388],
            [-0.00354759, -0.00082741, -0.00627001, -0.00043818, -0.00477218],
        ],
    )
    shapes = {name: value.shape for name, value in parameters.items()}
    assert shapes == {"W1": (4, 5), "b1": (4, 1), "W2": (3, 4), "b2": (3, 1)}
    assert not parameters["b1"].any()


def test_update_parameters_follows_the_course_and_does_not_write_into_arrays():
    W, dW = np.array([[1.0, 2.0]]), np.array([[10.0, -10.0]])
    b, db = np.array([[0.5]]), np.array([[1.0]])
    parameters = {"W1": W, "b1": b}
    updated = dlai.update_parameters(parameters, {"dW1": dW, "db1": db}, 0.1)
    assert updated is parameters  # as in the course: ignoring the return value still trains
    np.testing.assert_allclose(updated["W1"], [[0.0, 3.0]])
    np.testing.assert_allclose(updated["b1"], [[0.4]])
    np.testing.assert_array_equal(W, [[1.0, 2.0]])


# The softmax head -----------------------------------------------------------------------------------------------------


def test_softmax_is_down_the_columns(rng):
    Z = rng.standard_normal((10, 7))
    A, cache = dlai.softmax(Z)
    assert cache is Z
    np.testing.assert_allclose(A, course_softmax(Z), rtol=1e-13)
    np.testing.assert_allclose(A.sum(axis=0), 1, rtol=1e-14)
    wrong = np.exp(Z - Z.max()) / np.exp(Z - Z.max()).sum()  # the whole batch at once
    assert not np.allclose(A, wrong)
    vector, _ = dlai.softmax(Z[:, 0])
    np.testing.assert_allclose(vector, A[:, 0], rtol=1e-15)


def jacobian_people_write(A):
    s = A.reshape(-1, 1)
    return np.diagflat(s) - s @ s.T


def test_the_error_people_meet_and_its_cure(rng):
    """(n * m) x (n * m), and the next product fails; the docstring shows it for 10 classes and 1000 samples."""
    n, m, hidden = 3, 5, 4
    Z, dA, A_prev = rng.standard_normal((n, m)), rng.standard_normal((n, m)), rng.standard_normal((hidden, m))
    A, cache = dlai.softmax(Z)
    with pytest.raises(ValueError, match=r"shapes \(15,15\) and \(5,4\) not aligned"):
        np.dot(jacobian_people_write(A), A_prev.T)
    dZ = dlai.softmax_backward(dA, cache)
    assert dZ.shape == Z.shape
    assert np.dot(dZ, A_prev.T).shape == (n, hidden)
    for column in range(m):
        jacobian = jacobian_people_write(A[:, column])  # right for one sample
        np.testing.assert_allclose(dZ[:, column], jacobian @ dA[:, column], rtol=1e-12, atol=1e-14)
    assert "shapes (10000,10000) and (20,1000) not aligned" in dlai.softmax_backward.__doc__


def test_softmax_backward_is_the_gradient(rng):
    Z, dA = 2 * rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    numerical = central_differences(lambda: np.sum(dA * course_softmax(Z)), Z)
    np.testing.assert_allclose(dlai.softmax_backward(dA, Z), numerical, rtol=0, atol=1e-9)
    vector = dlai.softmax_backward(dA[:, 0], Z[:, 0])
    np.testing.assert_allclose(vector, numerical[:, 0], rtol=0, atol=1e-9)


def test_softmax_jacobian_is_the_matrix(rng):
    z = rng.standard_normal(6)
    jacobian = dlai.softmax_jacobian(z)
    np.testing.assert_allclose(jacobian, jacobian_people_write(course_softmax(z)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(jacobian.sum(axis=1), 0, atol=1e-15)
    np.testing.assert_array_equal(dlai.softmax_jacobian(z[:, None]), jacobian)
    Z = rng.standard_normal((6, 2))
    both = dlai.softmax_jacobian(Z)
    assert both.shape == (2, 6, 6)
    np.testing.assert_allclose(both[1], dlai.softmax_jacobian(Z[:, 1]), rtol=1e-15)


def network(rng, layer_dims, m=7, labels=None):
    parameters = dlai.initialize_parameters_deep(layer_dims)
    for name in parameters:
        if name.startswith("b"):
            parameters[name] = 0.1 * rng.standard_normal(parameters[name].shape)
    X, n_y = rng.standard_normal((layer_dims[0], m)), layer_dims[-1]
    Y = rng.integers(0, 2, (1, m)) if n_y == 1 else one_hot_columns(rng.integers(0, n_y, m), n_y)
    return parameters, X, Y


@pytest.mark.parametrize("layer_dims", [[5, 4], [5, 6, 4], [5, 6, 3, 4], [5, 6, 1], [2, 1]])
def test_whole_network_against_central_differences(rng, layer_dims):
    parameters, X, Y = network(rng, layer_dims)
    AL, caches = dlai.L_model_forward(X, parameters)
    grads = dlai.L_model_backward(AL, Y, caches)
    cost = lambda: dlai.compute_cost(dlai.L_model_forward(X, parameters)[0], Y)  # noqa: E731
    for name, value in parameters.items():
        assert grads["d" + name].shape == value.shape
        np.testing.assert_allclose(grads["d" + name], central_differences(cost, value), rtol=1e-6, atol=1e-9)
    m = X.shape[1]  # dA0 belongs to the sum of the columns' costs: the 1/m is in linear_backward
    np.testing.assert_allclose(grads["dA0"], m * central_differences(cost, X), rtol=1e-6, atol=1e-8)
    without = dlai.L_model_backward(AL, Y, caches, need_dA0=False)
    assert "dA0" not in without
    for name, value in without.items():
        np.testing.assert_array_equal(value, grads[name])


def test_the_1_over_m_is_in_linear_backward(rng):
    parameters, X, Y = network(rng, [5, 4])
    AL, caches = dlai.L_model_forward(X, parameters)
    grads = dlai.L_model_backward(AL, Y, caches)
    dZ = AL - Y  # no 1/m
    np.testing.assert_allclose(grads["dA0"], parameters["W1"].T @ dZ, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(grads["dW1"], dZ @ X.T / 7, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(grads["db1"], dZ.mean(axis=1, keepdims=True), rtol=1e-11, atol=1e-13)


def test_softmax_head_agrees_with_the_chain_rule_written_out(rng):
    """dAL = -Y / AL through softmax_backward, where nothing saturates, is the same gradient."""
    parameters, X, Y = network(rng, [5, 6, 4])
    AL, caches = dlai.L_model_forward(X, parameters)
    grads = dlai.L_model_backward(AL, Y, caches)
    dA1, dW2, db2 = dlai.linear_activation_backward(-Y / AL, caches[1], "softmax")
    np.testing.assert_allclose(grads["dA1"], dA1, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(grads["dW2"], dW2, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(grads["db2"], db2, rtol=1e-10, atol=1e-13)


def test_several_sigmoids_when_asked_for(rng):
    parameters, X, _ = network(rng, [5, 6, 4])
    Y = rng.integers(0, 2, (4, 7))
    AL, caches = dlai.L_model_forward(X, parameters, head="sigmoid")
    np.testing.assert_allclose(AL, 1 / (1 + np.exp(-caches[-1][1])), rtol=1e-13)
    expected = -np.sum(Y * np.log(AL) + (1 - Y) * np.log(1 - AL)) / 7
    assert dlai.compute_cost(AL, Y, head="sigmoid") == pytest.approx(expected, rel=1e-12)
    grads = dlai.L_model_backward(AL, Y, caches, head="sigmoid")
    np.testing.assert_allclose(grads["db2"], (AL - Y).mean(axis=1, keepdims=True), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n_y", [1, 2])
def test_saturated_outputs_have_a_cost_and_a_gradient(n_y):
    """Z = +-1000: the course's formulas give 0 * log(0) = NaN for the cost and 0 / 0 for the gradient."""
    X = np.array([[1000.0, -1000.0]])
    parameters = {"W1": np.array([[1.0], [-1.0]])[:n_y], "b1": np.zeros((n_y, 1))}
    right = np.array([[1, 0], [0, 1]])[:n_y]
    AL, caches = dlai.L_model_forward(X, parameters)
    np.testing.assert_array_equal(AL, right)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert np.isnan(right * np.log(AL)).any()
        assert not np.isfinite(right / AL).all()
    assert dlai.compute_cost(AL, right) == 0.0
    assert dlai.compute_cost(AL, 1 - right) == math.inf
    np.testing.assert_array_equal(dlai.L_model_backward(AL, right, caches)["dW1"], np.zeros((n_y, 1)))
    wrong = dlai.L_model_backward(AL, 1 - right, caches)["dW1"]
    np.testing.assert_array_equal(wrong, [[1000.0], [-1000.0]][:n_y])


def test_confident_sigmoid_keeps_its_gradient():
    """1 - sigmoid(40) is 0 in float64, AL - Y too; the gradient is 4e-18."""
    Z = np.array([[40.0]])
    AL, caches = dlai.L_model_forward(Z, {"W1": np.eye(1), "b1": np.zeros((1, 1))})
    assert (AL - 1)[0, 0] == 0
    assert dlai.L_model_backward(AL, np.array([[1]]), caches)["db1"][0, 0] == pytest.approx(-math.exp(-40), rel=1e-14)
    assert dlai.sigmoid_backward(np.ones((1, 1)), Z)[0, 0] == pytest.approx(math.exp(-40), rel=1e-14)


def test_networks_agree_with_autograd(rng):
    torch = pytest.importorskip("torch")
    parameters, X, Y = network(rng, [11, 13, 9, 5], m=17)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}
    A = torch.tensor(X)
    for i in (1, 2, 3):
        A = tensors[f"W{i}"] @ A + tensors[f"b{i}"]
        A = torch.relu(A) if i < 3 else A
    loss = torch.nn.functional.cross_entropy(A.T, torch.tensor(Y.T))
    loss.backward()
    AL, caches = dlai.L_model_forward(X, parameters)
    assert dlai.compute_cost(AL, Y) == pytest.approx(loss.item(), rel=1e-13)
    for name, grad in dlai.L_model_backward(AL, Y, caches).items():
        if "A" not in name:
            np.testing.assert_allclose(grad, tensors[name[1:]].grad.numpy(), rtol=1e-11, atol=1e-13)


def test_gradients_do_not_alias_and_weights_changed_in_place_are_seen(rng):
    parameters, X, Y = network(rng, [5, 6, 4])
    AL, caches = dlai.L_model_forward(X, parameters)
    grads = dlai.L_model_backward(AL, Y, caches)
    kept = {name: grad.copy() for name, grad in grads.items()}
    parameters["W1"] *= 2
    AL2, caches2 = dlai.L_model_forward(X, parameters)
    others = dlai.L_model_backward(AL2, Y, caches2)
    assert not np.allclose(AL, AL2)
    arrays = [*grads.values(), *others.values(), *parameters.values(), X, Y, AL, AL2]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1 :])
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, kept[name])


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"'relu', 'sigmoid', 'softmax', got 'tanh'"):
        dlai.linear_activation_forward(np.ones((2, 3)), np.ones((1, 2)), np.zeros((1, 1)), "tanh")


# The whole model ------------------------------------------------------------------------------------------------------


def test_model_steps_are_the_courses(rng, capsys):
    """Full batch, as in the course: ten steps of the formulas in NumPy end at the same weights."""
    X, Y = rng.standard_normal((5, 40)), one_hot_columns(rng.integers(0, 3, 40), 3)
    before = np.random.get_state()[1].copy()
    parameters = dlai.model(X, Y, [5, 8, 3], 0.3, 10, True)
    np.testing.assert_array_equal(np.random.get_state()[1], before)

    mine = dlai.initialize_parameters_deep([5, 8, 3])
    W1, b1, W2, b2 = mine["W1"], mine["b1"], mine["W2"], mine["b2"]
    costs = []
    for _ in range(10):
        A1 = np.maximum(W1 @ X + b1, 0)
        A2 = course_softmax(W2 @ A1 + b2)
        costs.append(-np.sum(Y * np.log(A2)) / 40)
        dZ2 = A2 - Y
        dZ1 = W2.T @ dZ2 * (A1 > 0)
        W2 = W2 - 0.3 * dZ2 @ A1.T / 40
        b2 = b2 - 0.3 * dZ2.mean(axis=1, keepdims=True)
        W1 = W1 - 0.3 * dZ1 @ X.T / 40
        b1 = b1 - 0.3 * dZ1.mean(axis=1, keepdims=True)
    for name, expected in (("W1", W1), ("b1", b1), ("W2", W2), ("b2", b2)):
        np.testing.assert_allclose(parameters[name], expected, rtol=0, atol=1e-12)
    printed = [float(line.split(":")[1]) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(printed, costs, rtol=0, atol=1e-6)


def digits():
    """The package's digits as the course lays data out: float32 images as columns, one-hot columns; test labels."""
    x_train, y_train, x_test, y_test = load_digits()
    scale = np.float32(1 / 16)
    return (x_train * scale).T, one_hot_columns(y_train, 10), (x_test * scale).T, y_test


@pytest.mark.parametrize(("batch_size", "learning_rate", "epochs"), [(32, 0.3, 30), (None, 0.5, 100)])
def test_model_learns_digits(batch_size, learning_rate, epochs):
    X, Y, X_test, labels = digits()
    parameters = dlai.model(X, Y, [64, 50, 10], learning_rate, epochs, batch_size=batch_size)
    assert parameters["W1"].dtype == X.dtype
    AL, _ = dlai.L_model_forward(X_test, parameters)
    assert np.mean(AL.argmax(axis=0) == labels) >= 0.95


def test_model_learns_one_digit_with_the_courses_sigmoid():
    X, Y, X_test, labels = digits()
    parameters = dlai.model(X, Y[3:4], [64, 20, 1], 0.3, 20, batch_size=32)
    AL, _ = dlai.L_model_forward(X_test, parameters)
    assert AL.shape == (1, X_test.shape[1])
    assert np.mean((AL[0] > 0.5) == (labels == 3)) >= 0.98


# The article form -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_article_form(rng, shape):
    z = rng.standard_normal(shape)
    y = course_softmax(z)
    t = np.zeros(shape)
    t[2] = 1
    assert dlai.cross_entropy_loss(y, t) == pytest.approx(-np.sum(np.log(y[2])), rel=1e-14)
    dz = dlai.softmax_cross_entropy_backward(y, t)
    np.testing.assert_array_equal(dz, y - t)
    numerical = central_differences(lambda: dlai.cross_entropy_loss(course_softmax(z), t), z)
    np.testing.assert_allclose(dz, numerical, rtol=0, atol=1e-8)


def test_article_loss_is_exact_at_zero_probabilities():
    y, t = np.array([1.0, 0.0, 0.0]), np.array([1, 0, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        assert np.isnan(-np.sum(t * np.log(y)))
    assert dlai.cross_entropy_loss(y, t) == 0.0
    assert dlai.cross_entropy_loss(y[::-1], t) == math.inf


@pytest.mark.parametrize("function", [dlai.cross_entropy_loss, dlai.softmax_cross_entropy_backward])
def test_a_vector_beside_a_column_is_refused(function):
    """y - t would be a matrix."""
    with pytest.raises(ValueError, match=r"one shape, got \(3, 1\) and \(3,\)"):
        function(np.full((3, 1), 1 / 3), np.array([0, 1, 0]))


@pytest.mark.parametrize("m", [None, 1, 4])
def test_dense_layer_of_the_article(rng, m):
    """dW = dz x^T, db = dz."""
    tail = () if m is None else (m,)
    x, dz = rng.standard_normal((6, *tail)), rng.standard_normal((3, *tail))
    W, b = rng.standard_normal((3, 6)), rng.standard_normal((3,) if m is None else (3, 1))
    np.testing.assert_allclose(dlai.dense_forward(x, W, b), W @ x + b, rtol=1e-12, atol=1e-13)
    dx, dW, db = dlai.dense_backward(dz, x, W)
    np.testing.assert_allclose(dx, W.T @ dz, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dW, np.outer(dz, x) if m is None else dz @ x.T, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(db, dz if m is None else dz.sum(axis=1, keepdims=True), rtol=1e-12, atol=1e-13)
    assert dx.shape == x.shape
    assert db.shape == b.shape
    assert not np.shares_memory(db, dz)
