"""Mini-batches of any array of rows, converted and scaled in reused buffers: no float copy of a data set is made."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp] | slice


class Batches:
    """Rows of ``x`` as a C-contiguous array (n_rows, n_in) of ``dtype``, times ``scale``.

    ``x`` may have any number of dimensions, any real dtype and layout, and may be memory-mapped: only the rows asked
    for are read. What `take` returns is overwritten by the next call.
    """

    def __init__(self, x: NDArray, *, batch_size: int, scale: float, dtype: np.dtype) -> None:
        self.x, self.batch_size, self.scale = x, max(1, min(batch_size, len(x))), scale
        self.n_in = math.prod(x.shape[1:])
        # np.take would first copy all of an x that is not plain; fancy indexing copies the rows alone
        self._plain = x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative
        self._raw = np.empty((self.batch_size, *x.shape[1:]), x.dtype) if self._plain else None
        self._batch = np.empty((self.batch_size, self.n_in), dtype)

    def slices(self) -> Iterator[slice]:
        """The rows in their order, a batch at a time."""
        return (slice(i, i + self.batch_size) for i in range(0, len(self.x), self.batch_size))

    def take(self, rows: Rows) -> NDArray:
        if isinstance(rows, slice):
            raw = self.x[rows]
        elif self._raw is not None:
            raw = np.take(self.x, rows, axis=0, out=self._raw[: len(rows)], mode="clip")  # "raise" copies
        else:
            raw = self.x[rows]
        raw = raw.reshape(len(raw), self.n_in)
        if self.scale == 1.0 and raw.dtype == self._batch.dtype and raw.flags.c_contiguous and raw.dtype.isnative:
            return raw
        batch = self._batch[: len(raw)]
        np.multiply(raw, self.scale, out=batch, dtype=batch.dtype, casting="unsafe")  # one pass: convert and scale
        return batch
