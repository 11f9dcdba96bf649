"""Calls made at once, and calls recorded and made again: the same bits, in their order, one fork and one join."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import MLP, SGD, _program, _threads, _training
from fastsoftmax._program import NOW, Program, joined
from fastsoftmax._threads import in_order
from fastsoftmax.kernels import KERNELS
from fastsoftmax.kernels._layout import TICKET


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 999, 1000])
@pytest.mark.parametrize(("cost", "chunks"), [(0.0, 1), (12.0, 1), (12.1, 2), (24.1, 4), (90.0, 8)])
def test_shares_are_of_one_size_and_miss_nothing(threads, n, cost, chunks, pool_of_eight):
    kernel = KERNELS["momentum_update"][np.dtype("float64")]
    param, grad, velocity, factors = np.zeros(n), np.arange(n, dtype=float), np.zeros(n), np.array([1.0, 1.0, 0.0])
    with fs.num_threads(threads):
        NOW.shares(kernel, (param, grad, velocity, 0.0, factors), n, cost)
    np.testing.assert_array_equal(velocity, grad)
    np.testing.assert_array_equal(param, -grad)
    assert len(pool_of_eight.workers) == min(threads, chunks, n) - 1


FLOAT64 = np.dtype("float64")


def shuffles(caller, x, n_calls, size):
    """Each call puts the rows that the one before left into another order; returns where the last leaves them."""
    rng, n, factor = np.random.default_rng(1), len(x), 1.0
    for _ in range(n_calls):
        out = np.zeros_like(x)
        caller.chunks(KERNELS["gather"][FLOAT64], (x, rng.permutation(n), factor, out), n, size, 100.0)
        x = out
    return x


@pytest.mark.parametrize("threads", [1, 2, 8, 20])
@pytest.mark.parametrize("size", [7, 50, 1000])
def test_a_recorded_call_begins_when_the_one_before_is_done(threads, size, pool_of_eight):
    x = np.random.default_rng(0).standard_normal((700, 30))
    program = Program()
    with fs.num_threads(threads):
        result = shuffles(program, x, 30, size)
        assert not result.any()
        for _ in range(60):
            x[:] = np.random.default_rng().standard_normal(x.shape)
            program.run()
            np.testing.assert_array_equal(result, shuffles(NOW, x, 30, 700))


def test_python_comes_between_in_its_order():
    x, seen = np.zeros((40, 3)), []
    program, other = Program(), Program()
    a = shuffles(program, x, 2, 10)
    program.python(lambda: seen.append(a.sum()))
    program.python(lambda: a.fill(5.0))
    b = shuffles(other, a, 2, 10)
    other.python(lambda: seen.append(b.sum()))
    both = joined(program, other)
    for value in (1.0, 2.0):
        x.fill(value)
        both.run()
    assert seen == [120.0, 600.0, 240.0, 600.0]


def test_what_chunks_give_is_kept_for_each(rng):
    kernel = KERNELS["cross_entropy_narrow"][FLOAT64]
    logits, targets, none, sums = rng.standard_normal((103, 20)), np.arange(103) % 20, np.empty(0), np.empty(11)
    arguments = logits, targets, none, none, -100, none
    program = Program()
    program.chunks(kernel, arguments, 103, 10, 1000.0, sums)
    for _ in range(2):
        logits *= 2
        program.run()
        assert in_order(sums) == reduce(add, (kernel(*arguments, i, min(103, i + 10), 0) for i in range(0, 103, 10)))


def test_a_copy_of_what_kernels_cannot_take_is_made_anew(rng):
    weight = np.asfortranarray(rng.standard_normal((4, 3)))
    program = Program()
    copy = program.plain(weight, FLOAT64)
    assert program.plain(copy, FLOAT64) is copy
    weight += 1
    program.run()
    np.testing.assert_array_equal(copy, weight)


# ---- training steps ------------------------------------------------------------------------------------------------


def test_a_training_step_forks_once(pool_of_eight, monkeypatch):
    for module in _threads, _program:  # however busy the machine is
        monkeypatch.setattr(module, "threads_now", lambda: 2)
    monkeypatch.setattr(_training, "SNAPSHOT_EVERY", 10)
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 256, (512 * 20, 784)).astype(np.uint8), rng.integers(0, 10, 512 * 20)
    with fs.num_threads(2):
        MLP(hidden=(10,), optimizer=SGD(0.01), scale=1 / 255).fit(x, targets, epochs=1, batch_size=512)
    # Of the first step, which is not recorded, the gathering, the product of 784 x 10 and its gradient are each long enough;
    # the update of the eleventh, before which the weights are kept, is a part of its own and too short.
    assert pool_of_eight.board[TICKET] == 3 + 19


class Clipping(SGD):
    """Somebody's own step."""

    def step(self, params, grads, l2=None):
        super().step(params, [np.clip(grad, -1e-3, 1e-3) for grad in grads], l2)


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_an_optimizer_with_a_step_of_its_own_takes_it(hidden, rng):
    x, targets = rng.standard_normal((60, 4)), rng.integers(0, 3, 60)
    start = MLP(hidden=hidden, seed=0, dtype="float64").fit(x, targets, epochs=0)
    model = MLP(hidden=hidden, optimizer=Clipping(1.0), seed=0, dtype="float64").fit(x, targets, epochs=3, batch_size=60)
    assert model.optimizer.n_steps == 3
    changes = [np.abs(a - b).max() for a, b in zip(model.params, start.params)]
    np.testing.assert_allclose(changes, 3e-3, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_of_another_layout_are_trained_alike(dtype, rng):
    x, targets = rng.standard_normal((90, 6)), rng.integers(0, 3, 90)
    plain, other = (MLP(hidden=(5, 4), seed=0, dtype=dtype, l2=0.1).fit(x, targets, epochs=1) for _ in range(2))
    for layer in other.layers:
        layer.weight = np.asfortranarray(layer.weight)
    for model in (plain, other):
        model.optimizer = model.optimizer.fresh()
        model.partial_fit(x, targets, batch_size=20)
    for a, b in zip(plain.params, other.params):
        np.testing.assert_array_equal(a, b)
