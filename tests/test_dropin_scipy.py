"""`fastsoftmax.dropin.scipy` against SciPy: its own test module, then a sweep of the parameters it leaves out."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fastsoftmax.dropin import scipy as dropin

pytest.importorskip("scipy", minversion="1.17")  # whose rules for signs, infinities and complex numbers are followed
special = pytest.importorskip("scipy.special")

PLUGIN = """
    import pytest
    from fastsoftmax.dropin import scipy as dropin

    REPLACED = ("softmax", "log_softmax", "logsumexp")
    calls = dict.fromkeys(REPLACED, 0)

    def counted(name):
        def call(*args, **kwargs):
            calls[name] += 1
            return getattr(dropin, name)(*args, **kwargs)
        return call

    def pytest_collection_modifyitems(items):
        for module in {item.module for item in items}:
            for name in REPLACED:
                setattr(module, name, counted(name))

    def pytest_terminal_summary(terminalreporter):
        terminalreporter.write_line("calls: " + " ".join(f"{k}={v}" for k, v in calls.items()))
"""


def test_scipys_own_test_module_passes_whole(tmp_path):
    (tmp_path / "replace_scipy.py").write_text(textwrap.dedent(PLUGIN))
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts =\nfilterwarnings =\n    error::RuntimeWarning\n")
    root = Path(dropin.__file__).parents[2]
    module = Path(special.__file__).parent / "tests" / "test_logsumexp.py"
    if not module.exists():
        pytest.skip("SciPy is installed without its tests")
    path = os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "replace_scipy", "-p", "no:cacheprovider"]
    command += ["-c", str(tmp_path / "pytest.ini"), "--rootdir", str(module.parent), str(module)]
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "failed" not in run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout).group(1)) > 300
    calls = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", run.stdout.split("calls:")[1])}
    assert calls["logsumexp"] > 300  # the functions under test were ours
    assert min(calls.values()) >= 10


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(scale=20, size=(3, 4, 5))


AXES = (None, 0, 1, -1, (0,), (0, 1), (2, 0), (-1, 0), (0, 1, 2), ())


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int32", "uint8", "complex128", "longdouble"])
def test_elementwise_functions_match(x, name, axis, dtype):
    x = (np.abs(x) if dtype == "uint8" else x / 4 if dtype == "int8" else x).astype(dtype)
    theirs = getattr(special, name)(x if dtype != "uint8" else x.astype("float16"), axis=axis)  # SciPy's uint8 wraps
    ours = getattr(dropin, name)(x, axis=axis)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    info = np.finfo(ours.dtype)
    atol = 20 * info.eps if name == "log_softmax" else 4 * info.smallest_subnormal
    np.testing.assert_allclose(ours, theirs, rtol=200 * info.eps, atol=atol)


@pytest.mark.parametrize("axis", AXES[:-1])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "complex64", "complex128", "longdouble"])
@pytest.mark.parametrize("weights", [None, "mask", "positive", "signed"])
def test_logsumexp_matches(x, axis, keepdims, dtype, weights):
    rng = np.random.default_rng(1)
    a = (x / 4).astype(dtype)
    b = {
        None: None,
        "mask": rng.integers(0, 2, size=(4, 1)),
        "positive": rng.uniform(0.5, 2, size=x.shape),
        "signed": rng.normal(size=(1, 4, 5)).astype("float32"),
    }[weights]
    theirs = special.logsumexp(a, axis=axis, b=b, keepdims=keepdims, return_sign=True)
    ours = dropin.logsumexp(a, axis=axis, b=b, keepdims=keepdims, return_sign=True)
    for mine, its in zip(ours, theirs):
        assert np.shape(mine) == np.shape(its)
        assert mine.dtype == its.dtype
        rtol = 2000 * np.finfo(mine.dtype).eps
        np.testing.assert_allclose(mine, its, rtol=rtol, atol=rtol)
    with np.errstate(invalid="ignore"):
        plain = special.logsumexp(a, axis=axis, b=b, keepdims=keepdims)
    np.testing.assert_allclose(
        dropin.logsumexp(a, axis=axis, b=b, keepdims=keepdims), plain, rtol=rtol, atol=rtol, equal_nan=True
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *itertools.product(
            [[0.0, -np.inf], [-np.inf, -np.inf], [np.inf, 1.0], [np.inf, np.inf], [np.nan, 1.0], [np.inf, -np.inf]],
            [None, [1.0, 1.0], [1.0, -1.0], [-2.0, 3.0], [0.0, 1.0], [2.0, 2.0]],
        )
    ],
)
def test_logsumexp_of_special_values(a, b):
    with np.errstate(all="ignore"):
        theirs = special.logsumexp(a, b=b, return_sign=True)
    if b is not None and b[0] == 0:  # the silenced element must not show; SciPy lets it where the result is infinite
        theirs = (a[1], np.sign(np.exp(a[1])))
    np.testing.assert_array_equal(dropin.logsumexp(a, b=b, return_sign=True), theirs)


def test_scalars_and_lists():
    for function in (dropin.softmax, dropin.log_softmax, dropin.logsumexp):
        for scalar in (3, 3.0, np.float32(3), np.array(3.0)):
            theirs = getattr(special, function.__name__)(scalar)
            assert type(function(scalar)) is type(theirs)
            assert function(scalar) == theirs
    assert dropin.softmax([[1, 2], [3, 4]]).sum() == pytest.approx(1)


def test_the_lost_tail_is_kept():
    """SciPy's log_softmax is 0 at a dominant maximum; the truth is -exp(-40)."""
    x = np.array([40.0, 0.0])
    assert special.log_softmax(x)[0] == 0
    np.testing.assert_allclose(dropin.log_softmax(x)[0], -np.exp(-40.0), rtol=1e-15)


def test_narrow_integers_do_not_wrap():
    x = np.array([127, -128], dtype=np.int8)  # 127 - (-128) is not an int8
    assert dropin.softmax(x).tolist() == [1, 0]


def test_an_element_with_zero_weight_is_not_there():
    assert dropin.logsumexp([np.nan, np.inf, 2.0], b=[0, 0, 1]) == 2.0
    assert dropin.logsumexp([np.nan, np.inf, 2.0], b=[0, 0, 3]) == 2.0 + np.log(3)


def test_weights_that_nearly_cancel():
    """exp(1000) - exp(999.9999999): far beyond the range of exp, and the difference of nearly equal terms."""
    a = np.array([1000.0, 1000.0 - 2.0**-20])
    result, sign = dropin.logsumexp(a, b=[-1, 1], return_sign=True)
    assert sign == -1
    np.testing.assert_allclose(result, 1000 + np.log(-np.expm1(-(2.0**-20))), rtol=1e-12)


def test_weights_that_outweigh_the_largest_element():
    """exp(1000) - 3 exp(999.9), again beyond the range of exp."""
    result, sign = dropin.logsumexp([1000.0, 999.9], b=[1, -3], return_sign=True)
    assert sign == -1
    np.testing.assert_allclose(result, 1000 + np.log(3 * np.exp(-0.1) - 1), rtol=1e-15)
    assert np.isnan(dropin.logsumexp([1000.0, 999.9], b=[1, -3]))


def test_complex_terms_far_below_the_largest_are_kept():
    result = dropin.logsumexp([0j, -40 + 1j])
    np.testing.assert_allclose([result.real, result.imag], np.exp(-40) * np.array([np.cos(1), np.sin(1)]), rtol=1e-14)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_wrong_axes(name):
    for axis in (2, -3, (0, 2)):
        for module in (special, dropin):
            with pytest.raises(IndexError) as error:
                getattr(module, name)(np.zeros((2, 3)), axis=axis)
            assert type(error.value).__name__ == "AxisError"
    with pytest.raises(ValueError, match="repeated axis"):
        getattr(dropin, name)(np.zeros((2, 3)), axis=(1, -1))
    with pytest.raises(TypeError):
        getattr(dropin, name)(np.array(["a"]))


def test_empty_arrays():
    for function in (special.softmax, dropin.softmax, special.log_softmax, dropin.log_softmax):
        assert function(np.zeros((0, 3)), axis=1).shape == (0, 3)
        with pytest.raises(ValueError, match=r"zero-size array|at least 1 class"):
            function([])
    assert dropin.logsumexp([]) == -np.inf
    assert dropin.logsumexp(np.zeros((2, 0)), axis=1).tolist() == [-np.inf, -np.inf]
    assert dropin.logsumexp(np.zeros((0, 3)), axis=1, keepdims=True).shape == (0, 1)
    out, sign = dropin.logsumexp([], b=[], return_sign=True)
    assert (out, sign) == (-np.inf, 0)
