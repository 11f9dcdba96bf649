"""Which calls are small, and what kernels take after the arrays: the plans of small calls (`_small`).

A plan is a function of what it asks for by name, see `_small`. It says whether one thread is enough (`_layout`) and gives the
arguments; what it is asked about is not empty.
"""

from __future__ import annotations

from numba.extending import register_jitable

from ._layout import NARROW, NARROW32, SHORT, SMALL, SMALL_PRODUCT


@register_jitable
def few(n, itemsize):
    """Whether rows of so many classes are narrow for softmax and its like."""
    return n < (NARROW32 if itemsize == 4 else NARROW)


@register_jitable
def along_rows(axis, ndim, size, itemsize, first, last):
    """Vectors, n_classes, streaming, and all rows; along the first axis if there is one row."""
    one_row = (axis == 0 or axis == -ndim) and size == first
    n = first if one_row else last
    return (one_row or axis == -1 or axis == ndim - 1) and size * itemsize <= SHORT, n, False, 0, size // n


def along_narrow_rows(axis, ndim, size, itemsize, first, last):
    """Those of few classes."""
    taken, n, streaming, begin, end = along_rows(axis, ndim, size, itemsize, first, last)
    return taken and few(n, itemsize), n, streaming, begin, end


def along_wide_rows(axis, ndim, size, itemsize, first, last):
    """The others."""
    taken, n, streaming, begin, end = along_rows(axis, ndim, size, itemsize, first, last)
    return taken and not few(n, itemsize), n, streaming, begin, end


def along_columns(axis, ndim, size, itemsize, first):
    """Vectors, n_classes, how many columns lie side by side, and all strips of 64 bytes of them."""
    inner = size // first
    taken = (axis == 0 or axis == -ndim) and inner > 1 and size * itemsize <= SHORT
    return taken, first, inner, 0, (inner * itemsize + 63) // 64


def backward_along_rows(axis, ndim, size, first, last):
    one_row = (axis == 0 or axis == -ndim) and size == first
    n = first if one_row else last
    return (one_row or axis == -1 or axis == ndim - 1) and size <= SMALL, n, False, 0, size // n


def backward_along_columns(axis, ndim, size, itemsize, first):
    inner = size // first
    taken = (axis == 0 or axis == -ndim) and inner > 1 and size <= SMALL
    return taken, first, inner, 0, (inner * itemsize + 63) // 64


def a_number_each_narrow_row(axis, ndim, size, itemsize, last):
    """Vectors, n_classes, and all rows; the result is without their axis."""
    return (axis == -1 or axis == ndim - 1) and size <= SMALL and few(last, itemsize), last, 0, size // last


def a_number_each_wide_row(axis, ndim, size, itemsize, last):
    return (axis == -1 or axis == ndim - 1) and size <= SMALL and not few(last, itemsize), last, 0, size // last


def narrow_matrix(axis, ndim, size, last):
    """Matrices alone."""
    return ((axis == -1 or axis == 1) and size <= SMALL and last < NARROW,)


def wide_matrix(axis, ndim, size, last):
    return ((axis == -1 or axis == 1) and size <= SMALL and last >= NARROW,)


def each_element(size):
    """Vectors, and all elements."""
    return size <= SMALL, 0, size


def layer(n_rows, n_in, n_out):
    """A product of two matrices and a bias, which may be None: neither transposed nor rectified, and all rows."""
    return n_rows * n_in * n_out <= SMALL_PRODUCT, False, False, 0, n_rows


def layer_backward(n_rows, n_in, n_out):
    return (n_rows * n_in * n_out <= SMALL_PRODUCT,)


NUMBERS = a_number_each_narrow_row, a_number_each_wide_row
MATRICES = narrow_matrix, wide_matrix
