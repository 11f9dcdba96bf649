"""``bench``: time or accuracy of every operation, beside whatever peers are installed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .. import _peers
from .._peers import timing
from . import fail
from .table import seconds, show

SHAPES = {
    "affine": "128x784x100,128x784x10",
    "affine_backward": "128x784x100,128x784x10",
    "linear_cross_entropy_with_grad": "128x784x10,8192x784x10",
    "linear_cross_entropy_grad_weight": "128x784x10,60000x784x10",
    "training_epoch": "12800x784x100x10",
}
LOGITS_SHAPES = "1x10,128x10,8192x10,128x1000,1024x1000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", type=_ops, default=list(_peers.TABLE), metavar="A,B", help="which operations; all by default")
    parser.add_argument("--shapes", type=_words, metavar="128x10,..", help="rows x classes, rows x in x out; by operation if not given")
    parser.add_argument("--dtype", type=_dtypes, default=["float32"], metavar="float32,float64", help="precisions")
    parser.add_argument("--threads", type=_counts, default=[1], metavar="1,2", help="thread counts; 1 is pinned to one core")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on one line of the table")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--accuracy", action="store_true", help="worst errors in ulps instead of times")
    what.add_argument("--step", action="store_true", help="where the time of an MLP's training step goes")
    what.add_argument("--dropin", action="store_true", help="each drop-in module against what it replaces")


def run(args: argparse.Namespace) -> int:
    if len(args.threads) > 1:  # thread pools keep the size they were born with: one process per count
        return max(_again(args, n_threads) for n_threads in args.threads)
    timing.pin(args.threads[0])
    if args.accuracy:
        from .accuracy import print_accuracy

        return print_accuracy(args.ops, args.dtype)
    if args.step:
        from .step import print_step

        return print_step(args.shapes, args.dtype, args.threads[0], args.seconds)
    if args.dropin:
        return _dropin(args)
    return print_times(args.ops, args.shapes, args.dtype, args.threads[0], args.seconds)


def print_times(ops: list[str], shapes: list[str] | None, dtypes: list[str], n_threads: int, seconds_each: float) -> int:
    """One table per operation: median time of each implementation, and the best peer's over ours."""
    print(f"Median time of a call, {n_threads} thread{'s' * (n_threads > 1)}; implementations take turns.")
    peers = [name for name in _implementations(ops) if name not in ("fastsoftmax", "fastsoftmax_out", "copyto")]
    if missing := [name for name in peers if _peers.absent(name)]:
        print("Not installed, or switched off:", ", ".join(missing))
    failed = 0
    for op in ops:
        names = [name for name in _peers.TABLE[op] if not _peers.absent(name)]
        wanted = shapes or SHAPES.get(op, LOGITS_SHAPES).split(",")
        fitting = [shape for shape in wanted if _fits(op, shape)]
        if not fitting:
            continue
        rows = []
        for shape, dtype in _progress(op, [(shape, dtype) for shape in fitting for dtype in dtypes]):
            try:
                times = measure(op, shape, dtype, n_threads, names, seconds_each)
            except AssertionError as error:
                failed = fail(f"wrong result: {error}", 1)
                continue
            rows.append([shape, dtype, *(seconds(times[name]) for name in names), verdict(times)])
        print()
        show([op, "dtype", *(name.replace("fastsoftmax_out", "with out=") for name in names), "best peer / ours"], rows, 2)
    return failed


def measure(op: str, shape: str, dtype: str, n_threads: int, names: list[str], seconds_each: float) -> dict[str, float]:
    """Median seconds of each implementation on the same arrays, measured in turn after each has been checked."""
    case = _peers.make_case(op, shape, dtype, n_threads)
    calls: dict[str, Callable[[], Any]] = {}
    for name in names:
        call = _peers.ready(case, name)
        if call is not None:
            calls[name] = call
    return timing.in_turn(calls, seconds_each)


def verdict(times: dict[str, float]) -> str:
    """``3.1x torch``: how much longer the best peer takes than the better of our forms."""
    peers = {name: time for name, time in times.items() if not name.startswith(("fastsoftmax", "copyto"))}
    if not peers:
        return "-"
    best = min(peers, key=peers.__getitem__)
    ours = min(time for name, time in times.items() if name.startswith("fastsoftmax"))
    return f"{peers[best] / ours:.2f}x {best}"


def _dropin(args: argparse.Namespace) -> int:
    try:
        from .dropin import print_dropin  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        return fail("bench --dropin is not part of this version")
    return print_dropin(args.dtype, args.threads[0], args.seconds)


def _again(args: argparse.Namespace, n_threads: int) -> int:
    command = [sys.executable, "-m", "fastsoftmax", "bench", "--threads", str(n_threads), "--ops", ",".join(args.ops)]
    command += ["--dtype", ",".join(args.dtype), "--seconds", str(args.seconds)]
    command += ["--shapes", ",".join(args.shapes)] if args.shapes else []
    command += [f"--{flag}" for flag in ("accuracy", "step", "dropin") if getattr(args, flag)]
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode


def _implementations(ops: list[str]) -> list[str]:
    return list(dict.fromkeys(name for op in ops for name in _peers.TABLE[op]))


def _fits(op: str, shape: str) -> bool:
    """Sizes of one command line may be of several kinds; each operation takes those with its number of dimensions."""
    return shape.count("x") == SHAPES.get(op, LOGITS_SHAPES).split(",")[0].count("x")


def _progress(op: str, work: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    from tqdm import tqdm

    return iter(tqdm(work, desc=op, leave=False, disable=None))


def _words(text: str) -> list[str]:
    words = [word for word in text.lower().replace(" ", "").split(",") if word]
    for word in words:
        if not all(size.isdigit() and int(size) > 0 for size in word.split("x")) or word.count("x") not in (1, 2, 3):
            raise argparse.ArgumentTypeError(f"expected sizes like 128x10 or 128x784x10, got {word!r}")
    return words


def _ops(text: str) -> list[str]:
    return _choice(text, list(_peers.TABLE))


def _dtypes(text: str) -> list[str]:
    return _choice(text, ["float32", "float64"])


def _choice(text: str, allowed: list[str]) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in allowed:
            raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(allowed)}, got {word!r}")
    return words


def _counts(text: str) -> list[int]:
    counts = [int(word) if word.isdigit() else 0 for word in text.split(",")]
    if not all(1 <= count <= (os.cpu_count() or 1) for count in counts):
        raise argparse.ArgumentTypeError(f"expected thread counts from 1 to {os.cpu_count()}, got {text!r}")
    return counts
