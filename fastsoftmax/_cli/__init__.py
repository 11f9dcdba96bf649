"""The command line: arguments in, exit code out. A command is a module with ``add_arguments(parser)``, ``run(args)``.

Exit codes: 0 done; 1 something did not hold (a gradient check, a result); 2 wrong arguments or input, with one line
on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

COMMANDS = {
    "demo": "train on the digits that come with the package and compare with plain NumPy (the default)",
    "train": "train a classifier on files in MNIST's format",
    "bench": "measure against whatever peers are installed",
    "warmup": "compile every kernel into the disk cache",
    "info": "versions, processor, threads, cache folder, BLAS",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastsoftmax", description="Softmax, its losses and gradients, compiled by Numba."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="command")
    for name, text in COMMANDS.items():
        _module(name).add_arguments(subparsers.add_parser(name, help=text, description=text))
    args = parser.parse_args((sys.argv[1:] if argv is None else list(argv)) or ["demo"])
    try:
        return _module(args.command).run(args)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:  # the reader (`| head`) has seen enough; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def fail(message: object, code: int = 2) -> int:
    """Say on one line of stderr what is wrong, and return the exit code."""
    print("fastsoftmax:", " ".join(str(message).split()), file=sys.stderr)
    return code


def positive(text: str) -> int:
    """The ``type`` of arguments that count something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{command}")
