"""``warmup``: fill the disk cache, for instance while an image is built."""

from __future__ import annotations

import argparse
from time import perf_counter

from .. import warmup
from .bench import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"], choices=["float32", "float64"])


def run(args: argparse.Namespace) -> int:
    start = perf_counter()
    for dtype in progress(args.dtype, "compiling"):
        warmup((dtype,))
    print(f"{', '.join(args.dtype)}: ready in {perf_counter() - start:.1f} s")
    return 0
