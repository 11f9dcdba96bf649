"""What the course drop-ins replace, for ``python -m fastsoftmax bench --dropin``: the courses' formulas in plain NumPy.

Written as the courses teach them, vectorised where the course asks for it, at the sizes of the assignments. Both
sides of a case work on the same arrays and return the same numbers, which the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastsoftmax.dropin import cs231n, dlai, dlfs

Array = np.ndarray
Cases = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]


def course_cases(dtype: Any = np.float64) -> Cases:
    """Label -> (theirs, ours): two callables without arguments that do the same on the same arrays of this dtype."""
    rng = np.random.default_rng(0)
    return {**_cs231n(rng, np.dtype(dtype)), **_dlfs(rng, np.dtype(dtype)), **_dlai(rng, np.dtype(dtype))}


def _normal(rng: np.random.Generator, dtype: np.dtype, scale: float, *shape: int) -> Array:
    return (scale * rng.standard_normal(shape)).astype(dtype)


def _exps(scores: Array, axis: int) -> Array:
    e = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


# CS231n: CIFAR-10 images, 3072 numbers each ---------------------------------------------------------------------------


def _cs231n(rng: np.random.Generator, dtype: np.dtype) -> Cases:
    n, d, h, c = 500, 3072, 50, 10
    X, y = _normal(rng, dtype, 50, n, d), rng.integers(0, c, n)
    W, reg = _normal(rng, dtype, 1e-4, d, c), 5e-6
    x2, y2 = _normal(rng, dtype, 1, 200, d), rng.integers(0, c, 200)
    net = cs231n.TwoLayerNet(d, h, c, std=1e-2)
    net.params = {name: value.astype(dtype) for name, value in net.params.items()}
    scores, W1, dout = _normal(rng, dtype, 3, n, c), net.params["W1"], _normal(rng, dtype, 1, 200, h)
    cache = (x2, W1, net.params["b1"])
    return {
        "cs231n softmax_loss_naive (500, 3072) x 10": (
            lambda: _linear_loss_with_loops(W, X, y, reg),
            lambda: cs231n.softmax_loss_naive(W, X, y, reg),
        ),
        "cs231n softmax_loss_vectorized (500, 3072) x 10": (
            lambda: _linear_loss(W, X, y, reg),
            lambda: cs231n.softmax_loss_vectorized(W, X, y, reg),
        ),
        "cs231n softmax_loss (500, 10)": (
            lambda: _loss(scores, y),
            lambda: cs231n.softmax_loss(scores, y),
        ),
        "cs231n affine_backward (200, 3072) x 50": (
            lambda: (dout @ W1.T, x2.T @ dout, dout.sum(axis=0)),
            lambda: cs231n.affine_backward(dout, cache),
        ),
        "cs231n TwoLayerNet.loss (200, 3072) x 50 x 10": (
            lambda: _two_layers(net.params, x2, y2, reg),
            lambda: net.loss(x2, y2, reg),
        ),
    }


def _loss(scores: Array, y: Array) -> tuple[float, Array]:
    n = scores.shape[0]
    probs = _exps(scores, axis=1)
    loss = -np.sum(np.log(probs[np.arange(n), y])) / n
    dscores = probs.copy()
    dscores[np.arange(n), y] -= 1
    dscores /= n
    return loss, dscores


def _linear_loss(W: Array, X: Array, y: Array, reg: float) -> tuple[float, Array]:
    loss, dscores = _loss(X @ W, y)
    return loss + reg * np.sum(W * W), X.T @ dscores + 2 * reg * W


def _linear_loss_with_loops(W: Array, X: Array, y: Array, reg: float) -> tuple[float, Array]:
    loss, dW = 0.0, np.zeros_like(W)
    for i in range(X.shape[0]):
        scores = X[i] @ W
        exps = np.exp(scores - scores.max())
        total = exps.sum()
        loss -= np.log(exps[y[i]] / total)
        for j in range(W.shape[1]):
            dW[:, j] += (exps[j] / total - (j == y[i])) * X[i]
    n = X.shape[0]
    return loss / n + reg * np.sum(W * W), dW / n + 2 * reg * W


def _two_layers(params: dict[str, Array], X: Array, y: Array, reg: float) -> tuple[float, dict[str, Array]]:
    W1, b1, W2, b2 = params["W1"], params["b1"], params["W2"], params["b2"]
    hidden = np.maximum(0, X @ W1 + b1)
    loss, dscores = _loss(hidden @ W2 + b2, y)
    loss += reg * (np.sum(W1 * W1) + np.sum(W2 * W2))
    dhidden = dscores @ W2.T
    dhidden[hidden <= 0] = 0
    grads = {"W1": X.T @ dhidden + 2 * reg * W1, "b1": dhidden.sum(axis=0)}
    grads.update(W2=hidden.T @ dscores + 2 * reg * W2, b2=dscores.sum(axis=0))
    return loss, grads


# Deep Learning from Scratch: MNIST in batches of 100 ------------------------------------------------------------------


def _dlfs(rng: np.random.Generator, dtype: np.dtype) -> Cases:
    n, d, h, c = 100, 784, 50, 10
    x, labels = rng.random((n, d)).astype(dtype), rng.integers(0, c, n)
    t = np.eye(c, dtype=dtype)[labels]
    scores = _normal(rng, dtype, 3, n, c)
    layer, net = dlfs.SoftmaxWithLoss(), dlfs.TwoLayerNet(d, h, c)
    for i in (1, 2):
        affine = net.layers[f"Affine{i}"]
        affine.W = net.params[f"W{i}"] = net.params[f"W{i}"].astype(dtype)
        affine.b = net.params[f"b{i}"] = net.params[f"b{i}"].astype(dtype)
    return {
        "dlfs SoftmaxWithLoss (100, 10)": (
            lambda: _softmax_with_loss(scores, t),
            lambda: (layer.forward(scores, t), layer.backward()),
        ),
        "dlfs TwoLayerNet.gradient (100, 784) x 50 x 10": (
            lambda: _gradient(net.params, x, t),
            lambda: net.gradient(x, t),
        ),
    }


def _softmax_with_loss(x: Array, t: Array) -> tuple[float, Array]:
    y, n = _exps(x, axis=-1), x.shape[0]
    loss = -np.sum(np.log(y[np.arange(n), t.argmax(axis=1)])) / n
    return loss, (y - t) / n


def _gradient(params: dict[str, Array], x: Array, t: Array) -> dict[str, Array]:
    a1 = np.dot(x, params["W1"]) + params["b1"]
    mask = a1 <= 0
    z1 = a1.copy()
    z1[mask] = 0
    _, dout = _softmax_with_loss(np.dot(z1, params["W2"]) + params["b2"], t)
    grads = {"W2": np.dot(z1.T, dout), "b2": np.sum(dout, axis=0)}
    dz = np.dot(dout, params["W2"].T)
    dz[mask] = 0
    np.dot(dz, params["W1"].T)  # the book's first layer returns its dx too
    grads.update(W1=np.dot(x.T, dz), b1=np.sum(dz, axis=0))
    return grads


# deeplearning.ai: MNIST as columns ------------------------------------------------------------------------------------


def _dlai(rng: np.random.Generator, dtype: np.dtype) -> Cases:
    m = 1000
    Z, dA = _normal(rng, dtype, 3, 10, m), _normal(rng, dtype, 1, 10, m)
    X = rng.random((m, 784)).astype(dtype).T
    Y = np.eye(10, dtype=dtype)[:, rng.integers(0, 10, m)]
    parameters = dlai.initialize_parameters_deep([784, 100, 10], dtype=dtype)

    def ours() -> dict[str, Array]:
        AL, caches = dlai.L_model_forward(X, parameters)
        return dlai.L_model_backward(AL, Y, caches)

    return {
        "dlai softmax (10, 1000)": (lambda: _exps(Z, axis=0), lambda: dlai.softmax(Z)[0]),
        "dlai softmax_backward (10, 1000)": (
            lambda: _softmax_backward_by_jacobians(dA, Z),
            lambda: dlai.softmax_backward(dA, Z),
        ),
        "dlai L_model_forward, L_model_backward 784 x 100 x 10, 1000 columns": (
            lambda: _forward_backward(parameters, X, Y),
            ours,
        ),
    }


def _softmax_backward_by_jacobians(dA: Array, Z: Array) -> Array:
    """One Jacobian a sample: the right reading of the matrix that people build for the whole batch at once."""
    A, dZ = _exps(Z, axis=0), np.empty_like(Z)
    for column in range(Z.shape[1]):
        s = A[:, column : column + 1]
        dZ[:, column] = (np.diagflat(s) - s @ s.T) @ dA[:, column]
    return dZ


def _forward_backward(parameters: dict[str, Array], X: Array, Y: Array) -> dict[str, Array]:
    W1, b1, W2, b2 = (parameters[name] for name in ("W1", "b1", "W2", "b2"))
    m = X.shape[1]
    Z1 = np.dot(W1, X) + b1
    A1 = np.maximum(0, Z1)
    dZ2 = _exps(np.dot(W2, A1) + b2, axis=0) - Y
    dA1 = np.dot(W2.T, dZ2)
    dZ1 = np.array(dA1)
    dZ1[Z1 <= 0] = 0
    return {
        "dA1": dA1,
        "dW2": np.dot(dZ2, A1.T) / m,
        "db2": np.sum(dZ2, axis=1, keepdims=True) / m,
        "dA0": np.dot(W1.T, dZ1),
        "dW1": np.dot(dZ1, X.T) / m,
        "db1": np.sum(dZ1, axis=1, keepdims=True) / m,
    }
