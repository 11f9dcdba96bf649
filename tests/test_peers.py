"""The peers' table: complete, checked, lazily imported, timed in turn; and its measure of accuracy."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

from fastsoftmax import _peers
from fastsoftmax._peers import accuracy, reference, timing

SMALL = {
    "affine": "17x33x5",
    "affine_backward": "17x33x5",
    "linear_cross_entropy_with_grad": "17x33x5",
    "linear_cross_entropy_grad_weight": "1030x3x5",  # the reference works by blocks of 1,024 rows
    "training_epoch": "6400x784x16x4",
}
IMPLEMENTATIONS = list(dict.fromkeys(name for names in _peers.TABLE.values() for name in names))
MODULES = {name: _peers._MODULES.get(name, f"{name}_") for name in IMPLEMENTATIONS}
LIBRARIES = {"scipy": "scipy", "torch": "torch", "jax": "jax", "sklearn": "sklearn"}

pytestmark = pytest.mark.filterwarnings("default")  # other people's libraries warn about other people's libraries


def module(implementation: str):
    if implementation in LIBRARIES:
        pytest.importorskip(LIBRARIES[implementation])
    return importlib.import_module(f"fastsoftmax._peers.{MODULES[implementation]}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_table_lists_exactly_the_factories_that_exist(implementation):
    functions = {name for name, _ in inspect.getmembers(module(implementation), inspect.isfunction)} & set(_peers.TABLE)
    assert functions == {op for op, names in _peers.TABLE.items() if implementation in names}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("op", "implementation"), [(op, name) for op, names in _peers.TABLE.items() for name in names])
def test_every_implementation_is_right(op, implementation, dtype):
    module(implementation)
    case = _peers.make_case(op, SMALL.get(op, "17x10"), dtype)
    call = _peers.ready(case, implementation)  # checks the first result
    assert call is not None
    _peers.check(case, call(), implementation)  # and with buffers already used


@pytest.mark.parametrize("op", [op for op in _peers.TABLE if op != "training_epoch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wrong_result_is_not_timed(op, dtype):
    case = _peers.make_case(op, SMALL.get(op, "17x10"), dtype)
    right = getattr(reference, op)(case)
    _peers.check(case, right, "truth")
    parts = right if isinstance(right, tuple) else (right,)
    for i, part in enumerate(parts):
        wrong = np.array(part)
        wrong.flat[-1] += np.abs(wrong).max() * 1e-3
        results = (*parts[:i], wrong, *parts[i + 1 :])
        with pytest.raises(AssertionError, match=rf"somebody {op}\[{i}\]: off by"):
            _peers.check(case, results if len(parts) > 1 else wrong, "somebody")
    with pytest.raises(AssertionError, match="somebody"):
        _peers.check(case, parts[0][..., :-1] if np.ndim(parts[0]) else parts[:1], "somebody")


def test_a_model_that_learns_nothing_is_not_timed():
    case = _peers.make_case("training_epoch", SMALL["training_epoch"])
    with pytest.raises(AssertionError, match=r"somebody training_epoch: 0\.\d+ of the rows right"):
        _peers.check(case, lambda x: np.zeros(len(x), int), "somebody")


def test_nan_is_a_wrong_result():
    case = _peers.make_case("softmax", "4x3")
    with pytest.raises(AssertionError):
        _peers.check(case, np.full((4, 3), np.nan, np.float32), "somebody")


def test_the_reference_of_the_head_is_that_of_its_parts():
    case = _peers.make_case("linear_cross_entropy_with_grad", "1030x3x5", "float64")
    loss, grad_x, grad_weight, grad_bias = reference.linear_cross_entropy_with_grad(case)
    head = _peers.make_case("cross_entropy_with_grad", "1030x5", "float64")
    head.logits, head.targets = reference.affine(case), case.targets
    want_loss, case.grad_out = reference.cross_entropy_with_grad(head)
    for got, want in zip(
        (loss, grad_x, grad_weight, grad_bias), (want_loss, *reference.affine_backward(case)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_the_same_arrays_for_everybody():
    one, other = (_peers.make_case("cross_entropy", "128x10") for _ in range(2))
    np.testing.assert_array_equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.targets, other.targets)
    assert one.logits.std() > 3
    assert _peers.make_case("softmax_axis0", "128x10").logits.shape == (10, 128)
    backward = _peers.make_case("softmax_backward_axis0", "128x10")
    assert backward.grad_probs.shape == backward.probs.shape == (10, 128)
    np.testing.assert_allclose(backward.probs.sum(axis=0), 1, rtol=1e-5)


def test_peers_are_imported_only_when_asked_for():
    code = (
        "import sys, fastsoftmax._peers, fastsoftmax._peers.accuracy, fastsoftmax._peers.timing;"
        "print([name for name in ('numba', 'scipy', 'torch', 'jax', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_peers_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("FASTSOFTMAX_PEERS", "0")
    assert [name for name in IMPLEMENTATIONS if not _peers.absent(name)] == ["fastsoftmax", "fastsoftmax_out", "copyto"]
    assert _peers.ready(_peers.make_case("softmax", "2x3"), "numpy") is None


def test_a_peer_that_is_not_installed_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "fastsoftmax._peers.scipy_", raising=False)
    assert _peers.absent("scipy")
    assert _peers.ready(_peers.make_case("softmax", "2x3"), "scipy") is None


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "sleep", lambda seconds: None)

    def call(self, name, *durations):
        durations = iter(durations)
        last = 0.0

        def call():
            nonlocal last
            self.log.append(name)
            last = next(durations, last)
            self.now += last

        return call


def test_implementations_take_turns(monkeypatch):
    clock = Clock(monkeypatch)
    times = timing.in_turn({"a": clock.call("a", 0.1), "b": clock.call("b", 0.3)}, seconds=0, least_rounds=4)
    assert "".join(clock.log) == "ab" * 5  # the first calls may compile
    assert times == pytest.approx({"a": 0.1, "b": 0.3})


def test_a_round_that_takes_seconds_is_made_twice(monkeypatch):
    clock = Clock(monkeypatch)
    timing.in_turn({"a": clock.call("a", 1.0), "b": clock.call("b", 3.0)}, seconds=0, least_rounds=5)
    assert "".join(clock.log) == "ab" * 3


def test_rounds_go_on_until_the_time_is_spent(monkeypatch):
    clock = Clock(monkeypatch)
    timing.in_turn({"a": clock.call("a", 1.0)}, seconds=10, least_rounds=1)
    assert len(clock.log) == 12


def test_the_median_is_reported(monkeypatch):
    clock = Clock(monkeypatch)
    assert timing.in_turn({"a": clock.call("a", 0.1, 1, 0.2)}, seconds=0, least_rounds=3) == pytest.approx({"a": 0.2})


def test_short_calls_are_repeated_within_a_sample(monkeypatch):
    clock = Clock(monkeypatch)
    times = timing.in_turn({"a": clock.call("a", 1e-4)}, seconds=0, least_rounds=1)
    assert times["a"] == pytest.approx(1e-4)
    assert len(clock.log) == 2 + 10 + 10 + 10  # its time, twice; a sample of 1 ms that does not count, one that does


def test_a_peer_is_shown_at_its_best(monkeypatch):
    clock = Clock(monkeypatch)
    slow, fast = clock.call("slow", 2.0), clock.call("fast", 1.0)
    assert timing.fastest(slow, fast) is fast
    assert timing.fastest(fast, slow) is fast


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_pin_holds_every_thread_of_the_process():
    code = (
        "import os, threading; from fastsoftmax._peers.timing import pin;"
        "done = threading.Event(); thread = threading.Thread(target=done.wait); thread.start(); pin(1);"
        "print([len(os.sched_getaffinity(int(t))) for t in os.listdir('/proc/self/task')]); done.set()"
    )
    counts = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert set(counts.strip(" []\n").split(", ")) == {"1"}
    assert counts.count("1") >= 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ulps(dtype):
    one = np.ones(3, dtype)
    assert accuracy.ulps(one, np.ones(3, np.longdouble), dtype) == 0
    assert accuracy.ulps(np.nextafter(one, 2), np.ones(3, np.longdouble), dtype) == 1
    assert (
        accuracy.ulps(np.nextafter(one, 0), np.ones(3, np.longdouble), dtype) == 0.5
    )  # the spacing below 1 is half as wide
    subnormal = np.full(3, np.finfo(dtype).smallest_subnormal)
    assert accuracy.ulps(0 * subnormal, subnormal.astype(np.longdouble), dtype) == 0


@pytest.mark.parametrize("inputs", ["spread", "confident", "wrong", "offset", "equal"])
@pytest.mark.parametrize("op", accuracy.OPERATIONS)
def test_the_truth_is_true(op, inputs):
    """Against mpmath with 60 digits, on the first rows."""
    mp = pytest.importorskip("mpmath")
    case = accuracy.hard_case(op, inputs, "float64")
    want = accuracy.truth(case)
    with mp.workdps(60):
        for i in range(2):
            z = [mp.mpf(float(v)) for v in case.logits[i]]
            total, t = mp.fsum(mp.exp(v) for v in z), int(case.targets[i])
            probs = [mp.exp(v) / total for v in z]
            exact = {
                "softmax": probs,
                "log_softmax": [v - mp.log(total) for v in z],
                "logsumexp": [mp.log(total)],
                "cross_entropy": [mp.log(total) - z[t]],
                "cross_entropy_with_grad": [(p - (j == t)) / case.n_rows for j, p in enumerate(probs)],
            }[op]
            for got, value in zip(np.atleast_1d(want[i]), exact, strict=True):
                if abs(value) > np.finfo(float).tiny:
                    as_mpf = mp.mpf(float(got)) + mp.mpf(float(got - np.longdouble(float(got))))
                    assert abs(as_mpf - value) <= abs(value) * mp.mpf(2) ** -57  # a sixteenth of an ulp in float64


def test_the_usual_formulas_fail_where_they_should():
    """Else the accuracy table would be a row of equals."""
    assert accuracy.worst_ulps("softmax", "numpy", "spread", "float32") > 20
    assert accuracy.worst_ulps("cross_entropy", "numpy", "confident", "float32") > 1e6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inputs", list(accuracy.INPUTS))
@pytest.mark.parametrize("op", accuracy.OPERATIONS)
def test_ours_keeps_its_digits(op, inputs, dtype):
    assert accuracy.worst_ulps(op, "fastsoftmax", inputs, dtype) <= {"float32": 2, "float64": 4}[dtype]
