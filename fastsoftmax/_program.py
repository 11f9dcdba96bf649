"""Kernel calls made at once, or recorded to be made again and again.

What the affine layer, the optimizers and the mini-batches do is a few calls of kernels. They leave them to one of two callers:
`NOW`, or the `Program` of a training step, whose arrays stay where they are. A program is recorded once; to run it is one call
of compiled code, in which the threads go from call to call together (`kernels.program`): a step forks and joins once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays
from ._threads import QUICK, address, get_num_threads, run_rows, threads_now
from .kernels import CHUNKS, JOB_RECORD, JOB_RESULTS, JOB_ROWS, KERNELS, OF_JOB, RECORD

_FLOAT64 = np.dtype(np.float64)

Kernel = Callable[..., Any]


class Caller(ABC):
    """Makes calls of ``kernel(*arguments, first, last, job)`` over n rows or elements; `cost` is microseconds on one thread."""

    share: float  # microseconds of a share, at most

    @abstractmethod
    def threads(self) -> int:
        """How many may take part."""

    @abstractmethod
    def whole(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, cost: float, results: Any = None) -> None:
        """In one piece; what the kernel returns, if it does, is the first of the float64 array `results`."""

    @abstractmethod
    def chunks(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, size: int, cost: float, results: Any = None) -> None:
        """In chunks of `size`; `results`, all 0, has a place for each, or the first for what they add up to."""

    def pieces(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, size: int, cost: float) -> None:
        """In chunks of `size`, or where that is better others: nothing depends on them."""
        self.chunks(kernel, arguments, n, size, cost)

    @abstractmethod
    def python(self, function: Callable[[], Any]) -> None:
        """Something that is no kernel."""

    def shares(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, cost: float) -> None:
        """In equal chunks, if it takes long enough."""
        if cost <= self.share or self.threads() == 1:
            self.whole(kernel, arguments, n, cost)
        else:
            self.pieces(kernel, arguments, n, -(-n // (1 << int(cost / self.share).bit_length())), cost)

    def plain(self, array: NDArray[Any], dtype: Any) -> NDArray[Any]:
        """The array as kernels take it: itself, or a copy that is made anew in each run."""
        as_taken = _arrays.contiguous(array, dtype)
        if as_taken is not array:
            self.python(partial(_copy, as_taken, array))
        return as_taken


def _copy(to: NDArray[Any], array: NDArray[Any]) -> None:
    with np.errstate(all="ignore"):  # as in `_arrays.contiguous`
        np.copyto(to, array, casting="unsafe")


class _Now(Caller):
    share = 12.0  # to share costs 2

    def threads(self) -> int:
        return threads_now()

    def whole(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, cost: float, results: Any = None) -> None:
        result = kernel(*arguments, 0, n, cost > QUICK)
        if results is not None:
            results[0] = result

    def chunks(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, size: int, cost: float, results: Any = None) -> None:
        if n > size:
            result = run_rows(partial(kernel, *arguments), n, size, cost)
            if results is not None:
                results[0] = result
        else:
            self.whole(kernel, arguments, n, cost, results)

    def pieces(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, size: int, cost: float) -> None:
        run_rows(partial(kernel, *arguments), n, size, cost, n)

    def python(self, function: Callable[[], Any]) -> None:
        function()


NOW = _Now()


class Program(Caller):
    """Calls recorded, with the very arrays that they were given; `run` makes them in their order."""

    share = 2.0  # the threads are together already

    def __init__(self, calls: Iterable[_Call | Callable[[], Any]] = ()) -> None:
        self.calls = [*calls]
        self._runs: list[Callable[[], Any]] = []
        self._n_threads = get_num_threads()

    def threads(self) -> int:
        return self._n_threads

    def whole(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, cost: float, results: Any = None) -> None:
        self.chunks(kernel, arguments, n, max(1, n), cost, results)

    def chunks(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, size: int, cost: float, results: Any = None) -> None:
        self.calls.append(_Call(kernel, arguments, n, size, cost, results))

    def python(self, function: Callable[[], Any]) -> None:
        self.calls.append(function)

    def run(self) -> None:
        if not self._runs:
            self._runs = [*_as_few(self.calls)]
        for run in self._runs:
            run()


def joined(*programs: Program) -> Program:
    """One that makes the calls of all, in their order."""
    return Program(call for program in programs for call in program.calls)


def _as_few(calls: Iterable[_Call | Callable[[], Any]]) -> Iterator[Callable[[], Any]]:
    """Consecutive records as one call."""
    records: list[_Call] = []
    for call in calls:
        if isinstance(call, _Call):
            records.append(call)
            continue
        if records:
            yield _Play(records)
        records = []
        yield call
    if records:
        yield _Play(records)


class _Call:
    """A call's record, and what must not be freed while there is one."""

    def __init__(self, kernel: Kernel, arguments: tuple[Any, ...], n: int, size: int, cost: float, results: Any) -> None:
        self.kept, self.cost, self.n_chunks = (arguments, results), cost, -(-n // size)
        self.record = np.zeros(RECORD, np.int64)
        self.address = address(self.record)
        self.record[CHUNKS] = self.n_chunks
        job = self.record[OF_JOB:]
        job[JOB_ROWS], job[JOB_RESULTS], job[JOB_RECORD] = size, 0 if results is None else address(results), self.address
        kernel(*arguments, 0, n, self.address + 8 * OF_JOB)


class _Play:
    """Consecutive calls, as one."""

    def __init__(self, calls: list[_Call]) -> None:
        self._calls = calls
        self._records = np.array([call.address for call in calls], np.int64)
        where, n = address(self._records), len(calls)
        self._cost = sum(call.cost for call in calls)
        shared = sum(call.cost for call in calls if call.n_chunks > 1)
        self._n_threads = max(call.n_chunks for call in calls) if shared > NOW.share else 1  # more would find nothing
        self._rewind = partial(KERNELS["rewind"][_FLOAT64], where, n, 0)
        self._play = partial(KERNELS["play"][_FLOAT64], where, n)

    def __call__(self) -> None:
        self._rewind()
        run_rows(self._play, self._n_threads, 1, self._cost)
