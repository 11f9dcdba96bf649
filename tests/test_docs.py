"""The examples in README.md and in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax

README = Path(__file__).parent.parent / "README.md"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
# Modules with examples that need a package which the core does not.
NEEDS = {
    "fastsoftmax.sklearn": "sklearn",
    "fastsoftmax.dropin._torch_module": "torch",
    "fastsoftmax.dropin.scipy": "scipy",
}


def modules():
    """The modules of the package with examples in them; the others are not even imported."""
    package = Path(fastsoftmax.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = ("fastsoftmax", *path.relative_to(package).with_suffix("").parts)
            yield ".".join(part for part in parts if part != "__init__")


NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?")


class Checker(doctest.OutputChecker):
    """Floating-point numbers are compared as numbers: the last digit is the business of other tests."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        wanted, found = NUMBER.findall(want), NUMBER.findall(got)
        close = len(wanted) == len(found) and np.allclose([*map(float, found)], [*map(float, wanted)], rtol=1e-7, atol=0)
        want, got = ("".join(NUMBER.sub("#", text).split()) for text in (want, got))
        return close and super().check_output(want, got, optionflags)


def run(test, **kwargs):
    """Run the examples and return how many there were; fail with what doctest says."""
    output = []
    runner = doctest.DocTestRunner(checker=Checker(), optionflags=OPTIONS)
    runner.run(test, out=output.append, **kwargs)
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
        tries += run(test, clear_globs=False)
    assert tries >= 10


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    for prefix, package in NEEDS.items():
        if name.startswith(prefix):
            pytest.importorskip(package)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        if test.examples:
            run(test)


def test_what_the_readme_says_was_tested():
    """Each row of the table names tests that exist, and its figures stand in their files."""
    section = README.read_text(encoding="utf-8").split("## What has been tested\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for _, figures, tests in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
        assert len(named) == tests.count("::") > 0, tests
        sources = [(Path(__file__).parent / file).read_text(encoding="utf-8") for file, _ in named]
        for source, (file, name) in zip(sources, named):
            assert re.search(rf"^def {name}\(", source, flags=re.MULTILINE), f"{file} has no {name}"
        numbers = set(re.findall(r"\d+", re.sub(r"(?<=\d)_(?=\d)", "", "".join(sources))))
        assert set(re.findall(r"\d+", figures.replace(",", ""))) <= numbers, figures


def test_the_checker_compares_numbers():
    check = Checker().check_output
    assert check("array([ 1.92874985e-22, 0.5])\n", "array([1.92874984e-22, 0.5])\n", OPTIONS)
    assert not check("1.5\n", "1.6\n", OPTIONS)
    assert not check("3\n", "4\n", OPTIONS)
    assert not check("array([1.5])\n", "list([1.5])\n", OPTIONS)
