"""``warmup``: fill the disk cache, for instance while an image is built."""

from __future__ import annotations

import argparse
from time import perf_counter

from ..kernels import KERNELS, environment
from .building import build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])


def run(args: argparse.Namespace) -> int:
    start = perf_counter()
    wanted = [(name, dtype) for dtype in args.dtype for name in KERNELS]
    build(wanted)
    seconds, folder = perf_counter() - start, environment()["cache"]
    print(f"{len(wanted)} kernels ({', '.join(args.dtype)}) ready in {seconds:.1f} s, kept in {folder}")
    return 0
