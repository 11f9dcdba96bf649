"""Data files: the digits inside the package, MNIST's format, and what a bad file gets."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from fastsoftmax.datasets import load_digits, load_mnist, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    header = struct.pack(">HBB", 0, CODES[array.dtype.str[1:]], array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def test_digits():
    data = load_digits()
    x_train, y_train, x_test, y_test = data
    assert (x_train.shape, x_test.shape) == ((1540, 64), (257, 64))
    assert (y_train.shape, y_test.shape) == ((1540,), (257,))
    assert all(a.dtype == np.uint8 for a in data)
    assert (x_train.min(), x_train.max(), y_train.max()) == (0, 16, 9)
    assert np.bincount(y_test).min() >= 22  # every class is tested
    assert np.bincount(y_train).min() >= 140
    assert not (x_test[:, None] == x_train[None, :200]).all(axis=2).any()


def test_digits_are_those_of_scikit_learn():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    x, y = sklearn_datasets.load_digits(return_X_y=True)
    x_train, y_train, x_test, y_test = load_digits()
    np.testing.assert_array_equal(x_test, x[::7])
    np.testing.assert_array_equal(y_test, y[::7])
    np.testing.assert_array_equal(x_train[:6], x[1:7])
    np.testing.assert_array_equal(y_train[-1], y[-1])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", CODES)
def test_read_idx(tmp_path, rng, dtype, compress):
    array = (rng.normal(size=(3, 4, 2)) * 50).astype(dtype)
    path = tmp_path / "array"  # told by its content: the name has no .gz
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    read = read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype)
    assert read.dtype.isnative
    assert read.flags.writeable


GOOD = idx_bytes(np.arange(24, dtype="u1").reshape(2, 3, 4))
DAMAGED = {
    "empty": (b"", "truncated"),
    "two bytes": (GOOD[:2], "truncated"),
    "header cut": (GOOD[:9], "truncated in the header"),
    "data cut": (GOOD[:-1], r"truncated: shape \(2, 3, 4\) takes 24 bytes of data, the file holds 23"),
    "too long": (GOOD + b"x", "more data than its header says"),
    "text": (b"hello, world", "wrong magic number 0x68656c6c"),
    "unknown dtype": (b"\0\0\x07" + GOOD[3:], "wrong magic"),
    "no dimensions": (b"\0\0\x08\0", "wrong magic"),
    "a lying header": (GOOD[:4] + b"\xff" * 12, "truncated"),
    "gzip of text": (gzip.compress(b"hello, world"), "wrong magic"),
    "gzip of cut data": (gzip.compress(GOOD[:-1]), "truncated"),
    "gzip cut": (gzip.compress(GOOD)[:-9], "truncated or damaged gzip"),
    "gzip header alone": (b"\x1f\x8b", "truncated or damaged gzip"),
    "gzip damaged": (b"\x1f\x8b\x08" + b"\xff" * 40, "truncated or damaged gzip"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_named(tmp_path, case):
    data, message = DAMAGED[case]
    path = tmp_path / "some-file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


@pytest.fixture
def mnist_folder(tmp_path, rng):
    arrays = {
        "train-images-idx3": rng.integers(0, 256, (20, 6, 5), np.uint8),
        "train-labels-idx1": rng.integers(0, 10, 20, np.uint8),
        "t10k-images-idx3": rng.integers(0, 256, (8, 6, 5), np.uint8),
        "t10k-labels-idx1": rng.integers(0, 10, 8, np.uint8),
    }
    for i, (name, array) in enumerate(arrays.items()):
        data = idx_bytes(array)
        (tmp_path / f"{name}-ubyte{'.gz' if i % 2 else ''}").write_bytes(gzip.compress(data) if i % 2 else data)
    return tmp_path, list(arrays.values())


def test_load_mnist_plain_and_gz(mnist_folder):
    folder, (x_train, y_train, x_test, y_test) = mnist_folder
    data = load_mnist(str(folder))
    np.testing.assert_array_equal(data.x_train, x_train)
    np.testing.assert_array_equal(data.y_train, y_train)
    np.testing.assert_array_equal(data.x_test, x_test)
    np.testing.assert_array_equal(data.y_test, y_test)


def test_load_mnist_names_the_missing_file(mnist_folder):
    folder, _ = mnist_folder
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"plain or \.gz") as caught:
        load_mnist(folder)
    assert caught.value.filename == str(folder / "t10k-labels-idx1-ubyte")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros(20, "u1"), r"expected images \(3 dimensions\)"),
        ("train-images-idx3-ubyte", np.zeros((19, 6, 5), "u1"), "expected 19 labels, one an image"),
        ("train-images-idx3-ubyte", np.zeros((20, 6, 6), "u1"), r"test images are \(6, 5\), training images \(6, 6\)"),
        ("t10k-images-idx3-ubyte", np.zeros((8, 6, 5, 1), "u1"), "3 dimensions"),
    ],
)
def test_load_mnist_files_that_do_not_fit(mnist_folder, name, array, message):
    folder, _ = mnist_folder
    (folder / name).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=message) as caught:
        load_mnist(folder)
    assert str(folder) in str(caught.value)
