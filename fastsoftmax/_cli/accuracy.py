"""``bench --accuracy``: worst errors in ulps, ours beside the peers'."""

from __future__ import annotations

from .. import _peers
from .._peers.accuracy import INPUTS, OPERATIONS, worst_ulps
from .table import show


def print_accuracy(ops: list[str], dtypes: list[str]) -> int:
    """One table per operation; exit code 0."""
    from tqdm import tqdm

    print("Worst error in ulps against a long-double truth; 1e7 (float32) or 1e16 (float64) means that no digit is right.")
    for op in (op for op in OPERATIONS if op in ops):
        skipped = ("copyto", "fastsoftmax_out")
        names = [name for name in _peers.TABLE[op] if name not in skipped and not _peers.absent(name)]
        rows = []
        for inputs, (_, text) in tqdm(INPUTS.items(), desc=op, leave=False, disable=None):
            for dtype in dtypes:
                errors = (worst_ulps(op, name, inputs, dtype) for name in names)
                rows.append([text, dtype, *("-" if error is None else f"{error:.3g}" for error in errors)])
        print()
        show([op, "dtype", *names], rows, 2)
    return 0
