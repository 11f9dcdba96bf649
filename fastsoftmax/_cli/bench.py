"""``bench``: time or accuracy of every operation, beside whatever peers are installed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable

from .. import _peers
from .._peers import timing
from . import fail
from .table import progress, seconds, show

SHAPES = {
    "affine": "128x784x100,128x784x10",
    "affine_backward": "128x784x100,128x784x10",
    "linear_cross_entropy_with_grad": "128x784x10,8192x784x10",
    "linear_cross_entropy_grad_weight": "128x784x10,60000x784x10",
    "training_epoch": "12800x784x100x10",
}
LOGITS_SHAPES = "1x10,128x10,8192x10,128x1000,1024x1000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", type=_ops, default=list(_peers.TABLE), metavar="A,B", help="operations (all of them)")
    parser.add_argument("--shapes", type=_shapes, metavar="128x10,..", help="rows x classes or rows x in x out (by operation)")
    parser.add_argument("--dtype", type=_dtypes, default=["float32"], metavar="float32,float64", help="precisions (float32)")
    parser.add_argument("--threads", type=_counts, default=[1], metavar="1,2", help="thread counts; 1 is pinned to a core (1)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on one line of a table (%(default)s)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, as its BLAS is
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of tables")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--accuracy", action="store_true", help="worst errors in ulps instead of times")
    what.add_argument("--step", action="store_true", help="where the time of an MLP's training step goes")
    what.add_argument("--dropin", action="store_true", help="each drop-in module against what it replaces")


def run(args: argparse.Namespace) -> int:
    if not args.here:  # thread pools keep the size they were born with: one process per count
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # which ends that process too
        return max(_child(args, n_threads) for n_threads in args.threads)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        print(f"fastsoftmax: the machine is busy (load {os.getloadavg()[0]:.1f}): times will not hold", file=sys.stderr)
    timing.pin(args.threads[0])
    if args.accuracy:
        from .accuracy import print_accuracy

        return print_accuracy(args.ops, args.dtype, args.json)
    if args.step:
        from .step import print_step

        return print_step(args.shapes, args.dtype, args.threads[0], args.seconds)
    if args.dropin:
        from .dropin import print_dropin

        return print_dropin(args.dtype, args.threads[0], args.seconds, args.json)
    return print_times(args)


def print_times(args: argparse.Namespace) -> int:
    """One table per operation: the median time of each implementation; exit code 1 if a result was wrong."""
    n_threads, failed = args.threads[0], 0
    if not args.json:
        print(f"Median time of a call, {n_threads} thread{'s' * (n_threads > 1)}; implementations take turns.")
        everybody = dict.fromkeys(name for op in args.ops for name in _peers.TABLE[op])
        if missing := [name for name in everybody if _peers.absent(name)]:
            print("Not installed, or switched off:", ", ".join(missing))
    for op in args.ops:
        names = [name for name in _peers.TABLE[op] if not _peers.absent(name)]
        shapes = [shape for shape in args.shapes or _shapes_of(op) if shape.count("x") == _shapes_of(op)[0].count("x")]
        rows = []
        for shape, dtype in progress([(shape, dtype) for shape in shapes for dtype in args.dtype], op):
            times, errors = measure(op, shape, dtype, n_threads, names, args.seconds)
            for message in errors.values():
                failed = fail(message, 1)
            if args.json:
                cell = {
                    "op": op,
                    "shape": shape,
                    "dtype": dtype,
                    "n_threads": n_threads,
                    "seconds": times,
                    "errors": errors,
                }
                print(json.dumps(cell), flush=True)
            rows.append([shape, dtype, *(seconds(times[n]) if n in times else "failed" for n in names), verdict(times)])
        if rows and not args.json:
            print()
            show([op, "dtype", *(n.replace("fastsoftmax_out", "with out=") for n in names), "best peer / ours"], rows, 2)
    return failed


def measure(
    op: str, shape: str, dtype: str, n_threads: int, names: Iterable[str], seconds_each: float
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each implementation on the same arrays, in turn; and what is wrong with those not timed."""
    case = _peers.make_case(op, shape, dtype, n_threads)
    calls, errors = {}, {}
    for name in names:
        try:
            call = _peers.ready(case, name) if name in _peers.TABLE[op] else None
        except Exception as error:  # a stranger's failure must not end the table
            reason = (str(error).splitlines() or [""])[0]
            errors[name] = f"{name} {op} {shape} {dtype}: {type(error).__name__}: {reason}"
            continue
        if call is not None:
            calls[name] = call
    return timing.in_turn(calls, seconds_each), errors


def verdict(times: dict[str, float]) -> str:
    """``3.10x torch``: how much longer the best peer takes than the better of our forms."""
    ours = [time for name, time in times.items() if name.startswith("fastsoftmax")]
    peers = {name: time for name, time in times.items() if not name.startswith(("fastsoftmax", "copyto"))}
    if not peers or not ours:
        return "-"
    best = min(peers, key=peers.__getitem__)
    return f"{peers[best] / min(ours):.2f}x {best}"


def _child(args: argparse.Namespace, n_threads: int) -> int:
    command = [sys.executable, "-m", "fastsoftmax", "bench", "--here", "--threads", str(n_threads)]
    command += ["--ops", ",".join(args.ops), "--dtype", ",".join(args.dtype), "--seconds", str(args.seconds)]
    command += ["--shapes", ",".join(args.shapes)] if args.shapes else []
    command += [f"--{flag}" for flag in ("json", "accuracy", "step", "dropin") if getattr(args, flag)]
    return subprocess.run(command, env=timing.environment(n_threads), check=False).returncode


def _shapes_of(op: str) -> list[str]:
    return SHAPES.get(op, LOGITS_SHAPES).split(",")


def _shapes(text: str) -> list[str]:
    words = text.lower().replace(" ", "").split(",")
    for word in words:
        if word.count("x") not in (1, 2, 3) or not all(size.isdigit() and int(size) for size in word.split("x")):
            raise argparse.ArgumentTypeError(f"expected sizes like 128x10 or 128x784x10, got {word!r}")
    return words


def _ops(text: str) -> list[str]:
    return _choice(text, list(_peers.TABLE))


def _dtypes(text: str) -> list[str]:
    return _choice(text, ["float32", "float64"])


def _choice(text: str, allowed: list[str]) -> list[str]:
    for word in text.split(","):
        if word not in allowed:
            raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(allowed)}, got {word!r}")
    return text.split(",")


def _counts(text: str) -> list[int]:
    counts = [int(word) if word.isdigit() else 0 for word in text.split(",")]
    if not all(1 <= count <= (os.cpu_count() or 1) for count in counts):
        raise argparse.ArgumentTypeError(f"expected thread counts from 1 to {os.cpu_count()}, got {text!r}")
    return counts
