"""The backward passes down the columns of (n_outer, n, inner) arrays, C-contiguous: n classes, `inner` apart.

softmax's has columns across lanes as they lie, some strips side by side, so that memory is read in runs, or a whole block of
columns row by row (`_backward_block`). log_softmax's goes by way of rows, a few at a time. Sums are taken as rows take them, so
that bits are the same.
"""

from __future__ import annotations

from typing import Any

from ._backward_block import block_backward, sums_total
from ._column_tiles import columns_ahead, put_first
from ._jit import INDEX, VECTOR_IN, VECTOR_OUT, inline, signature
from ._memory import release, scratch, stack
from ._narrow import NARROW
from ._plans import backward_along_columns
from ._simd import (
    constant,
    fence,
    lanes,
    load,
    load_first,
    misalignment,
    pointer,
    prefetch,
    prefetch_to_write,
    shift,
    splat,
    store,
    stream,
)  # fmt: skip
from ._target import WIDE
from .backward import dot_add, dot_at, dot_lanes, row_log_backward
from .turn import strips_in_rows, to_columns, to_rows

# Of many classes: strips side by side (1000 x 128, float32: 4 together 32 us, 8 27, 16 29; 1000 x 1024, float64: 1.4, 1.0,
# 0.93 ms), and rows ahead that memory is asked for.
_STRIPS, _AHEAD = 8, 8
# From so many vectors of all arrays on, 32 MiB, results go past the caches. Memory is then read by rows of so many columns;
# their sums, 256 bytes a column, need not stay in the second cache (4096 x 4096, float64, one thread, 512, 1024, 4096 columns:
# 24.3, 23.3, 19.0 ms, strips as within the caches 33.1; 32000 x 256: 8.9 ms, so 14.5). Within the caches by rows of fewer
# columns, and only where so many vectors of classes lie whole pages apart (1000 x 1024, one thread: float32 340 -> 250 us,
# float64 810 -> 710; Emerald Rapids 1.41 -> 0.85 ms, 2.9 -> 1.75; elsewhere up to 50 % slower). With few registers, which four
# strips' sums fill, always (Zen 3, one thread: 100 x 128, float64, 14.9 -> 12.5 us, 1000 x 500 915 -> 460, float32 337 -> 209).
_PAST, _COLUMNS, _FEW_COLUMNS, _MANY = 1 << 19, 4096, 1024, 24
# So many rows of two arrays whole pages apart compete for the 8 to 12 places that the first cache has for a line: they are read
# in runs of so many strips (float64, one thread, 50 x 8192: 350 -> 160 us, 20 x 4096: 48 -> 34; Zen 3, 10 x 8192: 101 -> 83;
# other distances 20 to 30 % slower). Far from the caches, see `columns_ahead`, so are as many as are more than the CPU reads
# ahead of by itself (Zen 3, 10 x 500000, one thread: float32 6.3 -> 4.2 ms, float64 11.9 -> 8.8, 10 x 500001: 7.2 -> 4.2, 14.7
# -> 9.0; of fewer rows, 4 x 2000000, float64: 12.6 -> 15.2).
_CROWD, _STREAMS, _RUN = 16 if WIDE else 8, 8, 64
_run_sums, _run_dots = stack(_RUN * 128), stack(_RUN * 128)
_sums, _dots = stack(_STRIPS * 32 * 128), stack(_STRIPS * 128)  # pairs of double vectors, 32 a strip; a pair of vectors a strip


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX, small=backward_along_columns)
def softmax_backward_columns(grad_probs, probs, grad_logits, n, inner, first, last):
    step = lanes(pointer(probs, 0))
    past = 3 * probs.size >= _PAST * step
    if n >= 8 * step and (past or not WIDE or (n >= _MANY * step and inner % (64 * step) == 0)):
        backward_by_rows(grad_probs, probs, grad_logits, n, inner, past, first, last)
        return
    strips, ahead = (inner + step - 1) // step, columns_ahead(pointer(probs, 0), 3 * probs.size)
    k = first
    while k < last:
        column, count = k % strips * step, min(last - k, strips - k % strips)
        where, width = k // strips * n * inner + column, min(count * step, inner - column)
        g, p, out = pointer(grad_probs, where), pointer(probs, where), pointer(grad_logits, where)
        if n < NARROW:
            few_classes_backward(g, p, out, n, inner, width, ahead, past)
            k += count
        elif width >= 4 * step:
            together = min(width // (4 * step) * 4, _STRIPS)
            many_classes_backward(g, p, out, n, inner, together)
            k += together
        else:  # Zen 3, 128 x 40, float32: 4.6 us, 10.6 with strips transposed to rows
            block_backward(g, p, out, n, inner, width, 2 * step, False, _sums(splat(0.0)), _dots(p))
            k += count


@inline
def backward_by_rows(
    grad_probs: Any, probs: Any, grad_logits: Any, n: int, inner: int, past: bool, first: int, last: int
) -> None:  # fmt: skip
    """As memory lies, in blocks of columns; `past` the caches or not."""
    step = lanes(pointer(probs, 0))
    strips = (inner + step - 1) // step
    most = min(strips, (_COLUMNS if past or not WIDE else _FEW_COLUMNS) // step)
    sums, dots = scratch(splat(0.0), 32 * most * step), scratch(pointer(probs, 0), 2 * most * step)
    k = first
    while k < last:
        column, count = k % strips * step, min(most, last - k, strips - k % strips)
        where, width = k // strips * n * inner + column, min(count * step, inner - column)
        g, p, out = pointer(grad_probs, where), pointer(probs, where), pointer(grad_logits, where)
        block_backward(g, p, out, n, inner, width, 2 * step, past, sums, dots)
        k += count
    fence()
    release(sums)
    release(dots)


@inline
def few_classes_backward(g: Any, p: Any, out: Any, n: int, inner: int, width: int, ahead: int, past: bool) -> None:
    """In runs, or four strips at a time; those go past the caches from the first whole line on."""
    step = lanes(p)
    if n >= (_STREAMS if ahead else _CROWD) and (ahead or inner % (64 * step) == 0):
        sums, dots = _run_sums(splat(0.0)), _run_dots(p)
        for c in range(0, width, _RUN * step):
            run = min(width - c, _RUN * step)
            block_backward(shift(g, c), shift(p, c), shift(out, c), n, inner, run, 1, past, sums, dots)
    else:
        streaming = past and inner % step == 0
        c, columns = 0, step - misalignment(out, 1) if streaming else step
        while c < width:
            if columns == step and c + 4 * step <= width:
                four_strips_backward(shift(g, c), shift(p, c), shift(out, c), n, inner, ahead, streaming)
                c += 4 * step
            else:
                columns = min(columns, width - c)
                strip_backward(shift(g, c), shift(p, c), shift(out, c), n, inner, columns)
                c, columns = c + columns, step
    if past:
        fence()


@inline
def strip_backward(g: Any, p: Any, out: Any, n: int, inner: int, width: int) -> None:
    acc, zero = (splat(0.0), splat(0.0)), constant(p, 0.0, 0.0)
    for j in range(0, n * inner, inner):
        acc = dot_add(acc, load_first(g, j, width, zero), load_first(p, j, width, zero))
    hi, lo = dot_lanes(zero, acc)
    for j in range(0, n * inner, inner):
        value = load_first(p, j, width, zero) * ((load_first(g, j, width, zero) - hi) - lo)
        put_first(out, j, value, width)


@inline
def four_strips_backward(g: Any, p: Any, out: Any, n: int, inner: int, ahead: int, streaming: bool) -> None:
    zero, none = constant(p, 0.0, 0.0), (splat(0.0), splat(0.0))
    dots, step = _dots(p), lanes(p)
    for strip, acc in enumerate(four_dots((none, none, none, none), g, p, 0, n * inner, inner, ahead)):
        hi, lo = dot_lanes(zero, acc)
        store(dots, 2 * strip * step, hi)
        store(dots, (2 * strip + 1) * step, lo)
    write_strips(g, p, out, n, inner, 4, ahead, dots, streaming)


@inline
def many_classes_backward(g: Any, p: Any, out: Any, n: int, inner: int, strips: int) -> None:
    """The sums of `dots_begun`, each over the classes that it takes there, for a multiple of four strips.

    Asks for the next sum's classes.
    """
    step, none = lanes(p), (splat(0.0), splat(0.0))
    pairs, sums, dots = n // (2 * step) * (2 * step), _sums(none[0]), _dots(p)
    for k in range(2 * step):
        for strip in range(0, strips, 4):
            to, c = shift(sums, sum_at(strip, k)), strip * step
            acc = four_dots(
                (none, none, none, none), shift(g, c), shift(p, c), k * inner, pairs * inner, 2 * step * inner, inner
            )  # fmt: skip
            if k < step:
                acc = four_dots(acc, shift(g, c), shift(p, c), (pairs + k) * inner, n * inner, step * inner, inner)
            for i, (x, y) in enumerate(acc):
                store(to, sum_at(i, 0), x)
                store(to, sum_at(i, 0) + 8, y)
    for strip in range(strips):
        hi, lo = sums_total(p, shift(sums, sum_at(strip, 0)), 16)
        store(dots, 2 * strip * step, hi)
        store(dots, (2 * strip + 1) * step, lo)
    write_strips(g, p, out, n, inner, strips, _AHEAD * inner, dots, False)


@inline
def four_dots(acc: Any, g: Any, p: Any, first: int, stop: int, by: int, ahead: int) -> Any:
    """Products from `first` on, `by` apart, added to the sums of four strips; asks for what lies `ahead`, unless that is 0."""
    a, b, c, d = acc
    step = lanes(p)
    for j in range(first, stop, by):
        if ahead:
            for k in range(j + ahead, j + ahead + 4 * step, step):
                prefetch(g, k)
                prefetch(p, k)
        a = dot_at(a, g, p, j)
        b = dot_at(b, g, p, j + step)
        c = dot_at(c, g, p, j + 2 * step)
        d = dot_at(d, g, p, j + 3 * step)
    return a, b, c, d


@inline
def sum_at(strip: int, k: int) -> int:
    """Where the pair of double vectors lies that is sum k of a strip."""
    return (strip * 32 + k) * 16


@inline
def write_strips(
    g: Any, p: Any, out: Any, n: int, inner: int, strips: int, ahead: int, dots: Any, streaming: bool
) -> None:  # fmt: skip
    step = lanes(p)
    for j in range(0, n * inner, inner):
        for strip in range(strips):
            at, dot = j + strip * step, 2 * strip * step
            value = load(p, at) * ((load(g, at) - load(dots, dot)) - load(dots, dot + step))
            if streaming:
                stream(out, at, value)
            else:
                if ahead:
                    prefetch_to_write(out, at + ahead)
                store(out, at, value)


@signature(VECTOR_IN, VECTOR_IN, VECTOR_OUT, INDEX, INDEX, INDEX, INDEX, small=backward_along_columns)
def log_softmax_backward_columns(grad_log_probs, log_probs, grad_logits, n, inner, first, last):
    backward_in_rows(row_log_backward, grad_log_probs, log_probs, grad_logits, n, inner, first, last)


@inline
def backward_in_rows(
    backward: Any, grad: Any, result: Any, grad_logits: Any, n: int, inner: int, first: int, last: int
) -> None:  # fmt: skip
    """A few strips of columns at a time are copied to rows, and what `backward` makes of them back to columns."""
    step = lanes(pointer(grad, 0))
    strips, most = (inner + step - 1) // step, strips_in_rows(n)
    g = scratch(pointer(grad, 0), 2 * most * step * n)
    y = shift(g, most * step * n)
    k = first
    while k < last:
        column, count = k % strips * step, min(most, last - k, strips - k % strips)
        where, width = k // strips * n * inner + column, min(count * step, inner - column)
        to_rows(pointer(grad, where), g, n, inner, width)
        to_rows(pointer(result, where), y, n, inner, width)
        for r in range(0, width * n, n):
            backward(shift(g, r), shift(y, r), shift(g, r), n)
        to_columns(g, pointer(grad_logits, where), n, inner, width)
        k += count
    release(g)
