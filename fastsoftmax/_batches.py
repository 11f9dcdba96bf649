"""Mini-batches of any array of rows, converted and scaled in reused buffers: no float copy of a data set is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ._program import NOW, Caller, Program
from ._threads import COST
from .kernels import KERNELS

Rows = NDArray[np.int64] | slice


class Batches:
    """Rows of ``x`` as a C-contiguous array (n_rows, n_in) of ``dtype``, times ``scale``.

    ``x`` may have any number of dimensions, any real dtype and layout, and may be memory-mapped: only the rows asked
    for are read. What `take` returns is overwritten by the next call, or a view of ``x``.
    """

    def __init__(self, x: NDArray, *, batch_size: int, scale: float, dtype: np.dtype) -> None:
        self.x, self.batch_size, self.scale = x, max(1, min(batch_size, len(x))), scale
        self.n_in = math.prod(x.shape[1:])
        self._batch = np.empty((self.batch_size, self.n_in), dtype)
        self._rows: Rows = slice(0)
        self._indices = np.empty(self.batch_size, np.int64)
        self._as_it_is = scale == 1.0 and x.dtype == dtype
        self._gather = None  # one pass for the layouts and dtypes that matter: plain arrays of bytes or of dtype
        if x.flags.c_contiguous and x.flags.aligned and x.dtype in (dtype, np.uint8):
            self._plain = x.reshape(len(x), self.n_in)
            self._gather = KERNELS["gather" if x.dtype == dtype else "gather_bytes"][dtype]

    def slices(self) -> Iterator[slice]:
        """The rows in their order, a batch at a time."""
        return (slice(i, i + self.batch_size) for i in range(0, len(self.x), self.batch_size))

    def take(self, rows: Rows) -> NDArray:
        if self._as_it_is and isinstance(rows, slice):
            raw = self.x[rows]
            raw = raw.reshape(len(raw), self.n_in)
            if raw.flags.c_contiguous and raw.flags.aligned:
                return raw
        return self._fill(NOW, self.choose(rows))

    def choose(self, rows: Rows) -> int:
        """Say which rows are meant from now on; how many they are."""
        self._rows = rows
        indices = np.arange(*rows.indices(len(self.x))) if isinstance(rows, slice) else rows
        self._indices[: len(indices)] = indices
        return len(indices)

    def record(self, program: Program, n_rows: int) -> NDArray:
        """Let a program take the rows that are meant when it runs, always so many; returns where they will be."""
        return self._fill(program, n_rows)

    def _fill(self, via: Caller, n_rows: int) -> NDArray:
        batch = self._batch[:n_rows]
        if self._gather is None:
            via.python(partial(self._convert, batch))
        else:  # which does not check rows: they are slices of this x, or a permutation
            # shared: who gathers a row finds it in its cache when it is used
            via.shares(self._gather, (self._plain, self._indices, self.scale, batch), n_rows, batch.size * COST)
        return batch

    def _convert(self, batch: NDArray) -> None:
        with np.errstate(all="ignore"):  # what is too large is inf, as from the kernels
            rows = self.x[self._rows].reshape(batch.shape)
            np.multiply(rows, self.scale, out=batch, dtype=batch.dtype, casting="unsafe")
