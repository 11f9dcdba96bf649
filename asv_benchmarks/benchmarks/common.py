"""What the benchmark classes share: sizes, and how a class gets its times.

Times come from ``python -m fastsoftmax bench --json``, one process per thread count, in which all implementations
take turns on the same arrays after each result was checked. They are `track_` values in seconds and not `time_`
benchmarks for two reasons. asv times each implementation in a process of its own, minutes apart, and a machine's
clock wanders by a fifth in that time: ratios would mean little. And asv_runner (since 0.3) times a single call per
sample as soon as there is a `setup`, which for a call of 1 us measures the clock.

Parameter lists are constant and never depend on what is installed; they may grow at the end, and must not change
otherwise.
"""

from __future__ import annotations

import abc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastsoftmax
from fastsoftmax._peers import TABLE

Found = dict[tuple[Any, ...], Any]

DTYPES = ["float32", "float64"]
THREADS = [1, 2]

SIZES = ["1x10", "128x10", "8192x10", "128x100", "128x1000", "1024x1000", "256x32000", "4096x4096", "500000x10"]
"""Rows x classes: a single call's overhead, mini-batches of small and middle classifiers, a language model's head, a
large square, and the full batch of a small classifier."""

AFFINE_SIZES = [
    "1x784x100",
    "128x100x10",
    "128x784x10",
    "128x784x100",
    "200x3072x50",
    "60000x784x10",
    "1024x1024x1000",
]
"""Rows x inputs x outputs: a single MNIST image, the layers of a small network, CIFAR-10, MNIST's full batch, a large
square."""


def bench(*arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of ``python -m fastsoftmax bench``, run on the very package that this process has imported."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastsoftmax.__file__).parents[1])}
    command = [sys.executable, "-m", "fastsoftmax", "bench", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: some implementation was wrong, which its own cells will say
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class Operation(abc.ABC):
    """One operation of the peers' table, by implementation, size, precision and number of threads."""

    param_names = ("implementation", "shape", "dtype", "n_threads")
    unit = "seconds"
    timeout = 900
    seconds = "0.15"  # for all implementations of one size together; large sizes take five rounds whatever they cost

    @property
    @abc.abstractmethod
    def op(self) -> str:
        """The operation's name in the table."""

    def measure(self) -> Found:
        """(implementation, shape, dtype, n_threads) -> seconds, or what went wrong; the work of ``setup_cache``.

        Every class writes a ``setup_cache`` of its own around it: asv tells them apart by their line in the source.
        """
        _, shapes, dtypes, threads = self.params  # type: ignore[attr-defined]
        found: Found = {}
        for n_threads in threads:
            if n_threads > (os.cpu_count() or 1):
                continue
            for cell in bench(
                *("--ops", self.op, "--shapes", ",".join(shapes), "--dtype", ",".join(dtypes)),
                *("--threads", str(n_threads), "--seconds", self.seconds),
            ):
                for implementation, value in {**cell["seconds"], **cell["errors"]}.items():
                    found[implementation, cell["shape"], cell["dtype"], n_threads] = value
        return found

    def setup(self, found: Found, *key: Any) -> None:
        if key not in found:
            raise NotImplementedError("not installed, or switched off")  # asv's word for "skip"
        assert not isinstance(found[key], str), found[key]

    def track_seconds(self, found: Found, *key: Any) -> Any:
        return found[key]


def parameters(op: str, shapes: list[str], dtypes: list[str] = DTYPES, threads: list[int] = THREADS) -> tuple[Any, ...]:
    """asv's ``params`` for an operation."""
    return list(TABLE[op]), shapes, dtypes, threads
