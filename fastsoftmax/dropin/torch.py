"""`torch.nn.functional`'s losses and softmaxes for NumPy arrays, over `fastsoftmax.functional`; torch is not needed.

Names, parameters and conventions are torch's: classes lie on axis 1 of batched input and on axis 0 of a single
sample, targets are class indices or probabilities, ``mean`` divides by the summed class weights of the targets that are
not ignored (by the number of rows for probabilities), an empty mean is NaN, and ``linear_cross_entropy`` takes its
weight as (n_classes, n_in). Results have the input's dtype, reduced losses as NumPy scalars. Wrong arguments raise what
torch raises.

Wider than torch: targets may have any integer dtype and weights any real one.

`CrossEntropyLoss`, for those who stay in torch, is the exception: a `torch.nn.Module` for CPU tensors. torch is
imported when it is first asked for.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsoftmax import functional as F
from fastsoftmax.dropin import scipy as _special

if TYPE_CHECKING:
    from fastsoftmax.dropin._torch_module import CrossEntropyLoss

__all__ = [
    "CrossEntropyLoss",
    "cross_entropy",
    "cross_entropy_with_grad",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "softmax",
]

Array = NDArray[Any]


def __getattr__(name: str) -> Any:
    if name == "CrossEntropyLoss":
        from fastsoftmax.dropin._torch_module import CrossEntropyLoss

        return CrossEntropyLoss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def softmax(input: ArrayLike, dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None) -> Any:
    """``exp(input) / sum(exp(input))`` along ``dim``.

    Parameters
    ----------
    input : array_like of floating point
    dim : int
        Without it torch's old rule applies, with torch's warning: axis 0 for 0, 1 and 3 dimensions, otherwise axis 1.
    dtype : optional
        ``input`` is converted to it first.

    Returns
    -------
    ndarray shaped like ``input``

    Raises
    ------
    NotImplementedError
        If the dtype is not floating point.
    IndexError
        If ``dim`` is out of range.
    """
    return _elementwise("softmax", input, dim, _stacklevel, dtype)


def log_softmax(input: ArrayLike, dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None) -> Any:
    """``log(softmax(input))`` along ``dim``; parameters and errors as for `softmax`."""
    return _elementwise("log_softmax", input, dim, _stacklevel, dtype)


def logsumexp(input: ArrayLike, dim: int | tuple[int, ...], keepdim: bool = False) -> Any:
    """``log(sum(exp(input)))`` along ``dim``, one axis or several; integers and booleans give float32, as in torch."""
    x = np.asarray(input)
    if x.dtype.kind in "iub":
        x = x.astype(np.float32)
    axes = tuple(_dim(d, x.ndim) for d in (dim if isinstance(dim, (tuple, list)) else (dim,)))
    for d in axes:
        if axes.count(d) > 1:
            raise RuntimeError(f"dim {d} appears multiple times in the list of dims")
    return _special.logsumexp(x, axis=axes, keepdims=keepdim) if x.ndim else _special.logsumexp(x)


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross-entropy of logits and targets.

    Parameters
    ----------
    input : array_like of shape (C,), (N, C) or (N, C, d1, ..., dK)
        Logits.
    target : array_like
        Class indices, of the input's shape without the class axis, or class probabilities of the input's shape.
    weight : array_like of shape (C,), optional
        Weights of the classes.
    size_average, reduce : bool, optional
        torch's former spelling of ``reduction``; it warns.
    ignore_index : int, default -100
        Targets of this value contribute nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
    label_smoothing : float in [0, 1], default 0.0

    Returns
    -------
    scalar, or with ``reduction="none"`` an ndarray of the input's shape without the class axis; in the input's dtype

    Raises
    ------
    ValueError
        If the batch sizes differ or ``reduction`` is unknown.
    IndexError
        If a target is neither a class nor ``ignore_index``.
    NotImplementedError
        If ``input`` is not floating point.
    RuntimeError
        For other shapes and dtypes that do not fit, a smoothing outside [0, 1], or probabilities with an
        ``ignore_index``.
    """
    logits, targets, options = _loss_arguments(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )
    return _shaped(F.cross_entropy(logits, targets, **options), np.asarray(input))


def cross_entropy_with_grad(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Any, Array]:
    """`cross_entropy` and its gradient with respect to ``input``, from one fused pass.

    With ``reduction="none"`` each row's gradient is that of the row's own loss. Parameters and errors as for
    `cross_entropy`.
    """
    logits, targets, options = _loss_arguments(
        input, target, weight, None, ignore_index, None, reduction, label_smoothing
    )
    loss, grad = F.cross_entropy_with_grad(logits, targets, **options)
    x = np.asarray(input)
    return _shaped(loss, x), grad.reshape(x.shape)


def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """The negative of the log-probabilities ``input`` at the targets; parameters and errors as for `cross_entropy`.

    It is `cross_entropy` after `log_softmax`; calling `cross_entropy` on the logits is faster and more accurate.
    """
    log_probs, targets, options = _loss_arguments(
        input, target, weight, size_average, ignore_index, reduce, reduction, 0.0, kernel="nll_loss"
    )
    kept = targets != ignore_index
    classes = np.where(kept, targets, 0).astype(np.intp)
    n_classes = log_probs.shape[options["axis"]]
    if np.any((classes < 0) | (classes >= n_classes)):
        raise IndexError(f"Target {targets[(classes < 0) | (classes >= n_classes)][0]} is out of bounds.")
    at_target = np.take_along_axis(log_probs, classes[:, np.newaxis], axis=1)[:, 0]
    class_weight = np.ones(n_classes) if weight is None else np.asarray(weight)
    weights = np.where(kept, class_weight[classes], 0).astype(log_probs.dtype)
    losses = np.where(kept, -weights * at_target, 0)
    if options["reduction"] == "none":
        return _shaped(losses, np.asarray(input))
    total = losses.sum(dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return log_probs.dtype.type(total if options["reduction"] == "sum" else total / weights.sum(dtype=np.float64))


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Any:
    """`cross_entropy` of ``input @ linear_weight.T + linear_bias``, without holding all the logits.

    Parameters
    ----------
    input : array_like of shape (n_in,) or (N, n_in)
    linear_weight : array_like of shape (C, n_in), or (C, d1, ..., dK, n_in) for K-dimensional targets
    target, weight, reduction, label_smoothing : as for `cross_entropy`
    linear_bias : array_like, optional
        Of ``linear_weight``'s shape without its last axis.
    ignore_index : int, optional
        -100 for class indices; not allowed with probabilities.
    options
        Accepted and not used: torch's choice of chunks, which the fused kernel has no need of.

    Raises
    ------
    RuntimeError
        If the shapes do not fit; otherwise as `cross_entropy`.
    """
    x, w = np.asarray(input), np.asarray(linear_weight)
    bias = None if linear_bias is None else np.asarray(linear_bias)
    if x.ndim not in (1, 2):
        raise RuntimeError(f"expected input of 1 or 2 dimensions, got {x.ndim}")
    if w.ndim < 2:
        raise RuntimeError(f"expected linear_weight of at least 2 dimensions, got {w.ndim}")
    if x.shape[-1] != w.shape[-1]:
        raise RuntimeError(
            f"expected input and linear_weight with equal last dimensions, got {x.shape[-1]} and {w.shape[-1]}"
        )
    if bias is not None and bias.shape != w.shape[:-1]:
        raise RuntimeError(f"expected linear_bias of shape {w.shape[:-1]}, got {bias.shape}")
    if w.ndim > 2 and x.ndim == 1:
        raise RuntimeError(f"linear_weight of shape {w.shape} needs batched input (N, {w.shape[-1]}), got {x.shape}")
    logits_shape = (*x.shape[:-1], *w.shape[:-1])
    if np.shape(target) == logits_shape and ignore_index is not None:
        raise RuntimeError("ignore_index is not supported where target holds probabilities")
    ignore_index = -100 if ignore_index is None else ignore_index
    flat = w.reshape(math.prod(w.shape[:-1]), w.shape[-1]).T
    flat_bias = None if bias is None else bias.reshape(-1)
    if w.ndim > 2:
        logits = F.affine(x, flat, flat_bias).reshape(logits_shape)
        return cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
    like_logits = np.broadcast_to(x.dtype.type(0), logits_shape)  # stands for the logits in the checks, without memory
    _, targets, kwargs = _loss_arguments(
        like_logits, target, weight, None, ignore_index, None, reduction, label_smoothing
    )
    del kwargs["axis"]
    loss = F.linear_cross_entropy(x.reshape(-1, x.shape[-1]), flat, targets, flat_bias, **kwargs)
    return _shaped(loss, like_logits)


def _elementwise(name: str, input: ArrayLike, dim: int | None, stacklevel: int, dtype: DTypeLike | None) -> Any:
    x = np.asarray(input) if dtype is None else np.asarray(input).astype(dtype, copy=False)
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if x.ndim in (0, 1, 3) else 1
    _check_floating(name, x)
    dim = _dim(dim, x.ndim)
    if x.ndim == 0 or x.size == 0:  # the public functions ask for an axis, and for a class
        return getattr(F, name)(x.reshape(-1, 1)).reshape(x.shape)
    return getattr(F, name)(x, axis=dim)


def _dim(dim: int, ndim: int) -> int:
    """``dim`` counted from 0; a scalar counts as having one axis."""
    if not isinstance(dim, (int, np.integer)):
        raise TypeError(f"argument 'dim' must be int, not {type(dim).__name__}")
    n = max(ndim, 1)
    if not -n <= dim < n:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {dim})")
    return dim % n


def _check_floating(kernel: str, x: Array) -> None:
    if x.dtype.kind != "f":
        raise NotImplementedError(f'"{kernel}" not implemented for {str(x.dtype)!r}, expected a floating point dtype')


def _loss_arguments(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    size_average: bool | None,
    ignore_index: int,
    reduce: bool | None,
    reduction: str,
    label_smoothing: float,
    kernel: str = "cross_entropy",
) -> tuple[Array, Array, dict[str, Any]]:
    """Checked arguments for the public functions: batched logits, targets, keywords."""
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction={reduction!r} instead.",
            stacklevel=3,
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    x, t = np.asarray(input), np.asarray(target)
    if x.ndim == 0:
        raise (ValueError if kernel == "nll_loss" else RuntimeError)("Expected 1 or more dimensions (got 0)")
    _check_floating(kernel, x)
    n_classes = x.shape[min(1, x.ndim - 1)]
    if label_smoothing and not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if weight is not None and np.shape(weight) != (n_classes,):
        raise RuntimeError(
            f"weight tensor should be defined either for all {n_classes} classes or no classes "
            f"but got weight tensor of shape: {list(np.shape(weight))}"
        )
    if t.shape == x.shape and kernel != "nll_loss":
        if t.dtype.kind != "f":
            raise RuntimeError(f"Expected floating point type for target with class probabilities, got {t.dtype}")
        if ignore_index >= 0:
            raise RuntimeError("ignore_index is not supported for floating point target")
        t = t.astype(x.dtype, copy=False)
    else:
        _check_indices(x, t)
    if x.ndim == 1:
        x, t = x[np.newaxis], t.reshape(1, *x.shape) if t.shape == x.shape and t.dtype.kind == "f" else t.reshape(1)
    options = {"axis": 1, "ignore_index": ignore_index, "reduction": reduction}
    if weight is not None:
        options["class_weight"] = np.asarray(weight)
    if label_smoothing:
        options["label_smoothing"] = label_smoothing
    return x, t, options


def _check_indices(x: Array, t: Array) -> None:
    """The shapes and the dtype of class indices, in torch's order and with torch's exception types."""
    if x.ndim == 1 and t.ndim == 1 and t.size != 1:
        raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {t.size}")
    if x.ndim > 1 and (t.ndim == 0 or t.shape[0] != x.shape[0]):
        got = t.shape[0] if t.ndim else 0
        raise ValueError(f"Expected input batch_size ({x.shape[0]}) to match target batch_size ({got}).")
    if x.ndim <= 2 and t.ndim > 1:
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    expected = (x.shape[0], *x.shape[2:])
    if x.ndim > 2 and t.shape != expected:
        raise RuntimeError(f"Expected target size {list(expected)}, got {list(t.shape)}")
    if t.dtype.kind not in "iu":
        raise RuntimeError(f"expected target dtype to be Long or Byte (or any integer), but got {t.dtype}")


def _shaped(loss: Any, input: Array) -> Any:
    """A loss of the public functions in the input's dtype, without the batch axis that a single sample was given."""
    if np.ndim(loss) == 0:
        return input.dtype.type(loss)
    return loss if input.ndim > 1 else loss.reshape(())[()]
