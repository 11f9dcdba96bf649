"""What bad arguments get: the right exception, naming what was expected and what came, before anything is written."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import CASES, find

import fastsoftmax as fs

Z = np.zeros((3, 4))
T = np.array([0, 1, 2])
X, W, B = np.zeros((3, 5)), np.zeros((5, 4)), np.zeros(4)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


# What is called, the exception, and what the message must say: names, shapes, dtypes, numbers.
ERRORS = {
    # dtypes
    "complex": (lambda: fs.softmax(Z + 1j), TypeError, ["logits", "complex128"]),
    "strings": (lambda: fs.softmax(["a", "b"]), TypeError, ["logits", "<U1"]),
    "objects": (lambda: fs.softmax(np.array([1, None])), TypeError, ["logits", "object"]),
    "booleans as logits": (lambda: fs.softmax(np.array([True, False])), TypeError, ["logits", "bool"]),
    "dates": (lambda: fs.log_softmax(np.array(["2020-01-01"], dtype="M8[D]")), TypeError, ["logits", "datetime64"]),
    "ragged": (lambda: fs.softmax([[1.0], [1.0, 2.0]]), (TypeError, ValueError), ["logits"]),
    "none": (lambda: fs.softmax(None), TypeError, ["logits"]),
    # axis
    "axis too large": (lambda: fs.softmax(Z, axis=2), ValueError, ["axis", "2", "2 dimensions"]),
    "axis too small": (lambda: fs.logsumexp(Z, axis=-3), ValueError, ["axis", "-3", "2 dimensions"]),
    "axis twice": (lambda: fs.log_softmax(Z, axis=(0, -2)), ValueError, ["axis"]),
    "axis no integer": (lambda: fs.softmax(Z, axis=1.0), TypeError, ["axis", "1.0|float"]),
    "axis a word": (lambda: fs.softmax(Z, axis="rows"), TypeError, ["axis", "rows|str"]),
    "no classes": (lambda: fs.softmax(np.zeros((3, 0))), ValueError, ["logits|class", r"\(3, 0\)|0"]),
    "no classes, loss": (lambda: fs.cross_entropy(np.zeros((3, 0)), T), ValueError, ["class", "0"]),
    "loss along two axes": (lambda: fs.cross_entropy(Z, T, axis=(0, 1)), TypeError, ["axis"]),
    "loss of a number": (lambda: fs.cross_entropy(1.0, 0), ValueError, ["logits"]),
    # out
    "out of another shape": (
        lambda: fs.softmax(Z, out=np.zeros((4, 3))),
        ValueError,
        ["out", r"\(3, 4\)", r"\(4, 3\)"],
    ),
    "out of another dtype": (
        lambda: fs.softmax(Z, out=np.zeros((3, 4), "f4")),
        TypeError,
        ["out", "float64", "float32"],
    ),
    "out read-only": (lambda: fs.softmax(Z, out=read_only(Z)), ValueError, ["out", "read-only|writ"]),
    "out a list": (lambda: fs.softmax(Z, out=[0.0]), TypeError, ["out", "list"]),
    "gradient's out": (
        lambda: fs.cross_entropy_with_grad(Z, T, out=np.zeros((3, 5))),
        ValueError,
        ["out", r"\(3, 4\)", r"\(3, 5\)"],
    ),
    # targets
    "too few targets": (lambda: fs.cross_entropy(Z, [0, 1]), ValueError, ["targets", r"\(3,\)", r"\(2,\)"]),
    "targets of three dimensions": (lambda: fs.cross_entropy(Z, np.zeros((3, 4, 1))), ValueError, ["targets"]),
    "probabilities of other classes": (
        lambda: fs.cross_entropy(Z, np.zeros((3, 5))),
        ValueError,
        ["targets", r"\(3, 5\)"],
    ),
    "targets no integers": (lambda: fs.cross_entropy(Z, [0.0, 1.0, 2.0]), TypeError, ["targets", "integer", "float64"]),
    "targets words": (lambda: fs.cross_entropy(Z, ["a", "b", "c"]), TypeError, ["targets", "<U1"]),
    "label too large": (
        lambda: fs.cross_entropy(Z, [0, 4, 1]),
        IndexError,
        ["row 1", r"label.* 4\b", r"\b4 classes|n_classes"],
    ),
    "label negative": (lambda: fs.cross_entropy(Z, [0, 1, -1]), IndexError, ["row 2", r"label.* -1", "4"]),
    "label huge": (
        lambda: fs.cross_entropy(Z, np.array([0, 1, 2**64 - 1], dtype=np.uint64)),
        IndexError,
        ["row 2", str(2**64 - 1), "4"],
    ),
    "the first bad row": (lambda: fs.cross_entropy(Z, [0, 9, 8]), IndexError, ["row 1", "9"]),
    "label ignored by another number": (
        lambda: fs.cross_entropy(Z, [0, 1, -100], ignore_index=-1),
        IndexError,
        ["row 2", "-100"],
    ),
    # weights and options
    "class weights": (
        lambda: fs.cross_entropy(Z, T, class_weight=[1, 2]),
        ValueError,
        ["class_weight", r"\(4,\)|4", r"\(2,\)|2"],
    ),
    "class weights, words": (lambda: fs.cross_entropy(Z, T, class_weight=list("abcd")), TypeError, ["class_weight"]),
    "sample weights": (
        lambda: fs.cross_entropy(Z, T, sample_weight=[1, 2]),
        ValueError,
        ["sample_weight", r"\(3,\)", r"\(2,\)"],
    ),
    "smoothing above 1": (lambda: fs.cross_entropy(Z, T, label_smoothing=1.5), ValueError, ["label_smoothing", "1.5"]),
    "smoothing below 0": (
        lambda: fs.cross_entropy(Z, T, label_smoothing=-0.1),
        ValueError,
        ["label_smoothing", "-0.1"],
    ),
    "smoothing no number": (lambda: fs.cross_entropy(Z, T, label_smoothing="much"), TypeError, ["label_smoothing"]),
    "smoothing NaN": (lambda: fs.cross_entropy(Z, T, label_smoothing=np.nan), ValueError, ["label_smoothing", "nan"]),
    "reduction": (
        lambda: fs.cross_entropy(Z, T, reduction="avg"),
        ValueError,
        ["reduction", "avg", "mean", "sum", "none"],
    ),
    "ignore_index": (lambda: fs.cross_entropy(Z, T, ignore_index=1.5), TypeError, ["ignore_index", "1.5|float"]),
    "grad_loss a row each": (
        lambda: fs.cross_entropy_with_grad(Z, T, grad_loss=np.ones(3)),
        ValueError,
        ["grad_loss", r"\(3,\)"],
    ),
    "grad_loss too long": (
        lambda: fs.cross_entropy_with_grad(Z, T, grad_loss=np.ones(5), reduction="none"),
        ValueError,
        ["grad_loss", r"\(3,\)", r"\(5,\)"],
    ),
    "hessian_scale": (lambda: fs.cross_entropy_grad_hess(Z, T, hessian_scale="two"), TypeError, ["hessian_scale"]),
    # backward passes
    "other shapes": (
        lambda: fs.softmax_backward(Z, np.zeros((4, 3))),
        ValueError,
        ["grad_probs|probs", r"\(3, 4\)", r"\(4, 3\)"],
    ),
    "other log shapes": (lambda: fs.log_softmax_backward(Z, np.zeros((3, 5))), ValueError, [r"\(3, 4\)", r"\(3, 5\)"]),
    "relu shapes": (lambda: fs.relu_backward(Z, np.zeros((3, 5))), ValueError, [r"\(3, 4\)", r"\(3, 5\)"]),
    # products
    "affine inner": (lambda: fs.affine(np.zeros((3, 6)), W), ValueError, ["x", "weight", "6", "5"]),
    "affine bias": (lambda: fs.affine(X, W, np.zeros(5)), ValueError, ["bias", r"\(4,\)|4", r"\(5,\)|5"]),
    "affine weight of one dimension": (lambda: fs.affine(X, B), ValueError, ["weight", r"\(4,\)|1"]),
    "affine_backward rows": (lambda: fs.affine_backward(np.zeros((2, 4)), X, W), ValueError, ["grad_out", "2", "3"]),
    "affine_backward out no tuple": (lambda: fs.affine_backward(Z, X, W, out=X), TypeError, ["out", "tuple of 3", "ndarray"]),
    "affine_backward out too short": (lambda: fs.affine_backward(Z, X, W, out=(X, W)), TypeError, ["out", "3", "2 of them"]),
    "affine_backward out of another shape": (
        lambda: fs.affine_backward(Z, X, W, out=(X, W.T, B)),
        ValueError,
        [r"out\[1\]", r"\(5, 4\)", r"\(4, 5\)"],
    ),
    "affine_backward out not wanted": (
        lambda: fs.affine_backward(Z, X, W, need_grad_x=False, out=(X, W, B)),
        ValueError,
        [r"out\[0\]", "None", "ndarray"],
    ),
    "affine_backward columns": (lambda: fs.affine_backward(np.zeros((3, 6)), X, W), ValueError, ["grad_out", "6", "4"]),
    "linear label": (lambda: fs.linear_cross_entropy(X, W, [0, 4, 1]), IndexError, ["row 1", "4"]),
    "linear targets": (lambda: fs.linear_cross_entropy(X, W, [0, 1]), ValueError, ["targets", r"\(3,\)", r"\(2,\)"]),
    "linear bias": (lambda: fs.linear_cross_entropy(X, W, T, np.zeros(5)), ValueError, ["bias", "5"]),
    # threads
    "no threads": (lambda: fs.set_num_threads(0), ValueError, ["0"]),
    "half a thread": (lambda: fs.set_num_threads(1.5), TypeError, ["float"]),
    "threads in a block": (lambda: fs.num_threads(-1).__enter__(), ValueError, ["-1"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_message(name):
    call, exception, words = ERRORS[name]
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert re.search(word, message), f"{word!r} is not in {message!r}"
    assert "numba" not in type(caught.value).__module__
    assert len(message) < 300


@pytest.mark.parametrize("case", [c for c in CASES if c.out], ids=str)
def test_nothing_is_written_before_the_checks(case):
    """A last argument that is wrong leaves out= as it was."""
    arrays, options = case.make(np.float32)
    expected = case.call(arrays, options)
    out = np.full_like(expected[1] if isinstance(expected, tuple) else expected, 7)
    bad = (*arrays[:-1], arrays[-1].astype(complex))
    with pytest.raises((TypeError, ValueError)):
        case.call(bad, {**options, "out": out})
    assert (out == 7).all()


@pytest.mark.parametrize("n_classes", [10, 100])
@pytest.mark.parametrize("bad", [-1, 200])
def test_a_bad_label_writes_nothing(bad, n_classes, dtype):
    """Not even the rows before it, and not when out= is the logits."""
    logits = np.random.default_rng(0).standard_normal((50, n_classes)).astype(dtype)
    targets = np.zeros(50, dtype=int)
    targets[40] = bad
    before, out = logits.copy(), np.full_like(logits, 7)
    for kwargs in ({"out": out}, {"out": logits}):
        with pytest.raises(IndexError, match=f"row 40.*{bad}.*{n_classes}"):
            fs.cross_entropy_with_grad(logits, targets, **kwargs)
    assert (out == 7).all()
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("n_classes", [4, 100])
@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [([0, 200, 1], IndexError, "row 1.*200"), ([0, 1, -1], IndexError, "row 2.*-1"), ([0, 1], ValueError, "targets"),
     ([0, 1, 2, 3], ValueError, "targets"), ([], ValueError, "targets")],
)  # fmt: skip
def test_labels_of_small_batches_are_checked(targets, error, match, n_classes, dtype):
    """Calls without options have a way of their own."""
    logits, targets = np.zeros((3, n_classes), dtype), np.array(targets, dtype=np.int64)
    for labels in (targets, targets.tolist()):
        for call in (fs.cross_entropy, fs.cross_entropy_with_grad):
            with pytest.raises(error, match=match):
                call(logits, labels)


def test_small_batches_without_a_loss(dtype):
    """No rows, rows that are all ignored, and no classes."""
    for labels, shape in (([], (0, 4)), ([-100, -100], (2, 4))):
        loss, grad = fs.cross_entropy_with_grad(np.full(shape, np.nan, dtype), np.array(labels, dtype=np.int64))
        assert np.isnan(loss)
        np.testing.assert_array_equal(grad, np.zeros(shape, dtype))
    with pytest.raises(ValueError, match="class"):
        fs.cross_entropy_with_grad(np.zeros((2, 0), dtype), np.zeros(2, np.int64))


def test_a_bad_label_is_found_by_any_number_of_threads():
    """The first one is named, whoever finds one first."""
    logits, targets = np.zeros((200_000, 10), dtype=np.float32), np.zeros(200_000, dtype=int)
    targets[[150_000, 199_999]] = 10, 11
    for n in (1, 2, 8):
        with fs.num_threads(n), pytest.raises(IndexError, match=r"row 150000\b"):
            fs.cross_entropy_with_grad(logits, targets)


def test_rows_of_more_dimensions_are_named_by_their_index():
    targets = np.zeros((2, 3), dtype=int)
    targets[1, 2] = 7
    for function in fs.cross_entropy, fs.cross_entropy_with_grad:
        with pytest.raises(IndexError, match=r"row \(1, 2\) has label 7"):
            function(np.zeros((2, 3, 4)), targets)


@pytest.mark.parametrize("axis", [2.0, np.float64(2), "2", (2,), None, [2]], ids=repr)
def test_an_axis_of_three_must_be_an_integer_too(axis):
    for function in fs.cross_entropy, fs.cross_entropy_with_grad:
        with pytest.raises(TypeError, match="axis must be"):
            function(np.zeros((2, 3, 4)), np.zeros((2, 3), int), axis=axis)


def test_every_function_refuses_what_it_does_not_know():
    """A misspelt option is an error, and out= is never taken for something else."""
    for case in CASES:
        arrays, options = case.make(np.float64)
        with pytest.raises(TypeError, match="misspelt"):
            case.call(arrays, {**options, "misspelt": 1})


def test_options_are_by_name_only():
    for function, positional in (
        ("softmax", 2),
        ("logsumexp", 2),
        ("cross_entropy", 2),
        ("cross_entropy_with_grad", 2),
    ):
        with pytest.raises(TypeError, match="positional"):
            getattr(fs, function)(*[Z, T, None, None][: positional + 1])
    assert find("softmax")
