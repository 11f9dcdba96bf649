"""The public functions inside a user's own compiled code."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest
from tolerance import assert_same_bits

import fastsoftmax as fs
from fastsoftmax import numba_support

numba_support.init()  # what the entry point of an installed package does

CONFIDENT = np.array([[0.0, -40.0, -50.0], [1e4, 1e4 - 1, 1e4]])  # the naive formulas give a loss of 0, and overflow


@numba.njit
def each(x):
    return fs.softmax(x), fs.log_softmax(x), fs.logsumexp(x)


@numba.njit
def lse(x):
    return fs.logsumexp(x)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [3, 10, 100])
def test_the_same_bits_as_from_python(dtype, rng, n_classes):
    x = (rng.standard_normal((37, n_classes)) * 30).astype(dtype)
    for a in (x, x[0]):
        for result, function in zip(each(a), (fs.softmax, fs.log_softmax, fs.logsumexp)):
            expected = function(a)
            # numba hands a float32 scalar to Python as a float
            assert_same_bits(np.asarray(result, dtype), np.asarray(expected), label=function.__name__)


@pytest.mark.parametrize("n_classes", [3, 100])
def test_the_same_bits_for_every_layout(rng, n_classes):
    x = rng.standard_normal((37, n_classes)) * 30
    for a in (x, x[:, ::-1], np.asfortranarray(x)):
        assert_same_bits(lse(a), fs.logsumexp(a))


@pytest.mark.slow
def test_the_loss_keeps_its_digits():
    @numba.njit
    def loss(x, targets):
        return fs.cross_entropy(x, targets)

    targets = np.array([0, 2], dtype=np.int32)
    assert loss(CONFIDENT, targets) == fs.cross_entropy(CONFIDENT, targets)
    assert loss(CONFIDENT[0], 0) == fs.cross_entropy(CONFIDENT[0], 0)
    assert 4e-18 < loss(CONFIDENT[0], 0) < 5e-18
    assert np.isnan(loss(CONFIDENT, np.array([-100, -100])))


def test_a_label_that_is_no_class():
    @numba.njit
    def loss(x, targets):
        return fs.cross_entropy(x, targets)

    with pytest.raises(IndexError, match="label"):
        loss(CONFIDENT, np.array([0, 3]))


@pytest.mark.slow
def test_in_a_parallel_loop(rng):
    x = rng.standard_normal((500, 10))

    @numba.njit(parallel=True)
    def entropies(x):
        result = np.empty(len(x))
        for i in numba.prange(len(x)):
            result[i] = -(fs.softmax(x[i]) * fs.log_softmax(x[i])).sum()
        return result

    p = fs.softmax(x)
    np.testing.assert_allclose(entropies(x), -(p * np.log(p)).sum(axis=1), rtol=1e-13)


def test_options_that_are_not_supported_are_numbas_to_refuse():
    @numba.njit
    def down_the_columns(x):
        return fs.softmax(x, axis=0)

    with pytest.raises(numba.TypingError):
        down_the_columns(CONFIDENT)


def test_nothing_at_all():
    assert lse(np.empty((0, 3))).shape == (0,)
    assert lse(np.empty(0)) == -np.inf


SCIPY = """
    import numpy as np, numba, scipy.special
    {register}

    @numba.njit
    def both(x):
        return scipy.special.softmax(x), scipy.special.log_softmax(x, -1)

    x = np.array([0.0, -40.0, 3.0])
    p, q = both(x)
    np.testing.assert_allclose(p, scipy.special.softmax(x), rtol=1e-14)
    np.testing.assert_allclose(q, scipy.special.log_softmax(x), rtol=1e-13)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "register", ["from fastsoftmax.numba_support import init; init()", ""], ids=["by hand", "entry point"]
)
def test_scipys_functions(register):
    """By the entry point alone where the package is installed; in a new process, because init() looks once."""
    pytest.importorskip("scipy")
    if not register and not _installed():
        pytest.skip("the package is not installed: no entry point")
    subprocess.run([sys.executable, "-c", textwrap.dedent(SCIPY.format(register=register))], check=True)


def _installed():
    from importlib.metadata import entry_points

    return any(e.value.startswith("fastsoftmax.") for e in entry_points(group="numba_extensions"))
