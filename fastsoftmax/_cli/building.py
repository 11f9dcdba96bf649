"""Kernels built by several processes at once.

Numba compiles on one processor; what another process has compiled lies on the disk (all kernels, two processors: 174 -> 96 s).
Only for commands: a library must not start processes, least of all in a program whose `sys.executable` is no Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress

import numpy as np

from .. import get_num_threads
from ..kernels import KERNELS, MODULES, environment, kernel
from .table import progress

TRAINING = (  # the kernels of an MLP's training steps
    "check_targets",
    "gather_bytes",
    "affine",
    "linear_cross_entropy",
    "relu_backward",
    "affine_grad_weight",
    "add_thin_parts",
    "momentum_update",
    "rewind",
    "play",
    "serve",
    "wake",
)
_MOST = 4  # processes: each takes 160 MB, and 10 more for each kernel
# Kernels of one module and dtype share parts: a process takes them together, by the number that it reads from a pipe of all.
_COMPILE = """
import os, sys
sys.path[:] = {path!r}
from fastsoftmax.kernels import kernel
wanted, jobs = {wanted!r}, {jobs!r}
while number := os.read(0, 1):
    for k in jobs[number[0]]:
        kernel(*wanted[k])
        os.write(1, bytes([k]))
"""


def build(wanted: Iterable[tuple[str, str]]) -> None:
    """Load kernels, given by name and dtype, from the disk or compile them, under a progress bar."""
    missing = [(name, dtype) for name, dtype in wanted if not KERNELS[name].find(np.dtype(dtype))]
    for name, dtype in progress(_compiled_elsewhere(missing), "compiling", len(missing)):
        kernel(name, dtype)


def _compiled_elsewhere(missing: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """All of them, most when another process has put them on the disk."""
    left, processes = dict.fromkeys(missing), min(_MOST, get_num_threads(), len(missing) // 2)
    if processes > 1 and environment()["cache"] != "none":
        with suppress(OSError):  # no more processes
            for name, dtype in _compile(missing, processes):
                if not KERNELS[name].find(np.dtype(dtype)):  # nothing can be written there
                    break
                del left[name, dtype]
                yield name, dtype
    yield from left


def _compile(wanted: list[tuple[str, str]], processes: int) -> Iterator[tuple[str, str]]:
    """Those that some of the processes say they have compiled."""
    groups: dict[tuple[str, str], list[int]] = {}
    for k, (name, dtype) in enumerate(wanted):
        groups.setdefault((MODULES[name], dtype), []).append(k)
    jobs = sorted(groups.values(), key=len, reverse=True)  # about as long as they will take
    command = [sys.executable, "-c", _COMPILE.format(path=sys.path, wanted=wanted, jobs=jobs)]
    (numbers, numbers_in), (compiled_out, compiled) = os.pipe(), os.pipe()
    with ExitStack() as stack, open(compiled_out, "rb", buffering=0) as results:
        with open(numbers_in, "wb") as to_all, open(numbers, "rb") as stdin, open(compiled, "wb") as stdout:
            for _ in range(processes):
                process = stack.enter_context(subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL))
                stack.callback(process.kill)  # before it is waited for
            to_all.write(bytes(range(len(jobs))))
        while number := results.read(1):
            yield wanted[number[0]]
