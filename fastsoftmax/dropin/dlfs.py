"""Deep Learning from Scratch (O'Reilly Japan): the layers, functions and networks of chapters 3 to 6.

>>> from fastsoftmax.dropin.dlfs import Affine, Relu, SoftmaxWithLoss     # was: from common.layers import ...

Conventions of the book, kept: rows are samples, ``W`` is (n_in, n_out), a layer holds its weights by reference (an
optimiser that updates them in place is seen), targets are one-hot rows or labels and are told apart by their size,
losses are means over the batch, the first weights come from NumPy's global generator in the book's order.

Mended: the loss is exact, with no 1e-7 inside the logarithm; `SoftmaxWithLoss.backward` honours ``dout``;
`Relu.backward` does not write into ``dout``; `MultiLayerNet.gradient` includes the weight decay.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastsoftmax import _arrays, functional
from fastsoftmax.dropin import _teaching

__all__ = [
    "Affine",
    "MultiLayerNet",
    "Relu",
    "Sigmoid",
    "SoftmaxWithLoss",
    "TwoLayerNet",
    "cross_entropy_error",
    "numerical_gradient",
    "softmax",
]

Array = np.ndarray


# common/functions.py and common/gradient.py ---------------------------------------------------------------------------


def softmax(x: Any) -> Array:
    """Softmax over the last axis, of any number of dimensions."""
    return functional.softmax(x)


def cross_entropy_error(y: Any, t: Any, delta: float = 0.0) -> float:
    """Mean cross-entropy from probabilities.

    Parameters
    ----------
    y : array of shape (n_rows, n_classes), or (n_classes,) for one sample: probabilities, as `softmax` gives them
    t : one-hot or probability rows of y's shape, or labels of shape (n_rows,)
    delta : float, added inside the logarithm. The book writes 1e-7 there to keep log(0) away; that also keeps every
        loss below 16.12 and bends its slope, so that numerical and analytic gradients part where the net is confident.

    Returns
    -------
    float, ``-sum(t * log(y + delta)) / n_rows``. Where t is 0 the entry contributes exactly 0, whatever y is; where y
        is 0 under a positive t the loss is infinite, and says so.

    Raises
    ------
    IndexError
        If a label is not in 0 .. n_classes - 1.
    """
    y = np.reshape(y, (-1, np.shape(y)[-1]))
    total = _teaching.cross_entropy_from_probs(y + delta if delta else y, _one_hot(t, y.shape))
    return total / y.shape[0] if y.shape[0] else math.nan


def numerical_gradient(f: Callable[[Array], Any], x: Array) -> Array:
    """Gradient of the scalar f at x, of any shape, by central differences with a step of 1e-4.

    x is moved in place, entry by entry, and put back: f may read it through another name, as the networks do.
    """
    return _teaching.numerical_gradient(f, x, h=1e-4)


# common/layers.py -----------------------------------------------------------------------------------------------------


class Affine:
    """``out = x @ W + b``; x of more than two dimensions is flattened sample by sample.

    Parameters
    ----------
    W : array of shape (n_in, n_out)
    b : array of shape (n_out,)

    Attributes
    ----------
    dW, db : gradients of the last `backward`, new arrays each time
    """

    def __init__(self, W: Array, b: Array) -> None:
        self.W, self.b = W, b
        self.x: Any = None
        self.original_x_shape: Any = None
        self.dW: Any = None
        self.db: Any = None

    def forward(self, x: Any) -> Array:
        """(n_rows, ...) -> (n_rows, n_out)."""
        self.original_x_shape, self.x = np.shape(x), _teaching.rows(x)
        return functional.affine(self.x, self.W, self.b)

    def backward(self, dout: Any) -> Array:
        """Set dW and db from dout (n_rows, n_out); return dx of the input's shape."""
        dx: Any
        dx, self.dW, self.db = functional.affine_backward(dout, self.x, self.W)
        return dx.reshape(self.original_x_shape)


class Relu:
    """max(x, 0); the gradient is 0 at 0."""

    def __init__(self) -> None:
        self.x: Any = None

    @property
    def mask(self) -> Any:
        """Where the last input was not positive, as the book's layer keeps it; None before `forward`."""
        return None if self.x is None else self.x <= 0

    def forward(self, x: Any) -> Array:
        """Any shape."""
        self.x = np.asarray(x)
        return functional.relu(self.x)

    def backward(self, dout: Any) -> Array:
        """A new array; the book's layer writes into dout."""
        return functional.relu_backward(dout, self.x)


class Sigmoid:
    """1 / (1 + exp(-x)), without overflow, and with a slope that keeps its accuracy where the unit saturates."""

    def __init__(self) -> None:
        self.x: Any = None
        self.out: Any = None

    def forward(self, x: Any) -> Array:
        """Any shape."""
        self.x, self.out = np.asarray(x), _teaching.sigmoid(x)
        return self.out

    def backward(self, dout: Any) -> Array:
        """dout * s(x) * s(-x)."""
        return _teaching.sigmoid_backward(dout, self.x)


class SoftmaxWithLoss:
    """Softmax and mean cross-entropy as the last layer of a network, in one pass.

    Attributes
    ----------
    loss : float, y : probabilities, t : targets; all of the last `forward`
    """

    def __init__(self) -> None:
        self.loss: Any = None
        self.y: Any = None
        self.t: Any = None
        self._dx: Any = None

    def forward(self, x: Any, t: Any) -> float:
        """Mean loss of scores x (n_rows, n_classes) with targets t: one-hot or probability rows, or labels."""
        x, t = np.asarray(x), np.asarray(t)
        logits = np.atleast_2d(x)
        targets = _teaching.labels_if_one_hot(t.reshape(logits.shape)) if t.size == x.size else t.reshape(-1)
        self.t, self.y = t, functional.softmax(x)
        self.loss, dx = functional.cross_entropy_with_grad(logits, targets)
        self._dx = dx.reshape(x.shape)
        return self.loss

    def backward(self, dout: float = 1) -> Array:
        """Gradient of ``dout * loss`` with respect to the scores: ``dout * (y - t) / batch_size``, of x's shape.

        Why the division by the batch size: the loss is the *mean* of the rows' losses, so a row's own loss enters it
        with the factor 1 / batch_size, and so does that row's gradient ``y - t``. The layers before then simply add
        up over the rows (``dW = x.T @ dout``) and get the gradient of the mean, whose size does not depend on the
        batch: the same learning rate serves a batch of 10 and one of 1000. Drop the division and the loss's sum is
        what is differentiated.

        Why dout is 1: backpropagation starts at the loss, and the derivative of the loss with respect to itself is 1.
        Another value belongs to a loss that is used further, ``0.3 * loss_a + 0.7 * loss_b`` say: then each head is
        handed its factor. The book's layer takes the argument and ignores it; here it is honoured.
        """
        return np.multiply(self._dx, dout, dtype=self._dx.dtype)


def _one_hot(t: Any, shape: tuple[int, ...]) -> Array:
    """Targets as rows of the given shape, by the book's rule: as many numbers as probabilities means rows already."""
    t = np.asarray(t)
    if t.size == shape[0] * shape[1]:
        return t.reshape(shape)
    t = t.reshape(-1)
    bad = np.flatnonzero((t < 0) | (t >= shape[1]))
    if bad.size:
        _arrays.bad_label(t, int(bad[0]), shape[1], None)
    return t[:, None] == np.arange(shape[1])


# ch05/two_layer_net.py and common/multi_layer_net.py ------------------------------------------------------------------


class _Network:
    """Affine layers with an activation between each two, and `SoftmaxWithLoss` at the end."""

    weight_decay_lambda: float = 0

    def __init__(self, sizes: Sequence[int], stds: Sequence[float], activation: type, name: str) -> None:
        self.params: dict[str, Array] = {}
        self.layers: OrderedDict[str, Any] = OrderedDict()
        self._depth = len(sizes) - 1
        for i in range(1, self._depth + 1):
            weight, bias = stds[i - 1] * np.random.randn(sizes[i - 1], sizes[i]), np.zeros(sizes[i])
            self.params[f"W{i}"], self.params[f"b{i}"] = weight, bias
            self.layers[f"Affine{i}"] = Affine(weight, bias)
            if i < self._depth:
                self.layers[f"{name}{i}"] = activation()
        self.last_layer = SoftmaxWithLoss()

    def predict(self, x: Any) -> Array:
        """Scores (n_rows, n_classes), before the softmax: they have the same order."""
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def loss(self, x: Any, t: Any) -> float:
        """Mean cross-entropy of a batch, plus ``0.5 * weight_decay_lambda * sum(W * W)`` over all weights."""
        loss = self.last_layer.forward(self.predict(x), t)
        if self.weight_decay_lambda:
            squares = sum(float(np.vdot(W, W)) for W in self._weights())
            loss += 0.5 * self.weight_decay_lambda * squares
        return loss

    def accuracy(self, x: Any, t: Any) -> float:
        """Share of rows whose highest score is at the target, given as labels or one-hot rows."""
        t = np.asarray(t)
        return float(np.mean(self.predict(x).argmax(axis=1) == (t if t.ndim == 1 else t.argmax(axis=1))))

    def numerical_gradient(self, x: Any, t: Any) -> dict[str, Array]:
        """The gradients of `gradient` by central differences: slow, and what `gradient` is to be compared with."""
        return {name: numerical_gradient(lambda _: self.loss(x, t), self.params[name]) for name in self.params}

    def gradient(self, x: Any, t: Any) -> dict[str, Array]:
        """Gradients of `loss` by backpropagation, under the names of `params`."""
        self.loss(x, t)
        dout = self.last_layer.backward()
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        grads = {}
        for i in range(1, self._depth + 1):
            affine = self.layers[f"Affine{i}"]
            if self.weight_decay_lambda:
                affine.dW += self.weight_decay_lambda * affine.W
            grads[f"W{i}"], grads[f"b{i}"] = affine.dW, affine.db
        return grads

    def _weights(self) -> list[Array]:
        return [self.params[f"W{i}"] for i in range(1, self._depth + 1)]


class TwoLayerNet(_Network):
    """Affine - ReLU - Affine - SoftmaxWithLoss, as in chapter 5; `predict` gives scores.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
    weight_init_std : float, standard deviation of the first weights

    Attributes
    ----------
    params : dict of W1, b1, W2, b2; update them in place
    layers : OrderedDict of Affine1, Relu1, Affine2
    lastLayer : SoftmaxWithLoss
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, weight_init_std: float = 0.01) -> None:
        super().__init__([input_size, hidden_size, output_size], [weight_init_std] * 2, Relu, "Relu")
        self.lastLayer = self.last_layer


class MultiLayerNet(_Network):
    """Any number of hidden layers, as in chapter 6.

    Parameters
    ----------
    input_size : int
    hidden_size_list : sequence of int, the hidden layers' widths
    output_size : int
    activation : 'relu' or 'sigmoid'
    weight_init_std : float, or 'relu' / 'he' for sqrt(2 / n_in), or 'sigmoid' / 'xavier' for sqrt(1 / n_in)
    weight_decay_lambda : float, strength of the penalty ``0.5 * weight_decay_lambda * sum(W * W)``

    Attributes
    ----------
    params : dict of W1, b1, W2, ...; update them in place
    layers : OrderedDict of Affine1, Activation_function1, Affine2, ...
    last_layer : SoftmaxWithLoss
    """

    def __init__(
        self,
        input_size: int,
        hidden_size_list: Sequence[int],
        output_size: int,
        activation: str = "relu",
        weight_init_std: float | str = "relu",
        weight_decay_lambda: float = 0,
    ) -> None:
        self.input_size, self.output_size, self.hidden_size_list = input_size, output_size, list(hidden_size_list)
        self.hidden_layer_num, self.weight_decay_lambda = len(self.hidden_size_list), weight_decay_lambda
        sizes = [input_size, *self.hidden_size_list, output_size]
        gain = {"relu": 2.0, "he": 2.0, "sigmoid": 1.0, "xavier": 1.0}
        if isinstance(weight_init_std, str):
            stds = [float(np.sqrt(gain[weight_init_std.lower()] / n)) for n in sizes[:-1]]
        else:
            stds = [weight_init_std] * (len(sizes) - 1)
        super().__init__(sizes, stds, {"relu": Relu, "sigmoid": Sigmoid}[activation], "Activation_function")
