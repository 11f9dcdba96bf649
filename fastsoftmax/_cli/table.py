"""What people see while they wait and at the end: a progress bar, tables, units."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def seconds(value: float) -> str:
    """``1.234e-05`` as ``12.3 us``: three digits and a unit."""
    scales = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    unit = next((unit for unit, scale in scales.items() if value >= 0.9995 * scale), "us")
    number = value / scales[unit]
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {unit}"


def show(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> None:
    """Print rows under a header, the first `text_columns` to the left and the numbers to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for number, line in enumerate(lines):
        cells = [cell.ljust(w) if i < text_columns else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))
    sys.stdout.flush()


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """`items`, `total` of them if they have no length, under a progress bar that is not there when nobody looks.

    It leaves nothing behind.
    """
    from tqdm import tqdm

    return iter(tqdm(list(items) if total is None else items, desc=what, total=total, leave=False, disable=None))
