"""Processes started from a program that already uses the library: they compute, or say clearly why they cannot.

Every case runs in a fresh process of its own, with a time limit: a hang is a failure, not a stuck test run.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap

import pytest

from fastsoftmax._processors import processors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# `in_child` forks; the child checks its results, and the parent that the child ends within ten seconds.
PRELUDE = """
import fastsoftmax as fs  # first: hooks at a fork run in an order that depends on the order of imports
import os, signal, sys, threading, time, traceback, warnings
import numpy.testing  # now: a fork while another thread imports a module is beyond our help
import numpy as np

warnings.simplefilter("ignore", DeprecationWarning)  # fork in a program with threads: the subject here
rng = np.random.default_rng(0)
small, large = rng.standard_normal((8, 10)), rng.standard_normal((4000, 500))

def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)

def check():
    for x in (small, large):
        np.testing.assert_allclose(fs.softmax(x), softmax(x), rtol=1e-12)

def check_relu():
    '''As `check`, by a kernel that compiles fast.'''
    np.testing.assert_array_equal(fs.relu(small), np.maximum(small, 0))

def in_child(action, seconds=10):
    '''The exit status of a child that runs `action`: 0 if it returned; or "hangs".'''
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"
"""


def run(code, *, cache, timeout=120):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTSOFTMAX_", "NUMBA_", "OMP_"))}
    env |= {"FASTSOFTMAX_CACHE": "0"} if cache is None else {"FASTSOFTMAX_CACHE_DIR": str(cache)}
    script = PRELUDE + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-c", script], env=env, timeout=timeout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split(), result.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One warm cache for the cases in which compiling is not the subject."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_child_of_a_program_that_used_the_pool(cache, threads):
    expected = min(threads, processors())
    out, err = run(
        f"""
        def check_with_a_pool():
            check()
            assert threading.active_count() == {expected}, threading.enumerate()

        fs.set_num_threads({threads})
        check_with_a_pool()
        print(threading.active_count(), in_child(check_with_a_pool))
        # A grandchild too; and the parent goes on.
        print(in_child(lambda: (check(), sys.exit(in_child(check)) if in_child(check) else None)))
        check()
        """,
        cache=cache,
    )
    assert out == [str(expected), "0", "0"], err


def test_child_of_a_program_that_only_imported(cache):
    assert run("print(in_child(check))", cache=cache)[0] == ["0"]


def test_forks_while_other_threads_compute(cache):
    """At any moment of a call: while chunks are handed out, while they run, while they are waited for."""
    out, err = run(
        """
        fs.set_num_threads(2)
        check()
        stop = False

        def busy():
            while not stop:
                fs.softmax(large)
                fs.softmax(small)

        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads: thread.start()
        print(*{in_child(check) for _ in range(10)})
        stop = True
        for thread in threads: thread.join()
        check()
        """,
        cache=cache,
    )
    assert out == ["0"], err


FORK_WHILE_COMPILING = """
    from fastsoftmax.kernels import _lock
    _lock._PATIENCE = 60.0  # on a loaded machine compiling takes long
    started = threading.Event()

    def compile():
        started.set()
        {check}()

    thread = threading.Thread(target=compile)
    thread.start()
    started.wait()
    time.sleep({delay})
    print(in_child({check}))
    thread.join()
    {check}()
    """


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.6])
def test_fork_during_the_first_compile(delay):
    """numba is being imported, or compiles, in another thread: its locks must not be copied in the locked state."""
    out, err = run(FORK_WHILE_COMPILING.format(check="check_relu", delay=delay), cache=None)
    assert out == ["0"], err


@pytest.mark.slow
def test_fork_at_many_moments_of_the_first_compile():
    for moment in range(30):
        out, err = run(FORK_WHILE_COMPILING.format(check="check_relu", delay=moment * 0.08), cache=None)
        assert out == ["0"], (moment, err)


def test_compile_that_logs_does_not_wait_for_the_fork_that_waits_for_it(cache):
    """logging takes its own lock at a fork: before ours the two would wait for each other."""
    out, err = run(
        """
        from fastsoftmax.kernels import _lock
        import logging
        check_relu()
        _lock._PATIENCE = 5.0
        held = threading.Event()

        def compile():
            with _lock.building():
                held.set()
                time.sleep(0.5)  # the fork begins
                logging.getLogger("new")

        thread = threading.Thread(target=compile)
        thread.start()
        held.wait()
        print(in_child(lambda: fs.relu(np.float32([1]))))
        thread.join()
        """,
        cache=cache,
    )
    assert out == ["0"], err


def test_fork_while_the_program_compiles_a_function_of_its_own(cache):
    out, err = run(
        """
        import numba
        check()
        compiling = threading.Event()

        def slow(x):
            total = 0.0
            STATEMENTS
            return total

        @numba.extending.overload(slow)
        def _(x):
            compiling.set()
            return slow

        thread = threading.Thread(target=lambda: numba.njit(lambda x: slow(x))(1.0))
        thread.start()
        compiling.wait()
        print(in_child(check_relu))
        thread.join()
        """.replace("STATEMENTS", "; ".join(["total += x * total"] * 300)),
        cache=cache,
    )
    assert out == ["0"], err


def test_compile_that_outlasts_the_forks_patience(cache):
    """The child is told that it cannot compile; what was compiled before works."""
    out, err = run(
        """
        from fastsoftmax.kernels import _lock
        _lock._PATIENCE = 0.2
        check()
        held, release = threading.Event(), threading.Event()

        def compile():
            with _lock.building():
                held.set()
                release.wait()

        thread = threading.Thread(target=compile)
        thread.start()
        held.wait()

        def new_kernel():
            check()
            check_relu()

        print(in_child(check), in_child(new_kernel))
        release.set()
        thread.join()
        new_kernel()
        print(in_child(new_kernel))
        """,
        cache=cache,
    )
    assert out == ["0", "1", "0"], err
    assert "RuntimeError: this process was forked while another thread was compiling" in err
    assert "warmup()" in err


def test_forks_by_several_threads_at_once():
    """While a third compiles."""
    out, err = run(
        """
        from fastsoftmax.kernels import _lock
        _lock._PATIENCE = 60.0
        results = []
        threads = [threading.Thread(target=check_relu)]
        threads += [threading.Thread(target=lambda: results.append(in_child(check_relu, 20))) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(*results)
        """,
        cache=None,
    )
    assert out == ["0"] * 4, err


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_pool(cache, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    out, err = run(
        f"""
        import multiprocessing

        if __name__ == "__main__":
            fs.set_num_threads(2)
            check()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                results = pool.map_async(fs.softmax, [small, large, large]).get(timeout=60)
            for x, result in zip([small, large, large], results):
                np.testing.assert_array_equal(result, fs.softmax(x))
            print("equal")
        """,
        cache=cache,
    )
    assert out == ["equal"], err
