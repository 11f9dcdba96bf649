"""Mini-batches of any array of rows, converted and scaled in reused buffers: no float copy of a data set is made."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ._threads import COST, run_shares
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
        self._as_it_is = scale == 1.0 and x.dtype == dtype
        self._gather = None  # one pass for the layouts and dtypes that matter: plain arrays of bytes or of dtype
        if x.flags.c_contiguous and x.flags.aligned and x.dtype in (dtype, np.uint8):
            self._plain = x.reshape(len(x), self.n_in)
            self._gather = KERNELS["gather" if x.dtype == dtype else "gather_bytes"][dtype]

    def slices(self) -> Iterator[slice]:
        """The rows in their order, a batch at a time."""
        return (slice(i, i + self.batch_size) for i in range(0, len(self.x), self.batch_size))

    def take(self, rows: Rows) -> NDArray:
        if self._gather is None or (self._as_it_is and isinstance(rows, slice)):
            raw = self.x[rows]
            raw = raw.reshape(len(raw), self.n_in)
            if self._as_it_is and raw.flags.c_contiguous and raw.flags.aligned:
                return raw
            batch = self._batch[: len(raw)]
            with np.errstate(all="ignore"):  # what is too large is inf, as from the kernels
                return np.multiply(raw, self.scale, out=batch, dtype=batch.dtype, casting="unsafe")
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self.x)))
        batch = self._batch[: len(rows)]  # the kernel does not check rows: they are slices of this x, or a permutation
        arguments = self._plain, rows, self.scale, batch  # shared: who gathers a row finds it in its cache when it is used
        run_shares(self._gather, arguments, len(rows), batch.size * COST)
        return batch
