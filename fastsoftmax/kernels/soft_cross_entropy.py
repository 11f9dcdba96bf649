"""Cross-entropy of probabilities and of smoothed labels: targets that put weight on every class.

Row i has weights b_j: of probabilities t, b_j = ((1 - e) * t_j + e / n_classes) * class_weight_j; of a label t,
b_j = (1 - e) * [j == t] * class_weight_t + e / n_classes * class_weight_j; with A their sum,
    loss   = sum_j b_j * ((m - z_j) + log1p(d))
    grad_j = (A * e_j - b_j - b_j * d) / (1 + d),    e_j = exp(z_j - m)
all times sample_weight. A * p - b all but cancels wherever the model agrees with a smooth target, so everything is
computed in pairs of doubles (106 bits; of floats: in doubles), and a one-hot row still has its 1e-20 at the target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import DOUBLES_IN, INDEX, LABELS, MATRIX_IN, MATRIX_OUT, REAL, VECTOR_OUT, by_type, inline, signature
from ._math import (
    SHIFT64,
    exp_pair,
    exp_shifted,
    fast_two_sum,
    log1p_pair,
    plus_one,
    two_diff,
    two_product,
    two_sum,
)  # fmt: skip
from ._simd import (
    V32,
    exact_fma,
    keep_alive,
    lane,
    load,
    load_first,
    load_wide_first,
    pointer,
    select,
    splat,
    store,
    store_narrow_first,
    total,
)  # fmt: skip
from ._wide import row_max


# ---- pairs -------------------------------------------------------------------------------------------------------------
@inline
def add(a: Any, b: Any) -> Any:
    s, error = two_sum(a[0], b[0])
    return fast_two_sum(s, error + (a[1] + b[1]))


@inline
def subtract(a: Any, b: Any) -> Any:
    return add(a, (-b[0], -b[1]))


@inline
def multiply(a: Any, b: Any) -> Any:
    p, error = two_product(a[0], b[0])
    return fast_two_sum(p, error + (a[0] * b[1] + a[1] * b[0]))


@inline
def divide(a: float, b: float) -> Any:
    """a / b of two doubles as a pair."""
    q = splat(a) / splat(b)
    return q, exact_fma(-q, splat(b), splat(a)) / splat(b)


@inline
def total_pair(a: Any) -> Any:
    """The sum over the lanes, in all lanes, added one lane after the other."""
    s = (splat(0.0), splat(0.0))
    for k in range(8):
        s = add(s, (splat(lane(a[0], k)), splat(lane(a[1], k))))
    return s


# ---- one row -------------------------------------------------------------------------------------------------------------
@by_type
def exponential(like, s, error):
    """exp(s + error), unscaled: a pair for doubles, one double for floats."""
    if like.dtype is V32.dtype:
        return lambda like, s, error: (exp_shifted(s, error) * splat(1.0 / SHIFT64), splat(0.0))
    return lambda like, s, error: exp_pair(s, error)


@inline
def row_weights(t: Any, j: int, k: int, label: int, keep: Any, uniform: Any, class_weight: Any) -> Any:
    """b_j.. as a pair, without sample_weight; `t` is the row of probabilities unless there is a label."""
    if label >= 0:
        index = load(pointer(_COUNT, 0), 0) + splat(np.float64(j))
        hot = select(index == splat(np.float64(label)), splat(1.0), splat(0.0))
        b = add((keep[0] * hot, keep[1] * hot), uniform)
    else:
        b = add(multiply((load_wide_first(t, j, k, 0.0), splat(0.0)), keep), uniform)
    if class_weight.size:
        b = multiply(b, (load_first(pointer(class_weight, 0), j, k, splat(0.0)), splat(0.0)))
    inside = load(pointer(_COUNT, 0), 0) < splat(np.float64(k))
    return select(inside, b[0], splat(0.0)), select(inside, b[1], splat(0.0))


_COUNT = np.arange(8.0)


@inline
def row_pass(z: Any, n: int, t: Any, label: int, smoothing: float, class_weight: Any, e: Any, e_lo: Any) -> Any:
    """Fill e with the exponentials; returns (m, d, A, loss without sample_weight), all but m as pairs or in all lanes."""
    m = splat(np.float64(row_max(z, n)))
    keep = two_diff(splat(1.0), splat(smoothing))
    uniform = divide(smoothing, np.float64(n))
    d, d_low, d_lost = splat(1.0), splat(0.0), splat(0.0)  # as `lane_start`: each lane begins at 1
    a = (splat(0.0), splat(0.0))
    for j in range(0, n, 8):
        k = min(8, n - j)
        s, error = two_diff(load_wide_first(z, j, k, -np.inf), m)
        value = exponential(z, s, error)
        store(e, j, value[0])
        store(e_lo, j, value[1])
        above = d + value[0]
        d_low, error = two_sum(d_low, value[0] - (above - d))
        d, d_lost = above, d_lost + (error + value[1])
        a = add(a, row_weights(t, j, k, label, keep, uniform, class_weight))
    ones = d - splat(1.0)
    s, low = total_pair(add((ones, splat(0.0)), (d_low, d_lost)))
    s, low = fast_two_sum(s - splat(1.0), low)
    log = log1p_pair(e, s, low)

    loss, loss_low = splat(0.0), splat(0.0)
    for j in range(0, n, 8):
        k = min(8, n - j)
        b = row_weights(t, j, k, label, keep, uniform, class_weight)
        x, x_lo = two_diff(m, load_wide_first(z, j, k, -np.inf))
        x_lo = select(x == splat(np.inf), splat(0.0), x_lo)
        term = b[0] * (x + (log[0] + (log[1] + x_lo)))
        # 0 * inf: a masked class without weight adds nothing, but NaN does
        term = select(b[0] == splat(0.0), select(x == x, splat(0.0), x), term)
        above, error = two_sum(loss, term)
        loss, loss_low = above, loss_low + select(error == error, error, splat(0.0))
    return m, (s, low), total_pair(a), total(loss + loss_low)


@inline
def row_clear(out: Any, n: int) -> None:
    for j in range(0, n, 8):
        store_narrow_first(out, j, splat(0.0), n - j)


@inline
def row_label(labels: Any, i: int) -> int:
    return labels[i] if labels.size else -1


@inline
def row_ignored(labels: Any, i: int, ignore_index: int) -> bool:
    return labels.size > 0 and labels[i] == ignore_index


# ---- the kernels -----------------------------------------------------------------------------------------------------------
@signature(
    MATRIX_IN, LABELS, MATRIX_IN, REAL, DOUBLES_IN, DOUBLES_IN, INDEX, VECTOR_OUT, INDEX, INDEX, returns=REAL
)  # fmt: skip
def soft_cross_entropy(
    logits, labels, probs, smoothing, class_weight, sample_weight, ignore_index, losses, first, last
):  # fmt: skip
    """Write the weighted losses, unless `losses` is empty; return their sum. Of labels and probs one is empty."""
    n = logits.shape[1]
    scratch = np.empty(2 * (n + 8), np.float64)
    e, e_lo = pointer(scratch, 0), pointer(scratch, n + 8)
    result = 0.0
    for i in range(first, last):
        loss = 0.0
        if not row_ignored(labels, i, ignore_index):
            t = pointer(probs, 0 if labels.size else i * n)
            row = row_pass(pointer(logits, i * n), n, t, row_label(labels, i), smoothing, class_weight, e, e_lo)
            loss = row[3] * (sample_weight[i] if sample_weight.size else 1.0)
        result += loss
        if losses.size:
            losses[i] = loss
    keep_alive(scratch)
    return result


@signature(
    MATRIX_IN, LABELS, MATRIX_IN, REAL, DOUBLES_IN, DOUBLES_IN, INDEX, DOUBLES_IN, REAL, REAL, VECTOR_OUT, MATRIX_OUT,
    INDEX, INDEX, returns=REAL,
)  # fmt: skip
def soft_cross_entropy_with_grad(
    logits, labels, probs, smoothing, class_weight, sample_weight, ignore_index, grad_losses, scale, denominator, losses,
    grad, first, last,
):  # fmt: skip
    """The same and the gradient, times scale / denominator, and per row times grad_losses[i] unless that is empty."""
    n = logits.shape[1]
    scratch = np.empty(2 * (n + 8), np.float64)
    e, e_lo = pointer(scratch, 0), pointer(scratch, n + 8)
    keep = two_diff(splat(1.0), splat(smoothing))
    uniform = divide(smoothing, np.float64(n))
    result = 0.0
    for i in range(first, last):
        loss = 0.0
        g = pointer(grad, i * n)
        if row_ignored(labels, i, ignore_index):
            row_clear(g, n)
        else:
            t = pointer(probs, 0 if labels.size else i * n)
            label = row_label(labels, i)
            _, d, a, loss = row_pass(pointer(logits, i * n), n, t, label, smoothing, class_weight, e, e_lo)
            weight = sample_weight[i] if sample_weight.size else 1.0
            loss *= weight
            factor = weight * scale * (grad_losses[i] if grad_losses.size else 1.0) / denominator
            inverse = splat(factor) / plus_one(d[0], d[1])[0]
            for j in range(0, n, 8):
                k = min(8, n - j)
                b = row_weights(t, j, k, label, keep, uniform, class_weight)
                value = subtract(multiply(a, (load(e, j), load(e_lo, j))), b)
                value = subtract(value, multiply(b, d))
                store_narrow_first(g, j, (value[0] + value[1]) * inverse, k)
        result += loss
        if losses.size:
            losses[i] = loss
    keep_alive(scratch)
    return result
