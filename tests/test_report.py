"""The asv suite covers the peers' table, and ``report.py`` says what its results say, losses included."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from pathlib import Path

import pytest

from fastsoftmax._peers import TABLE

ASV = Path(__file__).parents[1] / "asv_benchmarks"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ASV))
    yield importlib.import_module("report")
    del sys.modules["report"]


@pytest.fixture
def classes(monkeypatch):
    monkeypatch.syspath_prepend(str(ASV))
    for path in (ASV / "benchmarks").glob("bench_*.py"):
        importlib.import_module(f"benchmarks.{path.stem}")
    yield importlib.import_module("benchmarks.common").Operation.__subclasses__()
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_one_class_per_operation(classes, report):
    assert {cls.__name__.removesuffix("Large") for cls in classes} == {report.class_name(op) for op in TABLE}
    for cls in classes:
        assert cls.__name__.removesuffix("Large") == report.class_name(cls.op)
        assert "setup_cache" in vars(cls), "asv would take another class's results for its own"
        assert cls.params[0] == list(TABLE[cls.op])
        assert all(isinstance(value, str | int) for axis in cls.params for value in axis)


def test_setup_skips_the_absent_and_fails_on_the_wrong(classes):
    softmax = next(cls for cls in classes if cls.op == "softmax")()
    found = {("numpy", "1x10", "float32", 1): 1e-6, ("torch", "1x10", "float32", 1): "torch: off by 1e-3"}
    softmax.setup(found, "numpy", "1x10", "float32", 1)
    assert softmax.track_seconds(found, "numpy", "1x10", "float32", 1) == 1e-6
    with pytest.raises(NotImplementedError):
        softmax.setup(found, "scipy", "1x10", "float32", 1)
    with pytest.raises(AssertionError, match="off by 1e-3"):
        softmax.setup(found, "torch", "1x10", "float32", 1)


def results(tmp_path, **benchmarks):
    """A results file as asv writes it: name -> (params, value by key)."""
    rows = {}
    for name, (params, value) in benchmarks.items():
        words = [[repr(word) for word in axis] for axis in params]
        rows[name.replace("__", ".")] = [[value(*key) for key in itertools.product(*params)], words, "v1"]
    machine = {"cpu": "Some CPU", "num_cpu": "2", "arch": "x86_64"}
    file = {"commit_hash": "0123456789abcdef", "date": 1_790_000_000_000, "params": machine}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**file, "result_columns": ["result", "params", "version"], "results": rows}))
    return path


TIMES = {"fastsoftmax": 2.0, "fastsoftmax_out": 1.0, "numpy": 4.0, "torch": 3.0, "copyto": 0.5}


def softmax_run(tmp_path):
    def value(implementation, shape, dtype, n_threads):
        if implementation not in TIMES:
            return None
        slow = 10 if implementation == "torch" and shape == "8x10" else 1
        ours = 12 if implementation.startswith("fast") and shape == "4x10" else 1  # behind there
        return TIMES[implementation] * slow * ours * 1e-6

    implementations = ["fastsoftmax", "fastsoftmax_out", "numpy", "torch", "jax", "copyto"]
    params = [implementations, ["8x10", "4x10"], ["float32"], [1]]
    accuracy = [["fastsoftmax", "numpy"], ["softmax"], ["normal", "spread"], ["float32"]]
    errors = {
        ("fastsoftmax", "normal"): 0.6,
        ("fastsoftmax", "spread"): 0.8,
        ("numpy", "normal"): 5.0,
        ("numpy", "spread"): 65.0,
    }
    return results(
        tmp_path,
        bench_softmax__Softmax__track_seconds=(params, value),
        bench_accuracy__Accuracy__track_worst_ulps=(accuracy, lambda name, op, inputs, dtype: errors[name, inputs]),
        bench_startup__StartUp__track_import=([], lambda: 0.0123),
    )


def test_cells(tmp_path, report):
    ahead, behind = report.cells(report.read(softmax_run(tmp_path))[1])
    assert (ahead.op, ahead.shape, ahead.n_threads) == ("softmax", "8x10", 1)
    assert (ahead.best_peer, ahead.ours) == ("numpy", 1e-6)
    assert ahead.ratio == pytest.approx(4)
    moved, share = ahead.bandwidth
    assert moved == pytest.approx(2 * 8 * 10 * 4 / 1e-6)
    assert share == pytest.approx(0.5)  # copyto moves as much in half the time
    assert (behind.best_peer, behind.ratio) == ("torch", pytest.approx(3 / 12))


def test_the_report_says_where_it_is_behind(tmp_path, report, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for name, file in (("README", "README.md"), ("RESULTS", "RESULTS.md"), ("CHART", "speed.png")):
        monkeypatch.setattr(report, name, tmp_path / file)
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main([str(softmax_run(tmp_path))])
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(f"before\n{report.BEGIN}\n")
    assert readme.endswith(f"{report.END}\nafter\n")
    assert "old" not in readme
    assert "Some CPU, 2 cores, x86_64; tree 01234567" in readme
    assert "| `softmax` | 1 | 1.00x | 1 of 2 | 0.25x (4x10 float32, torch) |" in readme
    assert "Behind in 1 of 2 cells:" in readme
    assert "| `softmax` | 4x10 | float32 | 1 | 24 us | 12 us | 3 us torch | **0.25x, behind** |" in readme
    assert "| `softmax` | float32 | 0.8 | 65 |" in readme
    assert "12.3 ms" in readme
    assert "standard deviation 30" in (tmp_path / "RESULTS.md").read_text()
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    report.main([str(softmax_run(tmp_path))])
    assert (tmp_path / "README.md").read_text() == readme  # replaced, not added to


def test_nothing_measured_is_not_behind(tmp_path, report):
    path = results(
        tmp_path, bench_softmax__Softmax__track_seconds=([["fastsoftmax"], ["8x10"], ["float32"], [1]], lambda *_: 1e-6)
    )
    (cell,) = report.cells(report.read(path)[1])
    assert math.isnan(cell.ratio)
    assert "behind" not in report.cell_table([cell])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.26e-6, "1.26 us"), (2e-7, "0.2 us"), (0.0499, "49.9 ms"), (9.999e-4, "1 ms"), (12.0, "12 s"), (None, "")],
)
def test_seconds(report, value, text):
    assert report.seconds(value) == text
