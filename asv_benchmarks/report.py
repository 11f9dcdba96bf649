"""asv's results -> the README's figures, ``RESULTS.md`` with every cell, and the chart. No other figure is published.

    python report.py [results.json]        # the newest run by default

The README's part stands between ``<!-- table:begin -->`` and ``<!-- table:end -->`` and is replaced as a whole.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from fastsoftmax._peers import TABLE, TRAFFIC, make_case
from fastsoftmax._peers.accuracy import INPUTS

HERE = Path(__file__).parent
README, RESULTS, CHART = HERE.parent / "README.md", HERE / "RESULTS.md", HERE / "speed.png"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
IN_README = ("softmax", "cross_entropy_with_grad", "affine_backward", "training_epoch")
OURS = ("fastsoftmax", "fastsoftmax_out")


class Cell(NamedTuple):
    """One operation at one size, precision and number of threads; `times` by implementation."""

    op: str
    shape: str
    dtype: str
    n_threads: int
    times: dict[str, float]

    @property
    def ours(self) -> float:
        return min(time for name, time in self.times.items() if name in OURS)

    @property
    def best_peer(self) -> str:
        return min((n for n in self.times if n not in (*OURS, "copyto")), key=self.times.__getitem__, default="")

    @property
    def ratio(self) -> float:
        return self.times[self.best_peer] / self.ours if self.best_peer else math.nan

    @property
    def bandwidth(self) -> tuple[float, float]:
        """Bytes that must move per second, and as a share of what np.copyto moves on the same array."""
        n_bytes = make_case(self.op, self.shape, self.dtype).nbytes
        moved = TRAFFIC[self.op] * n_bytes / self.ours
        return moved, moved / (2 * n_bytes / self.times["copyto"])


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[tuple[Any, ...], float]]]:
    """The file, and its results: benchmark -> parameters -> value; failed and skipped ones are left out."""
    file = json.loads(path.read_text())
    values: dict[str, dict[tuple[Any, ...], float]] = {}
    for name, row in file["results"].items():
        columns = dict(zip(file["result_columns"], row))
        keys = itertools.product(*([ast.literal_eval(word) for word in axis] for axis in columns["params"]))
        found = zip(keys, columns["result"] or [])
        values[name] = {key: value for key, value in found if value is not None and value == value}
    return file, values


def cells(values: dict[str, dict[tuple[Any, ...], float]]) -> list[Cell]:
    """Every measured cell, in the order of the peers' table."""
    by_class = {name.split(".")[1]: found for name, found in values.items() if name.endswith(".track_seconds")}
    result = []
    for op in TABLE:
        grouped: dict[tuple[str, str, int], dict[str, float]] = {}
        found = by_class.get(class_name(op), {}) | by_class.get(class_name(op) + "Large", {})
        for (implementation, *place), value in found.items():
            grouped.setdefault(tuple(place), {})[implementation] = value
        result += [Cell(op, *place, times) for place, times in grouped.items() if OURS[0] in times]
    return result


def class_name(op: str) -> str:
    """The benchmark class of an operation; a second one, for a size of its own, ends in ``Large``."""
    return op.title().replace("_", "")


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    scales = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    unit = next((unit for unit, scale in scales.items() if value >= 0.9995 * scale), "us")
    return f"{value / scales[unit]:.3g} {unit}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell_table(chosen: list[Cell]) -> str:
    rows = []
    for cell in chosen:
        traffic = ""
        if cell.op in TRAFFIC and "copyto" in cell.times:
            moved, share = cell.bandwidth
            traffic = f"{moved / 1e9:.1f} ({share:.0%})"
        ratio = f"**{cell.ratio:.2f}x, behind**" if cell.ratio < 1 else f"{cell.ratio:.2f}x"
        rows.append(
            [
                f"`{cell.op}`",
                cell.shape,
                cell.dtype,
                str(cell.n_threads),
                seconds(cell.times[OURS[0]]),
                seconds(cell.times.get(OURS[1])),
                f"{seconds(cell.times[cell.best_peer])} {cell.best_peer}" if cell.best_peer else "",
                ratio if cell.best_peer else "",
                traffic,
            ]
        )
    header = ["operation", "shape", "dtype", "threads", "fastsoftmax", "with `out=`", "best peer", "ratio"]
    return table([*header, "GB/s (of copyto)"], rows)


def summary_table(everything: list[Cell]) -> str:
    rows = []
    for op in TABLE:
        for n_threads in (1, 2):
            chosen = [c for c in everything if c.op == op and c.n_threads == n_threads and c.best_peer]
            if not chosen:
                continue
            worst = min(chosen, key=lambda cell: cell.ratio)
            mean = math.exp(sum(math.log(cell.ratio) for cell in chosen) / len(chosen))
            ahead = sum(cell.ratio >= 1 for cell in chosen)
            worst_text = f"{worst.ratio:.2f}x ({worst.shape} {worst.dtype}, {worst.best_peer})"
            rows.append([f"`{op}`", str(n_threads), f"{mean:.2f}x", f"{ahead} of {len(chosen)}", worst_text])
    return table(["operation", "threads", "geometric mean", "cells ahead", "worst cell"], rows)


def accuracy_table(found: dict[tuple[Any, ...], float]) -> str:
    names = list(dict.fromkeys(implementation for implementation, *_ in found))
    rows = []
    for op, dtype in dict.fromkeys((op, dtype) for _, op, _, dtype in found):
        for inputs, (_, text) in INPUTS.items():
            errors = [found.get((name, op, inputs, dtype)) for name in names]
            rows.append([f"`{op}`", text, dtype, *("" if e is None else f"{e:.2g}" for e in errors)])
    return table(["operation", "input", "dtype", *names], rows)


def worst_accuracy_table(found: dict[tuple[Any, ...], float]) -> str:
    """Over all inputs, by operation and precision."""
    names = list(dict.fromkeys(implementation for implementation, *_ in found))
    rows = []
    for op, dtype in dict.fromkeys((op, dtype) for _, op, _, dtype in found):
        errors = [
            max((v for (n, o, _, d), v in found.items() if (n, o, d) == (name, op, dtype)), default=None)
            for name in names
        ]
        rows.append([f"`{op}`", dtype, *("" if e is None else f"{e:.2g}" for e in errors)])
    return table(["worst error in ulps", "dtype", *names], rows)


def startup_table(values: dict[str, dict[tuple[Any, ...], float]]) -> str:
    texts = {
        "track_import": "`import fastsoftmax`, over NumPy's",
        "track_first_softmax_warm_cache": "first softmax of a new process, kernels on disk",
        "track_first_softmax_cold_cache": "first softmax of a new process, nothing on disk",
        "track_compile_all_float32": "compiling every float32 kernel",
    }
    found = {name: values.get(f"bench_startup.StartUp.{name}", {}) for name in texts}
    return table(["start-up", "time"], [[texts[name], seconds(value[()])] for name, value in found.items() if value])


def chart(everything: list[Cell], path: Path) -> None:
    """Ratio to the best peer by size, float32; one thread above, two below. A bar that hangs down is behind."""
    from matplotlib.figure import Figure

    ops = ["softmax", "log_softmax", "cross_entropy_with_grad", "softmax_backward"]
    shapes = list(dict.fromkeys(cell.shape for cell in everything if cell.op in ops))
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, n_threads in zip(figure.subplots(2, 1, sharex=True), (1, 2)):
        for position, op in enumerate(ops):
            chosen = {
                c.shape: c.ratio for c in everything if (c.op, c.n_threads, c.dtype) == (op, n_threads, "float32")
            }
            places = [shapes.index(shape) + 0.2 * (position - 1.5) for shape in chosen]
            heights = [ratio - 1 for ratio in chosen.values()]
            axes.bar(places, heights, width=0.2, bottom=1, color=f"C{position}", label=op)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}x")
        axes.set(ylabel="best peer's time / ours", title=f"float32, {n_threads} thread{'s' * (n_threads > 1)}")
        axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(range(len(shapes)), shapes)
    axes.set_xlabel("rows x classes")
    axes.legend(ncols=4)
    figure.savefig(path, dpi=110)


def head(file: dict[str, Any]) -> str:
    machine, day = file["params"], datetime.fromtimestamp(file["date"] / 1000, tz=timezone.utc)
    return (
        f"{machine['cpu']}, {machine['num_cpu']} cores, {machine['arch']}; tree {file['commit_hash'][:8]} of "
        f"{day:%Y-%m-%d}. Medians; all implementations take turns on the same arrays; every peer at its best (kept "
        "buffers where it allows them, the faster of its ways); one-thread runs are pinned to one core. The ratio is "
        "the best peer's time over ours.\n"
    )


def main(arguments: list[str]) -> None:
    runs = [p for p in (HERE / ".asv" / "results").glob("*/*.json") if p.name != "machine.json"]
    path = Path(arguments[0]) if arguments else max(runs, key=lambda p: p.stat().st_mtime)
    file, values = read(path)
    everything = cells(values)
    accuracy = values.get("bench_accuracy.Accuracy.track_worst_ulps", {})
    behind = [cell for cell in everything if cell.ratio < 1]
    chart(everything, CHART)

    parts = [
        f"# Every cell measured\n\n{head(file)}",
        cell_table(everything),
        startup_table(values),
        accuracy_table(accuracy),
    ]
    RESULTS.write_text("\n".join(parts))

    chosen = [cell for cell in everything if cell.op in IN_README and cell.dtype == "float32"]
    verdict = f"Behind in {len(behind)} of {len(everything)} cells" + (":" if behind else ".") + "\n"
    parts = [
        head(file) + "Every cell: [RESULTS.md](asv_benchmarks/RESULTS.md).\n",
        summary_table(everything),
        f"![Best peer's time over ours]({CHART.relative_to(README.parent).as_posix()})\n",
        cell_table(chosen),
        verdict,
        cell_table(behind) if behind else "",
        worst_accuracy_table(accuracy),
        startup_table(values),
    ]
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n" + "\n".join(part for part in parts if part) + f"{END}{after}")
    print(
        f"{len(everything)} cells from {path.name}, behind in {len(behind)}: "
        f"wrote {README.name}, {RESULTS.name}, {CHART.name}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
