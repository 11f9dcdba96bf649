"""Backward passes of softmax and log_softmax, and the diagonal Hessian, row by row.

The inner products are taken in doubles (of doubles: in pairs), 8 lanes at a time, in one order for rows of any width.
"""

from __future__ import annotations

from ._jit import DOUBLES_IN, INDEX, MATRIX_IN, MATRIX_OUT, REAL, signature
from ._math import SHIFT32, SHIFT64, exp_shifted, plus_one, ratio, two_product, two_sum
from ._simd import (
    constant,
    lanes,
    load_first,
    load_wide_first,
    pointer,
    select,
    splat,
    store_first,
    total,
)  # fmt: skip
from ._wide import row_exp, row_max, scaled, split


@signature(MATRIX_IN, MATRIX_IN, MATRIX_OUT, INDEX, INDEX)
def softmax_backward(grad_probs, probs, grad_logits, first, last):
    """p * (g - sum(g * p))"""
    n = probs.shape[1]
    step = lanes(pointer(probs, 0))
    for i in range(first, last):
        g, p, out = pointer(grad_probs, i * n), pointer(probs, i * n), pointer(grad_logits, i * n)
        s, error = splat(0.0), splat(0.0)
        for j in range(0, n, 8):
            k = n - j
            x, x_lo = two_product(load_wide_first(g, j, k, 0.0), load_wide_first(p, j, k, 0.0))
            s, rest = two_sum(s, x)
            error = error + (rest + x_lo)
        dot = total(s) + total(error)
        zero = constant(p, 0.0, 0.0)
        hi, lo = split(zero, splat(dot), splat(0.0))
        hi, lo = splat(hi), splat(lo)
        for j in range(0, n, step):
            k = n - j
            value = load_first(p, j, k, zero) * ((load_first(g, j, k, zero) - hi) - lo)
            store_first(out, j, value, k)


@signature(MATRIX_IN, MATRIX_IN, MATRIX_OUT, INDEX, INDEX)
def log_softmax_backward(grad_log_probs, log_probs, grad_logits, first, last):
    """g - exp(log_probs) * sum(g)"""
    n = log_probs.shape[1]
    step = lanes(pointer(log_probs, 0))
    for i in range(first, last):
        g, logp, out = pointer(grad_log_probs, i * n), pointer(log_probs, i * n), pointer(grad_logits, i * n)
        s, error = splat(0.0), splat(0.0)
        for j in range(0, n, 8):
            s, rest = two_sum(s, load_wide_first(g, j, n - j, 0.0))
            error = error + rest
        zero = constant(logp, 0.0, 0.0)
        sum_ = splat(split(zero, splat(total(s) + total(error)), splat(0.0))[0])
        unit = constant(logp, 1.0 / SHIFT32, 1.0 / SHIFT64)
        for j in range(0, n, step):
            k = n - j
            p = exp_shifted(load_first(logp, j, k, zero), zero) * unit
            store_first(out, j, load_first(g, j, k, zero) - p * sum_, k)


@signature(MATRIX_IN, DOUBLES_IN, REAL, MATRIX_OUT, INDEX, INDEX)
def softmax_hessian(logits, sample_weight, scale, hess, first, last):
    """scale * w * p * (1 - p); 1 - p of the maximum is d / (1 + d), the share of the others"""
    n = logits.shape[1]
    step = lanes(pointer(logits, 0))
    for i in range(first, last):
        z, h = pointer(logits, i * n), pointer(hess, i * n)
        w = scale * (sample_weight[i] if sample_weight.size else 1.0)
        d = row_exp(z, n, row_max(z, n), h)
        s = plus_one(d[0], d[1])
        zero, one = constant(z, 0.0, 0.0), constant(z, 1.0, 1.0)
        q_hi, q_lo = split(zero, *ratio(zero, splat(1.0), s[0], s[1]))
        share, _ = split(zero, d[0] / s[0], splat(0.0))
        w_hi, _ = split(zero, splat(w), splat(0.0))
        whole = constant(z, SHIFT32, SHIFT64)
        for j in range(0, n, step):
            e = load_first(h, j, n - j, zero)
            p = scaled(e, splat(q_hi), splat(q_lo))
            value = splat(w_hi) * p * select(e == whole, splat(share), one - p)
            store_first(h, j, value, n - j)
