"""``bench --step``: where the time of an MLP's training step goes, measured inside real training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from .. import optimizers
from .._batches import Batches
from .._peers import make_case
from .._peers.cases import BATCH, LEARNING_RATE
from .._threads import set_num_threads
from ..models import MLP, Classifier
from .table import seconds, show

SHAPE = "12800x784x100x10"
PARTS: dict[str, list[tuple[Any, str]]] = {
    "gather": [(Batches, "take")],
    "forward": [(Classifier, "_hidden")],
    "head": [(Classifier, "_head")],
    "backward": [(Classifier, "_backward")],
    "update": [(optimizers.Optimizer, "step")],
}
"""The functions that the training loop calls, by the part of the step that they are."""


def print_step(shapes: list[str] | None, dtypes: list[str], n_threads: int, seconds_each: float) -> int:
    """One row per shape and dtype; ``loop`` is what remains: Python between the parts."""
    set_num_threads(n_threads)
    print(f"A training step of an MLP, batch {BATCH}, plain SGD, {n_threads} thread{'s' * (n_threads > 1)}.")
    rows = []
    for shape in [shape for shape in shapes or [SHAPE] if shape.count("x") == 3]:
        for dtype in dtypes:
            times = step_times(shape, dtype, seconds_each)
            rows.append([shape, dtype, *(f"{seconds(t)} {t / times['step']:4.0%}" for t in times.values())])
    show(["n_rows x n_in x n_hidden x n_classes", "dtype", *PARTS, "loop", "step"], rows, 2)
    return 0


def step_times(shape: str, dtype: str, seconds_each: float) -> dict[str, float]:
    """Mean seconds of each part, of the loop around them, and of the whole step; over whole epochs."""
    case = make_case("training_epoch", shape, dtype)
    model = MLP(hidden=case.shape[2:-1], dtype=dtype, optimizer=optimizers.SGD(LEARNING_RATE))
    x, targets = case.x, case.targets
    model.fit(x, targets, epochs=1, batch_size=BATCH)  # compiled and warm
    totals = dict.fromkeys(PARTS, 0.0)
    n_steps, start = 0, perf_counter()
    with _timed(totals):
        while not n_steps or perf_counter() - start < seconds_each:
            n_steps += model.fit(x, targets, epochs=1, batch_size=BATCH).history.n_steps
        whole = perf_counter() - start
    totals["loop"] = whole - sum(totals.values())
    totals["step"] = whole
    return {part: total / n_steps for part, total in totals.items()}


@contextlib.contextmanager
def _timed(totals: dict[str, float]) -> Iterator[None]:
    """Every function of `PARTS` adds the time it takes to its part; two clock readings, 0.1 us, are the price."""
    originals = [(owner, name, getattr(owner, name)) for owners in PARTS.values() for owner, name in owners]

    def timed(function: Any, part: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                totals[part] += perf_counter() - start

        return call

    try:
        for part, owners in PARTS.items():
            for owner, name in owners:
                setattr(owner, name, timed(getattr(owner, name), part))
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
