"""``python -m fastsoftmax``: what it prints, where it writes, and its exit codes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax
from fastsoftmax import MLP, _cli, _training
from fastsoftmax._cli import bench, demo, step, table
from fastsoftmax._peers import ours, timing

pytestmark = pytest.mark.filterwarnings("default")  # bench imports other people's libraries


@pytest.fixture(autouse=True)
def _unpinned(monkeypatch):
    """`bench` pins its process to a core; here that would hold the rest of the test session, too."""
    monkeypatch.setattr(timing, "pin", lambda n_threads: None)


@pytest.fixture
def mnist(tmp_path):
    """A learnable data set in MNIST's format: a bright band of rows for each of four classes."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, n in (("train", 960), ("t10k", 200)):
        labels = rng.integers(0, 4, n).astype(np.uint8)
        images = rng.integers(0, 60, (n, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels):
            image[7 * label : 7 * label + 7] += 180
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


def write_idx(path, array):
    raw = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


# ---- the commands ----


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in ("demo", "train", "bench", "warmup", "info"))


def test_demo_is_the_default(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda args: 7)
    assert _cli.main([]) == 7
    assert _cli.main(["demo"]) == 7


def test_demo(capsys):
    assert _cli.main(["demo"]) == 0
    out = capsys.readouterr().out
    accuracy = float(out.split("test accuracy ")[1].split("%")[0])
    assert accuracy >= 97
    assert "gradient check passed" in out
    for row in ("softmax", "cross_entropy_with_grad", "affine_backward", "training_epoch"):
        assert f"\n{row} " in out


def test_demo_fails_when_too_little_is_learnt(monkeypatch):
    monkeypatch.setattr(demo, "print_comparison", lambda: None)
    assert _cli.main(["demo", "--epochs", "1"]) == 1


@pytest.mark.parametrize("command", ["demo", "train"])
def test_all_kernels_of_a_command_are_compiled_under_its_progress_bar(command, mnist):
    """In a new process: here other tests have built kernels already."""
    code = (
        f"import sys; from fastsoftmax import _cli; from fastsoftmax._cli import {command} as command;"
        "from fastsoftmax.kernels import built; build, seen = command.build, [];"
        "command.build = lambda wanted: [build(pairs := list(wanted)), seen.append((set(built()), {*dict(pairs)}))];"
        "_cli.main(sys.argv[1:]); (ready, wanted), = seen; print(sorted(set(built()) - ready), {*dict(ready)} - wanted)"
    )
    arguments = ["--data", str(mnist)] if command == "train" else []
    out = subprocess.check_output([sys.executable, "-c", code, command, "--epochs", "1", *arguments], text=True)
    assert out.splitlines()[-1] == "[] set()"


@pytest.mark.parametrize(
    ("place", "elsewhere"),
    [
        ({"FASTSOFTMAX_CACHE_DIR": "cache"}, True),
        ({"FASTSOFTMAX_CACHE_DIR": "file/cache"}, False),
        ({"FASTSOFTMAX_CACHE": "0"}, False),
    ],
)
def test_commands_have_kernels_compiled_by_other_processes_if_they_can_be_kept(place, elsewhere, tmp_path):
    """The one that asked for them then never imports numba."""
    wanted = [
        ("relu", "float32"),
        ("relu", "float64"),
        ("check_targets", "float32"),
        ("rewind", "float64"),
        ("wake", "float32"),
    ]
    code = (
        "import sys; from fastsoftmax._cli.building import build; from fastsoftmax.kernels import built;"
        f"build({wanted}); print(set({wanted}) <= set(built()), 'numba' not in sys.modules)"
    )
    (tmp_path / "file").touch()
    environment = {**os.environ, "FASTSOFTMAX_NUM_THREADS": "2", **place}
    out = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path, env=environment)
    assert out == f"True {elsewhere}\n"


@pytest.mark.skipif(not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="the system does not say")
def test_an_interrupted_command_leaves_no_process_that_compiles(tmp_path):
    environment = {**os.environ, "FASTSOFTMAX_NUM_THREADS": "2", "FASTSOFTMAX_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "fastsoftmax", "warmup"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        started, end = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + 60
        while len(children := [*filter(compiles, started.read_text().split())]) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)  # the command knows of them now
        process.send_signal(signal.SIGINT)  # to it alone: a terminal would tell the others, too
        assert process.wait(20) == 130
        assert process.stderr.read().endswith("fastsoftmax: interrupted\n")
    assert len(children) == 2
    assert not any(map(compiles, children))


def compiles(process):
    """Whether that process, given by its number, is there to compile kernels."""
    try:
        return b"from fastsoftmax.kernels import kernel" in Path("/proc", process, "cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def test_info(capsys):
    assert _cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in (fastsoftmax.__version__, np.__version__, "numba", "threads", "cache", "BLAS"):
        assert word.lower() in out.lower()


def test_warmup(capsys):
    assert _cli.main(["warmup", "--dtype", "float32"]) == 0
    assert "(float32) ready in" in capsys.readouterr().out


def test_the_module_runs_and_its_exit_code_is_the_commands(tmp_path):
    command = [sys.executable, "-m", "fastsoftmax", "train", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train-images-idx3-ubyte" in done.stderr


def test_ctrl_c_is_130(monkeypatch, capsys):
    from fastsoftmax._cli import info

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert _cli.main(["info"]) == 130
    assert capsys.readouterr().err == "fastsoftmax: interrupted\n"


# ---- train ----


def test_train_learns_saves_and_draws(mnist, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model, curve = tmp_path / "model.npz", tmp_path / "curve.png"
    arguments = ["--hidden", "16", "--epochs", "3", "--batch-size", "32", "--save", str(model), "--plot", str(curve)]
    assert _cli.main(["train", "--data", str(mnist), *arguments]) == 0
    out = capsys.readouterr().out
    assert float(out.split("test accuracy ")[1].split("%")[0]) > 95
    assert out.count("validation accuracy") == 3
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert MLP.load(model).hidden == (16,)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "train-images-idx3-ubyte.gz").unlink(), "train-images-idx3-ubyte: no such"),
        (lambda folder: cut(folder / "t10k-labels-idx1-ubyte", 100), "t10k-labels-idx1-ubyte: truncated"),
        (lambda folder: cut(folder / "t10k-images-idx3-ubyte.gz", 100), "t10k-images-idx3-ubyte.gz: truncated"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(b"\x01" * 64),
            "train-labels-idx1-ubyte: not an IDX",
        ),
    ],
    ids=["missing", "truncated", "truncated gzip", "wrong magic"],
)
def test_a_damaged_file_is_one_line_and_exit_code_2(mnist, tmp_path, capsys, damage, reason):
    damage(mnist)
    arguments = ["--save", str(tmp_path / "model.npz"), "--plot", str(tmp_path / "curve.png")]
    if importlib.util.find_spec("matplotlib") is None:
        del arguments[2:]
    assert _cli.main(["train", "--data", str(mnist), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err
    assert captured.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["data"]


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.fixture
def no_training(monkeypatch):
    def fit(*args, **kwargs):
        pytest.fail("training has started")

    monkeypatch.setattr(MLP, "fit", fit)


@pytest.mark.usefixtures("no_training")
def test_plot_without_matplotlib_is_found_out_first(mnist, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _cli.main(["train", "--data", str(mnist), "--plot", str(tmp_path / "curve.png")]) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("flag", ["--save", "--plot"])
def test_a_folder_that_does_not_exist_is_found_out_first(mnist, tmp_path, capsys, monkeypatch, flag):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    path = tmp_path / "nowhere" / "file"
    assert _cli.main(["train", "--data", str(mnist), flag, str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_interrupted_training_keeps_the_model(mnist, tmp_path, capsys, monkeypatch):
    """As `fit` does it: the signal is raised again when the batch is done."""
    fit = MLP.fit

    def interrupted(self, x, targets, **kwargs):
        fit(self, x, targets, **{**kwargs, "epochs": 1})
        raise KeyboardInterrupt

    monkeypatch.setattr(MLP, "fit", interrupted)
    model = tmp_path / "model.npz"
    assert _cli.main(["train", "--data", str(mnist), "--hidden", "8", "--save", str(model)]) == 130
    captured = capsys.readouterr()
    assert "interrupted" in captured.err
    assert "test accuracy" in captured.out
    assert MLP.load(model).history is not None


@pytest.mark.parametrize("arguments", [[], ["--data", "x", "--epochs", "0"], ["--data", "x", "--hidden", "-3"]])
def test_wrong_arguments_of_train(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["train", *arguments])
    assert stop.value.code == 2


# ---- bench ----


@pytest.fixture
def few_peers(monkeypatch):
    """NumPy alone: importing the others takes seconds."""
    monkeypatch.setattr(bench._peers, "absent", lambda name: name in ("scipy", "torch", "jax", "sklearn"))


@pytest.mark.usefixtures("few_peers")
def test_bench_prints_a_table_per_operation(capsys):
    arguments = [
        "--ops",
        "softmax,affine",
        "--shapes",
        "4x10,8x10,3x7x5",
        "--dtype",
        "float32,float64",
        "--seconds",
        "0",
    ]
    assert _cli.main(["bench", "--here", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Not installed, or switched off: scipy, torch, jax, sklearn" in out
    softmax, affine = out.split("\naffine ")
    assert [line.split()[:2] for line in softmax.splitlines() if line[:1].isdigit()] == [
        [shape, dtype] for shape in ("4x10", "8x10") for dtype in ("float32", "float64")
    ]
    assert [line.split()[0] for line in affine.splitlines() if line[:1].isdigit()] == ["3x7x5"] * 2
    assert all(line.endswith("x numpy") for line in out.splitlines() if line[:1].isdigit())


@pytest.mark.usefixtures("few_peers")
@pytest.mark.parametrize(("load", "warned"), [(0.0, False), (1000.0, True)])
def test_bench_says_when_the_machine_is_busy(capsys, monkeypatch, load, warned):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert _cli.main(["bench", "--here", "--ops", "softmax", "--shapes", "4x10", "--seconds", "0"]) == 0
    assert ("the machine is busy" in capsys.readouterr().err) == warned


@pytest.mark.usefixtures("few_peers")
def test_bench_json_is_for_scripts(capsys):
    assert _cli.main(["bench", "--here", "--ops", "logsumexp", "--shapes", "4x10", "--json", "--seconds", "0"]) == 0
    cell = json.loads(capsys.readouterr().out)
    assert (cell["op"], cell["shape"], cell["dtype"], cell["n_threads"]) == ("logsumexp", "4x10", "float32", 1)
    assert set(cell["seconds"]) == {"fastsoftmax", "numpy", "copyto"}
    assert all(value > 0 for value in cell["seconds"].values())
    assert cell["errors"] == {}


@pytest.mark.usefixtures("few_peers")
def test_bench_does_not_time_a_wrong_result(capsys, monkeypatch):
    monkeypatch.setattr(ours, "softmax", lambda case: lambda: case.logits)
    assert _cli.main(["bench", "--here", "--ops", "softmax", "--shapes", "4x10", "--seconds", "0"]) == 1
    captured = capsys.readouterr()
    assert "fastsoftmax softmax[0]: off by" in captured.err
    assert "failed" in captured.out


def test_bench_runs_each_thread_count_in_its_own_process():
    command = [
        sys.executable,
        "-m",
        "fastsoftmax",
        "bench",
        "--ops",
        "softmax",
        "--shapes",
        "4x10",
        "--json",
        "--seconds",
        "0",
    ]
    environment = {**os.environ, "FASTSOFTMAX_PEERS": "0"}
    counts = [1, 2][: os.cpu_count()]
    done = subprocess.run([*command, "--threads", ",".join(map(str, counts))], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["n_threads"] for line in done.stdout.splitlines()] == counts
    assert timing.environment(1)["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.usefixtures("few_peers")
@pytest.mark.skipif(not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="the system does not list children")
def test_bench_that_is_terminated_leaves_no_process_behind():
    command = [sys.executable, "-m", "fastsoftmax", "bench", "--ops", "softmax", "--shapes", "128x10", "--seconds", "100"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "FASTSOFTMAX_PEERS": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline()  # the other process measures
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                (child,) = file.read().split()
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not os.path.exists(f"/proc/{child}")


def test_bench_accuracy(capsys):
    assert _cli.main(["bench", "--here", "--accuracy", "--ops", "softmax", "--json"]) == 0
    cells = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    spread = next(cell for cell in cells if cell["inputs"] == "spread")
    assert spread["ulps"]["fastsoftmax"] <= 2 < spread["ulps"]["numpy"]
    assert _cli.main(["bench", "--here", "--accuracy", "--ops", "logsumexp"]) == 0
    assert "standard deviation 30" in capsys.readouterr().out


def test_bench_dropin_shows_before_and_after(capsys, monkeypatch):
    from fastsoftmax._cli import dropin

    def missing():
        raise ImportError("no module named nobody")

    cases = [
        dropin.DropinCase("one (2, 3)", lambda: lambda: None, lambda: lambda: None),
        dropin.DropinCase("nobody's", missing, lambda: lambda: None),
    ]
    monkeypatch.setattr(dropin, "dropin_cases", lambda dtype: cases)
    assert _cli.main(["bench", "--here", "--dropin", "--seconds", "0"]) == 0
    out = capsys.readouterr().out
    assert next(line.split()[-1] for line in out.splitlines() if line.startswith("one (2, 3)")).endswith("x")
    assert "Not installed: nobody's" in out
    assert _cli.main(["bench", "--here", "--dropin", "--seconds", "0", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["seconds"]) == {"before", "after"}


def test_bench_step_accounts_for_the_whole_step_and_leaves_no_trace(capsys):
    before = _training.Step.run
    assert _cli.main(["bench", "--here", "--step", "--shapes", "512x20x16x4", "--seconds", "0"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert header.split()[-9:] == ["gather", "forward", "head", "backward", "update", "loop", "step", "at", "once"]
    assert "100%" in row
    assert before is _training.Step.run
    times = step.step_times("512x20x16x4", "float32", 0)
    assert all(times[part] > 0 for part in ("gather", "forward", "head", "backward", "update"))
    assert sum(times[part] for part in times if part not in ("step", "at once")) == pytest.approx(times["step"])
    assert 0 < times["at once"] < 10 * times["step"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "softmacks"], "expected one or more of softmax"),
        (["--shapes", "128x"], "expected sizes like 128x10"),
        (["--shapes", "10"], "expected sizes like 128x10"),
        (["--shapes", "0x10"], "expected sizes like 128x10"),
        (["--dtype", "float16"], "expected one or more of float32, float64"),
        (["--threads", "0"], "expected thread counts from 1"),
        (["--threads", "100000"], "expected thread counts from 1"),
        (["--accuracy", "--step"], "not allowed with"),
    ],
)
def test_wrong_arguments_of_bench(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["bench", "--here", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234e-5, "12.3 us"),
        (1.3e-7, "0.13 us"),
        (2.5e-6, "2.50 us"),
        (0.1234, "123 ms"),
        (12.34, "12.3 s"),
        (9.996e-3, "10.0 ms"),
    ],
)
def test_seconds(value, text):
    assert table.seconds(value) == text
