"""Layers to put together: parameters, gradients, ``forward`` and ``backward``; the arithmetic is in `functional`.

A layer keeps what its backward pass needs until the next forward pass and hands out fresh arrays, unless told where to
write by ``out=``: nothing it returns changes under the caller's feet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _arrays
from . import functional as F

__all__ = ["Affine", "ReLU", "SoftmaxCrossEntropy"]

Array = NDArray[np.floating]


class Affine:
    """An affine (fully connected) layer, ``x @ weight + bias``.

    The parameters are held by reference, so an optimizer that updates them in place is seen at the next call.

    Parameters
    ----------
    weight : ndarray of shape (n_in, n_out)
    bias : ndarray of shape (n_out,), optional

    Attributes
    ----------
    grad_weight, grad_bias : ndarray or None
        Gradients of the last ``backward``, shaped like the parameters; ``grad_bias`` is None without a bias.

    See Also
    --------
    fastsoftmax.affine, fastsoftmax.affine_backward
    """

    def __init__(self, weight: Array, bias: Array | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.grad_weight: Array | None = None
        self.grad_bias: Array | None = None
        self._x: Array | None = None

    @classmethod
    def he(cls, n_in: int, n_out: int, *, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> Affine:
        """Normal weights of variance ``2 / n_in`` and a bias of zeros.

        That variance keeps the size of the activations through layers of ReLU, which halve it (He et al. 2015,
        "Delving deep into rectifiers", eq. 10).
        """
        weight = rng.normal(scale=np.sqrt(2.0 / n_in), size=(n_in, n_out)).astype(dtype)
        return cls(weight, np.zeros(n_out, dtype))

    def forward(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """The layer's output for ``x`` of shape (n_rows, n_in); ``x`` itself is kept for ``backward``."""
        self._x = np.asarray(x)
        return F.affine(self._x, self.weight, self.bias, out=out)

    def backward(self, grad_out: ArrayLike, *, need_grad_x: bool = True) -> Array | None:
        """Set ``grad_weight`` and ``grad_bias`` and return ``grad_x``, or None where it is not needed."""
        x = _arrays.from_forward(self._x, "Affine")
        grad_x, self.grad_weight, grad_bias = F.affine_backward(grad_out, x, self.weight, need_grad_x=need_grad_x)
        self.grad_bias = None if self.bias is None else grad_bias
        return grad_x


class ReLU:
    """The rectifier, ``max(x, 0)``; its gradient at 0 is 0.

    See Also
    --------
    fastsoftmax.relu, fastsoftmax.relu_backward
    """

    def __init__(self) -> None:
        self._out: Array | None = None

    def forward(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """``max(x, 0)``; ``out`` may be ``x``: ``backward`` needs the output only, positive exactly where ``x`` was."""
        self._out = F.relu(x, out=out)
        return self._out

    def backward(self, grad_out: ArrayLike, *, out: Array | None = None) -> Array:
        """``grad_out`` where the input was positive, 0 elsewhere."""
        return F.relu_backward(grad_out, _arrays.from_forward(self._out, "ReLU"), out=out)


class SoftmaxCrossEntropy:
    """Softmax and cross-entropy as one layer: logits and targets in, loss out.

    Loss and gradient come from one pass in ``forward``. All keywords are those of `fastsoftmax.cross_entropy`.

    Parameters
    ----------
    class_weight : array_like of shape (n_classes,), optional
    ignore_index : int, default -100
    label_smoothing : float, default 0.0
    reduction : {"mean", "sum", "none"}, default "mean"

    See Also
    --------
    fastsoftmax.cross_entropy_with_grad
    """

    def __init__(
        self,
        *,
        class_weight: ArrayLike | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: F.Reduction = "mean",
    ) -> None:
        self.class_weight, self.ignore_index = class_weight, ignore_index
        self.label_smoothing = label_smoothing
        self.reduction: F.Reduction = reduction
        self._grad_logits: Array | None = None

    def forward(
        self, logits: ArrayLike, targets: ArrayLike, *, sample_weight: ArrayLike | None = None
    ) -> float | Array:
        """The loss: a float, or with ``reduction="none"`` an array of shape (n_rows,)."""
        loss, self._grad_logits = F.cross_entropy_with_grad(
            logits,
            targets,
            class_weight=self.class_weight,
            sample_weight=sample_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )
        return loss

    def backward(self, grad_loss: ArrayLike = 1.0) -> Array:
        """The gradient with respect to the logits, times ``grad_loss``.

        Parameters
        ----------
        grad_loss : float, or array_like of shape (n_rows,) with ``reduction="none"``
            The gradient of whatever follows with respect to this loss.

        Returns
        -------
        ndarray of shape (n_rows, n_classes), fresh at every call
        """
        grad = _arrays.from_forward(self._grad_logits, "SoftmaxCrossEntropy")
        scale = np.asarray(grad_loss, dtype=grad.dtype)  # a float64 scalar must not widen the gradient
        return grad * (scale[..., np.newaxis] if scale.ndim else scale)
