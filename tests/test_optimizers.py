"""Optimizers against their formulas written out, and what they leave alone."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import SGD, Adam

SHAPES = [(7, 5), (5,), (5, 3), (3,)]
L2 = [0.1, 0.0, 0.1, 0.0]


def sgd(params, grads, memory, t, learning_rate, momentum=0.0, nesterov=False):
    for i, (p, g) in enumerate(zip(params, grads)):
        v = memory.setdefault(i, np.zeros_like(p))
        v = memory[i] = momentum * v + g
        params[i] = p - learning_rate * (g + momentum * v if nesterov else v)


def adam(params, grads, memory, t, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    for i, (p, g) in enumerate(zip(params, grads)):
        m, v = memory.get(i, (np.zeros_like(p), np.zeros_like(p)))
        m, v = memory[i] = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        params[i] = p - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)


CASES = {
    "sgd": (SGD, sgd, {"learning_rate": 0.3}),
    "momentum": (SGD, sgd, {"learning_rate": 0.3, "momentum": 0.9}),
    "nesterov": (SGD, sgd, {"learning_rate": 0.3, "momentum": 0.9, "nesterov": True}),
    "adam": (Adam, adam, {"learning_rate": 0.01}),
    "adam, other settings": (Adam, adam, {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.9, "epsilon": 0.1}),
}


@pytest.mark.parametrize("l2", [None, L2], ids=["plain", "l2"])
@pytest.mark.parametrize("case", CASES)
def test_against_the_formula(rng, dtype, case, l2):
    make, reference, settings = CASES[case]
    optimizer, memory = make(**settings), {}
    expected = [rng.normal(size=s) for s in SHAPES]
    params = [p.astype(dtype) for p in expected]
    arrays = list(params)
    for t in range(1, 12):
        grads = [rng.normal(size=s) for s in SHAPES]
        penalised = [g + (0 if l2 is None else l2[i]) * p for i, (g, p) in enumerate(zip(grads, expected))]
        given = [g.astype(dtype) for g in grads]
        kept = [g.copy() for g in given]
        optimizer.step(params, given, l2)
        reference(expected, penalised, memory, t, **settings)
        for g, before in zip(given, kept):
            np.testing.assert_array_equal(g, before)
    assert all(p is a for p, a in zip(params, arrays))
    for p, e in zip(params, expected):
        assert p.dtype == dtype
        np.testing.assert_allclose(p, e, rtol=0, atol=1e-12 if dtype == np.float64 else 2e-5)
    assert optimizer.n_steps == 11


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.05, momentum=0.9), Adam(0.1)], ids=repr)
def test_finds_the_minimum_of_a_bowl(optimizer):
    optimizer, params, centre = optimizer.fresh(), [np.array([5.0, -3.0])], np.array([1.0, 2.0])
    for _ in range(500):
        optimizer.step(params, [params[0] - centre])
    np.testing.assert_allclose(params[0], centre, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_steps_allocate_nothing(rng, case):
    make, _, settings = CASES[case]
    optimizer, params = make(**settings), [rng.normal(size=(300, 100)), rng.normal(size=100)]
    grads = [np.ones_like(p) for p in params]
    optimizer.step(params, grads, [0.1, 0.0])
    tracemalloc.start()
    try:
        for _ in range(20):
            optimizer.step(params, grads, [0.1, 0.0])
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000, f"{peak} bytes at the peak; the parameters take 240,800"
    assert kept < 5_000


def test_fresh_and_set_state(rng):
    first = SGD(0.1, momentum=0.9)
    params = [rng.normal(size=(3, 2))]
    first.step(params, [np.ones((3, 2))])
    assert first.fresh().n_steps == 0
    assert first.fresh().settings() == first.settings() == {"learning_rate": 0.1, "momentum": 0.9, "nesterov": False}
    second = first.fresh()
    second.set_state(first.n_steps, [[slot.copy() for slot in slots] for slots in first.slots])
    mine, yours = [params[0].copy()], [params[0].copy()]
    first.step(mine, [np.ones((3, 2))])
    second.step(yours, [np.ones((3, 2))])
    np.testing.assert_array_equal(mine[0], yours[0])
    assert repr(first) == "SGD(learning_rate=0.1, momentum=0.9, nesterov=False)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SGD(-0.1), ValueError, "learning_rate must be finite and at least 0, got -0.1"),
        (lambda: SGD("fast"), TypeError, "learning_rate must be a number, got 'fast'"),
        (lambda: SGD(float("nan")), ValueError, "learning_rate must be finite and at least 0, got nan"),
        (lambda: SGD(float("inf")), ValueError, "learning_rate must be finite and at least 0, got inf"),
        (lambda: SGD(0.1, momentum=1.0), ValueError, r"momentum must be in \[0, 1\), got 1\.0"),
        (lambda: Adam(beta1=1.0), ValueError, r"beta1 must be in \[0, 1\)"),
        (lambda: Adam(beta2=-1), ValueError, r"beta2 must be in \[0, 1\)"),
        (lambda: Adam(epsilon=None), TypeError, "epsilon must be a number, got None"),
    ],
)
def test_bad_settings(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_parameters_of_any_layout(rng):
    whole, grad = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    expected = whole.copy()
    SGD(0.1).step([expected], [grad])
    layouts = {"fortran": np.asfortranarray(whole), "strided": np.repeat(whole, 2, axis=1)[:, ::2]}
    layouts["unaligned"] = np.zeros(8 * 24 + 1, np.uint8)[1:].view(np.float64).reshape(6, 4)
    layouts["unaligned"][...] = whole
    for name, param in layouts.items():
        SGD(0.1).step([param], [np.asfortranarray(grad)])
        np.testing.assert_array_equal(param, expected, err_msg=name)
    mixed = whole.astype(np.float32)
    SGD(0.1).step([mixed], [grad])  # the gradient is converted
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("param", "grad", "error", "message"),
    [
        (np.ones(3), np.ones(4), ValueError, r"grads\[0\] must have the parameter's shape \(3,\), got \(4,\)"),
        (np.ones(3), np.ones((3, 1)), ValueError, r"grads\[0\] must have the parameter's shape \(3,\), got \(3, 1\)"),
        (np.ones(3, np.float16), np.ones(3), TypeError, r"params\[0\] must be a writable array of float32 or float64"),
        (np.ones(3, ">f8"), np.ones(3), TypeError, r"params\[0\] must be a writable array"),
        ([1.0], [1.0], TypeError, r"params\[0\] must be a writable array of float32 or float64, got \[1.0\] \(list\)"),
        (np.broadcast_to(1.0, 3), np.ones(3), TypeError, r"params\[0\] must be a writable array"),
    ],
)
def test_arrays_that_cannot_be_updated(param, grad, error, message):
    with pytest.raises(error, match=message):
        SGD(0.1).step([param], [grad])


def test_other_parameters_at_a_later_step():
    optimizer = SGD(0.1, momentum=0.9)
    first = np.ones(3)
    optimizer.step([first], [np.ones(3)])
    with pytest.raises(ValueError, match=r"params\[0\] must be the same at every step, got .* of shape \(4,\)"):
        optimizer.step([np.ones(4)], [np.ones(4)])
    with pytest.raises(ValueError, match="same at every step, got 2 arrays after 1"):
        optimizer.step([first, np.ones(4)], [np.ones(3), np.ones(4)])
    with pytest.raises(ValueError, match="l2 must be as many numbers as params, 1, got 2"):
        optimizer.step([np.ones(3)], [np.ones(3)], [0.1, 0.0])
    with pytest.raises(ValueError, match="grads must be as many as params, 1, got 2"):
        optimizer.step([first], [np.ones(3), np.ones(4)])
    assert optimizer.n_steps == 1
    optimizer.step([np.zeros(3)], [np.ones(3)])  # other arrays of the same shapes may take their place


def test_nothing_changes_when_something_does_not_fit():
    params = [np.ones(3), np.ones(2)]
    with pytest.raises(ValueError, match=r"grads\[1\]"):
        SGD(0.1).step(params, [np.ones(3), np.ones(3)])
    np.testing.assert_array_equal(params[0], 1)


@pytest.mark.parametrize("case", CASES)
def test_threads_that_share_an_update_change_no_bit(rng, dtype, case):
    make, _, settings = CASES[case]
    start, grads = rng.normal(size=300_001).astype(dtype), [rng.normal(size=300_001).astype(dtype) for _ in range(3)]
    results = []
    for n in (1, 2, 3, 8):
        optimizer, param = make(**settings), start.copy()
        with fs.num_threads(n):
            for grad in grads:
                optimizer.step([param], [grad], [0.1])
        results.append(param)
    assert not np.array_equal(results[0], start)
    for param in results[1:]:
        np.testing.assert_array_equal(param, results[0])


def test_settings_changed_between_steps_count_from_the_next_one_on():
    param, optimizer = np.zeros(3), SGD(0.5, momentum=0.9)
    optimizer.step([param], [np.ones(3)])
    optimizer.momentum, optimizer.learning_rate = 0.0, 0.25
    optimizer.step([param], [np.ones(3)])
    np.testing.assert_array_equal(param, -0.75)
