"""A thin classifier head in one pass: logits, loss, their gradient and all gradients of the affine layer, block by block.

A block of rows of x is read from memory once, for x @ weight, and lies in the second cache when grad_logits.T @ x comes to it;
the logits and their gradient never leave the first. The row math is `cross_entropy`'s own, so its bounds hold here.
"""

from __future__ import annotations

from ._jit import (
    CUBE_OUT,
    DOUBLES_IN,
    INDEX,
    LABELS,
    MATRIX_IN,
    MATRIX_OUT,
    REAL,
    VECTOR_IN,
    VECTOR_OUT,
    no_vector,
    signature,
)  # fmt: skip
from ._memory import matrix_at, one_at, release, scratch
from ._simd import pointer
from .affine import (
    add_rows,
    streams,
    thin_outer,
    thin_product,
    thin_rows,
    thin_spread,
    turn_weight,
    turned_row,
    turned_size,
)  # fmt: skip
from .cross_entropy import narrow_gradient


@signature(
    MATRIX_IN, MATRIX_IN, VECTOR_IN, LABELS, DOUBLES_IN, DOUBLES_IN, INDEX, REAL, REAL,
    VECTOR_OUT, MATRIX_OUT, CUBE_OUT, MATRIX_OUT, INDEX, INDEX, INDEX, returns=REAL,
)  # fmt: skip
def linear_cross_entropy(
    x, weight, bias, targets, class_weight, sample_weight, ignore_index, scale, denominator,
    losses, grad_x, parts, parts_bias, size, first, last,
):  # fmt: skip
    """Rows [first, last): the sum of the weighted losses; into `losses`, `grad_x` and `parts` what has a size.

    Rows are taken in chunks of `size`, from a multiple of it on, and each chunk's losses are added up by themselves.
    parts[k] (n_out, n_in) and parts_bias[k] are chunk k's share of the gradients; for their sum see `affine.add_thin_parts`.
    Arrays of length 0 stand for "not given" and "not wanted". At most `affine.THIN` classes.
    Gradients are times scale / denominator.
    """
    n_in, n_out = weight.shape
    w = pointer(weight, 0)
    block = thin_rows(w, n_in)
    row = turned_row(w, n_in)
    turned, g = scratch(w, turned_size(w, n_in, n_out)), scratch(w, block * n_out)
    turn_weight(w, n_in, n_out, turned, row)
    logits, one, nothing = matrix_at(g, block, n_out), one_at(w), no_vector(class_weight)
    total, factor = 0.0, scale / denominator
    for chunk in range(first, last, size):
        to, to_bias = pointer(parts, chunk // size * n_in * n_out), pointer(parts_bias, chunk // size * n_out)
        loss, end = 0.0, min(chunk + size, last)
        for i in range(chunk, end, block):
            n, begun = min(block, end - i), i > chunk
            rows = slice(i, i + n)
            a = pointer(x, i * n_in)
            thin_product(a, n, n_in, turned, row, n_out, bias.size > 0, pointer(bias, 0), False, g, last - i)
            given = pointer(class_weight, 0), class_weight.size > 0, pointer(sample_weight, i), sample_weight.size > 0
            some = losses[rows] if losses.size else losses
            labels = targets[rows]
            loss += narrow_gradient(logits, n_out, 0, labels, given, ignore_index, nothing, factor, some, logits, 0, n)
            if parts.size:
                thin_outer(g, a, n, n_in, n_out, to, begun, i + n < last)
                add_rows(g, n, n_out, one, to_bias, begun)
            if grad_x.size:
                thin_spread(g, n, n_out, turned, row, n_in, pointer(grad_x, i * n_in), streams(grad_x))
        total += loss
    release(turned)
    release(g)
    return total
