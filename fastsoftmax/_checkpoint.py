"""Model files: written whole or not at all, read without trusting them.

A file is a plain ``.npz``: arrays of numbers, and ``meta``, a JSON text as bytes. There is no pickle in it, and none is
ever read: a hostile file can fail to load, it cannot run code.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from pathlib import Path

# json, zipfile and pathlib are imported where they are used: half of what importing the package would cost.

FORMAT, VERSION = "fastsoftmax", 1

PathLike = str | os.PathLike[str]


def write(path: PathLike, meta: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
    """Replace the file ``path`` in one step; a crash at any moment leaves the old file or the new one, whole.

    Raises
    ------
    OSError
        Full disk, read-only folder and the like; the message names the file, and a previous file is intact.
    """
    import json
    from pathlib import Path

    text = json.dumps({"format": FORMAT, "version": VERSION, **meta})
    buffer = io.BytesIO()  # in memory first: an error can then only come from one plain write
    np.savez(buffer, **{"meta": np.frombuffer(text.encode(), np.uint8), **arrays})  # type: ignore[arg-type]
    path = Path(path)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file, buffer.getbuffer() as content:  # released: an error would keep it, and the buffer
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave a renamed empty file
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        _failed(path, temporary, error)


def check_writable(path: PathLike) -> None:
    """Raise now the OSError that a later `write` would raise: nobody should learn of it after hours of training."""
    from pathlib import Path

    path = Path(path)
    temporary = _temporary(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        open(temporary, "wb").close()
        temporary.unlink()
    except OSError as error:
        _failed(path, temporary, error)


def _temporary(path: Path) -> Path:
    # in the same folder, since a rename is atomic only within a file system; the process in the name, since two of
    # them may write the same file, and nothing random, since a killed run would leave a new one each time
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _failed(path: Path, temporary: Path, error: OSError) -> NoReturn:
    with contextlib.suppress(OSError):  # the first error is the one to report
        temporary.unlink(missing_ok=True)
    raise OSError(error.errno, f"could not write the model file: {error.strerror}", str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder; the file's data are safe
            os.fsync(descriptor)
        os.close(descriptor)


def read(path: PathLike) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """The ``meta`` and the arrays of a file that `write` made.

    Raises
    ------
    OSError
        The file is missing or unreadable.
    ValueError
        It is truncated, damaged, or not a fastsoftmax file; the message names it.
    """
    import json
    import zipfile

    with open(path, "rb") as file:
        data = file.read()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # members are stored, not compressed: one that claims to be larger than the file is a zip bomb
            if sum(member.file_size for member in archive.infolist()) > len(data):
                raise ValueError("its members are larger than itself")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != FORMAT:
            raise ValueError("of another format")
        if meta["version"] > VERSION:
            raise ValueError(f"written by a newer fastsoftmax (format {meta['version']})")
    except Exception as error:  # whatever a foreign file's bytes make zipfile, NumPy or json raise
        raise ValueError(f"{os.fspath(path)}: truncated, damaged or not a fastsoftmax model file ({error})") from error
    return meta, arrays


def foreign(path: PathLike, why: str) -> NoReturn:
    """The file is a fastsoftmax file, but not the one wanted."""
    raise ValueError(f"{os.fspath(path)}: {why}")


def expect(
    path: PathLike, arrays: Mapping[str, NDArray], name: str, shape: tuple[int, ...], dtype: DTypeLike
) -> NDArray:
    """The array ``name``, which must have this shape and dtype."""
    array = arrays.get(name)
    if array is None or array.shape != shape or array.dtype != dtype:
        came = "none" if array is None else f"{array.dtype} of shape {array.shape}"
        foreign(path, f"damaged: expected {name} as {dtype} of shape {shape}, got {came}")
    return array
