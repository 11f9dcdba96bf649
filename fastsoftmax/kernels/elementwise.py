"""The small passes of a training step, each one pass over memory: ReLU, the optimizers' updates, mini-batches.

All work on flat arrays, elements [first, last), except the mini-batches, which take rows. An output may be the very array it
is computed from: every element is read before it is written.
"""

from __future__ import annotations

from numba import types

from ._jit import DOUBLES_IN, INDEX, LABELS, MATRIX_IN, MATRIX_OUT, SCALAR, VECTOR_IN, VECTOR_OUT, inline, signature
from ._plans import each_element
from ._simd import (
    constant,
    fma,
    lanes,
    larger,
    load,
    load_bytes,
    load_first,
    pointer,
    prefetch,
    prefetch_to_write,
    root,
    select,
    splat,
    store,
    store_first,
)  # fmt: skip

# Vectors ahead that memory is asked for to be written: another core may have read it, and stores wait for their lines one after
# the other (78,400 parameters on two threads: 8.8 -> 7.1 us, 36 -> 27 where the cores are 200 ns apart).
_AHEAD = 32


def BYTES(real: types.Type) -> types.Type:
    """A matrix of unsigned bytes: images as they are stored."""
    return types.Array(types.uint8, 2, "C", readonly=True)


# ---- ReLU ----------------------------------------------------------------------------------------------------------
@signature(VECTOR_IN, VECTOR_OUT, INDEX, INDEX, small=each_element)
def relu(x, out, first, last):
    """out = max(x, 0); NaN stays NaN."""
    p, q = pointer(x, first), pointer(out, first)
    n, step, zero = last - first, lanes(p), constant(p, 0.0, 0.0)
    j = 0
    while j + step <= n:
        store(q, j, larger(zero, load(p, j)))
        j += step
    store_first(q, j, larger(zero, load_first(p, j, n - j, zero)), n - j)


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, INDEX, small=each_element)
def relu_backward(grad_out, x, grad_x, first, last):
    """grad_x = grad_out where x > 0, else 0. x may be ReLU's input or its output."""
    g, p, q = pointer(grad_out, first), pointer(x, first), pointer(grad_x, first)
    n, step, zero = last - first, lanes(p), constant(p, 0.0, 0.0)
    j = 0
    while j + step <= n:
        store(q, j, select(zero < load(p, j), load(g, j), zero))
        j += step
    value = select(zero < load_first(p, j, n - j, zero), load_first(g, j, n - j, zero), zero)
    store_first(q, j, value, n - j)


# ---- updates -------------------------------------------------------------------------------------------------------
# What may be another number at the next step is in `factors`, which is read at each call: a recorded call stays as it is.
@signature(VECTOR_OUT, VECTOR_IN, SCALAR, DOUBLES_IN, INDEX, INDEX)
def sgd_update(param, grad, l2, factors, first, last):
    """param -= learning_rate * (grad + l2 * param), where factors begins with learning_rate"""
    w, g = pointer(param, first), pointer(grad, first)
    n, step, zero = last - first, lanes(w), constant(w, 0.0, 0.0)
    down, l2 = _factor(w, -factors[0]), splat(l2)
    j = 0
    while j < n:
        count = min(step, n - j)
        value = load_first(w, j, count, zero)
        slope = fma(l2, value, load_first(g, j, count, zero))
        prefetch_to_write(w, j + _AHEAD * step)
        store_first(w, j, fma(down, slope, value), count)
        j += step


@signature(VECTOR_OUT, VECTOR_IN, VECTOR_OUT, SCALAR, DOUBLES_IN, INDEX, INDEX)
def momentum_update(param, grad, velocity, l2, factors, first, last):
    """g = grad + l2 * param; velocity = momentum * velocity + g; param -= learning_rate * velocity.

    factors is (learning_rate, momentum, nesterov). With Nesterov's momentum, if that is not 0, the step is
    g + momentum * velocity in place of velocity.
    """
    w, g, v = pointer(param, first), pointer(grad, first), pointer(velocity, first)
    n, step, zero = last - first, lanes(w), constant(w, 0.0, 0.0)
    down, keep, nesterov, l2 = _factor(w, -factors[0]), _factor(w, factors[1]), factors[2] != 0, splat(l2)
    j = 0
    while j < n:
        count = min(step, n - j)
        value = load_first(w, j, count, zero)
        slope = fma(l2, value, load_first(g, j, count, zero))
        speed = fma(keep, load_first(v, j, count, zero), slope)
        prefetch_to_write(w, j + _AHEAD * step)
        store_first(v, j, speed, count)
        if nesterov:
            speed = fma(keep, speed, slope)
        store_first(w, j, fma(down, speed, value), count)
        j += step


@signature(VECTOR_OUT, VECTOR_IN, VECTOR_OUT, VECTOR_OUT, SCALAR, DOUBLES_IN, INDEX, INDEX)
def adam_update(param, grad, mean, square, l2, factors, first, last):
    """g = grad + l2 * param; mean and square: running averages of g and g * g; param -= rate * mean / (sqrt(square) + epsilon).

    factors is (rate, beta1, beta2, epsilon). The bias correction is in them: with root = sqrt(1 - beta2**t),
    rate = learning_rate * root / (1 - beta1**t), and epsilon is the paper's times root.
    """
    w, g, m, s = pointer(param, first), pointer(grad, first), pointer(mean, first), pointer(square, first)
    n, step, zero = last - first, lanes(w), constant(w, 0.0, 0.0)
    down, l2, epsilon = _factor(w, -factors[0]), splat(l2), _factor(w, factors[3])
    keep1, new1 = _factor(w, factors[1]), _factor(w, 1.0 - factors[1])  # 1 - 0.999 has 15 bits in float32
    keep2, new2 = _factor(w, factors[2]), _factor(w, 1.0 - factors[2])
    j = 0
    while j < n:
        count = min(step, n - j)
        value = load_first(w, j, count, zero)
        slope = fma(l2, value, load_first(g, j, count, zero))
        average = fma(keep1, load_first(m, j, count, zero), new1 * slope)
        power = fma(keep2, load_first(s, j, count, zero), new2 * (slope * slope))
        prefetch_to_write(w, j + _AHEAD * step)
        store_first(m, j, average, count)
        store_first(s, j, power, count)
        store_first(w, j, fma(down, average / (root(power) + epsilon), value), count)
        j += step


@inline
def _factor(like, value):
    """A double, rounded to the type of the vectors."""
    return constant(like, value, value)


# ---- mini-batches --------------------------------------------------------------------------------------------------
@signature(MATRIX_IN, LABELS, SCALAR, MATRIX_OUT, INDEX, INDEX)
def gather(x, rows, scale, out, first, last):
    """out[i] = x[rows[i]] * scale

    Rows lie anywhere in memory, so each is asked for two rows ahead: 22 us instead of 30 for 128 x 784.
    """
    n, factor = x.shape[1], splat(scale)
    zero, step = factor - factor, lanes(pointer(x, 0))
    for i in range(first, last):
        p, q, ahead = pointer(x, rows[i] * n), pointer(out, i * n), pointer(x, rows[min(i + 2, last - 1)] * n)
        j = 0
        while j + step <= n:
            prefetch(ahead, j)
            prefetch_to_write(q, j + _AHEAD * step)
            store(q, j, load(p, j) * factor)
            j += step
        store_first(q, j, load_first(p, j, n - j, zero) * factor, n - j)


@signature(BYTES, LABELS, SCALAR, MATRIX_OUT, INDEX, INDEX)
def gather_bytes(x, rows, scale, out, first, last):
    """out[i] = x[rows[i]] * scale, from bytes: no float copy of a data set is ever made."""
    n, factor = x.shape[1], splat(scale)
    for i in range(first, last):
        p, q, ahead = pointer(x, rows[i] * n), pointer(out, i * n), pointer(x, rows[min(i + 2, last - 1)] * n)
        step = lanes(q)
        j = 0
        while j + step <= n:
            prefetch(ahead, j)
            prefetch_to_write(q, j + _AHEAD * step)
            store(q, j, load_bytes(p, j, factor) * factor)
            j += step
        while j < n:
            out[i, j] = scale * x[rows[i], j]
            j += 1
