"""The number of threads, the pool, and what other threads see: same bits, no leaks, no hang, Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _threads
from fastsoftmax._processors import processors
from fastsoftmax._threads import run_rows
from fastsoftmax.kernels import AWAKE, BOARD, FEWER, KERNELS, UNTIL, WAKES, WORKER
from fastsoftmax.kernels._layout import TICKET


def run(code, *, timeout=120, **env):
    """Run a script in a fresh process; what it printed. Anything on stderr fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTSOFTMAX_NUM", "OMP_", "NUMBA_"))}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=clean | env, timeout=timeout, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


# ---- how many threads ----------------------------------------------------------------------------------------------


def test_set_and_get():
    fs.set_num_threads(3)
    assert fs.get_num_threads() == 3
    fs.set_num_threads(np.int64(1))
    assert fs.get_num_threads() == 1


def test_context_manager_nests_and_restores_after_an_error():
    fs.set_num_threads(5)
    with fs.num_threads(2):
        with pytest.raises(ZeroDivisionError), fs.num_threads(1):
            1 / (fs.get_num_threads() - 1)
        assert fs.get_num_threads() == 2
    assert fs.get_num_threads() == 5


def test_context_manager_is_not_seen_by_other_threads():
    fs.set_num_threads(5)
    with fs.num_threads(2), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fs.get_num_threads).result() == 5
        pool.submit(fs.set_num_threads, 4).result()
        assert fs.get_num_threads() == 2
    assert fs.get_num_threads() == 4


@pytest.mark.parametrize("n", [0, -1, np.int64(0)])
def test_less_than_one_thread(n):
    with pytest.raises(ValueError, match="at least 1"):
        fs.set_num_threads(n)
    with pytest.raises(ValueError, match="at least 1"), fs.num_threads(n):
        pass


@pytest.mark.parametrize("n", [1.0, "2", None, True])
def test_number_of_threads_is_an_integer(n):
    with pytest.raises(TypeError, match="integer"):
        fs.set_num_threads(n)


def test_default_comes_from_the_environment_or_the_processors():
    code = "import fastsoftmax as fs; print(fs.get_num_threads())"
    assert run(code, FASTSOFTMAX_NUM_THREADS="7") == "7"
    assert run(code, FASTSOFTMAX_NUM_THREADS="7", OMP_NUM_THREADS="1") == "7"
    assert run(code, OMP_NUM_THREADS="1,2") == "1"
    assert run(code) == str(processors())
    assert run(code, OMP_NUM_THREADS="1000") == str(processors())


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_bad_environment_is_a_clear_error(value):
    code = "import fastsoftmax as fs\ntry: fs.get_num_threads()\nexcept ValueError as e: print(e)"
    assert f"FASTSOFTMAX_NUM_THREADS must be an integer of at least 1, got {value!r}" in run(
        code, FASTSOFTMAX_NUM_THREADS=value
    )


# ---- chunks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 8, 20])
@pytest.mark.parametrize(("n", "size"), [(1, 1), (100, 100), (101, 100), (1000, 1), (999, 7), (5, 100)])
def test_kernel_runs_over_every_row_once(threads, n, size, pool_of_eight):
    kernel = KERNELS["momentum_update"][np.dtype("float64")]
    param, grad, velocity, factors = np.zeros(n), np.arange(n, dtype=float), np.zeros(n), np.array([1.0, 1.0, 0.0])

    def call(first, last, job):  # param -= velocity, and velocity += grad: twice over a row would double it
        kernel(param, grad, velocity, 0.0, factors, first, last, job)

    with fs.num_threads(threads):
        run_rows(call, n, size)
    np.testing.assert_array_equal(velocity, grad)
    np.testing.assert_array_equal(param, -grad)
    assert len(pool_of_eight.workers) == min(threads - 1, -(-n // size) - 1, 7)


@pytest.mark.parametrize("hold", [False, True])
def test_results_of_chunks_are_added_in_their_order(hold):
    kernel = KERNELS["cross_entropy_narrow"][np.dtype("float64")]
    logits, targets, none = np.random.default_rng(0).standard_normal((103, 20)), np.arange(103) % 20, np.empty(0)

    def call(first, last, job):
        return kernel(logits, targets, none, none, -100, none, first, last, job)

    with fs.num_threads(3):
        total = run_rows(call, 103, 10, 1.0 if hold else 1000.0)
    assert total == reduce(add, (call(i, min(103, i + 10), 0) for i in range(0, 103, 10)))
    assert run_rows(call, 0, 10) == 0.0


several_processors = pytest.mark.skipif(processors() < 2, reason="one processor")


@several_processors
def test_workers_help():
    """With two threads, time of this process passes that is not this thread's."""
    x = np.random.default_rng(0).standard_normal((2000, 1000))
    out, helped, end = np.empty_like(x), 0.0, time.monotonic() + 30
    with fs.num_threads(2):
        while helped < 0.01 and time.monotonic() < end:
            before = time.process_time() - time.thread_time()
            fs.softmax(x, out=out)
            helped += time.process_time() - time.thread_time() - before
    assert helped >= 0.01


@several_processors
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system moves threads as it likes")
def test_a_worker_keeps_off_the_callers_processor_and_may_come_back_later():
    x, everywhere = np.ones((2000, 1000), np.float32), os.sched_getaffinity(0)
    with fs.num_threads(2):
        fs.softmax(x)
        worker = _threads.pool.workers[0].native_id
        for here in sorted(everywhere)[:2]:
            asleep_within(5.0)
            _threads.pool.board[UNTIL] = 0  # the machine may have been busy a moment ago
            try:
                os.sched_setaffinity(0, {here})  # of this thread alone
                fs.softmax(x)
                with open(f"/proc/self/task/{worker}/stat") as file:
                    assert int(file.read().rsplit(")", 1)[1].split()[36]) != here
            finally:
                os.sched_setaffinity(0, everywhere)
            asleep_within(5.0)
            assert os.sched_getaffinity(worker) == everywhere


def asleep_within(seconds):
    pool = _threads.pool
    asleep = [BOARD + WORKER * k for k in range(len(pool.workers))]
    assert asleep
    end = time.monotonic() + seconds
    while not pool.board[asleep].all() and time.monotonic() < end:
        time.sleep(0.01)
    assert pool.board[asleep].all()


@several_processors
def test_workers_that_find_nothing_to_do_sleep():
    x = np.ones((2000, 1000), np.float32)
    with fs.num_threads(2):
        fs.softmax(x)
    asleep_within(5.0)


SHORT_CALLS = {
    "rows": (lambda x: fs.softmax(x), (128, 1000)),
    "a sum": (lambda x: fs.cross_entropy(x, np.zeros(128, int)), (128, 1000)),
    "a product": (lambda x: fs.affine(x, np.ones((784, 100), np.float32), np.zeros(100, np.float32)), (64, 784)),
}


@several_processors
@pytest.mark.parametrize("name", SHORT_CALLS)
def test_short_calls_wake_workers_if_they_follow_each_other_closely(name, short_calls_alone, monkeypatch):
    """Else they are made alone, a product in one piece; with the same results."""
    (call, shape), pool = SHORT_CALLS[name], _threads.pool
    x, sizes, job = np.random.default_rng(0).standard_normal(shape).astype(np.float32), [], _threads.job

    def noted(pool, n_rows, size, *rest):
        sizes.append(size)
        return job(pool, n_rows, size, *rest)

    monkeypatch.setattr(_threads, "job", noted)
    with fs.num_threads(1):
        expected = call(x)

    def calls_alone():
        """For each of 20 calls, whether it asked nobody for help."""
        asleep_within(5.0)
        pool.owed = 0.0
        tickets = []
        for _ in range(20):
            pool.board[UNTIL] = 0  # the machine may have been busy a moment ago
            tickets.append(pool.board[TICKET])
            np.testing.assert_array_equal(call(x), expected)
        return np.diff([*tickets, pool.board[TICKET]]) == 0

    with fs.num_threads(2):
        call(x)
        monkeypatch.setattr(_threads, "_CLOSELY", 0.0)
        assert calls_alone().all()
        assert name != "a product" or sizes[-1] == len(x)
        monkeypatch.setattr(_threads, "_CLOSELY", 1e9)
        alone = calls_alone()
        assert alone[0]
        assert not alone.all()


@several_processors
def test_a_long_call_wakes_workers_at_once(short_calls_alone):
    x, pool = np.ones((1000, 1000), np.float32), _threads.pool
    with fs.num_threads(2):
        fs.softmax(x)
        asleep_within(5.0)
        assert pool.board[AWAKE] == 0
        ticket, pool.board[UNTIL] = pool.board[TICKET], 0
        fs.softmax(x)
        assert pool.board[TICKET] == ticket + 1


@several_processors
def test_a_worker_that_is_awake_may_sleep_when_a_long_call_begins(short_calls_alone):
    pool = _threads.pool
    with fs.num_threads(2):
        fs.softmax(np.ones((1000, 1000), np.float32))
        asleep_within(5.0)
        pool.board[[AWAKE, WAKES]] = 1, 0  # as if it were only about to sleep
        try:
            assert pool.ask(1, 10.0)
            assert not pool.board[WAKES]
            assert pool.ask(1, 1000.0)
            assert pool.board[WAKES]
        finally:
            pool.board[[AWAKE, WAKES]] = 0


@pytest.mark.parametrize(
    ("cost", "awake", "helpers", "hired"),
    [
        (10.0, 0, 0, None), (10.0, 2, 7, None), (10.0, 7, 7, None), (150.0, 0, 3, 3), (150.0, 5, 5, 5), (400.0, 0, 6, 6),
        (1e4, 0, 7, 7), (1e4, 7, 7, 7),
    ],
)  # fmt: skip
def test_a_call_wakes_as_many_workers_as_it_is_worth(
    cost, awake, helpers, hired, pool_of_eight, short_calls_alone, monkeypatch
):
    asked = []
    monkeypatch.setattr(pool_of_eight, "hire", asked.append)
    pool_of_eight.board[AWAKE] = awake
    with fs.num_threads(20):
        assert _threads.threads_for(cost, 1000) == 1 + helpers
    assert asked == [hired] * (hired is not None)
    assert pool_of_eight.board[WAKES] == (hired is not None)


def test_a_call_that_is_to_wake_workers_wakes_those_it_is_for():
    """Three threads stand for workers; each is forbidden the processor of who wakes it."""
    from numba import njit

    from fastsoftmax.kernels import _board
    from fastsoftmax.kernels._layout import FORBIDDEN, LOCK, SLEEPS, STATE, THREAD

    new_lock, offer, drop_lock = njit(lambda: _board.new_lock()), njit(_board.offer), njit(lambda lock: _board.drop_lock(lock))
    board, fields, ended = np.zeros(BOARD + 3 * WORKER, np.int64), np.arange(3) * WORKER + BOARD, threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in fields]
    for thread, own in zip(threads, fields, strict=True):
        thread.start()
        board[[own + SLEEPS, own + LOCK, own + THREAD]] = 1, new_lock(), thread.ident
    try:
        for wakes, asleep in (0, [1, 1, 1]), (1, [0, 0, 1]), (1, [0, 0, 1]):
            board[[STATE, WAKES]] = 0, wakes
            assert offer(_threads.address(board), 0, 0, 2, 0)
            assert board[fields + SLEEPS].tolist() == asleep
            assert board[AWAKE] == asleep.count(0)
            assert board[WAKES] == 0
        if hasattr(os, "sched_getaffinity"):
            for thread, forbidden in zip(threads, board[fields + FORBIDDEN] - 1, strict=True):
                assert forbidden not in os.sched_getaffinity(thread.native_id)
    finally:
        ended.set()
        for thread, own in zip(threads, fields, strict=True):
            thread.join()
            drop_lock(board[own + LOCK])


@several_processors
def test_calls_that_do_with_fewer_threads_wake_no_others():
    x = np.random.default_rng(0).standard_normal((2000, 1000))
    with fs.num_threads(2):
        expected = fs.softmax(x)
        asleep_within(5.0)
        _threads.pool.board[[UNTIL, FEWER]] = time.monotonic_ns() + 10**12, 1
        try:
            assert _threads.threads_now() == 1
            for _ in range(20):
                np.testing.assert_array_equal(fs.softmax(x), expected)
            asleep_within(0.0)
        finally:
            _threads.pool.board[UNTIL] = 0
        assert _threads.threads_now() == 2


@pytest.mark.slow
@several_processors
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no clock of a thread's own")
def test_beside_busy_neighbours_calls_come_to_do_with_fewer_threads_for_a_while():
    """On two processors, with two other processes that never wait."""
    script = """
        import os, subprocess, sys, time
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        import numpy as np
        import fastsoftmax as fs
        from fastsoftmax import _threads

        x = np.ones({shape}, np.float32)
        fs.set_num_threads(2)
        fs.softmax(x)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            end = time.monotonic() + 30
            while _threads.threads_now() == 2 and time.monotonic() < end:
                fs.softmax(x)
            beside = _threads.threads_now()
        finally:
            for process in busy:
                process.kill()
        time.sleep(1.5)
        print(beside, _threads.threads_now())
    """
    for shape in (60, 1000), (4000, 1000):  # short and long calls look at different clocks
        assert run(script.format(shape=shape)) == "1 2"


def test_how_many_fewer_and_for_how_long():
    """In milliseconds: how long calls have worked, when a thread says how long it was kept; how many fewer, until when."""
    from numba import njit

    from fastsoftmax.kernels._board import step_back
    from fastsoftmax.kernels._layout import LIMIT, WORKED

    board = np.zeros(BOARD, np.int64)
    tell = njit(lambda board, time, kept, took: step_back(board, time, kept, took))
    for helpers, took, fewer in (1, 7, 0), (1, 5, 1), (2, 10, 0), (2, 8, 1):  # kept for 3: one of so many saves less, or more
        board[:] = 0
        board[LIMIT] = helpers
        tell(_threads.address(board), 10**9, 3 * 10**6, took * 10**6)
        assert (board[FEWER], board[UNTIL]) == (fewer, fewer * 1003 * 10**6)
    board[:] = 0
    board[LIMIT] = 1
    for worked, time_, kept, fewer, until in (
        (0, 1000, 0.4, 0, 0),  # the system's own small tasks
        (0, 1000, 3, 1, 1003),
        (9, 1001, 3, 1, 1003),  # another thread has seen the same
        (3, 1016, 6, 1, 1022),  # soon again: as long as it was kept, or twice as long as last time
        (3, 1026, 2, 1, 1038),
        (0, 1029, 2, 2, 1041),  # kept even so: twice as many
        (9, 1034, 1, 4, 1046),
        (1, 1130, 4, 4, 1154),  # soon again for one who calls seldom
        (11, 1250, 5, 1, 1255),  # something new
        (0, 5000, 3000, 1, 6000),  # a second at most
    ):
        board[WORKED] += worked * 10**6
        tell(_threads.address(board), time_ * 10**6, int(kept * 1e6), int(kept * 1e6))
        assert (board[FEWER], board[UNTIL]) == (fewer, until * 10**6)
    for _ in range(20):
        tell(_threads.address(board), time_ := board[UNTIL] + 10**6, 10**6, 10**6)
    assert board[UNTIL] == time_ + 10**9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no clock of a thread's own")
def test_a_call_taken_for_a_short_one_may_be_slow():
    """It was kept from its processor, or this processor is slow: which of them is seen at the next such call."""
    from numba import njit, types

    from fastsoftmax.kernels import _board
    from fastsoftmax.kernels._layout import USED, WORKED

    board = np.zeros(BOARD, np.int64)
    address, offer, take_back = _threads.address(board), njit(_board.offer), njit(_board.take_back)

    def call(milliseconds, working):
        assert offer(address, 0, 0, 1, False)
        start = time.monotonic_ns()
        if working:
            used = time.thread_time_ns()
            while time.thread_time_ns() - used < milliseconds * 10**6:
                pass
        else:
            time.sleep(milliseconds / 1e3)
        took = time.monotonic_ns() - start
        take_back(address)
        return took / 1e6

    for function in offer, take_back:  # compiled: that takes longer than calls are watched
        function.compile(tuple([types.int64] * (5 if function is offer else 1)))
    call(0.1, working=True)
    assert 10**5 <= board[WORKED] < 10**6
    call(1, working=False)
    assert board[UNTIL] == 0
    call(1, working=False)
    assert board[UNTIL] > 0
    assert board[WORKED] < 10**6
    for _ in range(100):  # other programs may have taken the processor away
        call(1, working=False)
        board[UNTIL] = 0
        if call(1, working=True) < 1.4:
            break
    assert board[USED] > 0
    assert board[UNTIL] == 0


def test_fewer_threads_leave_at_least_one(pool_of_eight):
    with fs.num_threads(5):
        for fewer, now in (0, 5), (1, 4), (4, 1), (8, 1):
            pool_of_eight.board[[UNTIL, FEWER]] = time.monotonic_ns() + 10**12, fewer
            assert _threads.threads_now() == now


def test_workers_that_a_call_is_not_for_sleep(pool_of_eight):
    """Calls for two threads, one after the other, leave six of eight asleep."""
    x = np.random.default_rng(0).standard_normal((2000, 1000))
    out, others = np.empty_like(x), [BOARD + WORKER * k for k in range(1, 7)]
    with fs.num_threads(8):
        fs.softmax(x, out=out)
    assert len(pool_of_eight.workers) == 7
    with fs.num_threads(2):
        asleep, end = 0, time.monotonic() + 10
        while asleep < 10 and time.monotonic() < end:
            pool_of_eight.board[UNTIL] = 0  # so many threads may be kept waiting here
            fs.softmax(x, out=out)
            asleep = asleep + 1 if pool_of_eight.board[others].all() else 0
    assert asleep == 10


def test_a_call_beside_another_works_alone():
    """The board is taken: nobody waits for it."""
    x = np.random.default_rng(0).standard_normal((2000, 1000))
    with fs.num_threads(2):
        expected = fs.softmax(x)
        _threads.pool.board[0] = 1 << 41
        try:
            np.testing.assert_array_equal(fs.softmax(x), expected)
        finally:
            _threads.pool.board[0] = 0


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_kernel_that_fails_raises(threads, recorded, tmp_path):
    code = """
    import sys
    import numpy as np
    import fastsoftmax as fs
    from fastsoftmax._program import NOW, Program
    from fastsoftmax.kernels import kernel
    x, too_short = np.zeros((1000, 100)), np.ones(10)
    fs.set_num_threads(int(sys.argv[1]))
    program = Program()
    caller, arguments = program if len(sys.argv) > 2 else NOW, (x, too_short, 1.0, np.empty_like(x))
    try:
        caller.chunks(kernel("softmax_hessian", "float64"), arguments, 1000, 7, 1000.0)
        program.run()
    except RuntimeError as error:
        print(error)
    print(np.all(fs.softmax(np.zeros((1000, 100))) == 0.01))
    """
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "FASTSOFTMAX_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(threads), *["recorded"] * recorded]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "out of bounds" in out
    assert out.endswith("True\n")


# ---- threads come late and go early --------------------------------------------------------------------------------


def test_no_thread_before_it_is_needed_and_none_after():
    out = run(
        """
        import atexit, threading
        import numpy as np

        def at_exit():
            # Runs after the pool's own exit function, which was registered later.
            print(threading.active_count(), np.array_equal(fs.softmax(big), expected))

        atexit.register(at_exit)
        import fastsoftmax as fs
        fs.set_num_threads(3)
        big = np.random.default_rng(0).standard_normal((4000, 1000))
        small = fs.softmax(big[:8])
        print(threading.active_count())
        expected = fs.softmax(big)
        print(threading.active_count())
        """
    )
    assert out.split() == ["1", str(min(3, processors())), "1", "True"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_is_not_swallowed():
    code = """
    import numpy as np
    import fastsoftmax as fs
    x = np.ones((3000, 1000), np.float32)
    out = np.empty_like(x)
    fs.set_num_threads(2)
    fs.softmax(x, out=out)
    try:
        print("ready", flush=True)
        while True:
            fs.softmax(x, out=out)
    except KeyboardInterrupt:
        out[:] = 0
        fs.softmax(x, out=out)
        print("interrupted", bool(np.allclose(out, 0.001, rtol=1e-6, atol=0)))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert out == "interrupted True\n"
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_during_one_long_call_ends_the_program():
    """By the signal, as it ends any program, and soon: no worker is waited for that waits itself."""
    code = """
    import numpy as np
    import fastsoftmax as fs
    fs.set_num_threads(2)
    x = np.ones((40000, 1000), np.float32)
    fs.log_softmax(x[:4000])
    print("ready", flush=True)
    while True:
        fs.log_softmax(x, out=x)
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert process.returncode == -signal.SIGINT


# ---- the GIL -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_switching():
    """Threads change only where the GIL is given away."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_switching")
def test_large_calls_release_the_gil_and_small_ones_keep_it():
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("no GIL")
    small, large = np.ones((128, 10), np.float32), np.ones((20000, 1000), np.float32)
    out = np.empty_like(large)
    fs.softmax(small), fs.softmax(large, out=out)
    go, ran = threading.Event(), threading.Event()

    def other():
        go.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    with fs.num_threads(1):
        go.set()
        for _ in range(100):
            fs.softmax(small)
        assert not ran.is_set()
        for _ in range(20):
            fs.softmax(large, out=out)
        assert ran.is_set()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "cross_entropy", "cross_entropy_with_grad"])
def test_a_busy_python_thread_does_not_starve_small_calls(function):
    """A call that gave the GIL away would wait 5 ms for it each time: a thousand times its own time."""
    rng = np.random.default_rng(0)
    arguments = (rng.standard_normal((128, 10)).astype(np.float32), rng.integers(0, 10, 128))
    call, arguments = getattr(fs, function), arguments[: 1 + function.startswith("cross")]

    def seconds(n=20_000):
        start = time.perf_counter()
        for _ in range(n):
            call(*arguments)
        return time.perf_counter() - start

    def beside_a_busy_thread():
        stop = threading.Event()

        def count():
            while not stop.is_set():
                sum(range(100))

        thread = threading.Thread(target=count)
        thread.start()
        try:
            return seconds()
        finally:
            stop.set()
            thread.join()

    call(*arguments)  # compiled
    ratios = []
    for _ in range(5):  # other programs may take the processor away in the one half and not in the other
        quiet = seconds()
        ratios.append(beside_a_busy_thread() / quiet)
        if ratios[-1] < 10:
            break
    print(f"{function}: {ratios[-1]:.1f} times its quiet time")
    assert ratios[-1] < 10, ratios


# ---- same bits -----------------------------------------------------------------------------------------------------


def mixed_calls(rng, dtype):
    """A call of every operation on small random arrays: (function, arguments)."""
    n, k, n_in = int(rng.integers(1, 60)), int(rng.integers(1, 70)), int(rng.integers(1, 40))
    logits = (4 * rng.standard_normal((n, k))).astype(dtype)
    targets = rng.integers(0, k, n)
    x, weight = rng.standard_normal((n, n_in)).astype(dtype), rng.standard_normal((n_in, k)).astype(dtype)
    probs = fs.softmax(logits)
    return [
        (fs.softmax, (logits,)),
        (fs.softmax, (logits, 0)),
        (fs.log_softmax, (logits,)),
        (fs.logsumexp, (logits,)),
        (fs.softmax_backward, (logits, probs)),
        (fs.log_softmax_backward, (logits, probs)),
        (fs.cross_entropy, (logits, targets)),
        (fs.cross_entropy_with_grad, (logits, targets)),
        (fs.cross_entropy_with_grad, (logits, probs)),
        (fs.cross_entropy_grad_hess, (logits, targets)),
        (fs.affine, (x, weight)),
        (fs.affine_backward, (logits, x, weight)),
        (fs.relu, (logits,)),
        (fs.relu_backward, (logits, logits)),
        (fs.linear_cross_entropy, (x, weight, targets)),
        (fs.linear_cross_entropy_with_grad, (x, weight, targets)),
    ]


def bits(result):
    """The exact bits of a result, however nested."""
    if result is None or isinstance(result, float):
        return np.float64(0 if result is None else result).tobytes()
    if isinstance(result, tuple):
        return b"".join(bits(part) for part in result)
    return result.tobytes()


def hammer(n_threads, n_calls, seed=0):
    """Threads that repeat mixed calls in different orders; how many results differ from the serial ones."""
    rng = np.random.default_rng(seed)
    calls = [call for dtype in ("float32", "float64") for _ in range(4) for call in mixed_calls(rng, dtype)]
    with fs.num_threads(1):
        expected = [bits(function(*arguments)) for function, arguments in calls]
    barrier = threading.Barrier(n_threads)

    def work(thread):
        order = np.random.default_rng(thread)
        barrier.wait()
        wrong = 0
        for i in order.integers(0, len(calls), n_calls):
            function, arguments = calls[i]
            wrong += bits(function(*arguments)) != expected[i]
        return wrong

    with ThreadPoolExecutor(n_threads) as pool:
        return sum(pool.map(work, range(n_threads)))


def test_threads_get_the_serial_bits():
    assert hammer(4, 150) == 0


@pytest.mark.slow
def test_32_threads_get_the_serial_bits():
    assert hammer(32, 2000) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_threads_in_processes_get_the_serial_bits(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    # In a fresh process: pytest's own threads and warnings about forking them are not the subject.
    out = run(
        f"""
        import multiprocessing, sys, warnings
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from concurrent.futures import ProcessPoolExecutor
        from test_threads import hammer
        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)
            assert hammer(2, 20) == 0
            context = multiprocessing.get_context({method!r})
            with ProcessPoolExecutor(2, mp_context=context) as pool:
                print(sum(pool.map(hammer, [8, 8, 8], [300, 300, 300])))
        """
    )
    assert out == "0"


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_large_calls_have_the_same_bits_for_any_number_of_threads(threads, dtype):
    rng = np.random.default_rng(7)
    logits = (5 * rng.standard_normal((3001, 301))).astype(dtype)
    targets = rng.integers(0, 301, 3001)
    x, weight = rng.standard_normal((3001, 64)).astype(dtype), rng.standard_normal((64, 301)).astype(dtype)
    for function, arguments in [
        (fs.softmax, (logits,)),
        (fs.softmax, (logits, 0)),
        (fs.cross_entropy, (logits, targets)),
        (fs.cross_entropy_with_grad, (logits, targets)),
        (fs.affine_backward, (logits, x, weight)),
        (fs.linear_cross_entropy_with_grad, (x, weight, targets)),
    ]:
        with fs.num_threads(1):
            serial = bits(function(*arguments))
        with fs.num_threads(threads):
            assert bits(function(*arguments)) == serial, function.__name__


# ---- beside other libraries' threads -------------------------------------------------------------------------------


@pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning")  # JAX's, where other tests imported it
@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_joblib(backend):
    joblib = pytest.importorskip("joblib")
    x = np.random.default_rng(0).standard_normal((2000, 300))
    expected = fs.softmax(x)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        results = joblib.Parallel()(joblib.delayed(fs.softmax)(x) for _ in range(4))
    assert all(np.array_equal(r, expected) for r in results)


def test_called_by_numba_threads():
    """From the object mode of a user's prange loop, hence on threads that Python did not start."""
    out = run(
        """
        import numpy as np, numba
        import fastsoftmax as fs

        x = np.random.default_rng(0).standard_normal((6, 500, 300))
        expected = fs.softmax(x)

        @numba.njit(parallel=True)
        def by_threads(x, out):
            for i in numba.prange(x.shape[0]):
                with numba.objmode():
                    fs.softmax(x[i], out=out[i])

        out = np.zeros_like(x)
        by_threads(x, out)
        print(np.array_equal(out, expected))
        """
    )
    assert out == "True"
