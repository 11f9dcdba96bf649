"""The examples in README.md and in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax

README = Path(__file__).parent.parent / "README.md"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
# Modules that stand on packages which the core does not need.
NEEDS = {
    "fastsoftmax.sklearn": "sklearn",
    "_torch_module": "torch",
    "_peers.torch_": "torch",
    "_peers.jax_": "jax",
    "_peers.sklearn_": "sklearn",
    "_peers.scipy_": "scipy",
}


def modules():
    """Every module of the package; the entry point of ``python -m`` runs when imported and is left out."""
    found = pkgutil.walk_packages(fastsoftmax.__path__, "fastsoftmax.")
    return ["fastsoftmax", *(m.name for m in found if not m.name.endswith("__main__"))]


def run(test):
    output = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    with np.printoptions(precision=8):
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
    return runner.tries


def test_readme():
    """Its Python blocks, one after the other, share their names as in one session."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names = {}
    tries = 0
    for i, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"README block {i}", str(README), 0)
        test.globs = names
        output = []
        runner = doctest.DocTestRunner(optionflags=OPTIONS)
        runner.run(test, out=output.append, clear_globs=False)
        assert runner.failures == 0, "".join(output)
        tries += runner.tries
    assert tries >= 10


@pytest.mark.parametrize("name", modules())
def test_docstrings(name):
    for suffix, package in NEEDS.items():
        if name.endswith(suffix):
            pytest.importorskip(package)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        if test.examples:
            run(test)


def test_public_functions_have_examples():
    """A docstring without an example is one nobody has tried."""
    examples = doctest.DocTestParser().get_examples
    public = {name: getattr(fastsoftmax, name) for name in fastsoftmax.__all__}
    without = [name for name, value in public.items() if callable(value) and not examples(value.__doc__ or "")]
    # Nothing to see in an example: they print or compile.
    assert set(without) <= {"warmup", "show_config", "set_num_threads", "get_num_threads", "num_threads"}, without
