"""deeplearning.ai, Neural Networks and Deep Learning, week 4: deep network helpers, with a softmax head that works.

>>> from fastsoftmax.dropin.dlai import L_model_forward, L_model_backward     # was: from dnn_app_utils_v3 import ...

Conventions of the course, kept: columns are samples, so ``X`` is (n_x, m) and ``W`` is (n_out, n_in) with
``Z = W @ A + b``; each activation takes ``Z`` and returns ``(A, cache)`` with ``cache = Z``; costs are means over the m
columns and *the 1/m is in `linear_backward`*, so ``dZ`` and ``dA`` everywhere belong to the sum of the columns' costs.

The course ends in one sigmoid unit. People who turn that into a softmax with a Jacobian meet
``ValueError: shapes (10000,10000) and (20,1000) not aligned``; `softmax_backward` explains it and is the cure. Here the
head follows from the output: one row is a sigmoid, more rows are a softmax, unless ``head`` says otherwise.

The kernels want samples as rows, so every call goes through a transpose. That is a view, and what comes back is again
columns: from layer to layer the data lie in memory as the kernels like them, and nothing is copied on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastsoftmax import _arrays, functional
from fastsoftmax.dropin import _teaching

__all__ = [
    "L_model_backward",
    "L_model_forward",
    "compute_cost",
    "cross_entropy_loss",
    "dense_backward",
    "dense_forward",
    "initialize_parameters_deep",
    "linear_activation_backward",
    "linear_activation_forward",
    "linear_backward",
    "linear_forward",
    "model",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy_backward",
    "softmax_jacobian",
    "update_parameters",
]

Array = np.ndarray
Parameters = dict[str, Array]
LinearCache = tuple[Any, Any, Any]


# The linear part of a layer -------------------------------------------------------------------------------------------


def initialize_parameters_deep(layer_dims: Sequence[int], seed: int = 1, dtype: Any = np.float64) -> Parameters:
    """First weights: ``W{l}`` (n_l, n_(l-1)), normal numbers over sqrt(n_(l-1)), and ``b{l}`` (n_l, 1), zeros.

    The course seeds NumPy's global generator with 1 at this point and draws from it; the same numbers are drawn here
    from a generator of their own, so that your own random numbers are left alone.
    """
    rng = np.random.RandomState(seed)
    parameters = {}
    for layer in range(1, len(layer_dims)):
        n_out, n_in = layer_dims[layer], layer_dims[layer - 1]
        # Column-major: the transpose that the kernels read is then a view, and each update keeps it so.
        parameters[f"W{layer}"] = (rng.randn(n_out, n_in) / np.sqrt(n_in)).astype(dtype, order="F")
        parameters[f"b{layer}"] = np.zeros((n_out, 1), dtype)
    return parameters


def linear_forward(A: Any, W: Any, b: Any) -> tuple[Array, LinearCache]:
    """``Z = W @ A + b``.

    Parameters
    ----------
    A : array of shape (n_in, m), activations of the layer before
    W : array of shape (n_out, n_in)
    b : array of shape (n_out, 1)

    Returns
    -------
    Z : array of shape (n_out, m)
    cache : (A, W, b), for `linear_backward`
    """
    Z = functional.affine(np.transpose(A), np.transpose(W), np.ravel(b)).T
    return Z, (A, W, b)


def linear_backward(dZ: Any, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Gradients of the linear part. This is the one place that divides by the number of samples m.

    Parameters
    ----------
    dZ : array of shape (n_out, m), gradient of the *sum* of the columns' costs
    cache : (A_prev, W, b) from `linear_forward`

    Returns
    -------
    dA_prev : array of shape (n_in, m), ``W.T @ dZ``, again of the sum
    dW : array of shape (n_out, n_in), ``dZ @ A_prev.T / m``, of the mean
    db : array of shape (n_out, 1), the mean of dZ over its columns
    """
    A_prev, W, _ = cache
    m = np.shape(A_prev)[1]
    dA_prev: Any
    dA_prev, dW, db = functional.affine_backward(np.transpose(dZ), np.transpose(A_prev), np.transpose(W))
    dW /= m
    db /= m
    return dA_prev.T, dW.T, db[:, None]


# Activations: Z -> (A, cache), and (dA, cache) -> dZ ------------------------------------------------------------------


def relu(Z: Any) -> tuple[Array, Any]:
    """``A = max(Z, 0)``, and ``cache = Z``."""
    return functional.relu(np.transpose(Z)).T, Z


def relu_backward(dA: Any, cache: Any) -> Array:
    """dA where Z was positive, 0 elsewhere (at 0 too), of Z's shape."""
    return functional.relu_backward(np.transpose(dA), np.transpose(cache)).T


def sigmoid(Z: Any) -> tuple[Array, Any]:
    """``A = 1 / (1 + exp(-Z))``, without overflow, and ``cache = Z``."""
    return _teaching.sigmoid(Z), Z


def sigmoid_backward(dA: Any, cache: Any) -> Array:
    """``dA * s(Z) * s(-Z)``, of Z's shape."""
    return _teaching.sigmoid_backward(dA, cache)


def softmax(Z: Any) -> tuple[Array, Any]:
    """Softmax down each column of Z (n, m), or of a vector (n,), and ``cache = Z``.

    Each column is normalised by itself. ``np.exp(Z - Z.max()) / np.exp(Z - Z.max()).sum()`` would normalise the whole
    batch at once: its columns do not add up to 1.
    """
    return functional.softmax(np.transpose(Z)).T, Z


def softmax_backward(dA: Any, cache: Any) -> Array:
    """Gradient with respect to Z, of Z's shape: the vector-Jacobian product ``A * (dA - sum(A * dA))`` by columns.

    The derivative of a softmax is often written as its Jacobian, ``np.diagflat(s) - s @ s.T`` with
    ``s = A.reshape(-1, 1)``. For 10 classes and 1000 samples that flattens a (10, 1000) array to 10,000 numbers and
    returns a (10000, 10000) matrix in place of a gradient, and its product with the layer before, (20, 1000), fails::

        ValueError: shapes (10000,10000) and (20,1000) not aligned: 10000 (dim 1) != 20 (dim 0)

    The matrix is not what is wanted, even at the right size. Samples do not see each other, so there are 1000
    Jacobians of (10, 10), and backpropagation needs none of them, only their product with dA. That product has the
    shape of Z and costs two passes over it::

        dZ = softmax_backward(dA, Z)        # (10, 1000)

    With a cross-entropy behind the softmax even this is a detour: the two together have the gradient ``A - Y``, which
    is what `L_model_backward` uses. `softmax_jacobian` builds the matrix for those who want to see it.

    Parameters
    ----------
    dA : array of shape (n, m) or (n,), gradient with respect to the probabilities
    cache : Z, as `softmax` returned it
    """
    rows = np.transpose(cache)
    return functional.softmax_backward(np.transpose(dA), functional.softmax(rows)).T


def softmax_jacobian(z: Any) -> Array:
    """The matrix of all derivatives ``dA[i] / dz[j] = A[i] * ((i == j) - A[j])``, to look at.

    Parameters
    ----------
    z : array of shape (n,) or (n, 1), one sample; or (n, m), m of them

    Returns
    -------
    array of shape (n, n), symmetric, with rows that add up to 0; (m, n, n) for m > 1 columns. Backpropagation needs its
    product with a gradient only, see `softmax_backward`.
    """
    probs = np.atleast_2d(functional.softmax(np.transpose(z)))  # (m, n)
    m, n = probs.shape
    each_row = np.broadcast_to(probs[:, None, :], (m, n, n))
    each_unit = np.broadcast_to(np.eye(n, dtype=probs.dtype), (m, n, n))
    jacobian = functional.softmax_backward(each_unit, each_row)  # row i is the product with the i-th unit vector
    return jacobian[0] if m == 1 else jacobian


_FORWARD = {"relu": relu, "sigmoid": sigmoid, "softmax": softmax}
_BACKWARD = {"relu": relu_backward, "sigmoid": sigmoid_backward, "softmax": softmax_backward}


def linear_activation_forward(A_prev: Any, W: Any, b: Any, activation: str) -> tuple[Array, tuple[LinearCache, Any]]:
    """`linear_forward`, then the activation 'relu', 'sigmoid' or 'softmax'; ``cache = (linear_cache, Z)``."""
    act = _lookup(_FORWARD, activation)
    Z, linear_cache = linear_forward(A_prev, W, b)
    A, activation_cache = act(Z)
    return A, (linear_cache, activation_cache)


def linear_activation_backward(dA: Any, cache: tuple[LinearCache, Any], activation: str) -> tuple[Array, Array, Array]:
    """Gradients (dA_prev, dW, db) of `linear_activation_forward`."""
    linear_cache, activation_cache = cache
    return linear_backward(_lookup(_BACKWARD, activation)(dA, activation_cache), linear_cache)


# The whole network ----------------------------------------------------------------------------------------------------


def L_model_forward(X: Any, parameters: Parameters, head: str | None = None) -> tuple[Array, list[Any]]:
    """[linear - ReLU] * (L - 1), then linear and the head.

    Parameters
    ----------
    X : array of shape (n_x, m)
    parameters : ``W1, b1, ..., WL, bL``
    head : 'softmax' or 'sigmoid'; None is a sigmoid for one output row, as in the course, and a softmax for more

    Returns
    -------
    AL : array of shape (n_y, m), probabilities
    caches : list of the L layers' caches, for `L_model_backward`
    """
    n_layers = len(parameters) // 2
    A, caches = X, []
    for layer in range(1, n_layers + 1):
        W, b = parameters[f"W{layer}"], parameters[f"b{layer}"]
        A, cache = linear_activation_forward(A, W, b, "relu" if layer < n_layers else _head(head, W.shape[0]))
        caches.append(cache)
    return A, caches


def compute_cost(AL: Any, Y: Any, head: str | None = None) -> np.float64:
    """Mean cross-entropy of probabilities AL (n_y, m) with targets Y of the same shape; `head` as in `L_model_forward`.

    Softmax: ``-sum(Y * log(AL)) / m``. Sigmoid: ``-sum(Y * log(AL) + (1 - Y) * log(1 - AL)) / m``. A factor of 0
    makes its term exactly 0: a saturated output costs 0 and not NaN if it is right, and infinity if it is wrong.
    """
    AL = np.asarray(AL)
    Y = np.reshape(Y, AL.shape)
    total = _teaching.cross_entropy_from_probs(AL, Y)
    if _head(head, AL.shape[0]) == "sigmoid":
        total += _teaching.cross_entropy_from_probs(-AL, 1 - Y, log=np.log1p)
    return np.float64(total / AL.shape[1])


def L_model_backward(
    AL: Any, Y: Any, caches: Sequence[Any], head: str | None = None, *, need_dA0: bool = True
) -> dict[str, Array]:
    """Gradients of `compute_cost` through the whole network.

    Parameters
    ----------
    AL, caches : from `L_model_forward`
    Y : array of AL's shape: one-hot columns, or 0 / 1 for a sigmoid
    head : as in `L_model_forward`
    need_dA0 : False leaves out the gradient with respect to X, a third of the first layer's work

    Returns
    -------
    dict of ``dA{l-1}``, ``dW{l}``, ``db{l}`` for l = 1 .. L

    Notes
    -----
    Head and cost are differentiated together, ``dZ = AL - Y``: going through ``dAL = -Y / AL`` divides by outputs that
    underflow to 0. It is taken from the cached Z, where a confident output's gradient keeps all its digits.
    """
    n_layers, AL = len(caches), np.asarray(AL)
    linear_cache, Z = caches[-1]
    dZ = _head_gradient(AL, np.asarray(Y, AL.dtype).reshape(AL.shape), Z, _head(head, AL.shape[0]))
    grads: dict[str, Array] = {}
    for layer in range(n_layers, 0, -1):
        if layer == 1 and not need_dA0:
            grads["dW1"], grads["db1"] = _weight_gradients(dZ, linear_cache)
            break
        dA, grads[f"dW{layer}"], grads[f"db{layer}"] = linear_backward(dZ, linear_cache)
        grads[f"dA{layer - 1}"] = dA
        if layer > 1:
            linear_cache, Z = caches[layer - 2]
            dZ = relu_backward(dA, Z)
    return grads


def update_parameters(parameters: Parameters, grads: dict[str, Array], learning_rate: float) -> Parameters:
    """One step of gradient descent: new arrays under the same names of `parameters`, which is returned."""
    for layer in range(1, len(parameters) // 2 + 1):
        for name in (f"W{layer}", f"b{layer}"):
            parameters[name] = parameters[name] - learning_rate * grads["d" + name]
    return parameters


def model(
    X: Any,
    Y: Any,
    layer_dims: Sequence[int],
    learning_rate: float = 0.0075,
    epochs: int = 3000,
    print_cost: bool = False,
    *,
    batch_size: int | None = None,
    seed: int = 1,
    head: str | None = None,
) -> Parameters:
    """Train a network of ReLU layers with a softmax or sigmoid head by gradient descent.

    Parameters
    ----------
    X : array of shape (n_x, m); float32 is trained in float32
    Y : array of shape (n_y, m), one-hot columns, or (1, m) of 0 and 1
    layer_dims : n_x, the hidden layers' widths, n_y
    learning_rate : float
    epochs : int, passes over the data: steps, if there is no batch_size
    print_cost : bool, print the cost ten times on the way
    batch_size : int, take the columns in shuffled batches of this many; None is the course's one step an epoch
    seed : int, of the first weights and of the shuffles
    head : as in `L_model_forward`

    Returns
    -------
    parameters : ``W1, b1, ..., WL, bL``; ``L_model_forward(X, parameters)[0].argmax(axis=0)`` are the classes

    Examples
    --------
    MNIST, 97 % of the test images, in a few seconds::

        parameters = model(X, Y, [784, 100, 10], learning_rate=0.5, epochs=5, batch_size=128)
    """
    X, Y = np.asarray(X), np.asarray(Y)
    m = X.shape[1]
    dtype = X.dtype if X.dtype.kind == "f" else np.float64
    parameters = initialize_parameters_deep(layer_dims, seed, dtype)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        cost = 0.0
        for columns in _batches(m, batch_size, rng):
            X_batch, Y_batch = (X, Y) if columns is None else (X.T[columns].T, Y.T[columns].T)
            AL, caches = L_model_forward(X_batch, parameters, head)
            grads = L_model_backward(AL, Y_batch, caches, head, need_dA0=False)
            parameters = update_parameters(parameters, grads, learning_rate)
            if print_cost:
                cost += compute_cost(AL, Y_batch, head) * AL.shape[1] / m
        if print_cost and epoch % max(1, epochs // 10) == 0:
            _teaching.say(f"Cost after epoch {epoch}: {cost:f}")
    return parameters


def _lookup(table: dict[str, Any], activation: str) -> Any:
    if activation not in table:
        raise ValueError(f"activation must be one of {', '.join(map(repr, table))}, got {activation!r}")
    return table[activation]


def _head(head: str | None, n_outputs: int) -> str:
    return head if head is not None else "sigmoid" if n_outputs == 1 else "softmax"


def _head_gradient(AL: Array, Y: Array, Z: Any, head: str) -> Array:
    """dZ of the sum of the columns' costs."""
    if head == "softmax":
        return functional.cross_entropy_with_grad(Z.T, _teaching.labels_if_one_hot(Y.T), reduction="sum")[1].T
    probs = _teaching.sigmoid(Z)
    if np.array_equal(AL, probs):
        return (1 - Y) * probs - Y * _teaching.sigmoid(np.negative(Z))  # AL - Y, without cancellation
    # An AL that is not this Z's, as the course's own unit test hands in: the chain rule as the course writes it.
    return sigmoid_backward((1 - Y) / (1 - AL) - Y / AL, Z)


def _weight_gradients(dZ: Array, cache: LinearCache) -> tuple[Array, Array]:
    A_prev, W, _ = cache
    m = np.shape(A_prev)[1]
    _, dW, db = functional.affine_backward(dZ.T, np.transpose(A_prev), np.transpose(W), need_grad_x=False)
    dW /= m
    db /= m
    return dW.T, db[:, None]


def _batches(m: int, batch_size: int | None, rng: np.random.Generator) -> Any:
    if batch_size is None:
        return [None]
    order = rng.permutation(m)
    return [order[start : start + batch_size] for start in range(0, m, batch_size)]


# The article form: one sample as a vector, or as a column -------------------------------------------------------------


def cross_entropy_loss(y: Any, t: Any) -> float:
    """``-sum(t * log(y))`` of probabilities y and one-hot targets t, vectors or columns of one shape.

    Exactly 0 is added where t is 0, whatever y is there: ``0 * log(0)`` is 0 here and not NaN. Several columns add up.
    """
    y, t = _same_shape(y, t)
    return _teaching.cross_entropy_from_probs(y, t)


def softmax_cross_entropy_backward(y: Any, t: Any) -> Array:
    """Gradient ``y - t`` of ``cross_entropy_loss(softmax(z), t)`` with respect to z, given the probabilities y."""
    y, t = _same_shape(y, t)
    return np.subtract(y, t)


def dense_forward(x: Any, W: Any, b: Any) -> Array:
    """``z = W @ x + b`` for a vector x (n_in,), or columns (n_in, m); W is (n_out, n_in), b (n_out,) or (n_out, 1)."""
    z = functional.affine(_columns(x), np.transpose(W), np.ravel(b))
    return z[0] if np.ndim(x) == 1 else z.T


def dense_backward(dz: Any, x: Any, W: Any) -> tuple[Array, Array, Array]:
    """Gradients of `dense_forward`: ``dx = W.T @ dz``, ``dW = dz @ x.T`` (the outer product of vectors), ``db = dz``.

    dz and x are vectors (n_out,), (n_in,), or columns (n_out, m), (n_in, m); the gradients of several columns add up,
    with no division: db is then (n_out, 1). dx has x's shape, dW is (n_out, n_in); all are new arrays.
    """
    dx: Any
    dx, dW, db = functional.affine_backward(_columns(dz), _columns(x), np.transpose(W))
    return (dx[0], dW.T, db) if np.ndim(x) == 1 else (dx.T, dW.T, db[:, None])


def _columns(x: Any) -> Array:
    """A vector or columns as rows: what the kernels read."""
    return np.atleast_2d(np.transpose(x))


def _same_shape(y: Any, t: Any) -> tuple[Array, Array]:
    y, t = np.asarray(y), np.asarray(t)
    _arrays.same_shape(y, t, "y and t")  # a vector beside a column would broadcast to a matrix
    return y, t
