"""What a new process pays: the import, the first call with and without a disk cache, compiling everything."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import fastsoftmax

ROOT = str(Path(fastsoftmax.__file__).parents[1])

FIRST_CALL = """
import numpy as np, time
logits = np.ones((128, 10), np.float32)
start = time.perf_counter()
import fastsoftmax
fastsoftmax.softmax(logits)
print(time.perf_counter() - start)
"""

COMPILE_ALL = """
import numpy, time
start = time.perf_counter()
import fastsoftmax
fastsoftmax.warmup(("float32",))
print(time.perf_counter() - start)
"""

IMPORT = """
import numpy, time
start = time.perf_counter()
import fastsoftmax
print(time.perf_counter() - start)
"""


def run(code: str, cache: str) -> float:
    """The number that `code` prints, in a new process with its kernels' cache in the folder `cache`.

    Python keeps the modules that it compiled, as pip does where a package is installed: without, importing takes 31 ms, not 9.
    """
    environment = {**os.environ, "PYTHONPATH": ROOT, "FASTSOFTMAX_CACHE_DIR": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))


def median_of(repeats: int, code: str, cache: str) -> float:
    return statistics.median(run(code, cache) for _ in range(repeats))


def timeraw_import_numpy() -> str:
    return "import numpy"


def timeraw_import_fastsoftmax() -> str:
    """It loads NumPy and not numba."""
    return f"import sys; sys.path.insert(0, {ROOT!r}); import fastsoftmax"


class StartUp:
    """Seconds after NumPy is imported."""

    unit = "seconds"
    timeout = 300

    def track_import(self) -> float:
        """Over and above NumPy."""
        with tempfile.TemporaryDirectory() as cache:
            return median_of(5, IMPORT, cache)

    def track_first_softmax_cold_cache(self) -> float:
        with tempfile.TemporaryDirectory() as cache:
            return run(FIRST_CALL, cache)

    def track_first_softmax_warm_cache(self) -> float:
        with tempfile.TemporaryDirectory() as cache:
            run(FIRST_CALL, cache)
            return median_of(5, FIRST_CALL, cache)

    def track_compile_all_float32(self) -> float:
        with tempfile.TemporaryDirectory() as cache:
            return run(COMPILE_ALL, cache)
