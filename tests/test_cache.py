"""The disk cache of compiled kernels: fast when it fits, silent when it does not, never stale and never wrong.

Each test copies the package, adds a small kernel of its own to the copy (it compiles in a fraction of a second) and
starts fresh processes with a cache folder of their own. Those marked slow start more of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastsoftmax
from fastsoftmax import kernels
from fastsoftmax.kernels import _cache

PACKAGE = Path(fastsoftmax.__path__[0])

KERNEL = """
from ._jit import INDEX, MATRIX_IN, REAL, signature
from .weights import weight

@signature(MATRIX_IN, INDEX, INDEX, returns=REAL)
def weighted_sum(x, lo, hi):
    total = 0.0
    for i in range(lo, hi):
        for j in range(x.shape[1]):
            total += weight(x[i, j])
    return total
"""

HELPER = """
from ._jit import inline

@inline
def weight(value):
    return 2.0 * value
"""

# How many kernels came from the disk: `hits()`.
COUNT = """
from fastsoftmax.kernels import _cache

loaded, load = [], _cache.load
def counted(name):
    loaded.append(load(name))
    return loaded[-1]
_cache.load = counted
def hits():
    return sum(result is not None for result in loaded)
"""
# Prints what the kernel returned and whether it came from the disk.
SCRIPT = COUNT + """
import json, logging, sys
import numpy as np
from fastsoftmax import kernels

kernels.KERNELS["weighted_sum"] = kernels.Kernel("weighted_sum", "weighted_sum")
x = np.arange(12.0, dtype={dtype!r}).reshape(3, 4)
kernel = kernels.kernel("weighted_sum", x.dtype)
print(json.dumps([kernel(x, 0, {rows}, True), hits()]))
"""
TWICE_THE_SUM = 132.0

# Builds the kernel anew at every line of its input.
SERVER = COUNT + """
import json, sys
import numpy as np
from fastsoftmax import kernels

for line in sys.stdin:
    loaded.clear()
    kernel = kernels.Kernel("weighted_sum", "weighted_sum")[np.dtype(line.strip())]
    x = np.arange(12.0, dtype=line.strip()).reshape(3, 4)
    print(json.dumps([kernel(x, 0, 3, True), hits()]), flush=True)
"""


def environment(package_parent, cache, **more):
    """The environment of a fresh process that imports the package from `package_parent`."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("FASTSOFTMAX_", "NUMBA_", "XDG_", "PYTHON"))}
    # No .pyc files: Python takes an edited source of the same size and second for unchanged.
    keep |= {"PYTHONPATH": str(package_parent), "PYTHONDONTWRITEBYTECODE": "1"}
    if cache is not None:
        keep["FASTSOFTMAX_CACHE_DIR"] = str(cache)
    return {k: v for k, v in (keep | more).items() if v is not None}


class Copy:
    """A copy of the package, and processes that use it."""

    def __init__(self, parent):
        self.parent = parent
        self.kernels = parent / "fastsoftmax" / "kernels"
        self.cache = parent / "cache"
        shutil.copytree(PACKAGE, parent / "fastsoftmax", ignore=shutil.ignore_patterns("__pycache__"))
        (self.kernels / "weighted_sum.py").write_text(KERNEL)
        (self.kernels / "weights.py").write_text(HELPER)

    def start(self, script=SCRIPT, *, dtype="float64", rows=3, path=None, cache="", prefix=(), **more):
        code = script.format(dtype=dtype, rows=rows)
        env = environment(path or self.parent, self.cache if cache == "" else cache, **more)
        return subprocess.Popen(
            [*prefix, sys.executable, "-c", code],
            env=env,
            cwd=self.parent,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *args, **options):
        """What a process returned: (the sum, whether from the disk), and what it wrote to stderr."""
        return finish(self.start(*args, **options))

    def files(self):
        return sorted(self.cache.rglob("*.bin"))


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out), err


@pytest.fixture
def package(tmp_path):
    return Copy(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A function ``build(dtype)``, which builds in one and the same process, and the copy it works in."""
    package = Copy(tmp_path_factory.mktemp("server"))
    process = package.start(SERVER)

    def build(dtype="float64"):
        process.stdin.write(dtype + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield build, package
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_second_process_loads_what_the_first_compiled(package):
    assert package.run() == ([TWICE_THE_SUM, 0], "")
    assert package.run() == ([TWICE_THE_SUM, 1], "")
    assert len(package.files()) == 1
    assert package.run(dtype="float32") == ([TWICE_THE_SUM, 0], "")
    assert len(package.files()) == 2
    assert not list(package.cache.rglob("*.tmp"))


def _truncate(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _truncate_within_the_checksum(path, other):
    path.write_bytes(path.read_bytes()[:60])


def _empty(path, other):
    path.write_bytes(b"")


def _fill_with_zeros(path, other):
    path.write_bytes(bytes(path.stat().st_size))


def _change_one_bit(path, other):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def _append(path, other):
    path.write_bytes(path.read_bytes() + b"\0")


def _replace_by_another_kernels(path, other):
    shutil.copy(other, path)


def _replace_by_text(path, other):
    path.write_text("#!/bin/sh\n" * 1000)


def _replace_by_a_folder(path, other):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _truncate_within_the_checksum,
        _empty,
        _fill_with_zeros,
        _change_one_bit,
        _append,
        _replace_by_another_kernels,
        _replace_by_text,
    ],
)
def test_damaged_file_is_compiled_anew_and_replaced(server, damage):
    build, package = server
    shutil.rmtree(package.cache, ignore_errors=True)
    assert build() == [TWICE_THE_SUM, 0]
    (path,) = package.files()
    build("float32")
    (other,) = set(package.files()) - {path}
    damage(path, other)
    assert build() == [TWICE_THE_SUM, 0]
    assert build() == [TWICE_THE_SUM, 1]


@pytest.mark.slow
def test_file_of_another_version_is_compiled_anew(package):
    """Copied by hand into this version's folder, it still says whose it is."""
    package.run()
    (old,) = package.files()
    with (package.kernels / "weights.py").open("a") as file:
        file.write("# changed\n")
    package.run()
    (new,) = set(package.files()) - {old}
    shutil.copy(old, new)
    assert package.run() == ([TWICE_THE_SUM, 0], "")


@pytest.mark.slow
def test_something_unreplaceable_in_the_files_place(package):
    package.run()
    _replace_by_a_folder(*package.files(), None)
    result, err = package.run()
    assert result == [TWICE_THE_SUM, 0]
    assert len(err.splitlines()) == 1
    assert "FASTSOFTMAX_CACHE_DIR" in err


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("weighted_sum.py", "total = 0.0", "total = 1.0", TWICE_THE_SUM + 1),
        ("weights.py", "2.0 * value", "3.0 * value", 1.5 * TWICE_THE_SUM),
        ("_part.py", '"error_model": "numpy"', '"error_model": "numpy", "fastmath": {"contract"}', TWICE_THE_SUM),
    ],
)
def test_changed_source_or_option_is_never_stale(package, file, old, new, expected):
    package.run()
    path = package.kernels / file
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))
    assert package.run() == ([expected, 0], "")
    path.write_text(source)
    assert package.run() == ([TWICE_THE_SUM, 1], ""), "the old source has its old file"


def test_source_edited_while_a_process_runs_is_not_saved_under_the_new_name(package):
    edit = SCRIPT.replace(
        "kernel = ",
        'kernels.kernel("weighted_sum", "float32")\n'
        "from pathlib import Path\n"
        "path = Path(kernels.__file__).parent / 'weights.py'\n"
        "path.write_text(path.read_text().replace('2.0', '3.0'))\n"
        "kernel = ",
    )
    assert package.run(edit)[0] == [TWICE_THE_SUM, 0]
    assert [path.stem for path in package.files()] == ["weighted_sum_float32"]
    assert package.run() == ([1.5 * TWICE_THE_SUM, 0], "")


@pytest.mark.slow
def test_touched_source_still_fits(package):
    package.run()
    for path in package.kernels.glob("*.py"):
        os.utime(path, (1, 1))
    assert package.run() == ([TWICE_THE_SUM, 1], "")


def test_environment_that_changes_the_code_has_a_file_of_its_own(package):
    package.run()
    for level in ("1", "max"):
        assert package.run(NUMBA_OPT=level) == ([TWICE_THE_SUM, 0], "")
    assert package.run(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="") == ([TWICE_THE_SUM, 0], "")
    assert len(package.files()) == 4
    # Reading a row past the end: unchecked code would return something.
    process = package.start(rows=4, NUMBA_BOUNDSCHECK="1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "RuntimeError: a kernel ran out of memory, or out of bounds where NUMBA_BOUNDSCHECK=1" in err


def test_cache_off(package):
    assert package.run(FASTSOFTMAX_CACHE="0") == ([TWICE_THE_SUM, 0], "")
    assert not package.cache.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="other systems name their cache folder otherwise")
def test_default_folder(package):
    home = package.parent / "home"
    package.run(cache=None, HOME=str(home))
    assert len(list((home / ".cache" / "fastsoftmax").rglob("*.bin"))) == 1
    package.run(cache=None, HOME=str(home), XDG_CACHE_HOME=str(home / "elsewhere"))
    assert len(list((home / "elsewhere" / "fastsoftmax").rglob("*.bin"))) == 1


def test_folder_that_cannot_be_made_is_one_log_line(package):
    """A regular file stands where the folder should be: nobody can write there, not even root."""
    package.cache.write_text("")
    two = SCRIPT.replace("print", 'kernels.kernel("weighted_sum", "float32")\nprint')
    result, err = package.run(two)
    assert result == [TWICE_THE_SUM, 0]
    assert len(err.splitlines()) == 1
    assert str(package.cache) in err
    assert "FASTSOFTMAX_CACHE_DIR" in err


@pytest.fixture
def read_only(package, without_privileges):
    yield package, without_privileges
    for path in [package.parent, *package.parent.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def _forbid_writing(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)


def test_read_only_site_packages_and_no_home(read_only):
    package, prefix = read_only
    _forbid_writing(package.parent)
    result, err = package.run(cache=None, prefix=prefix, HOME=str(package.parent / "nowhere"))
    assert result == [TWICE_THE_SUM, 0]
    assert len(err.splitlines()) == 1
    assert "FASTSOFTMAX_CACHE_DIR" in err


def test_read_only_cache_is_read(read_only):
    """A container image warmed up by root, run by somebody else."""
    package, prefix = read_only
    package.run()
    _forbid_writing(package.parent)
    assert package.run(prefix=prefix) == ([TWICE_THE_SUM, 1], "")


def test_zipped_package(package):
    archive = package.parent / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (package.parent / "fastsoftmax").rglob("*"):
            file.write(path, path.relative_to(package.parent))
    shutil.rmtree(package.parent / "fastsoftmax")
    assert package.run(path=archive) == ([TWICE_THE_SUM, 0], "")
    assert package.run(path=archive) == ([TWICE_THE_SUM, 1], "")
    use = """
import json
import fastsoftmax as fs
print(json.dumps([fs.__file__, fs.load_digits().x_train.shape, fs.relu([1.0, -2.0]).tolist()]))
"""
    (file, shape, result), _ = finish(package.start(use, path=archive))
    assert file.startswith(str(archive))
    assert (shape, result) == ([1540, 64], [1.0, 0.0])


@pytest.mark.slow
def test_sources_missing(package):
    """Compiled .pyc files alone: there is nothing to tell one version from another, so nothing is kept."""
    import compileall

    assert compileall.compile_dir(package.parent / "fastsoftmax", legacy=True, quiet=2)
    for path in (package.parent / "fastsoftmax").rglob("*.py"):
        path.unlink()
    result, _ = package.run()
    assert result == [TWICE_THE_SUM, 0]
    assert not package.files()


@pytest.mark.slow
def test_numba_without_the_internals_relied_on(package):
    """Compiles in every process, and one log line says so."""
    script = "from numba.core.codegen import CPUCodeLibrary\ndel CPUCodeLibrary.serialize_using_object_code\n" + SCRIPT
    for _ in range(2):
        result, err = package.run(script)
        assert result == [TWICE_THE_SUM, 0]
        assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_unused_versions_are_removed(package):
    package.run()
    (old,) = package.files()
    os.utime(old.parent, (1e9, 1e9))
    not_ours = package.cache / "notes"
    not_ours.mkdir()
    os.utime(not_ours, (1e9, 1e9))
    package.run(NUMBA_OPT="1")
    assert not old.parent.exists()
    assert not_ours.exists()
    assert len(package.files()) == 1


def test_threads_that_ask_at_once_share_one_compilation(package):
    script = """
import json, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from fastsoftmax import kernels
from numba.core import event

kernels.KERNELS["weighted_sum"] = kernels.Kernel("weighted_sum", "weighted_sum")
barrier = threading.Barrier(8)

def first(_):
    barrier.wait()
    return id(kernels.kernel("weighted_sum", "float64"))

with event.install_recorder("numba:compile") as recorder, ThreadPoolExecutor(8) as pool:
    same = len(set(pool.map(first, range(8))))
entries = [e for _, e in recorder.buffer if e.is_start and "weighted_sum_float64" in str(e.data["dispatcher"])]
print(json.dumps([same, len(entries)]))
"""
    assert package.run(script) == ([1, 1], "")


def test_cold_processes_at_once(package):
    for process in [package.start() for _ in range(3)]:
        (total, _), err = finish(process)
        assert (total, err) == (TWICE_THE_SUM, "")
    assert package.run() == ([TWICE_THE_SUM, 1], "")


@pytest.mark.slow
def test_cold_processes_at_once_many_rounds(package):
    """Two to eight processes, of two dtypes, 20 times from an empty cache."""
    for round_ in range(20):
        shutil.rmtree(package.cache, ignore_errors=True)
        dtypes = [("float64", "float32")[i % 2] for i in range(2 + round_ % 7)]
        for process in [package.start(dtype=dtype) for dtype in dtypes]:
            (total, _), err = finish(process)
            assert (total, err) == (TWICE_THE_SUM, "")
        for dtype in ("float64", "float32"):
            assert package.run(dtype=dtype) == ([TWICE_THE_SUM, 1], "")


def test_kernels_on_the_disk_do_without_numba(package):
    """Nor does it matter whether it was imported before."""
    package.run()
    told = SCRIPT.replace("hits()]))", "hits(), 'numba' in sys.modules]))")
    assert package.run(told) == ([TWICE_THE_SUM, 1, False], "")
    assert package.run("import numba\n" + SCRIPT) == ([TWICE_THE_SUM, 1], "")


nobody_chose = pytest.mark.skipif(any(name.startswith("NUMBA_") for name in os.environ), reason="settings are given")


@pytest.mark.slow
@nobody_chose
def test_every_kernel_does_without_numba():
    """What machine code refers to is Python's, NumPy's, the C library's: to link anything else ends the process."""
    if os.environ.get("FASTSOFTMAX_CACHE") == "0":
        pytest.skip("nothing is kept on the disk")
    kernels.build_all()
    script = """
import sys
from fastsoftmax.kernels import build_all, built
build_all()
print(len(built()), "numba" in sys.modules)
"""
    out = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert out.split() == [str(2 * len(kernels.KERNELS)), "False"]


@nobody_chose
def test_settings_of_numba_that_nobody_chose_are_those_expected():
    import numba

    assert numba.__version__ == _cache.numba_version()
    assert _cache._settings() == []


def test_settings_file_is_seen(package):
    pytest.importorskip("yaml")
    package.run()
    (package.parent / ".numba_config.yaml").write_text("slp_vectorize: 1\n")
    assert package.run() == ([TWICE_THE_SUM, 0], "")


def test_importing_the_kernels_does_not_import_numba(package):
    script = "import json, sys\nfrom fastsoftmax import kernels\nprint(json.dumps('numba' in sys.modules))"
    assert package.run(script) == (False, "")


def test_jit_disabled_is_a_clear_error(package):
    process = package.start(NUMBA_DISABLE_JIT="1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "NUMBA_DISABLE_JIT" in err.splitlines()[-1]
