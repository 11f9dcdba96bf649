"""``bench --accuracy``: worst errors in ulps, ours beside the peers'."""

from __future__ import annotations

import json

from .. import _peers
from .._peers.accuracy import INPUTS, OPERATIONS, worst_ulps
from .table import progress, show


def print_accuracy(ops: list[str], dtypes: list[str], as_json: bool = False) -> int:
    """One table per operation."""
    if not as_json:
        print("Worst error in ulps against a long-double truth; 1e7 (float32) or 1e15 (float64): no digit is right.")
    for op in (op for op in OPERATIONS if op in ops):
        names = [n for n in _peers.TABLE[op] if n not in ("copyto", "fastsoftmax_out") and not _peers.absent(n)]
        rows = []
        for inputs, dtype in progress([(inputs, dtype) for inputs in INPUTS for dtype in dtypes], op):
            errors = {name: worst_ulps(op, name, inputs, dtype) for name in names}
            if as_json:
                print(json.dumps({"op": op, "inputs": inputs, "dtype": dtype, "ulps": errors}), flush=True)
            rows.append([INPUTS[inputs][1], dtype, *("-" if e is None else f"{e:.3g}" for e in errors.values())])
        if not as_json:
            print()
            show([op, "dtype", *names], rows, 2)
    return 0
