"""``bench --step``: where the time of an MLP's training step goes, measured inside real training."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from .. import _training, optimizers
from .._peers import make_case
from .._peers.cases import BATCH, LEARNING_RATE
from .._threads import set_num_threads
from ..models import MLP
from .table import seconds, show

SHAPE = "12800x784x100x10"
PARTS = ["gather", "forward", "head", "backward", "update"]


def print_step(shapes: list[str] | None, dtypes: list[str], n_threads: int, seconds_each: float) -> int:
    """One row per shape and dtype.

    The parts are run one by one; ``loop`` is what remains of that, Python around them. ``at once`` is a step as it is taken
    in training, all parts in one call.
    """
    set_num_threads(n_threads)
    print(f"A training step of an MLP, batch {BATCH}, plain SGD, {n_threads} thread{'s' * (n_threads > 1)}.")
    rows = []
    for shape in [shape for shape in shapes or [SHAPE] if shape.count("x") == 3]:
        for dtype in dtypes:
            times = step_times(shape, dtype, seconds_each)
            rows.append([shape, dtype, *(f"{seconds(t)} {t / times['step']:4.0%}" for t in times.values())])
    show(["n_rows x n_in x n_hidden x n_classes", "dtype", *PARTS, "loop", "step", "at once"], rows, 2)
    return 0


def step_times(shape: str, dtype: str, seconds_each: float) -> dict[str, float]:
    """Mean seconds of each part, of the loop around them, and of the whole step both ways; over whole epochs."""
    case = make_case("training_epoch", shape, dtype)
    model = MLP(hidden=case.shape[2:-1], dtype=dtype, optimizer=optimizers.SGD(LEARNING_RATE))
    totals = dict.fromkeys(PARTS, 0.0)

    def fit() -> int:
        return model.fit(case.x, case.targets, epochs=1, batch_size=BATCH).history.n_steps

    fit()  # compiled and warm
    n_steps, at_once = _timed(fit, seconds_each)
    run, _training.Step.run = _training.Step.run, _by_parts(totals)  # type: ignore[method-assign, assignment]
    try:
        n_steps_by_parts, by_parts = _timed(fit, seconds_each)
    finally:
        _training.Step.run = run  # type: ignore[method-assign]
    totals["loop"] = by_parts - sum(totals.values())
    totals["step"] = by_parts
    return {part: total / n_steps_by_parts for part, total in totals.items()} | {"at once": at_once / n_steps}


def _timed(fit: Callable[[], int], seconds_each: float) -> tuple[int, float]:
    n_steps, start = 0, perf_counter()
    while not n_steps or perf_counter() - start < seconds_each:
        n_steps += fit()
    return n_steps, perf_counter() - start


def _by_parts(totals: dict[str, float]) -> Callable[[_training.Step, Any], float]:
    """A step whose parts add the time they take to `totals`; two clock readings, 0.1 us, are the price."""

    def run(step: _training.Step, keep_good: object) -> float:
        step.advance()
        for name, part in zip(PARTS, step.parts):
            start = perf_counter()
            part.run()
            totals[name] += perf_counter() - start
        return step.loss()

    return run
