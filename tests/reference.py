"""Every operation, naive, in long double: written for clarity alone, whole arrays at a time.

The only care taken is what the truth itself needs, for a long double cancels as well (a margin of 80 is e-35, and it
has 19 digits): the logarithm of a row's sum is log1p over all but one maximum, and 1 - p of that maximum is the others'
share. ``mp_row`` is the same in mpmath with digits enough to have no such care; test_numerics.py compares the two.
"""

from __future__ import annotations

import math

import numpy as np

LD = np.longdouble
# The truth for float64 needs more digits than float64 has: x87 has 64 bits. Where long double is double, there is none.
EXTENDED = np.finfo(LD).nmant >= 63


def _ld(x):
    return np.asarray(x).astype(LD)


def _rows(x, axis):
    """The normalised axes moved to the end and flattened into one, and what undoes it."""
    x = np.asarray(x)
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if np.ndim(axis) == 0 else tuple(axis)
    axes = tuple(a % x.ndim for a in axes)
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    kept = moved.shape[: x.ndim - len(axes)]
    rows = moved.reshape(kept + (math.prod(moved.shape[x.ndim - len(axes) :]),))

    def back(y):
        return np.moveaxis(y.reshape(moved.shape), range(x.ndim - len(axes), x.ndim), axes)

    return rows, back, axes


def _parts(z):
    """Per row: maximum m, exp(z - m), S' = the sum over all but one maximum; a row of -inf alone gives NaN."""
    z = _ld(z)
    with np.errstate(all="ignore"):
        m = z.max(axis=-1, keepdims=True)
        e = np.exp(z - m)
    first = np.zeros(z.shape, dtype=bool)
    np.put_along_axis(first, z.argmax(axis=-1)[..., None], True, axis=-1)
    rest = np.where(first & ~np.isnan(e), 0, e).sum(axis=-1, keepdims=True)
    return z, m, e, first, rest


def _softmax_rows(z):
    _, _, e, _, rest = _parts(z)
    return e / (1 + rest)


def _log_softmax_rows(z):
    z, m, _, _, rest = _parts(z)
    with np.errstate(all="ignore"):
        return (z - m) - np.log1p(rest)


def _one_minus_rows(z):
    """1 - softmax, without cancelling at the maximum."""
    _, _, e, first, rest = _parts(z)
    total = 1 + rest
    return np.where(first, rest, total - e) / total


def softmax(logits, axis=-1):
    rows, back, _ = _rows(logits, axis)
    return back(_softmax_rows(rows)) if rows.size else _ld(logits)


def log_softmax(logits, axis=-1):
    rows, back, _ = _rows(logits, axis)
    return back(_log_softmax_rows(rows)) if rows.size else _ld(logits)


def logsumexp(logits, axis=-1, *, keepdims=False):
    rows, _, axes = _rows(logits, axis)
    with np.errstate(all="ignore"):
        _, m, _, _, rest = _parts(rows)
        lse = np.where(np.isinf(m), m, m + np.log1p(rest))[..., 0]
    return np.expand_dims(lse, axes) if keepdims else lse


def softmax_backward(grad_probs, probs, axis=-1):
    g, p = _ld(grad_probs), _ld(probs)
    axis = tuple(range(p.ndim)) if axis is None else axis
    return p * (g - (g * p).sum(axis=axis, keepdims=True))


def log_softmax_backward(grad_log_probs, log_probs, axis=-1):
    g, lp = _ld(grad_log_probs), _ld(log_probs)
    axis = tuple(range(lp.ndim)) if axis is None else axis
    return g - np.exp(lp) * g.sum(axis=axis, keepdims=True)


def _targets(logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing):
    """With the class axis last: the target distribution times the class weights q, each row's weight s, which rows are
    kept, and what each row weighs in a mean."""
    shape = np.moveaxis(np.empty(np.shape(logits), dtype=bool), axis, -1).shape
    n_classes = shape[-1]
    targets = np.asarray(targets)
    w = np.ones(n_classes, dtype=LD) if class_weight is None else _ld(class_weight)
    s = np.ones(shape[:-1], dtype=LD) if sample_weight is None else _ld(sample_weight)
    smooth = LD(label_smoothing)
    if targets.ndim == len(shape):  # probabilities
        t = np.moveaxis(_ld(targets), axis, -1)
        kept = np.ones(shape[:-1], dtype=bool)
        mean_weight = s
    else:
        kept = np.asarray(targets != ignore_index)
        index = np.where(kept, targets, 0).astype(np.intp)
        t = (np.arange(n_classes) == index[..., None]).astype(LD)
        mean_weight = w[index] * s * kept
    return w * (t * (1 - smooth) + smooth / n_classes), s, kept, mean_weight


def _losses(logits, *options):
    """Losses per row, gradient per row (class axis last), and the weight of each row in a mean.

    loss = -sum(q log p), gradient = p sum(q) - q, written as p (sum(q) - q_j) - q_j (1 - p_j) so that a confident row
    keeps its digits.
    """
    _, axis, *_ = options
    z = np.moveaxis(_ld(logits), axis, -1)
    q, s, kept, mean_weight = _targets(logits, *options)
    with np.errstate(all="ignore"):
        minus_log_p = -_log_softmax_rows(z)
        losses = np.where(q == 0, 0, q * minus_log_p).sum(axis=-1)
        # A row without a finite maximum has no probabilities: NaN, even where the target's weight is 0.
        losses = np.where(np.isnan(minus_log_p).any(axis=-1), np.nan, losses)
        grad = _softmax_rows(z) * (q.sum(axis=-1, keepdims=True) - q) - q * _one_minus_rows(z)
        return np.where(kept, losses * s, 0), np.where(kept[..., None], grad * s[..., None], 0), mean_weight


def _reduce(losses, mean_weight, reduction):
    """The loss, and by how much every row's gradient is scaled for it."""
    with np.errstate(all="ignore"):
        if reduction == "none":
            return losses, LD(1)
        if reduction == "sum":
            return losses.sum(), LD(1)
        scale = LD(1) / mean_weight.sum()
        return losses.sum() / mean_weight.sum(), scale


def cross_entropy(
    logits,
    targets,
    *,
    axis=-1,
    class_weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
):
    options = targets, axis, class_weight, sample_weight, ignore_index, label_smoothing
    losses, _, mean_weight = _losses(logits, *options)
    return _reduce(losses, mean_weight, reduction)[0]


def cross_entropy_with_grad(
    logits,
    targets,
    *,
    axis=-1,
    class_weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    grad_loss=None,
):
    options = targets, axis, class_weight, sample_weight, ignore_index, label_smoothing
    losses, grad, mean_weight = _losses(logits, *options)
    loss, scale = _reduce(losses, mean_weight, reduction)
    scale = np.broadcast_to(scale * (1 if grad_loss is None else _ld(grad_loss)), losses.shape)[..., None]
    with np.errstate(all="ignore"):
        return loss, np.moveaxis(np.where(grad == 0, 0, grad * scale), -1, axis)


def gradient_scale(
    logits,
    targets,
    *,
    axis=-1,
    class_weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    reduction="mean",
    grad_loss=None,
):
    """Size of the target's share q of each gradient element: where p sum(q) cancels, rounding is of that size."""
    q, s, kept, mean_weight = _targets(logits, targets, axis, class_weight, sample_weight, ignore_index, label_smoothing)
    _, scale = _reduce(mean_weight, mean_weight, reduction)
    scale = np.where(kept, scale * (1 if grad_loss is None else _ld(grad_loss)) * s, 0)
    return np.abs(np.moveaxis(q * scale[..., None], -1, axis))


def cross_entropy_grad_hess(logits, targets, *, sample_weight=None, hessian_scale=1.0):
    _, grad, _ = _losses(logits, targets, -1, None, sample_weight, -100, 0.0)
    s = 1 if sample_weight is None else _ld(sample_weight)[..., None]
    return grad, hessian_scale * s * _softmax_rows(logits) * _one_minus_rows(logits)


def affine(x, weight, bias=None):
    out = _ld(x) @ _ld(weight)
    return out if bias is None else out + _ld(bias)


def affine_backward(grad_out, x, weight, *, need_grad_x=True):
    g, x, w = _ld(grad_out), _ld(x), _ld(weight)
    n_rows = math.prod(x.shape[:-1])
    rows_g, rows_x = g.reshape(n_rows, g.shape[-1]), x.reshape(n_rows, x.shape[-1])
    return (g @ w.T if need_grad_x else None), rows_x.T @ rows_g, rows_g.sum(axis=0)


def relu(x):
    x = _ld(x)
    return np.where(x > 0, x, np.where(np.isnan(x), x, 0))


def relu_backward(grad_out, x):
    return np.where(np.asarray(x) > 0, _ld(grad_out), 0)


def linear_cross_entropy(x, weight, targets, bias=None, **options):
    return cross_entropy(affine(x, weight, bias), targets, **options)


def linear_cross_entropy_with_grad(x, weight, targets, bias=None, *, need_grad_x=True, **options):
    loss, grad = cross_entropy_with_grad(affine(x, weight, bias), targets, **options)
    grad_x, grad_weight, grad_bias = affine_backward(grad, x, weight, need_grad_x=need_grad_x)
    return loss, (grad_x, grad_weight, None if bias is None else grad_bias)


def mp_row(z, target, digits=400):
    """softmax, log_softmax, logsumexp, loss and gradient of one row by definition, with digits enough for any row."""
    import mpmath

    with mpmath.workdps(digits):
        e = [mpmath.exp(mpmath.mpf(float(v))) for v in z]
        total = mpmath.fsum(e)
        probs = [v / total for v in e]
        log_probs = [mpmath.log(p) for p in probs]
        results = {
            "softmax": probs,
            "log_softmax": log_probs,
            "logsumexp": [mpmath.log(total)],
            "loss": [-log_probs[target]],
            "gradient": [p - (j == target) for j, p in enumerate(probs)],
        }
        return {name: np.array([LD(mpmath.nstr(v, 30)) for v in values]) for name, values in results.items()}
