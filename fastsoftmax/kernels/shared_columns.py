"""softmax, log_softmax and softmax's backward pass down the columns of (n, inner) matrices, classes shared among threads.

Threads that share the columns halve the runs in which memory is read, and each is brought, ahead, what the other works on. Here
a thread takes whole rows of the matrix: first parts of the classes, for maxima; then the classes that lie in some lanes of a
row, for what is added up in those; then rows of results. Between these kernels all threads wait for each other. A thread alone
reads large matrices faster so, too: rows are longer runs than strips of columns. Bits are those of rows.
"""

from __future__ import annotations

from typing import Any

from ._backward_block import block_dots, block_sums, gradient_at
from ._column_passes import columns_exp, columns_factor, columns_log, columns_max, columns_origin
from ._jit import DOUBLES_OUT, FLAG, INDEX, MATRIX_IN, MATRIX_OUT, VECTOR_IN, VECTOR_OUT, inline, signature
from ._math import exp_from, scaled
from ._memory import release, scratch
from ._simd import constant, fence, lanes, load_first, misalignment, pointer, shift
from ._wide import write_row


@signature(VECTOR_IN, MATRIX_OUT, INDEX, INDEX, INDEX, INDEX)
def shared_maxima(logits, maxima, n, inner, first, last):
    """Of as many parts of the classes as `maxima` has rows."""
    parts, run = maxima.shape
    for k in range(first, last):
        begin, stop = k * n // parts, (k + 1) * n // parts
        columns_max(pointer(logits, begin * inner), stop - begin, inner, inner, pointer(maxima, k * run))


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, MATRIX_OUT, DOUBLES_OUT, FLAG, FLAG, INDEX, INDEX, INDEX, INDEX)
def shared_sums(logits, maxima, e, sums, halves, keep, exact, n, inner, first, last):
    """Of each column's exponentials, those of lanes from `first` up to `last` of a row; `exact` where a logarithm is to come.

    `sums` has two rows for each lane, of as many whole vectors as maxima fill; `halves` as many doubles for each vector.
    """
    z, hi, run = pointer(logits, 0), pointer(sums, 0), maxima.size
    bases = scratch(pointer(logits, 0), 3 * run)
    columns_exp(
        z, n, inner, inner, run, pointer(maxima, 0), bases, pointer(e, 0), keep, exact, hi,
        shift(hi, lanes(z) * run), pointer(halves, 0), first, last,
    )  # fmt: skip
    release(bases)


@signature(MATRIX_OUT, DOUBLES_OUT, MATRIX_OUT, FLAG, INDEX, INDEX)
def shared_factors(sums, halves, factors, exact, first, last):
    """What exponentials are multiplied by, a pair for each column; or, `exact`, the logarithm to subtract."""
    run = factors.shape[1]
    if exact:
        columns_log(pointer(sums, 0), pointer(halves, 0), run, run, pointer(factors, 0))
    else:
        columns_factor(pointer(sums, 0), pointer(halves, 0), run, run, pointer(factors, 0))


@signature(VECTOR_IN, VECTOR_IN, MATRIX_IN, VECTOR_OUT, FLAG, INDEX, INDEX, INDEX)
def shared_softmax(logits, maxima, factors, probs, kept, inner, first, last):
    """From exponentials `kept` there, or from those of logits, and then past the caches."""
    q, run = pointer(factors, 0), factors.shape[1]
    if kept:
        for j in range(first * inner, last * inner, inner):
            out = pointer(probs, j)
            write_row(out, inner, False, _scaled_at, (out, q, run))
        return
    bases = scratch(pointer(logits, 0), 3 * run)
    columns_origin(pointer(maxima, 0), inner, run, bases)
    for j in range(first * inner, last * inner, inner):
        write_row(pointer(probs, j), inner, True, _probability_at, (pointer(logits, j), bases, q, run))
    fence()
    release(bases)


@inline
def _scaled_at(row: Any, j: int, k: int) -> Any:
    e, q, run = row
    zero = constant(e, 0.0, 0.0)
    return scaled(load_first(e, j, k, zero), load_first(q, j, k, zero), load_first(q, run + j, k, zero))


@inline
def _probability_at(row: Any, j: int, k: int) -> Any:
    z, bases, q, run = row
    zero = constant(z, 0.0, 0.0)
    base = load_first(bases, j, k, zero), load_first(bases, run + j, k, zero), load_first(bases, 2 * run + j, k, zero)
    return scaled(exp_from(load_first(z, j, k, zero), base), load_first(q, j, k, zero), load_first(q, run + j, k, zero))


@signature(VECTOR_IN, VECTOR_IN, MATRIX_IN, VECTOR_OUT, FLAG, INDEX, INDEX, INDEX)
def shared_log_softmax(logits, maxima, logs, log_probs, streaming, inner, first, last):
    for j in range(first * inner, last * inner, inner):
        row = pointer(logits, j), pointer(maxima, 0), pointer(logs, 0)
        write_row(pointer(log_probs, j), inner, streaming, _logarithm_at, row)
    if streaming:
        fence()


@inline
def _logarithm_at(row: Any, j: int, k: int) -> Any:
    z, maxima, logs = row
    zero = constant(z, 0.0, 0.0)
    return (load_first(z, j, k, zero) - load_first(maxima, j, k, zero)) - load_first(logs, j, k, zero)


@signature(VECTOR_IN, VECTOR_IN, DOUBLES_OUT, INDEX, INDEX, INDEX, INDEX)
def shared_products(grad_probs, probs, sums, n, inner, first, last):
    """Added up for each column: of a row's two vectors of sums those from `first` up to `last`."""
    p = pointer(probs, 0)
    block_sums(pointer(grad_probs, 0), p, n, inner, inner, 2 * lanes(p), first, last, _aligned(sums))


@inline
def _aligned(array: Any) -> Any:
    """The first address of a whole vector in an array that has room for one more."""
    p = pointer(array, 0)
    return shift(p, (lanes(p) - misalignment(p, 1)) % lanes(p))


@signature(DOUBLES_OUT, MATRIX_OUT, INDEX, INDEX)
def shared_dots(sums, dots, first, last):
    """What each column's sums come to: a pair."""
    d = pointer(dots, 0)
    block_dots(d, _aligned(sums), dots.shape[1] // lanes(d), 2 * lanes(d), d)


@signature(VECTOR_IN, VECTOR_IN, MATRIX_IN, VECTOR_OUT, FLAG, INDEX, INDEX, INDEX)
def shared_softmax_backward(grad_probs, probs, dots, grad_logits, streaming, inner, first, last):
    for j in range(first * inner, last * inner, inner):
        row = pointer(grad_probs, j), pointer(probs, j), pointer(dots, 0), dots.shape[1]
        write_row(pointer(grad_logits, j), inner, streaming, gradient_at, row)
    if streaming:
        fence()
