"""Stanford CS231n, assignments 1 and 2: the same signatures and conventions over fastsoftmax's compiled kernels.

>>> from fastsoftmax.dropin.cs231n import softmax_loss_vectorized     # was: from cs231n.classifiers.softmax import ...

Conventions of the course, kept: rows are samples, ``W`` is (D, C) and the bias a column of ones in ``X`` for the linear
classifier; losses are means over the rows; the linear classifier and the older `TwoLayerNet` penalise
``reg * sum(W * W)`` (gradient ``2 * reg * W``), the newer network, here `TwoLayerNetFC`, ``0.5 * reg * sum(W * W)``.
Random numbers come from NumPy's global generator in the course's order: a seeded notebook gives the numbers it gave.

Every gradient is an array of its own; nothing is remembered between calls, so weights may be changed in place, as the
gradient checkers do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from fastsoftmax import functional
from fastsoftmax.dropin import _teaching

__all__ = [
    "LinearClassifier",
    "Softmax",
    "TwoLayerNet",
    "TwoLayerNetFC",
    "affine_backward",
    "affine_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "grad_check_sparse",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "softmax_loss_naive",
    "softmax_loss_vectorized",
]

Array = np.ndarray
Params = dict[str, Array]


# layers.py and layer_utils.py -----------------------------------------------------------------------------------------


def affine_forward(x: Any, w: Any, b: Any) -> tuple[Array, tuple[Any, Any, Any]]:
    """Fully connected layer.

    Parameters
    ----------
    x : array of shape (N, d_1, ..., d_k), each sample flattened to D = d_1 * ... * d_k numbers
    w : array of shape (D, M)
    b : array of shape (M,)

    Returns
    -------
    out : array of shape (N, M), ``x.reshape(N, D) @ w + b``
    cache : (x, w, b), for `affine_backward`
    """
    return functional.affine(_teaching.rows(x), w, b), (x, w, b)


def affine_backward(dout: Any, cache: tuple[Any, Any, Any]) -> tuple[Array, Array, Array]:
    """Gradients of `affine_forward`: dx of x's shape (N, d_1, ..., d_k), dw (D, M), db (M,), from dout (N, M)."""
    x, w, _ = cache
    dx: Any
    dx, dw, db = functional.affine_backward(dout, _teaching.rows(x), w)
    return dx.reshape(np.shape(x)), dw, db


def relu_forward(x: Any) -> tuple[Array, Any]:
    """max(x, 0) of any shape, and ``cache = x``."""
    return functional.relu(x), x


def relu_backward(dout: Any, cache: Any) -> Array:
    """dout where the input was positive, 0 elsewhere (at 0 too). A new array; dout is left alone."""
    return functional.relu_backward(dout, cache)


def affine_relu_forward(x: Any, w: Any, b: Any) -> tuple[Array, tuple[Any, Any]]:
    """`affine_forward`, then `relu_forward`; ``cache = (fc_cache, relu_cache)``."""
    a, fc_cache = affine_forward(x, w, b)
    out, relu_cache = relu_forward(a)
    return out, (fc_cache, relu_cache)


def affine_relu_backward(dout: Any, cache: tuple[Any, Any]) -> tuple[Array, Array, Array]:
    """Gradients (dx, dw, db) of `affine_relu_forward`."""
    fc_cache, relu_cache = cache
    return affine_backward(relu_backward(dout, relu_cache), fc_cache)


def softmax_loss(x: Any, y: Any) -> tuple[float, Array]:
    """Mean softmax cross-entropy of scores x (N, C) with labels y (N,), and its gradient dx (N, C), in one pass."""
    return functional.cross_entropy_with_grad(x, y)


# classifiers/softmax.py and linear_classifier.py ----------------------------------------------------------------------


def softmax_loss_vectorized(W: Any, X: Any, y: Any, reg: float) -> tuple[float, Array]:
    """Loss and gradient of the linear softmax classifier; X is read once and the scores are never stored.

    Parameters
    ----------
    W : array of shape (D, C), the weights (the bias is one of its rows, under a column of ones in X)
    X : array of shape (N, D)
    y : integers of shape (N,), labels 0 .. C - 1
    reg : strength of the penalty ``reg * sum(W * W)``, without a factor of one half

    Returns
    -------
    loss : float, mean cross-entropy plus penalty
    dW : array of shape (D, C)

    Raises
    ------
    IndexError
        If a label is not in 0 .. C - 1.
    """
    loss, (_, dW, _) = functional.linear_cross_entropy_with_grad(X, W, y, need_grad_x=False)
    return _penalise(loss, [(W, dW)], reg), dW


def softmax_loss_naive(W: Any, X: Any, y: Any, reg: float) -> tuple[float, Array]:
    """The assignment's version with loops. Here there is one version: this is `softmax_loss_vectorized`."""
    return softmax_loss_vectorized(W, X, y, reg)


class LinearClassifier:
    """A linear classifier trained by stochastic gradient descent; subclasses give `loss`. ``W`` is (D, C)."""

    def __init__(self) -> None:
        self.W: Any = None

    def train(
        self,
        X: Any,
        y: Any,
        learning_rate: float = 1e-3,
        reg: float = 1e-5,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> list[float]:
        """Take num_iters steps on batches drawn with replacement from X (N, D), y (N,); return the loss at each.

        The first call draws the weights, 0.001 times normal numbers, one column for each label up to ``max(y)``.
        """
        X, y = np.asarray(X), np.asarray(y)
        if self.W is None:
            self.W = 0.001 * np.random.randn(X.shape[1], int(np.max(y)) + 1)
        losses = []
        for it in range(num_iters):
            batch = np.random.choice(X.shape[0], batch_size)
            loss, grad = self.loss(X[batch], y[batch], reg)
            self.W -= learning_rate * grad
            losses.append(loss)
            if verbose and it % 100 == 0:
                _teaching.say(f"iteration {it} / {num_iters}: loss {loss:f}")
        return losses

    def predict(self, X: Any) -> Array:
        """Labels (N,) of the highest scores of X (N, D)."""
        return functional.affine(X, self.W).argmax(axis=1)

    def loss(self, X_batch: Any, y_batch: Any, reg: float) -> tuple[float, Array]:
        """Loss and its gradient (D, C) on a batch: what a subclass is for."""
        raise NotImplementedError


class Softmax(LinearClassifier):
    """The linear classifier with `softmax_loss_vectorized`."""

    def loss(self, X_batch: Any, y_batch: Any, reg: float) -> tuple[float, Array]:
        """`softmax_loss_vectorized` at the present weights."""
        return softmax_loss_vectorized(self.W, X_batch, y_batch, reg)


# classifiers/neural_net.py (to 2020) and fc_net.py (since) ------------------------------------------------------------


class TwoLayerNet:
    """affine - ReLU - affine - softmax, as in the course until 2020: penalty ``reg * (sum(W1 * W1) + sum(W2 * W2))``.

    Attributes
    ----------
    params : dict of W1 (D, H), b1 (H,), W2 (H, C), b2 (C,); read anew at each call
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, std: float = 1e-4) -> None:
        self.params = _two_layer_params(input_size, hidden_size, output_size, std)

    def loss(self, X: Any, y: Any = None, reg: float = 0.0) -> Any:
        """Scores (N, C) of X (N, D) if y is None, else (loss, grads) with a gradient under each name of `params`."""
        return _two_layer_loss(self.params, X, y, reg)

    def train(
        self,
        X: Any,
        y: Any,
        X_val: Any,
        y_val: Any,
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 0.95,
        reg: float = 5e-6,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> dict[str, list[float]]:
        """Stochastic gradient descent on batches drawn with replacement; the rate decays after each epoch.

        Returns
        -------
        dict of ``loss_history`` (each step), ``train_acc_history`` (on the batch) and ``val_acc_history`` (each epoch)
        """
        X, y = np.asarray(X), np.asarray(y)
        iterations_per_epoch = max(X.shape[0] / batch_size, 1)  # a float, as in the course: it decides when rates decay
        history: dict[str, list[float]] = {"loss_history": [], "train_acc_history": [], "val_acc_history": []}
        for it in range(num_iters):
            batch = np.random.choice(X.shape[0], batch_size)
            X_batch, y_batch = X[batch], y[batch]
            loss, grads = self.loss(X_batch, y_batch, reg)
            for name, grad in grads.items():
                self.params[name] -= learning_rate * grad
            history["loss_history"].append(loss)
            if verbose and it % 100 == 0:
                _teaching.say(f"iteration {it} / {num_iters}: loss {loss:f}")
            if it % iterations_per_epoch == 0:
                history["train_acc_history"].append(float(np.mean(self.predict(X_batch) == y_batch)))
                history["val_acc_history"].append(float(np.mean(self.predict(X_val) == y_val)))
                learning_rate *= learning_rate_decay
        return history

    def predict(self, X: Any) -> Array:
        """Labels (N,) of the highest scores."""
        return self.loss(X).argmax(axis=1)


class TwoLayerNetFC:
    """affine - ReLU - affine - softmax, as in fc_net.py, for the course's Solver: penalty ``0.5 * reg * sum(W * W)``.

    Parameters
    ----------
    input_dim, hidden_dim, num_classes : int
    weight_scale : float, standard deviation of the first weights
    reg : float, an attribute: it may be changed later
    """

    def __init__(
        self,
        input_dim: int = 3 * 32 * 32,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
    ) -> None:
        self.reg = reg
        self.params = _two_layer_params(input_dim, hidden_dim, num_classes, weight_scale)

    def loss(self, X: Any, y: Any = None) -> Any:
        """Scores (N, C) of X (N, d_1, ..., d_k) if y is None, else (loss, grads)."""
        return _two_layer_loss(self.params, X, y, 0.5 * self.reg)


def _two_layer_params(n_in: int, n_hidden: int, n_classes: int, std: float) -> Params:
    return {
        "W1": std * np.random.randn(n_in, n_hidden),
        "b1": np.zeros(n_hidden),
        "W2": std * np.random.randn(n_hidden, n_classes),
        "b2": np.zeros(n_classes),
    }


def _two_layer_loss(params: Params, X: Any, y: Any, penalty: float) -> Any:
    x, w1, w2 = _teaching.rows(X), params["W1"], params["W2"]
    hidden = functional.affine(x, w1, params["b1"])
    functional.relu(hidden, out=hidden)
    if y is None:
        return functional.affine(hidden, w2, params["b2"])
    dhidden: Any
    loss, (dhidden, dw2, db2) = functional.linear_cross_entropy_with_grad(hidden, w2, y, params["b2"])
    functional.relu_backward(dhidden, hidden, out=dhidden)  # hidden > 0 exactly where the ReLU's input was
    _, dw1, db1 = functional.affine_backward(dhidden, x, w1, need_grad_x=False)
    loss = _penalise(loss, [(w1, dw1), (w2, dw2)], penalty)
    return loss, {"W1": dw1, "b1": db1, "W2": dw2, "b2": db2}


def _penalise(loss: float, weights_and_grads: list[tuple[Any, Array]], penalty: float) -> float:
    """Add penalty * sum(w * w) to the loss, and its gradient to the gradients in place."""
    for w, grad in weights_and_grads:
        loss += float(penalty * np.vdot(w, w))
        grad += 2 * penalty * np.asarray(w)
    return loss


# gradient_check.py ----------------------------------------------------------------------------------------------------


def eval_numerical_gradient(f: Callable[[Array], float], x: Array, verbose: bool = True, h: float = 1e-5) -> Array:
    """Gradient of the scalar f(x) by central differences; x is moved in place, entry by entry, and put back."""
    grad = _teaching.numerical_gradient(f, x, h)
    if verbose:
        for index in np.ndindex(x.shape):
            _teaching.say(f"{index} {grad[index]}")
    return grad


def eval_numerical_gradient_array(f: Callable[[Array], Array], x: Array, df: Any, h: float = 1e-5) -> Array:
    """Gradient of sum(df * f(x)) for an array-valued f: the numerical twin of a backward pass that is handed df."""
    return _teaching.numerical_gradient(f, x, h, df)


def grad_check_sparse(
    f: Callable[[Array], float], x: Array, analytic_grad: Array, num_checks: int = 10, h: float = 1e-5
) -> None:
    """Compare analytic_grad with central differences at num_checks random entries of x, and print each comparison."""
    for _ in range(num_checks):
        index = tuple(random.randrange(n) for n in x.shape)
        numerical, analytic = _teaching.slope(f, x, index, h), analytic_grad[index]
        size = abs(numerical) + abs(analytic)
        error = abs(numerical - analytic) / size if size else 0.0
        _teaching.say(f"numerical: {numerical:f} analytic: {analytic:f}, relative error: {error:e}")
