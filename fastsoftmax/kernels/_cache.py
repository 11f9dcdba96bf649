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
import logging
import os
import pickle
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import config

_log = logging.getLogger("fastsoftmax")

# Raise when the layout of a file changes.
_FORMAT = b"fastsoftmax kernel 1\n"

# numba's settings that reach the machine code. The CPU's name and features come from the code generator itself.
_SETTINGS = (
    "OPT",
    "BOUNDSCHECK",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "DEBUGINFO_DEFAULT",
    "EXTEND_VARIABLE_LIFETIMES",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
    "USING_SVML",
)

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


def _stamp(options: dict[str, Any], cpu: tuple[Any, ...]) -> bytes:
    """A hash over everything that the machine code of a kernel depends on, other than its name and dtype."""
    facts = (
        _SOURCES,
        __package__,
        sys.version,
        sys.implementation.cache_tag,
        np.__version__,
        numba.__version__,
        llvmlite.__version__,
        sorted(options.items()),
        [(name, str(getattr(config, name, None))) for name in _SETTINGS],
        cpu,
    )
    return hashlib.sha256(repr(facts).encode()).digest()


class DiskCache:
    """One kernel's file. It stands in for `numba.core.caching.FunctionCache` as a dispatcher's ``_cache``.

    Should numba move the internals that this relies on, loading and saving fail quietly and every process compiles.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._name = name
        self._options = options

    def _locate(self, codegen: Any) -> tuple[Path, bytes] | None:
        """The file, and what its content must begin with: the format and the full stamp."""
        root = folder()
        if root is None or _SOURCES is None:
            return None
        stamp = _stamp(self._options, codegen.magic_tuple())
        return root / stamp.hex()[:16] / f"{self._name}.bin", _FORMAT + stamp + self._name.encode() + b"\n"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel from the disk, or None."""
        try:
            if (place := self._locate(target_context.codegen())) is None:
                return None
            path, head = place
            content = path.read_bytes()
            body = content[len(head) + 32 :]
            if content[: len(head) + 32] != head + hashlib.sha256(body).digest():
                _log.debug("%s is damaged or foreign; compiling anew", path)
                return None
            target_context.refresh()
            from numba.core.compiler import CompileResult

            return CompileResult._rebuild(target_context, *pickle.loads(body))
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever it is, compiling is the answer
            _log.debug("kernel %s could not be loaded: %r; compiling anew", self._name, error)
            return None

    def save_overload(self, sig: Any, result: Any) -> None:
        """Keep a kernel that was just compiled."""
        try:
            if (place := self._locate(result.codegen)) is None:
                return
            if _sources() != _SOURCES:
                return
            from numba.core.serialize import dumps

            path, head = place
            body = dumps(result._reduce())
            if not path.parent.is_dir():
                _remove_unused(path.parent.parent)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, head + hashlib.sha256(body).digest() + body)
        except OSError as error:
            _warn_once(f"{error.strerror or error}: {place[0].parent.parent if place else ''}")
        except Exception as error:
            _warn_once(f"numba {numba.__version__} is not supported by the cache ({error!r})")

    # The rest of what numba may ask of a cache.
    cache_path = None

    def enable(self) -> None:
        """Nothing to do: the environment decides."""

    disable = flush = enable


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
