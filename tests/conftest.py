"""Fixtures shared by the tests, and the accuracy table that is printed after a run."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
from hypothesis import settings

import fastsoftmax
from fastsoftmax import _threads

# The first call of a kernel compiles it, for a second: no deadline. The same examples every time: a test that fails
# fails for everybody.
settings.register_profile("fastsoftmax", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fastsoftmax")

# A shell lets its background jobs ignore Ctrl-C, and they all that they start: tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers that sleep are woken for any call, and all of them, so that threads share it whatever came before; but see
# `short_calls_alone`.
_WAKING, _WAKE = _threads._WAKING, _threads._WAKE
_threads._WAKING, _threads._WAKE = 0.0, 1e-9

# (input, dtype, operation) -> {library: worst ulps}, filled by test_numerics.py.
WORST_ULPS: dict[tuple[str, str, str], dict[str, float]] = {}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture(autouse=True)
def _threads_as_before():
    """No test leaves another number of threads behind."""
    before = fastsoftmax.get_num_threads()
    yield
    fastsoftmax.set_num_threads(before)


@pytest.fixture
def pool_of_eight(monkeypatch):
    """As on a machine with eight processors."""
    with monkeypatch.context() as patch:
        patch.setattr(_threads, "processors", lambda: 8)
        pool = _threads.Pool()
    monkeypatch.setattr(_threads, "pool", pool)
    yield pool
    pool.dismiss()


@pytest.fixture
def short_calls_alone(monkeypatch):
    """As elsewhere, a call that is not worth it wakes nobody, and others no more than they are worth."""
    monkeypatch.setattr(_threads, "_WAKING", _WAKING)
    monkeypatch.setattr(_threads, "_WAKE", _WAKE)


@pytest.fixture
def without_privileges():
    """How a command begins that keeps root, who may write everywhere, to the files' permissions."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("root without setpriv may write everywhere")
    return ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@pytest.fixture
def worst_ulps():
    return WORST_ULPS


def pytest_terminal_summary(terminalreporter):
    """Worst errors over the inputs of test_numerics.py, beside those of the installed peers; every input with -v."""
    if not WORST_ULPS:
        return
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for (name, dtype, operation), errors in WORST_ULPS.items():
        names = ["worst of all"] if terminalreporter.verbosity < 1 else ["worst of all", name]
        for row in (rows.setdefault((n, dtype, operation), {}) for n in names):
            row.update({library: max(error, row.get(library, 0.0)) for library, error in errors.items()})
    libraries = list(dict.fromkeys(library for row in rows.values() for library in row))
    terminalreporter.section("worst error in ulps")
    terminalreporter.line(f"{'input':24}{'dtype':9}{'operation':15}" + "".join(f"{name:>13}" for name in libraries))
    for (name, dtype, operation), row in sorted(rows.items()):
        figures = "".join(f"{row[library]:13.3g}" if library in row else " " * 13 for library in libraries)
        terminalreporter.line(f"{name:24}{dtype:9}{operation:15}{figures}")
