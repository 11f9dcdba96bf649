"""``bench --dropin``: each call that a drop-in module replaces, before and after the change of the import."""

from __future__ import annotations

import json

from .. import _threads
from .._peers import timing
from .._peers.dropin import DropinCase, dropin_cases
from .table import progress, seconds, show


def print_dropin(dtypes: list[str], n_threads: int, seconds_each: float, as_json: bool = False) -> int:
    """One table per precision; what is not installed is named below it."""
    _threads.set_num_threads(n_threads)
    for dtype in dtypes:
        rows, missing = [], []
        for case in progress(dropin_cases(dtype), "before and after"):
            times = measure(case, n_threads, seconds_each)
            if times is None:
                missing.append(case.label)
            elif as_json:
                print(json.dumps({"case": case.label, "dtype": dtype, "n_threads": n_threads, "seconds": times}))
            else:
                before, after = times["before"], times["after"]
                rows.append([case.label, seconds(before), seconds(after), f"{before / after:.2f}x"])
        if not as_json:
            show([f"{dtype}, {n_threads} thread{'s' * (n_threads > 1)}", "before", "after", "faster"], rows)
            if missing:
                print("Not installed:", "; ".join(missing))
            print()
    return 0


def measure(case: DropinCase, n_threads: int, seconds_each: float) -> dict[str, float] | None:
    """Median seconds before and after, in turn; None where what is replaced is not installed."""
    try:
        before = case.theirs()
    except ImportError:
        return None
    if case.label.startswith("torch"):
        import torch

        torch.set_num_threads(n_threads)
    return timing.in_turn({"before": before, "after": case.ours()}, seconds_each)
