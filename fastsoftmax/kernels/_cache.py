"""Compiled kernels kept on the disk, so that the second process starts in milliseconds.

numba's own cache does not see a change of the JIT options, of an imported source file or of the environment, fails at
import where nothing is writable, and can be poisoned by two processes that compile two signatures of one function.
Here one file holds one kernel for one dtype, in a folder named after everything its code depends on (`_stamp`), and a
checksum stands before its content: whatever is not exactly what was asked for is compiled anew. A cache that cannot be
read or written is never an error; the first failure to write is logged.

``FASTSOFTMAX_CACHE_DIR`` names the folder (default: ``fastsoftmax`` in the user's cache folder; its files are loaded as
code, so it must belong to someone trusted). ``FASTSOFTMAX_CACHE=0`` turns the cache off.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import importlib.util
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numpy as np
from llvmlite import binding

_log = logging.getLogger("fastsoftmax")

# Raise when the layout of a file changes.
_FORMAT = b"fastsoftmax kernel 2\n"

# numba's settings that reach the machine code, as they are if nobody chose otherwise. (Were they others in some version of
# numba, processes would find their kernels only after importing it.)
_SETTINGS = {
    "OPT": "_OptLevel(3)",
    "BOUNDSCHECK": "None",
    "LOOP_VECTORIZE": "1",
    "SLP_VECTORIZE": "0",
    "ENABLE_AVX": "True",
    "DEBUGINFO_DEFAULT": "0",
    "EXTEND_VARIABLE_LIFETIMES": "0",
    "LLVM_REFPRUNE_PASS": "1",
    "LLVM_REFPRUNE_FLAGS": "all",
    "CPU_NAME": "None",
    "CPU_FEATURES": "None",
}

_UNUSED_DAYS = 60


def folder() -> Path | None:
    """The folder that the cache is kept in, existing or not; None when the cache is off or has no place."""
    if os.environ.get("FASTSOFTMAX_CACHE", "1") == "0":
        return None
    if chosen := os.environ.get("FASTSOFTMAX_CACHE_DIR"):
        return Path(chosen).absolute()
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home folder
        _warn_once("no home folder")
        return None
    return Path(base) / "fastsoftmax"


def _sources() -> bytes | None:
    """A hash over the source of every module of this folder (inlined helpers come from more than one); None without."""
    digest = hashlib.sha256()
    try:
        # Through importlib, not the file system, so that a package inside a zip file is read too.
        files = [f for f in importlib.resources.files(__package__).iterdir() if f.name.endswith(".py")]
        for file in sorted(files, key=lambda f: f.name):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\n".encode() + content)
    except Exception as error:  # a loader of somebody else's
        _log.debug("the kernels' sources cannot be read: %r", error)
        return None
    return digest.digest() if files else None


# As they were when this process began to import kernels: a file edited later must not lend its hash to older code.
_SOURCES = _sources()


def numba_version() -> str:
    """Without importing it, if its source says so."""
    with contextlib.suppress(Exception):  # a finder or a layout of somebody else's: then numba itself is asked
        source = Path(importlib.util.find_spec("numba").origin).with_name("_version.py")
        if found := re.search(r'"version": "(.+)"', source.read_text()):
            return found[1]
    import numba

    return numba.__version__


def _settings() -> list[tuple[str, str]]:
    """Those of numba's settings that reach the machine code and are not as ever; numba is imported if there may be some."""
    given = any(f"NUMBA_{name}" in os.environ for name in _SETTINGS) or os.path.exists(".numba_config.yaml")
    if not given and "numba" not in sys.modules:
        return []
    from numba import config

    values = {name: str(getattr(config, name, default)) for name, default in _SETTINGS.items()}
    return [(name, value) for name, value in values.items() if value != _SETTINGS[name]]


def processor() -> str:
    """The CPU that kernels are made for."""
    return dict(_settings()).get("CPU_NAME", binding.get_host_cpu_name())


def _features() -> str:
    with contextlib.suppress(RuntimeError):  # not known on this system, as numba takes it
        return binding.get_host_cpu_features().flatten()
    return ""


def _stamp() -> bytes:
    """A hash over everything that the machine code of a kernel depends on, other than its name and dtype."""
    facts = (
        _SOURCES,
        __package__,
        sys.version,
        sys.implementation.cache_tag,
        np.__version__,
        numba_version(),
        llvmlite.__version__,
        _settings(),
        (binding.get_process_triple(), binding.get_host_cpu_name(), _features()),
    )
    return hashlib.sha256(repr(facts).encode()).digest()


def name_of(kernel: str, dtype: Any) -> str:
    """A kernel's and a dtype's together."""
    return f"{kernel}_{np.dtype(dtype).name}"


def _locate(name: str) -> tuple[Path, bytes] | None:
    """The file, and what its content must begin with: the format and the full stamp."""
    root = folder()
    if root is None or _SOURCES is None:
        return None
    stamp = _stamp()
    return root / stamp.hex()[:16] / f"{name}.bin", _FORMAT + stamp + name.encode() + b"\n"


def load(name: str) -> bytes | None:
    """The machine code kept under that name, or None."""
    try:
        if (place := _locate(name)) is None:
            return None
        path, head = place
        content = path.read_bytes()
        body = content[len(head) + 32 :]
        if content[: len(head) + 32] == head + hashlib.sha256(body).digest():
            return body
        _log.debug("%s is damaged or foreign; compiling anew", path)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever it is, compiling is the answer
        _log.debug("kernel %s could not be loaded: %r; compiling anew", name, error)
    return None


def save(name: str, code: Callable[[], bytes]) -> None:
    """Keep the machine code, just made, that `code` returns."""
    try:
        if (place := _locate(name)) is None:
            return
        if _sources() != _SOURCES:
            return
        path, head = place
        body = code()
        if not path.parent.is_dir():
            _remove_unused(path.parent.parent)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, head + hashlib.sha256(body).digest() + body)
    except OSError as error:
        _warn_once(f"{error.strerror or error}: {place[0].parent.parent if place else ''}")
    except Exception as error:
        _warn_once(f"numba {numba_version()} is not supported by the cache ({error!r})")


def _write(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: a reader sees the whole file or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_unused(root: Path) -> None:
    """Drop the folders that nothing has been written to for long: of other versions, other CPUs."""
    with contextlib.suppress(OSError):
        for old in root.iterdir():
            if old.is_dir() and len(old.name) == 16 and old.stat().st_mtime < time.time() - _UNUSED_DAYS * 86400:
                shutil.rmtree(old, ignore_errors=True)


_warned = False


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        _log.warning("compiled kernels cannot be kept (%s); set FASTSOFTMAX_CACHE_DIR to a writable folder", reason)
