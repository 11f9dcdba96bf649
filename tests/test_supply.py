"""What a user receives: a wheel with the package and nothing else, types that mypy reads, and no network anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

import fastsoftmax

TESTS = Path(__file__).parent
ROOT = TESTS.parent

pytestmark = pytest.mark.slow


def run(*command, cwd, **env):
    """What the command printed; it must end with 0."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


# ---- the wheel and the source distribution --------------------------------------------------------------------------

# The build backend's hooks, called as pip calls them: from the folder of the sources.
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"
NOT_CODE = {"fastsoftmax/py.typed", "fastsoftmax/data/digits.npz"}


def build(what, source, target):
    return target / run(sys.executable, "-c", BUILD, f"build_{what}", target, cwd=source).split()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(source distribution, the wheel built from it), and the wheel built from the checkout."""
    pytest.importorskip("hatchling")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the tests lie outside a checkout")
    folder = tmp_path_factory.mktemp("built")
    for name in ("checkout", "sdist"):
        (folder / name).mkdir()
    sdist = build("sdist", ROOT, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    return sdist, unpacked, build("wheel", unpacked, folder / "sdist"), build("wheel", ROOT, folder / "checkout")


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    files = contents(built[-1])
    info = f"fastsoftmax-{fastsoftmax.__version__}.dist-info/"
    assert {name for name in files if name.startswith(info)} == {
        info + name for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    package = {name for name in files if not name.startswith(info)}
    assert {name for name in package if not name.endswith(".py")} == NOT_CODE
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastsoftmax").rglob("*.py")}
    assert package - NOT_CODE == sources
    assert b"Version: " + fastsoftmax.__version__.encode() in files[info + "METADATA"]


def test_wheel_and_source_distribution_build_from_each_other(built, tmp_path):
    """The same wheel from the checkout and from the source distribution, and the same one of these from itself."""
    sdist, unpacked, from_sdist, from_checkout = built
    assert contents(from_sdist) == contents(from_checkout)
    with tarfile.open(sdist) as first, tarfile.open(build("sdist", unpacked, tmp_path)) as second:
        assert sorted(first.getnames()) == sorted(second.getnames())
        top = {name.split("/")[1] for name in first.getnames()}
    assert top == {"fastsoftmax", "tests", "asv_benchmarks", "pyproject.toml", "README.md", "LICENSE", ".gitignore", "PKG-INFO"}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The Python of a fresh environment in which the wheel is installed, and a folder outside the checkout."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, built[2], cwd=folder)
    # NumPy and numba are not fetched anew: they come from this environment, after the new one's own packages.
    libraries = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(libraries) / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    return python, folder


USE = """
    import fastsoftmax as fs
    import numba  # loads the extensions that are installed

    x_train, y_train, x_test, y_test = fs.load_digits()
    model = fs.SoftmaxRegression(scale=1 / 16).fit(x_train, y_train, epochs=3)
    assert model.score(x_test, y_test) > 0.9

    @numba.njit
    def by_numba(x):
        return fs.softmax(x)

    assert (by_numba(fs.softmax(x_test)) == fs.softmax(fs.softmax(x_test))).all()
    print(fs.__file__)
"""


def test_the_wheel_works_where_it_is_installed(installed):
    python, folder = installed
    out = run(python, "-c", textwrap.dedent(USE), cwd=folder)
    assert Path(out.strip()).is_relative_to(folder)
    assert "usage: " in run(python, "-m", "fastsoftmax", "--help", cwd=folder)


# ---- types -----------------------------------------------------------------------------------------------------------


def test_a_users_program_is_typed(installed):
    """Read by mypy as a user's program is: the package installed, and found typed."""
    pytest.importorskip("mypy")
    python, folder = installed
    source = (TESTS / "typed_program.py").read_text(encoding="utf-8")
    unused = [name for name in fastsoftmax.__all__ if not re.search(rf"\bfs\.{name}\b", source)]
    assert not unused
    (folder / "program.py").write_text(source)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", python]
    assert "Success" in run(*mypy, "program.py", cwd=folder)
    run(python, "program.py", folder, cwd=folder)


# ---- the network ----------------------------------------------------------------------------------------------------

OFFLINE = """
    import sys

    def refuse(event, args):
        if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
            sys.stderr.write(f"network: {event} {args}\\n")
            raise ConnectionError(event)

    sys.addaudithook(refuse)
    import numpy as np
    import fastsoftmax as fs
    from fastsoftmax._cli import main

    fs.softmax(np.ones((3000, 1000)))  # by several threads
    x_train, y_train, x_test, y_test = fs.load_digits()
    fs.MLP((8,), scale=1 / 16).fit(x_train, y_train, epochs=1)
    try:
        fs.load_mnist("nowhere")
    except FileNotFoundError:
        pass
    assert main(["demo", "--epochs", "30"]) == 0
    assert main(["info"]) == 0
"""


def offline(code, folder):
    run(sys.executable, "-c", textwrap.dedent(code), cwd=folder, PYTHONPATH=str(Path(fastsoftmax.__file__).parents[1]))


def test_nothing_reaches_for_the_network(tmp_path):
    """At import, in a call, in training, in the demo: any use of a socket is an error, and is printed."""
    offline(OFFLINE, tmp_path)


def test_a_use_of_the_network_would_be_seen(tmp_path):
    code = OFFLINE[: OFFLINE.index("    import numpy")] + "    import socket; socket.socket()"
    with pytest.raises(AssertionError, match="network: socket"):
        offline(code, tmp_path)
