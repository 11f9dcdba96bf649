"""Any call at all: the right answer or the documented exception, and no byte changed but those of out=. See fuzz.py."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time

import fuzz
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

import fastsoftmax as fs
from fastsoftmax import _arrays, functional

CALLS = 100_000  # of the slow run, shared by its parts
PARTS = 4


def test_every_operation_is_drawn():
    from cases import NOT_OPERATIONS

    assert set(fuzz.FUNCTIONS) == set(functional.__all__) - NOT_OPERATIONS


@pytest.mark.parametrize("function", fuzz.FUNCTIONS)
@settings(max_examples=40)
@given(r=st.randoms(use_true_random=False))
def test_any_call(function, r):
    """Hypothesis makes the choices, and makes them simpler where a call fails."""
    call = fuzz.draw(r, function)
    note(str(call))
    fuzz.check(call)


@pytest.mark.parametrize("function", fuzz.FUNCTIONS)
def test_many_calls(function):
    made, faulty = fuzz.run(range(150), function)
    assert made == 150
    assert 20 < faulty < 75


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_hundred_thousand_calls(part):
    each = CALLS // PARTS
    start = time.perf_counter()
    made, faulty = fuzz.run(range(1000 + part * each, 1000 + (part + 1) * each))
    print(f"{made} calls, {faulty} of them wrong, in {time.perf_counter() - start:.0f} s")
    assert made == each
    assert each / 5 < faulty < each / 3


@pytest.mark.slow
def test_many_calls_with_numbas_bounds_check(tmp_path):
    """Kernels compiled with numba's own check, in a cache of their own."""
    code = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numba, fuzz
        assert numba.config.BOUNDSCHECK == 1
        print(fuzz.run(range({CALLS}))[0])
    """
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "FASTSOFTMAX_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=env, timeout=900, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) == CALLS
    assert len(list(tmp_path.iterdir())) == 1


# ---- the fuzz itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("safe_to_fill", lambda out, *inputs: True),
        ("_is_masked", lambda x, depth=0: False),
        ("same_shape", lambda a, b, names: None),
        ("reduction_of", str),
        ("contiguous", lambda a, dtype: a.astype(dtype, order="C", copy=True) * 1.0001),
        ("cast", lambda a, dtype: a),
        ("result_array", lambda out, shape, dtype: np.empty(shape, dtype) if out is None else out),
        ("fill", lambda out, values: np.copyto(out.T[..., :1], values.T[..., :1])),
    ],
)
def test_a_broken_library_is_found(name, broken, monkeypatch):
    monkeypatch.setattr(_arrays, name, broken)
    with pytest.raises(AssertionError, match=r"fuzz\.run"):
        fuzz.run(range(3000))


# ---- among ten thousand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 10, 63, 64, 100, 104])
@pytest.mark.parametrize("dtype_of_labels", ["i1", "i8", "u1", "u8"])
def test_one_bad_label_among_ten_thousand(n_classes, dtype_of_labels, dtype):
    rng = np.random.default_rng(n_classes)
    logits = rng.standard_normal((10_000, n_classes)).astype(dtype)
    labels = rng.integers(0, n_classes, 10_000).astype(dtype_of_labels)
    limits = np.iinfo(dtype_of_labels)
    out, before = np.full_like(logits, 7), logits.copy()
    for row in (0, 4321, 9999):
        for bad in {limits.max, limits.min, n_classes} - set(range(n_classes)):
            spoilt = labels.copy()
            spoilt[row] = bad
            for target in (out, logits):
                with pytest.raises(IndexError, match=rf"row {row} has label {bad}\b"):
                    fs.cross_entropy_with_grad(logits, spoilt, out=target)
            with pytest.raises(IndexError, match=rf"row {row} has label {bad}\b"):
                fs.linear_cross_entropy_with_grad(logits, np.eye(n_classes, dtype=dtype), spoilt)
    assert (out == 7).all()
    np.testing.assert_array_equal(logits, before)


# ---- layers and models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((60, 7)), rng.integers(0, 4, 60)
    return [
        fs.SoftmaxRegression().fit(x, targets, epochs=2),
        fs.MLP((5,)).fit(x, targets, epochs=2),
    ]


@settings(max_examples=60)
@given(r=st.randoms(use_true_random=False))
def test_what_models_are_given(models, r):
    """predict_proba, of rows of any type and layout, is that of the plain rows."""
    call = fuzz.Call("predict_proba")
    given_rows, rows = fuzz.dress(r, call, fuzz.numbers(r, call, (r.choice([0, 1, 5, 17]), 7)))
    before = [root.tobytes() for root in call.roots]
    for model in models:
        probs = model.predict_proba(given_rows)
        assert probs.shape == (len(rows), 4)
        if not call.extreme and np.abs(rows).max(initial=0) < 1e3:
            np.testing.assert_allclose(probs, model.predict_proba(rows.astype(np.float64)), rtol=1e-3, atol=1e-5)
            np.testing.assert_array_equal(model.predict(given_rows), probs.argmax(axis=1))
        for wrong in (np.zeros((3, 8)), np.zeros((3, 7), complex), [["a"] * 7], [[1.0], [1.0, 2.0]], np.ma.zeros((3, 7))):
            with pytest.raises((TypeError, ValueError)):
                model.predict_proba(wrong)
    assert [root.tobytes() for root in call.roots] == before
    targets = np.zeros(len(rows), int)
    spare = fs.MLP((5,)).fit(np.zeros((4, 7)), [0, 1, 2, 3], epochs=1)
    if call.extreme:
        with contextlib.suppress(FloatingPointError):  # the loss is no number: said so, and undone
            spare.partial_fit(given_rows, targets)
    elif len(rows):
        spare.partial_fit(given_rows, targets)
