"""What is measured: the arrays of an operation at one size, seeded, the same for every implementation."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

SPREAD = 4.0
"""Standard deviation of the logits: some rows are confident, no row is dead."""

BATCH, LEARNING_RATE = 128, 0.1
"""Of the training epoch: plain SGD, the same for everybody."""

SMOOTHING = 0.1
"""Of labels, where they are smoothed: what most people set."""


@dataclass
class Case:
    """An operation at a shape. Arrays are made at first use, so that a case holds only what its operation needs.

    `shape` is (n_rows, n_classes), (n_rows, n_in, n_out) or, for a training epoch, (n_rows, n_in, n_hidden, n_classes).
    """

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    n_threads: int = 1
    truth: Any = field(default=None, repr=False)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(20), repr=False)

    @property
    def n_rows(self) -> int:
        return self.shape[0]

    @property
    def n_classes(self) -> int:
        return self.shape[-1]

    def _normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        # Drawn in the case's dtype: a float64 copy of the largest shape would be 130 MB for nothing.
        values = self.rng.standard_normal(shape, dtype=np.dtype(self.dtype))
        values *= scale
        return values

    @cached_property
    def logits(self) -> np.ndarray:
        """(n_rows, n_classes); for operations along axis 0 (n_classes, n_rows): features x samples, C-ordered."""
        return self._normal(*self._of_logits, scale=SPREAD)

    @property
    def _of_logits(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.axis == 0 else self.shape

    @property
    def axis(self) -> int:
        """Where the classes are."""
        return 0 if self.op.endswith("_axis0") else 1

    @cached_property
    def targets(self) -> np.ndarray:
        return self.rng.integers(0, self.n_classes, self.n_rows)

    @cached_property
    def probs(self) -> np.ndarray:
        """A softmax's output, for its backward."""
        probs = np.exp(self.logits - self.logits.max(axis=self.axis, keepdims=True))
        probs /= probs.sum(axis=self.axis, keepdims=True)
        return probs

    @cached_property
    def grad_probs(self) -> np.ndarray:
        return self._normal(*self._of_logits)

    @cached_property
    def x(self) -> np.ndarray:
        """(n_rows, n_in); for a training epoch noisy prototypes in [0, 1], a fifth of the pixels lit as in MNIST."""
        if self.op != "training_epoch":
            return self._normal(*self.shape[:2])
        prototypes = self.rng.random((self.n_classes, self.shape[1]), dtype=np.float32) < 0.2
        noise = self.rng.random(self.shape[:2], dtype=np.float32)
        lit = noise < np.where(prototypes[self.targets], np.float32(0.5), np.float32(0.12))
        return np.where(lit, 1 - noise, 0).astype(self.dtype)

    @cached_property
    def weight(self) -> np.ndarray:
        n_in, n_out = self.shape[1:3]
        return self._normal(n_in, n_out, scale=n_in**-0.5)

    @cached_property
    def bias(self) -> np.ndarray:
        return self._normal(self.shape[2])

    @cached_property
    def grad_out(self) -> np.ndarray:
        return self._normal(self.shape[0], self.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of the array that `TRAFFIC` counts: `x` for the fused head, the logits elsewhere."""
        columns = self.shape[1]
        return self.n_rows * columns * np.dtype(self.dtype).itemsize


def make_case(op: str, shape: str, dtype: str = "float32", n_threads: int = 1) -> Case:
    """A `Case` from the words of a command line or of asv: ``make_case("softmax", "128x1000")``."""
    return Case(op, tuple(int(size) for size in shape.lower().split("x")), dtype, n_threads)
