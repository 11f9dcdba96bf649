"""Timing in turn: every implementation runs once in each round, and the medians are compared.

A machine's clock and its neighbours wander by a fifth; two loops run one after the other mostly measure that. Taking
turns spreads the wandering over all of them, so their ratios hold although the times themselves do not.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from time import perf_counter, process_time, sleep
from typing import Any

SAMPLE_SECONDS = 1e-3
"""Short calls are repeated within a sample until it lasts this long, so that the clock's own cost does not count."""

SETTLE_SECONDS = 10e-3
LONGEST_SETTLE = 0.5
"""Worker threads of OpenMP and BLAS go on spinning after their work (OpenBLAS 0.3.31 for 0.12 s) and would take a core from the
next in turn: it waits until this process has been idle for so long, and makes calls that do not count for as long as a sample
lasts, so that its own workers are awake and its arrays in cache. Pinned to one core nobody has workers, and nobody waits."""

LONG_SECONDS = 50e-3
"""Calls longer than this do not warm up: it would change nothing but the time spent."""

FIRST_SECONDS = 10.0
"""A first call may compile: unless it took longer than this, a second one says how long a call takes."""

ROUND_SECONDS = 2.0
"""Where one round takes longer than this, two rounds must do."""


def environment(n_threads: int) -> dict[str, str]:
    """What a process must be started with so that BLAS and OpenMP have `n_threads` threads."""
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    return dict(os.environ) | dict.fromkeys(names, str(n_threads))


def pin(n_threads: int) -> None:
    """Let every thread of this process run on `n_threads` cores only: the one way to hold JAX's pool to one core.

    Where the system cannot, nothing happens.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[-n_threads:]
        for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
            os.sched_setaffinity(int(thread), cores)


def in_turn(calls: dict[str, Callable[[], Any]], seconds: float = 0.5, least_rounds: int = 5) -> dict[str, float]:
    """Median seconds per call of each of `calls`, measured in interleaved rounds.

    `seconds` is the time to spend on all of them together; at least `least_rounds` rounds are made whatever they cost,
    or two where a round takes seconds.
    """
    pinned = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    single = {name: _timed(call, 1) for name, call in calls.items()}
    for name, time in single.items():
        if time < FIRST_SECONDS:
            _settle(pinned)
            single[name] = min(time, _timed(calls[name], 1))
    samples = {name: [time] if time >= LONG_SECONDS else [] for name, time in single.items()}
    for name, time in single.items():  # of a short call one alone says little: it finds caches cold and threads asleep
        single[name] = min(time, _timed(calls[name], _repeats(time))) if time < SAMPLE_SECONDS else time
    if sum(single.values()) > ROUND_SECONDS:
        least_rounds = min(least_rounds, 2)
    end, rounds = perf_counter() + seconds, 0
    while rounds < least_rounds or perf_counter() < end:
        for name, call in calls.items():
            if rounds == 0 and single[name] >= LONG_SECONDS:  # its first call was its first sample
                continue
            _settle(pinned)
            repeats = _repeats(single[name])
            if single[name] < LONG_SECONDS:
                _timed(call, repeats)
            samples[name].append(_timed(call, repeats))
        rounds += 1
    return {name: statistics.median(values) for name, values in samples.items()}


def _settle(pinned: bool) -> None:
    """Wait until no thread of this process works any more."""
    end = perf_counter() + LONGEST_SETTLE
    while not pinned and perf_counter() < end:
        used = process_time()
        sleep(SETTLE_SECONDS)
        if process_time() - used < SETTLE_SECONDS / 5:
            return


def _repeats(single: float) -> int:
    return max(1, round(SAMPLE_SECONDS / max(single, 1e-7)))


def _timed(call: Callable[[], Any], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


def fastest(*calls: Callable[[], Any]) -> Callable[[], Any]:
    """The fastest of several ways to do the same thing: a peer is always shown at its best."""
    times = in_turn({str(i): call for i, call in enumerate(calls)}, seconds=0.0, least_rounds=3)
    return calls[int(min(times, key=times.__getitem__))]
