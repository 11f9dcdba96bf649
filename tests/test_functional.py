"""Every operation of the table: values, shapes and dtypes, whatever the input looks like; what may be written where."""

from __future__ import annotations

import gc
import tracemalloc
from functools import partial

import inputs
import numpy as np
import pytest
import reference
from cases import CASES, find
from tolerance import EXACT, assert_same_bits, assert_ulps

import fastsoftmax as fs
from fastsoftmax import _columns, _rows

every_case = pytest.mark.parametrize("case", CASES, ids=str)
# Rows and classes: one of each; two, where one class is all the others; fewer classes than lanes; the same with more
# rows than lanes and a remainder; the last and the first width on either side of where rows stop being short; full
# vectors and a tail; more than one block of vectors.
SHAPES = [(1, 1), (1, 2), (7, 3), (37, 10), (18, 63), (3, 64), (5, 100), (2, 1000)]


def arrays_of(arrays, options):
    """Every array among the arguments, by position or name."""
    named = {**dict(enumerate(arrays)), **options}
    return {key: value for key, value in named.items() if isinstance(value, np.ndarray)}


def replace(arrays, options, changed):
    """The arguments with the changed ones in their places."""
    return (
        tuple(changed.get(i, a) for i, a in enumerate(arrays)),
        {name: changed.get(name, value) for name, value in options.items()},
    )


@every_case
@pytest.mark.parametrize(("n_rows", "n_classes"), SHAPES)
def test_agrees_with_the_reference(case, dtype, n_rows, n_classes):
    arrays, options = case.make(dtype, n_rows, n_classes)
    case.check(case.call(arrays, options), arrays, options)


@every_case
def test_inputs_are_not_written_to(case, dtype):
    arrays, options = case.make(dtype)
    before = {key: a.copy() for key, a in arrays_of(arrays, options).items()}
    case.call(arrays, options)
    for key, a in arrays_of(arrays, options).items():
        assert_same_bits(a, before[key], label=f"argument {key}")


@every_case
@pytest.mark.parametrize("layout", inputs.LAYOUTS)
def test_any_layout_gives_the_same_bits(case, dtype, layout):
    arrays, options = case.make(dtype, 19, 10)
    expected = case.call(arrays, options)
    changed = {key: inputs.LAYOUTS[layout](a) for key, a in arrays_of(arrays, options).items()}
    assert_same_bits(case.call(*replace(arrays, options, changed)), expected)


@every_case
def test_float16_is_computed_in_float32(case):
    arrays, options = case.make(np.float16)
    wide = {key: a.astype(np.float32) for key, a in arrays_of(arrays, options).items() if a.dtype == np.float16}
    expected = case.call(*replace(arrays, options, wide))

    def narrow(value):
        if isinstance(value, tuple):
            return tuple(narrow(v) for v in value)
        return value.astype(np.float16) if isinstance(value, (np.ndarray, np.generic)) else value

    with np.errstate(all="ignore"):
        assert_same_bits(case.call(arrays, options), narrow(expected))


@every_case
def test_lists_and_integers_become_float64(case):
    arrays, options = case.make(np.float64)
    changed = {
        key: np.round(2 * a) + 0.0 if a.dtype.kind == "f" and a.ndim else a for key, a in arrays_of(arrays, options).items()
    }
    arrays, options = replace(arrays, options, changed)
    expected = case.call(arrays, options)
    lists = {key: a.tolist() for key, a in arrays_of(arrays, options).items()}
    assert_same_bits(case.call(*replace(arrays, options, lists)), expected, label="lists")
    for integer in (np.int8, np.int64, np.uint16):
        if integer is np.uint16 and any((a < 0).any() for a in arrays_of(arrays, options).values()):
            continue
        changed = {key: a.astype(integer) for key, a in arrays_of(arrays, options).items()}
        assert_same_bits(case.call(*replace(arrays, options, changed)), expected, label=str(integer))


@pytest.mark.parametrize("case", [c for c in CASES if c.out], ids=str)
def test_out_is_written_and_returned(case, dtype):
    arrays, options = case.make(dtype, 19, 10)
    expected = case.call(arrays, options)
    gradient = expected[1] if isinstance(expected, tuple) else expected
    for layout in ("C", "fortran", "strided", "reversed"):
        out = np.full_like(gradient, 7)
        out = out if layout == "C" else inputs.LAYOUTS[layout](out)
        result = case.call(arrays, {**options, "out": out})
        assert (result[1] if isinstance(result, tuple) else result) is out
        assert_same_bits(result, expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.in_place is not None], ids=str)
@pytest.mark.parametrize("layout", ["C", "fortran", "strided", "reversed"])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(19, 10), (19, 100), (300, 3)])
def test_out_may_be_the_input(case, dtype, layout, n_rows, n_classes):
    """Rows that were read before: 300 are more than are worked on together."""
    arrays, options = case.make(dtype, n_rows, n_classes)
    expected = case.call(arrays, options)
    own = arrays[case.in_place].copy() if layout == "C" else inputs.LAYOUTS[layout](arrays[case.in_place])
    arrays, options = replace(arrays, options, {case.in_place: own})
    assert_same_bits(case.call(arrays, {**options, "out": own}), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.out and c.function != "affine"], ids=str)
def test_out_may_overlap_the_input(case, dtype):
    arrays, options = case.make(dtype, 19, 10)
    expected = case.call(arrays, options)
    buffer = np.empty((20, 10), dtype=dtype)
    buffer[:-1] = arrays[case.in_place]
    arrays, options = replace(arrays, options, {case.in_place: buffer[:-1]})
    result = case.call(arrays, {**options, "out": buffer[1:]})
    assert_same_bits(result, expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.by_row], ids=str)
@pytest.mark.parametrize("n_classes", [3, 10, 63, 64, 100, 104])
def test_a_row_does_not_depend_on_the_batch(case, dtype, n_classes):
    """Row i of a batch, alone, and in a batch of any other size, has the same bits."""
    arrays, options = case.make(dtype, 41, n_classes)
    whole = case.call(arrays, options)
    rows = {key: a for key, a in arrays_of(arrays, options).items() if key in case.by_row}
    for part in (slice(0, 1), slice(16, 17), slice(40, 41), slice(1, 18), slice(5, 41)):
        result = case.call(*replace(arrays, options, {key: a[part] for key, a in rows.items()}))
        expected = tuple(w[part] for w in whole) if isinstance(whole, tuple) else whole[part]
        assert_same_bits(result, expected, label=f"rows {part}")


@pytest.mark.parametrize("case", [c for c in CASES if c.by_row], ids=str)
def test_no_rows(case, dtype):
    arrays, options = case.make(dtype, 3, 10)
    rows = {key: a[:0] for key, a in arrays_of(arrays, options).items() if key in case.by_row}
    full = case.call(arrays, options)
    result = case.call(*replace(arrays, options, rows))
    for r, f in zip(result if isinstance(result, tuple) else (result,), full if isinstance(full, tuple) else (full,)):
        assert r.shape == (0, *f.shape[1:])
        assert r.dtype == f.dtype


AXIS_FUNCTIONS = ["softmax", "log_softmax", "logsumexp"]
AXES = [0, 1, 2, -1, -2, -3, (0, 2), (1, 2), (2, 1), (-1, 0), (0, 1, 2), (1,), None]


@pytest.mark.parametrize("function", AXIS_FUNCTIONS)
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axis(function, axis, dtype, rng):
    logits = (3 * rng.standard_normal((5, 4, 6))).astype(dtype)
    result = getattr(fs, function)(logits, axis=axis)
    truth = getattr(reference, function)(logits, axis=axis)
    assert np.shape(result) == truth.shape
    assert np.asarray(result).dtype == dtype
    # A maximum and a logarithm that all but cancel leave their own rounding: it is of the maximum's size.
    scale = np.abs(reference.logsumexp(logits, axis)) + np.abs(logits).max() if function == "logsumexp" else None
    assert_ulps(result, truth, EXACT, scale=scale)


@pytest.mark.parametrize("function", ["softmax_backward", "log_softmax_backward"])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axis_of_a_backward_pass(function, axis, dtype, rng):
    forward = getattr(reference, function.removesuffix("_backward"))
    logits, grad = rng.standard_normal((2, 5, 4, 6))
    values, grad = forward(logits, axis=axis).astype(dtype), grad.astype(dtype)
    truth = getattr(reference, function)(grad, values, axis=axis)
    result = getattr(fs, function)(grad, values, axis=axis)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, truth.astype(np.float64), rtol=0, atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), None], ids=str)
def test_logsumexp_keeps_dimensions_when_asked(axis, dtype, rng):
    logits = rng.standard_normal((5, 4)).astype(dtype)
    result = fs.logsumexp(logits, axis=axis, keepdims=True)
    assert result.shape == reference.logsumexp(logits, axis=axis, keepdims=True).shape
    assert_same_bits(result.reshape(-1), np.reshape(fs.logsumexp(logits, axis=axis), -1))


# Classes x samples: one class, short rows, the last and the first width on either side of where rows stop being short,
# long ones; columns fewer than the lanes, a multiple of them, and with a remainder; classes whole pages apart.
@pytest.mark.parametrize("function", AXIS_FUNCTIONS)
@pytest.mark.parametrize("n_classes", [1, 2, 10, 63, 64, 103, 104, 300])
@pytest.mark.parametrize("n_samples", [1, 5, 16, 300, 1024])
def test_an_axis_is_a_matter_of_layout_alone(function, n_classes, n_samples, dtype, rng):
    """Rows along axis 0 of (classes, samples) have the bits of the same rows along the last axis; NaN and -inf too."""
    logits = (10 * rng.standard_normal((n_classes, n_samples))).astype(dtype)
    logits[0, ::3] = -np.inf
    logits[-1, ::7] = np.nan
    call = getattr(fs, function)
    expected = call(np.ascontiguousarray(logits.T))
    assert_same_bits(np.ascontiguousarray(call(logits, axis=0).T), expected)
    cube = call(np.stack([logits, logits]), axis=1)  # the middle axis
    assert_same_bits(np.ascontiguousarray(cube[1].T), expected)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize("n_classes", [20, 300])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_columns_that_threads_share_have_the_bits_of_rows(function, n_classes, threads, dtype, rng):
    logits = (10 * rng.standard_normal((2, n_classes, 4013))).astype(dtype)
    call, expected = getattr(fs, function), np.empty_like(logits)
    expected[...] = call(np.ascontiguousarray(logits.swapaxes(1, 2))).swapaxes(1, 2)
    with fs.num_threads(threads):
        assert_same_bits(call(logits, axis=1), expected)
        assert_same_bits(call(logits[0], axis=0), expected[0])
        assert_same_bits(call(logits, axis=1, out=logits), expected)


# In vectors of columns, and some more: a whole number of what a row adds up together, and others; less than a vector, and many;
# within the caches and, the last, past them.
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "softmax_backward"])
@pytest.mark.parametrize(
    ("n_classes", "vectors", "more"), [(512, 64, 0), (9000, 3, 5), (100_003, 0, 8), (1037, 40, 3), (4099, 128, 1)]
)
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_classes_that_threads_share_give_the_bits_of_rows(function, n_classes, vectors, more, threads, dtype, rng):
    columns = vectors * (64 // dtype.itemsize) + more
    z = rng.standard_normal((n_classes, columns), np.float32).astype(dtype)
    z[:, 2], z[:, 3], z[7, 4], z[-1, 5], z[0, 6] = 0, -np.inf, np.nan, np.inf, -np.inf
    call = getattr(fs, function)
    first = () if function != "softmax_backward" else (rng.standard_normal(z.shape, np.float32).astype(dtype),)
    z = z if not first else fs.softmax(z, axis=0)
    expected = np.ascontiguousarray(call(*(np.ascontiguousarray(a.T) for a in (*first, z))).T)
    elsewhere = np.empty(z.size + 5, dtype)[5:].reshape(z.shape)
    with fs.num_threads(threads):
        for to in (None, elsewhere, z):
            assert_same_bits(call(*first, z, axis=0, out=to), expected)


@pytest.mark.parametrize(
    ("shape", "axis", "threads", "shared"),
    [
        ((4096, 1025), 0, 1, True),
        ((4095, 1025), 0, 1, False),
        ((4096, 1024), 0, 1, False),
        ((4096, 4097), 0, 1, False),
        ((2, 4096, 1025), 1, 1, False),
        ((2048, 128), 0, 2, True),
        ((2047, 128), 0, 2, False),
        ((2048, 128), 0, 9, False),
    ],
)
def test_where_softmax_goes_class_by_class(shape, axis, threads, shared, monkeypatch):
    calls = []
    monkeypatch.setitem(_columns._SHARED, "softmax", _columns._SHARED["softmax"]._replace(share=lambda *_: calls.append(1)))
    with fs.num_threads(threads):
        fs.softmax(np.zeros(shape, np.float32), axis=axis)
    assert calls == [1] * shared


@pytest.mark.parametrize("shape", [(3, 10), (300, 7), (2, 3, 10)])
def test_axis_1_is_the_last_of_a_matrix_and_the_middle_of_a_cube(shape, dtype, rng):
    z, g = (4 * rng.standard_normal((2, *shape))).astype(dtype)
    lead = (shape[0], *shape[2:])
    targets = rng.integers(0, shape[1], lead)
    calls = {
        "softmax": (z,), "log_softmax": (z,), "logsumexp": (z,), "softmax_backward": (g, fs.softmax(z)),
        "log_softmax_backward": (g, z), "cross_entropy": (z, targets), "cross_entropy_with_grad": (z, targets),
    }  # fmt: skip
    for name, given in calls.items():
        call = getattr(fs, name)
        moved = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) if a.shape == shape else a for a in given]
        found, expected = call(*given, axis=1), call(*moved)
        if name == "cross_entropy_with_grad":
            assert_same_bits(found[0], expected[0])
            found, expected = found[1], expected[1]
        if np.ndim(expected) == len(shape):
            expected = np.ascontiguousarray(np.moveaxis(expected, -1, 1))
        assert_same_bits(found, expected)


@pytest.mark.parametrize("function", ["softmax_backward", "log_softmax_backward", "cross_entropy_with_grad"])
@pytest.mark.parametrize("n_classes", [1, 2, 10, 63, 64, 104, 1100])
@pytest.mark.parametrize("n_samples", [5, 16, 70, 300])
def test_an_axis_of_a_gradient_is_a_matter_of_layout_alone(function, n_classes, n_samples, dtype, rng):
    z, g = (4 * rng.standard_normal((2, 2, n_classes, n_samples))).astype(dtype)
    call, rows = getattr(fs, function), partial(np.swapaxes, axis1=1, axis2=2)
    if function == "cross_entropy_with_grad":
        given = z, rng.integers(0, n_classes, (2, n_samples))
        expected = rows(call(np.ascontiguousarray(rows(z)), given[1])[1])
        results = [call(*given, axis=1)[1], call(*given, axis=1, out=z.copy())[1]]
    else:
        y = getattr(fs, function.removesuffix("_backward"))(z, axis=1)
        given = g, y
        expected = rows(call(*(np.ascontiguousarray(rows(a)) for a in given)))
        results = [call(*given, axis=1), call(to := g.copy(), y, axis=1, out=to), call(g, to := y.copy(), axis=1, out=to)]
        assert_same_bits(call(g[0], y[0], axis=0), expected[0])
        buffer = np.stack([*g, g[0]])  # results that lie where a gradient is still to be read
        results.append(call(buffer[:2], y, axis=1, out=buffer[1:]))
    for result in results:
        assert_same_bits(result, expected)


@pytest.mark.parametrize("n_classes", [1, 2, 10, 17, 63, 64])
@pytest.mark.parametrize("n_samples", [7, 8, 16, 300, 9001])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_down_columns_have_the_bits_of_rows(n_classes, n_samples, reduction, dtype, rng):
    """NaN, masked classes and ignored samples among them; elsewhere and in place, on any number of threads."""
    logits = (10 * rng.standard_normal((n_classes, n_samples))).astype(dtype)
    targets = rng.integers(0, n_classes, n_samples)
    logits[0, ::5], logits[-1, ::7], targets[::3] = -np.inf, np.nan, -100
    rows = np.ascontiguousarray(logits.T)
    loss, grad = fs.cross_entropy_with_grad(rows, targets, reduction=reduction)
    for threads in 1, 2, 3:
        with fs.num_threads(threads):
            for to in None, np.full_like(logits, 7), logits.copy():
                z = logits if to is None or to[0, 0] == 7 else to
                same, gradient = fs.cross_entropy_with_grad(z, targets, axis=0, reduction=reduction, out=to)
                assert_same_bits(np.asarray(same), np.asarray(loss))
                assert_same_bits(np.ascontiguousarray(gradient.T), grad)
            assert_same_bits(np.asarray(fs.cross_entropy(logits, targets, axis=0, reduction=reduction)), np.asarray(loss))


def test_labels_down_columns_are_checked(dtype):
    logits, targets = np.zeros((3, 9), dtype), np.arange(9) % 3
    targets[4] = 3
    for call in fs.cross_entropy, fs.cross_entropy_with_grad:
        with pytest.raises(IndexError, match="3"):
            call(logits, targets, axis=0)
        with pytest.raises(ValueError, match="shape"):
            call(logits, targets[:3], axis=0)


# Sizes in vectors: few and many classes whole pages apart; few in arrays of more than 8 MiB together; very few, few, many, and
# some more than a multiple of their sums, of more than 32 MiB; columns that begin at a whole line and others.
@pytest.mark.parametrize(
    ("n_outer", "n_classes", "vectors", "more"),
    [(2, 20, 64, 0), (1, 63, 128, 0), (1, 16, 320, 0), (2, 400, 64, 0), (1, 393, 192, 0), (1, 9, 5000, 3), (1, 6, 29500, 0),
     (1, 6, 29500, 3), (1, 12, 14700, 0), (1, 12, 14700, 3), (1, 20, 8768, 0), (1, 131, 1350, 0), (1, 157, 1130, 3),
     (3, 291, 201, 5)],
)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_gradient_of_large_columns_has_the_bits_of_rows(n_outer, n_classes, vectors, more, threads, dtype, rng):
    shape = n_outer, n_classes, vectors * (64 // dtype.itemsize) + more
    g, y = rng.standard_normal((2, *shape), np.float32).astype(dtype)
    y = fs.softmax(y, axis=1, out=y)
    rows = partial(np.swapaxes, axis1=1, axis2=2)
    expected = rows(fs.softmax_backward(*(np.ascontiguousarray(rows(a)) for a in (g, y))))
    elsewhere = np.empty(g.size + 5, dtype)[5:].reshape(shape)
    with fs.num_threads(threads):
        for to in (None, elsewhere, g):
            assert_same_bits(fs.softmax_backward(g, y, axis=1, out=to), expected)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize("shape", [(10, 300), (100, 33)])
def test_out_along_another_axis(function, shape, dtype, rng):
    logits = rng.standard_normal(shape).astype(dtype)
    call = getattr(fs, function)
    expected = call(logits, axis=0)
    out = np.full_like(logits, 7)
    assert call(logits, axis=0, out=out) is out
    assert_same_bits(out, expected)
    assert_same_bits(call(out := logits.copy(), axis=0, out=out), expected)
    buffer = np.empty((shape[0] + 1, shape[1]), dtype=dtype)
    buffer[:-1] = logits
    assert_same_bits(call(buffer[:-1], axis=0, out=buffer[1:]), expected)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_out_of_a_small_batch_with_its_loss(bad, dtype, rng):
    """Elsewhere, in place, and over the targets' own memory."""
    logits, targets = rng.standard_normal((5, 4)).astype(dtype), rng.integers(0, 4, 5)
    logits[2, 1] += bad
    loss, expected = fs.cross_entropy_with_grad(logits, targets)
    out, memory = np.full_like(logits, 7), np.zeros_like(logits)
    same = memory.view(np.int64).reshape(-1)[-5:]
    same[...] = targets
    for z, t, to in (logits, targets, out), (logits.copy(), targets, None), (logits, same, memory):
        again, grad = fs.cross_entropy_with_grad(z, t, out=z if to is None else to)
        assert grad is (z if to is None else to)
        assert_same_bits(np.array([again]), np.array([loss]))
        assert_same_bits(grad, expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_axis_of_the_loss(axis, kind, reduction, dtype, rng):
    logits = rng.standard_normal((5, 4, 6)).astype(dtype)
    kept = np.moveaxis(logits, axis, -1).shape[:-1]
    targets = rng.integers(0, logits.shape[axis], size=kept)
    if kind == "probabilities":
        targets = np.moveaxis(rng.dirichlet(np.ones(logits.shape[axis]), size=kept), -1, axis).astype(dtype)
    options = {"axis": axis, "reduction": reduction}
    loss, grad = fs.cross_entropy_with_grad(logits, targets, **options)
    assert np.shape(loss) == (kept if reduction == "none" else ())
    case = find("cross_entropy_with_grad", "probabilities")
    case.check((loss, grad), (logits, targets), options)
    assert_same_bits(fs.cross_entropy(logits, targets, **options), loss)


def test_one_row_without_a_batch(dtype):
    logits = np.array([1.0, 3.0, 2.0], dtype=dtype)
    assert_ulps(fs.softmax(logits), reference.softmax(logits), EXACT)
    assert fs.logsumexp(logits).shape == ()
    loss, grad = fs.cross_entropy_with_grad(logits, 1)
    assert_ulps(grad, reference.cross_entropy_with_grad(logits, 1)[1], EXACT)
    assert isinstance(loss, float)
    assert fs.cross_entropy(logits, [0.0, 1.0, 0.0]) == pytest.approx(loss, rel=2 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("function", AXIS_FUNCTIONS)
def test_zero_dimensions(function):
    assert getattr(fs, function)(3.0, axis=None) == {"softmax": 1, "log_softmax": 0, "logsumexp": 3}[function]


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0, 5)])
def test_zero_size(shape, dtype):
    empty = np.empty(shape, dtype=dtype)
    for function in (fs.softmax, fs.log_softmax):
        assert function(empty).shape == shape
        assert function(empty).dtype == dtype
    assert fs.logsumexp(empty).shape == shape[:-1]
    loss, grad = fs.cross_entropy_with_grad(empty, np.empty(shape[:-1], dtype=int))
    assert np.isnan(loss)
    assert grad.shape == shape
    assert fs.cross_entropy(empty, np.empty(shape[:-1], dtype=int), reduction="sum") == 0.0


@pytest.mark.parametrize(
    "targets_dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i4", ">u2"]
)
def test_any_integer_type_of_labels(targets_dtype, dtype):
    case = find("cross_entropy_with_grad", "none")
    (logits, targets), options = case.make(dtype)
    expected = case.call((logits, targets), options)
    assert_same_bits(case.call((logits, targets.astype(targets_dtype)), options), expected)
    assert_same_bits(case.call((logits, targets.astype(targets_dtype)[::-1][::-1]), options), expected)


def test_one_hot_rows_mean_what_their_labels_mean(dtype):
    case = find("cross_entropy_with_grad", "none")
    (logits, targets), options = case.make(dtype)
    one_hot = np.eye(10)[targets]
    losses, grad = case.call((logits, targets), options)
    for kind in (dtype, np.float64, np.int64, np.uint8):
        for result, truth in zip(case.call((logits, one_hot.astype(kind)), options), (losses, grad)):
            assert_ulps(result, truth, 2 * EXACT[dtype.name])


@pytest.mark.parametrize("ignore_index", [2**63, -(2**70)])
def test_no_label_is_an_index_beyond_int64(ignore_index, dtype):
    (logits, targets), _ = find("cross_entropy_with_grad", "mean").make(dtype, 12)
    loss, grad = fs.cross_entropy_with_grad(logits, targets)
    got, got_grad = fs.cross_entropy_with_grad(logits, targets, ignore_index=ignore_index)
    assert got == loss == fs.cross_entropy(logits, targets, ignore_index=ignore_index)
    assert (got_grad == grad).all()


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 9, 255, 10**12])
def test_ignored_rows_contribute_exactly_nothing(ignore_index, dtype):
    (logits, targets), _ = find("cross_entropy_with_grad", "mean").make(dtype, 12)
    targets[::2] = np.where(targets[::2] == ignore_index, 1, targets[::2])
    targets[1::2] = ignore_index
    logits[1] = np.nan  # whatever stands in an ignored row
    logits[3] = -np.inf
    options = {"ignore_index": ignore_index}
    losses, grad = fs.cross_entropy_with_grad(logits, targets, reduction="none", **options)
    assert not losses[1::2].any()
    assert not grad[1::2].any()
    kept = targets != ignore_index
    for reduction in ("mean", "sum"):
        loss, grad = fs.cross_entropy_with_grad(logits, targets, reduction=reduction, **options)
        alone, grad_alone = fs.cross_entropy_with_grad(logits[kept], targets[kept], reduction=reduction)
        assert loss == pytest.approx(alone, rel=4 * float(np.finfo(dtype).eps))
        assert_ulps(grad[kept], grad_alone, 1)
        assert not grad[~kept].any()


def test_the_mean_over_nothing_is_nan(dtype):
    logits, targets = np.zeros((3, 4), dtype=dtype), np.full(3, -100)
    loss, grad = fs.cross_entropy_with_grad(logits, targets)
    assert np.isnan(loss)
    assert not grad.any()
    assert fs.cross_entropy_with_grad(logits, targets, reduction="sum")[0] == 0.0
    assert not fs.cross_entropy(logits, targets, reduction="none").any()
    assert np.isnan(fs.cross_entropy(logits, [0, 1, 2], sample_weight=[0, 0, 0]))
    assert np.isnan(fs.cross_entropy(logits, [0, 0, 0], class_weight=[0, 1, 1, 1]))


def test_means_divide_by_the_weights_that_took_part():
    """By hand, from torch's definitions: log(4) everywhere, so a mean is the ratio of two sums of weights."""
    logits, log4 = np.zeros((3, 4)), np.log(4.0)
    class_weight = np.array([1.0, 2.0, 3.0, 4.0])
    index = fs.cross_entropy(logits, [1, 2, -100], class_weight=class_weight)
    assert index == pytest.approx(log4, rel=1e-15)
    total = fs.cross_entropy(logits, [1, 2, -100], class_weight=class_weight, reduction="sum")
    assert total == pytest.approx(5 * log4, rel=1e-15)
    # Smoothed: (1 - e) w_y + e mean(w) on top, w_y below.
    smooth = fs.cross_entropy(logits, [1, 2, -100], class_weight=class_weight, label_smoothing=0.2)
    assert smooth == pytest.approx((0.8 * 5 + 0.2 * 2 * 2.5) / 5 * log4, rel=1e-15)
    # Probabilities: weighted above, the number of rows below.
    probabilities = np.eye(4)[[1, 2, 3]]
    assert fs.cross_entropy(logits, probabilities, class_weight=class_weight) == pytest.approx(3 * log4, rel=1e-15)
    # Sample weights take part in both.
    weighted = fs.cross_entropy(logits, [0, 0, 3], class_weight=class_weight, sample_weight=[1, 2, 3])
    assert weighted == pytest.approx(log4, rel=1e-15)
    weighted = fs.cross_entropy(logits, probabilities, class_weight=class_weight, sample_weight=[1, 0, 1])
    assert weighted == pytest.approx((2 + 4) / 2 * log4, rel=1e-15)


def test_agrees_with_torch(dtype):
    torch = pytest.importorskip("torch")
    for case in CASES:
        if case.function != "cross_entropy_with_grad":
            continue
        (logits, targets), options = case.make(dtype, 9, 10)
        options = dict(options)
        if "sample_weight" in options or "grad_loss" in options:
            continue  # torch has none
        z = torch.tensor(logits, requires_grad=True)
        weight = options.pop("class_weight", None)
        loss = torch.nn.functional.cross_entropy(
            z, torch.tensor(targets), weight=None if weight is None else torch.tensor(weight), **options
        )
        loss.sum().backward()
        result = case.call((logits, targets), {**options, **({} if weight is None else {"class_weight": weight})})
        close = {"rtol": 50 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
        np.testing.assert_allclose(result[0], loss.detach().numpy(), **close, err_msg=str(case))
        np.testing.assert_allclose(result[1], z.grad.numpy(), **close, err_msg=str(case))


def test_the_loss_alone_has_the_bits_of_the_loss_with_its_gradient(dtype):
    for case in CASES:
        if case.function == "cross_entropy":
            arrays, options = case.make(dtype, 19)
            both = find("cross_entropy_with_grad", case.variant).call(arrays, options)
            assert_same_bits(case.call(arrays, options), both[0], label=str(case))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_grad_loss_scales_the_gradient_alone(reduction, dtype):
    (logits, targets), _ = find("cross_entropy_with_grad", "mean").make(dtype)
    loss, grad = fs.cross_entropy_with_grad(logits, targets, reduction=reduction)
    twice = fs.cross_entropy_with_grad(logits, targets, reduction=reduction, grad_loss=-2.0)
    assert_same_bits(twice[0], loss)
    assert_same_bits(twice[1], -2 * grad)
    if reduction == "none":
        per_row = np.array([2.0**-i for i in range(len(targets))], dtype=dtype)
        assert_same_bits(
            fs.cross_entropy_with_grad(logits, targets, reduction="none", grad_loss=per_row)[1], grad * per_row[:, None]
        )


def test_affine_takes_any_number_of_leading_dimensions(dtype, rng):
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in [(2, 3, 5), (5, 4), (4,)])
    out = fs.affine(x, weight, bias)
    assert out.shape == (2, 3, 4)
    assert_same_bits(out.reshape(6, 4), fs.affine(x.reshape(6, 5), weight, bias))
    given = np.empty_like(out)
    assert fs.affine(x, weight, bias, out=given) is given
    assert_same_bits(given, out)
    grads = fs.affine_backward(out, x, weight)
    assert [a.shape for a in grads] == [(2, 3, 5), (5, 4), (4,)]
    expected = fs.affine_backward(out.reshape(6, 4), x.reshape(6, 5), weight)
    assert_same_bits((grads[0].reshape(6, 5), *grads[1:]), expected)
    places = tuple(np.empty_like(a) for a in grads)
    assert all(a is b for a, b in zip(fs.affine_backward(out, x, weight, out=places), places, strict=True))
    assert_same_bits(places, grads)
    assert_same_bits(fs.affine(x[0, 0], weight, bias), out[0, 0])
    assert_same_bits(fs.affine_backward(out[0, 0], x[0, 0], weight)[0], grads[0][0, 0])


OF_MORE_DIMENSIONS = {
    "plain": {},
    "each": {"reduction": "none"},
    "weighted": {"sample_weight": np.arange(1.0, 25.0), "class_weight": np.arange(1.0, 11.0), "reduction": "sum"},
    "scaled": {"grad_loss": 0.5, "label_smoothing": 0.1},
    "each scaled": {"reduction": "none", "grad_loss": np.arange(1.0, 25.0)},
}


@pytest.mark.parametrize("options", OF_MORE_DIMENSIONS.values(), ids=OF_MORE_DIMENSIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("lead", [(4, 6), (2, 3, 4), (24, 1)], ids=str)
def test_rows_in_more_dimensions_have_the_losses_of_a_matrix(lead, soft, options, dtype, rng):
    """As (batch, time, classes): with all options, in C's order and not, in place and not."""
    z = (5 * rng.standard_normal((24, 10))).astype(dtype)
    targets = fs.softmax(z[::-1].copy()) if soft else np.arange(24) % 10
    loss, grad = fs.cross_entropy_with_grad(z, targets, **options)
    shaped = {k: v.reshape(lead) if np.size(v) == 24 else v for k, v in options.items()}
    cube, of_rows = z.reshape(*lead, 10).copy(), targets.reshape(lead + targets.shape[1:])
    expected = np.reshape(loss, lead) if np.ndim(loss) else loss, grad.reshape(cube.shape)
    for logits in cube, np.asfortranarray(cube):
        for axis in (-1, len(lead)):
            result = fs.cross_entropy_with_grad(logits, of_rows, axis=axis, **shaped)
            assert_same_bits(result, expected)
            without = {k: v for k, v in shaped.items() if k != "grad_loss"}
            assert_same_bits(fs.cross_entropy(logits, of_rows, axis=axis, **without), expected[0])
        for out in np.empty_like(cube), np.full((2, *cube.shape), 7, dtype)[0], logits:
            result = fs.cross_entropy_with_grad(logits.copy() if out is not logits else logits, of_rows, **shaped, out=out)
            assert result[1] is out
            assert_same_bits(result, expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.out and c.by_row], ids=str)
@pytest.mark.parametrize("n_classes", [10, 100, 1000])
@pytest.mark.parametrize("misplaced", [0, 1, 5])
def test_results_past_the_caches_are_the_same(case, n_classes, misplaced, dtype, monkeypatch):
    """Outputs larger than the last-level cache are written past it: forced here, at every alignment of a row."""
    arrays, options = case.make(dtype, 21, n_classes)
    expected = case.call(arrays, options)
    gradient = expected[-1] if isinstance(expected, tuple) else expected
    out = np.full(gradient.size + misplaced, 7, dtype=dtype)[misplaced:].reshape(gradient.shape)
    for name in ("_STREAM", "_STREAM_ROW", "_ONCE"):
        monkeypatch.setattr(_rows, name, 0)
    assert_same_bits(case.call(arrays, {**options, "out": out}), expected)


# --- values that are no numbers ---


def test_masked_classes_are_exactly_absent(dtype):
    logits = np.array([[1, -np.inf, 2, -np.inf], [-np.inf, -np.inf, -np.inf, 5]], dtype=dtype)
    probs = fs.softmax(logits)
    assert (probs[np.isneginf(logits)] == 0).all()
    assert_ulps(probs[0, [0, 2]], reference.softmax(logits[0, [0, 2]]), EXACT)
    assert (fs.log_softmax(logits)[np.isneginf(logits)] == -np.inf).all()
    assert fs.logsumexp(logits)[1] == 5
    losses, grad = fs.cross_entropy_with_grad(logits, [2, 3], reduction="none")
    assert np.isfinite(losses).all()
    assert (grad[np.isneginf(logits)] == 0).all()
    assert_ulps(losses[0], reference.cross_entropy(logits[0], 2), EXACT)
    # One-hot rows: 0 times minus infinity is nothing, not NaN.
    assert np.isfinite(fs.cross_entropy(logits, np.eye(4)[[2, 3]]))
    assert fs.cross_entropy(logits, [1, 3], reduction="none")[0] == np.inf


@pytest.mark.parametrize("n_classes", [1, 3, 10, 100])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_and_infinity_spoil_their_row_and_no_other(poison, n_classes, dtype):
    def everything(z, t):
        return fs.softmax(z), fs.log_softmax(z), *fs.cross_entropy_with_grad(z, t, reduction="none")

    for position in {0, n_classes // 2, n_classes - 1}:
        logits, targets = inputs.normal(np.random.default_rng(1), dtype, 37, n_classes)
        clean = everything(logits, targets)
        logits[5, position] = poison
        spoilt = everything(logits, targets)
        others = np.arange(37) != 5
        for before, after in zip(clean, spoilt):
            assert_same_bits(after[others], before[others])
        for after in spoilt[0], spoilt[2], spoilt[3]:
            assert np.isnan(after[5]).all()
        assert np.isnan(spoilt[1][5]).any()
        lse = fs.logsumexp(logits)[5]
        assert lse == np.inf if poison == np.inf else np.isnan(lse)
        assert np.isnan(fs.cross_entropy(logits, targets))


def test_a_row_of_minus_infinity_alone(dtype):
    logits = np.full((2, 5), -np.inf, dtype=dtype)
    logits[1] = 0
    assert np.isnan(fs.softmax(logits)[0]).all()
    assert np.isnan(fs.log_softmax(logits)[0]).all()
    assert fs.logsumexp(logits)[0] == -np.inf
    losses, grad = fs.cross_entropy_with_grad(logits, [0, 0], reduction="none")
    assert np.isnan(losses[0])
    assert np.isnan(grad[0]).all()
    assert np.isfinite(losses[1])
    assert np.isfinite(grad[1]).all()


def test_relu_at_its_edges(dtype):
    x = np.array([-1.0, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan], dtype=dtype)
    np.testing.assert_array_equal(fs.relu(x), [0, 0, 0, 2, np.inf, 0, np.nan])
    np.testing.assert_array_equal(fs.relu_backward(np.ones_like(x), x), [0, 0, 0, 1, 1, 0, 0])


# --- what a call allocates ---


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp", "cross_entropy", "cross_entropy_with_grad"])
@pytest.mark.parametrize("n_classes", [10, 1000])
def test_a_call_allocates_its_outputs_and_a_row_a_thread(function, n_classes, dtype):
    (logits, targets), _ = find("cross_entropy_with_grad", "mean").make(dtype, 200_000 // n_classes, n_classes)
    arguments = (logits, targets) if function.startswith("cross") else (logits,)
    call = getattr(fs, function)
    with fs.num_threads(2):
        for _ in range(10):
            result = call(*arguments)  # compiles, starts the pool, wakes it
        outputs = sum(r.nbytes for r in (result if isinstance(result, tuple) else (result,)) if isinstance(r, np.ndarray))
        del result
        gc.collect()
        tracemalloc.start()
        call(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    rows = 2 * n_classes * dtype.itemsize
    objects = 16_384  # array headers, tuples, futures: some hundred bytes each, and not in proportion to the data
    assert peak <= outputs + rows + objects, f"{peak} bytes at the peak, {outputs} of output"


@pytest.mark.parametrize("function", ["softmax", "cross_entropy_with_grad"])
def test_with_out_a_call_allocates_nothing_of_size(function, dtype):
    (logits, targets), _ = find("cross_entropy_with_grad", "mean").make(dtype, 2000, 100)
    arguments = (logits, targets) if function.startswith("cross") else (logits,)
    out = np.empty_like(logits)
    call = getattr(fs, function)
    call(*arguments, out=out)
    gc.collect()
    tracemalloc.start()
    call(*arguments, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 16_384 + 2 * 100 * dtype.itemsize


# --- threads ---


@pytest.mark.parametrize("variant", ["mean", "none", "weighted", "probabilities"])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(60_001, 10), (1501, 1000)])
def test_the_number_of_threads_changes_no_bit(variant, n_rows, n_classes, dtype):
    case = find("cross_entropy_with_grad", variant)
    (logits, targets), options = case.make(dtype, n_rows, n_classes)

    def everything():
        return (
            case.call((logits, targets), options),
            *(getattr(fs, f)(logits) for f in AXIS_FUNCTIONS),
            fs.softmax(logits, axis=0),
            fs.logsumexp(logits, axis=0),
        )

    with fs.num_threads(1):
        expected = everything()
    for n in (2, 3, 8):
        with fs.num_threads(n):
            assert_same_bits(everything(), expected, label=f"{n} threads")


LOSS_OPTIONS = {
    "class_weight": np.linspace(0.5, 2, 10).copy(), "sample_weight": np.linspace(2, 0.1, 30).copy(), "label_smoothing": 0.2,
    "ignore_index": 3, "reduction": "sum",
}  # fmt: skip


def targets_for(z, kind, rng):
    """Labels of an integer type, or probabilities."""
    labels = rng.integers(0, z.shape[1], len(z))
    return (np.eye(z.shape[1])[labels] + 0.1 * rng.random(z.shape) if "f" in kind else labels).astype(kind)


@pytest.mark.parametrize("kind", ["i1", "u1", "i4", "u4", "i8", ">i4", "f4", "f8", ">f4"])
@pytest.mark.parametrize("given", [(), *((name,) for name in LOSS_OPTIONS), [*LOSS_OPTIONS][:2], [*LOSS_OPTIONS]], ids="+".join)
def test_options_of_a_loss_mean_the_same_for_plain_arrays(given, kind, dtype, rng):
    """A matrix, its targets and weights as kernels take them go a shorter way than what is like them in three dimensions."""
    z = (4 * rng.standard_normal((30, 10))).astype(dtype)
    targets, options = targets_for(z, kind, rng), {name: LOSS_OPTIONS[name] for name in given}
    as_cube = {k: v.reshape(1, 30) if k == "sample_weight" else v for k, v in options.items()}
    loss, grad = fs.cross_entropy_with_grad(z[None], targets[None], **as_cube)
    assert given == () or loss != fs.cross_entropy(z, targets) or ("f" in kind and given == ("ignore_index",))
    for out in None, np.empty_like(z):
        again, grad_again = fs.cross_entropy_with_grad(z, targets, out=out, **options)
        assert again == loss == fs.cross_entropy(z, targets, **options)
        assert out is None or grad_again is out
        np.testing.assert_array_equal(grad_again, grad[0])


@pytest.mark.parametrize("kind", ["i2", "u1", "i8", "f4", "f8"])
def test_the_shorter_way_is_gone(kind, dtype, rng, monkeypatch):
    """Where it is not, nothing but time would tell."""
    z = np.ones((30, 10), dtype)
    targets = targets_for(z, kind, rng)
    monkeypatch.setattr(fs.functional, "_loss_problem", None)
    weights = {name: LOSS_OPTIONS[name] for name in ("class_weight", "sample_weight")}
    singles = {name: a.astype(np.float32) for name, a in weights.items()}
    for options in {}, weights, singles, LOSS_OPTIONS, LOSS_OPTIONS | singles:
        fs.cross_entropy(z, targets, **options)
        fs.cross_entropy_with_grad(z, targets, out=np.empty_like(z), **options)


@pytest.mark.parametrize("n", [10, 100])
def test_probabilities_down_the_columns_of_a_square(n, dtype, rng):
    """They have the shape of rows of probabilities."""
    z = (4 * rng.standard_normal((n, n))).astype(dtype)
    probs = targets_for(z, dtype.str, rng)
    loss, grad = fs.cross_entropy_with_grad(z.T.copy(), probs.T.copy(), axis=0)
    expected = fs.cross_entropy_with_grad(z, probs)
    assert loss == expected[0] == fs.cross_entropy(z.T.copy(), probs.T.copy(), axis=0)
    np.testing.assert_array_equal(grad, expected[1].T)


@pytest.mark.parametrize("n", [40, 1000])
def test_a_gradient_in_place_of_the_probabilities(n, dtype, rng):
    z = rng.standard_normal((1000, n)).astype(dtype)
    probs = targets_for(z, dtype.str, rng)
    loss, grad = fs.cross_entropy_with_grad(z, probs)
    for inside in probs.copy(), probs.copy()[:]:
        assert fs.cross_entropy_with_grad(z, inside, out=inside) == (loss, inside)
        np.testing.assert_array_equal(inside, grad)


@pytest.mark.parametrize("at", [0, 8, 40, 75])
def test_gradients_that_cancel_are_added_up_whole(at, dtype):
    """Eight lanes of 1e17, 1 and -1e17 come to 8, of which a plain sum, in doubles too, keeps nothing."""
    n = 99
    grad, log_probs = np.zeros((2, n), dtype), np.full((2, n), -np.log(n), dtype)
    grad[:, at : at + 24] = np.repeat(np.array([1e17, 1, -1e17], dtype), 8)
    zeros = grad[0] == 0
    result = fs.log_softmax_backward(grad, log_probs)
    expected = -8 * np.exp(log_probs[:, zeros].astype(np.longdouble))
    assert_ulps(result[:, zeros], expected, EXACT)


@pytest.mark.parametrize("kind", ["f2", ">f2", "i4"])
def test_backward_down_many_classes_of_another_type(kind, dtype, rng):
    """Where threads share the classes, and the kernels are there already."""
    grad, probs = rng.standard_normal((2000, 60)).astype(dtype), rng.integers(0, 2, (2000, 60)).astype(kind)
    fs.softmax_backward(grad[:5].copy(), grad[:5].copy(), axis=0)
    with fs.num_threads(2):
        result = fs.softmax_backward(grad, probs, axis=0)
        other = fs.softmax_backward(grad.astype(result.dtype), probs.astype(result.dtype), axis=0)
    np.testing.assert_array_equal(result, other)


@pytest.mark.parametrize("name", ["class_weight", "sample_weight"])
@pytest.mark.parametrize("wrong", [np.ones(11), np.ones((1, 10)), np.ones(10, complex), np.array(["1"] * 10)], ids=str)
def test_weights_that_do_not_fit(name, wrong, dtype):
    z, labels = np.ones((10, 10), dtype), np.arange(10)
    for function in fs.cross_entropy, fs.cross_entropy_with_grad:
        with pytest.raises((TypeError, ValueError), match=name):
            function(z, labels, **{name: wrong})


@pytest.mark.parametrize("kind", ["f4", ">f4", "f2", "i8", "strided f4"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weights_of_other_types(label_smoothing, kind, dtype, rng):
    """They are taken for what they are, in float64."""
    z, labels = rng.standard_normal((20, 10)).astype(dtype), rng.integers(0, 10, 20)
    for name, n in ("class_weight", 10), ("sample_weight", 20):
        weights = (rng.random(2 * n) * 9 + 1).astype(kind.split()[-1])
        weights = weights[::2] if "strided" in kind else weights[:n].copy()
        loss, grad = fs.cross_entropy_with_grad(z, labels, **{name: weights}, label_smoothing=label_smoothing)
        exact = {name: weights.astype(np.float64), "label_smoothing": label_smoothing}
        assert loss == fs.cross_entropy(z, labels, **{**exact, name: weights}) == fs.cross_entropy(z, labels, **exact)
        np.testing.assert_array_equal(grad, fs.cross_entropy_with_grad(z, labels, **exact)[1])


@pytest.mark.parametrize(("name", "n"), [("class_weight", 40), ("sample_weight", 1000)])
def test_weights_that_lie_in_the_result(name, n, dtype):
    """They count as they were before anything is written; there are more rows than are read before some are."""
    z, labels, out = np.ones((1000, 40), dtype), np.arange(1000) % 40, np.empty((1000, 40), dtype)
    inside = out.reshape(-1).view(np.float64)[:n]
    inside[:] = np.linspace(1, 2, n)
    loss, grad = fs.cross_entropy_with_grad(z, labels, **{name: inside.copy()})
    result = fs.cross_entropy_with_grad(z, labels, **{name: inside}, out=out)
    assert result[0] == loss
    np.testing.assert_array_equal(result[1], grad)


@pytest.mark.parametrize("function", ["affine", "affine_backward", "linear_cross_entropy_with_grad"])
def test_the_number_of_threads_changes_no_bit_of_a_product(function, dtype):
    case = next(c for c in CASES if c.function == function)
    arrays, options = case.make(dtype, 20_001, 33)
    with fs.num_threads(1):
        expected = case.call(arrays, options)
    for n in (2, 3, 8):
        with fs.num_threads(n):
            assert_same_bits(case.call(arrays, options), expected, label=f"{n} threads")


def test_affine_into_its_own_input(dtype, rng):
    """`out` that is an input, or lies in the memory of one, gets the product of what was there."""
    for shared in ("x", "weight", "view of x", "bias"):
        x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in ((24, 24), (24, 24), 24))
        x = x[:1].copy() if shared == "bias" else x
        out = {"x": x, "weight": weight, "view of x": x[:], "bias": bias.reshape(1, 24)}[shared]
        expected = fs.affine(x, weight, bias)
        assert fs.affine(x, weight, bias, out=out) is out
        np.testing.assert_array_equal(out, expected, err_msg=shared)


@pytest.mark.parametrize("place", ["kept", "strided", "some new", "inputs", "no grad_x"])
@pytest.mark.parametrize("lead", [(40,), (2, 20)], ids=str)
@pytest.mark.parametrize("dtype_name", ["float16", "float32", "float64"])
def test_affine_backward_into_given_arrays(place, lead, dtype_name, rng):
    """The same bits as without `out`, in the arrays given, wherever these lie."""
    grad_out, x, weight = (rng.standard_normal((*n, 24)).astype(dtype_name) for n in (lead, lead, (24,)))
    needed = place != "no grad_x"
    expected = fs.affine_backward(grad_out, x, weight, need_grad_x=needed)
    given = [None if e is None else np.full_like(e, np.nan) for e in expected]
    if place == "strided":
        given = [np.full((*e.shape, 2), np.nan, e.dtype)[..., 1] for e in expected]
    elif place == "some new":
        given[1] = None
    elif place == "inputs":
        given = [x, weight, grad_out.reshape(-1, 24)[3]]
    got = fs.affine_backward(grad_out, x, weight, need_grad_x=needed, out=tuple(given))
    assert_same_bits(got, expected)
    assert all(g is None or a is g for a, g in zip(got, given))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", range(64, 96))
def test_smoothed_rows_of_every_length(n, dtype):
    """Vectors are worked on in pairs, begun before they are needed: every way in which a row can end."""
    rng = np.random.default_rng(n)
    z, targets = (3 * rng.standard_normal((3, n))).astype(dtype), rng.integers(0, n, 3)
    loss, grad = fs.cross_entropy_with_grad(z, targets, label_smoothing=0.1, reduction="sum")
    wide = z.astype(np.longdouble)
    log_p = wide - wide.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    wanted = 0.9 * np.eye(n)[targets] + 0.1 / n
    rtol = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(grad, np.exp(log_p) - wanted, rtol=rtol, atol=rtol * 1e-3)
    np.testing.assert_allclose(loss, -(wanted * log_p).sum(), rtol=rtol)
