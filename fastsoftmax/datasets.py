"""Data sets: the digits that come with the package, and files in MNIST's format. Nothing is downloaded."""

from __future__ import annotations

import errno
import math
import os
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Dataset", "load_digits", "load_mnist", "read_idx"]


class Dataset(NamedTuple):
    """Images and labels, split for training and testing; unpacks in this order."""

    x_train: NDArray
    y_train: NDArray
    x_test: NDArray
    y_test: NDArray


def load_digits() -> Dataset:
    """The 8x8 handwritten digits that come with the package: 1,540 rows to train on, 257 to test.

    Returns
    -------
    Dataset
        ``x_train`` (1540, 64) and ``x_test`` (257, 64) uint8 with values 0..16, so ``scale=1/16``; ``y_train`` and
        ``y_test`` uint8 labels 0..9. Every seventh row, from the first, is a test row: the split is fixed, and has all
        classes in equal parts.

    Notes
    -----
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998),
    https://doi.org/10.24432/C50P49, licensed CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). These are the
    1,797 images of its test part, in the order in which scikit-learn ships them; stored as uint8, otherwise unchanged.

    Examples
    --------
    >>> from fastsoftmax.datasets import load_digits
    >>> x_train, y_train, x_test, y_test = load_digits()
    >>> x_train.shape, x_test.shape
    ((1540, 64), (257, 64))
    """
    from importlib import resources  # here, not above: it takes longer to import than the rest of the package

    with resources.files("fastsoftmax").joinpath("data/digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        x, y = arrays["images"].reshape(-1, 64), arrays["labels"]
    test = np.arange(len(x)) % 7 == 0
    return Dataset(x[~test], y[~test], x[test], y[test])


def load_mnist(folder: str | os.PathLike[str]) -> Dataset:
    """MNIST, or any data set in its format (Fashion-MNIST, KMNIST), from its four files.

    Parameters
    ----------
    folder : path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, plain or with ``.gz``.

    Returns
    -------
    Dataset
        Images as they are in the files, uint8 of shape (n_rows, 28, 28), so ``scale=1/255``; labels uint8.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names it.
    ValueError
        A file is truncated, of another format, or does not fit its neighbour; the message names it.
    """
    from pathlib import Path  # here: with what it imports, a fifth of what importing the package may cost

    folder = Path(folder)
    arrays = []
    for part in ("train", "t10k"):
        images_path, labels_path = (_find(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.ndim != 3:
            raise ValueError(f"{images_path}: expected images (3 dimensions), got an array of shape {images.shape}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{labels_path}: expected {len(images)} labels, one an image, got shape {labels.shape}")
        if len(images) == 0:
            raise ValueError(f"{images_path}: holds no images")
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{labels_path}: expected integer labels, got {labels.dtype}")
        arrays += [images, labels]
    data = Dataset(*arrays)
    if data.x_train.shape[1:] != data.x_test.shape[1:]:
        train, test = data.x_train.shape[1:], data.x_test.shape[1:]
        raise ValueError(f"{images_path}: test images are {test}, training images {train}")
    return data


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(errno.ENOENT, "no such data file, plain or .gz", str(folder / name))


# The IDX format: two zero bytes, a byte for the dtype, a byte for the number of dimensions, each dimension as a
# big-endian uint32, then the data, big-endian (http://yann.lecun.com/exdb/mnist/).
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> NDArray:
    """Read an array from a file in the IDX format, in which MNIST comes; plain or gzipped, told by its content.

    Parameters
    ----------
    path : path

    Returns
    -------
    ndarray
        With the file's shape and dtype, in native byte order.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    ValueError
        It is not an IDX file, or truncated, or longer than it says; the message names it.
    """
    import gzip
    from pathlib import Path

    path = Path(path)
    with open(path, "rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            with gzip.GzipFile(fileobj=raw) if gzipped else raw as file:
                return _read_idx(file, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: truncated or damaged gzip file ({error})") from error


def _read_idx(file: Any, path: Path) -> NDArray:
    magic = file.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path}: truncated: {len(magic)} bytes, too short for an IDX file")
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise ValueError(f"{path}: not an IDX file: wrong magic number 0x{magic.hex()}")
    dims = file.read(4 * magic[3])
    if len(dims) < 4 * magic[3]:
        raise ValueError(f"{path}: truncated in the header")
    shape = tuple(int(n) for n in np.frombuffer(dims, ">u4"))
    dtype = np.dtype(_DTYPES[magic[2]])
    n_bytes = math.prod(shape) * dtype.itemsize
    # in pieces: a header that lies cannot make us ask for more memory than the file holds data
    data = bytearray()
    while piece := file.read(min(n_bytes + 1 - len(data), 1 << 24)):
        data += piece
    if len(data) < n_bytes:
        raise ValueError(f"{path}: truncated: shape {shape} takes {n_bytes} bytes of data, the file holds {len(data)}")
    if len(data) > n_bytes:
        raise ValueError(f"{path}: has more data than its header says (shape {shape}, {n_bytes} bytes)")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
