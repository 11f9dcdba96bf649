"""Small calls, which go past Python: the same results, nothing kept, and whatever they are not made for is declined."""

from __future__ import annotations

import contextlib
import gc
import sys
import tracemalloc
from functools import wraps

import numpy as np
import pytest
from long_way import no_small_calls

import fastsoftmax as fs
from fastsoftmax.kernels import BY_WIDTH, KERNELS, NARROW, NARROW32, SHORT, SMALL, SMALL_PRODUCT

Z = np.random.default_rng(0).standard_normal((24, 10))
T = np.arange(24) % 10


BY_NAME = KERNELS | BY_WIDTH


class Subclass(np.ndarray):
    """An array class of somebody's own."""


# function -> (its kernel along the last axis, and along the first; its arrays, made of Z)
FUNCTIONS = {
    "softmax": ("softmax", "softmax_columns", lambda z: (z,)),
    "log_softmax": ("log_softmax", "log_softmax_columns", lambda z: (z,)),
    "softmax_backward": ("softmax_backward", "softmax_backward_columns", lambda z: (z, fs.softmax(z))),
    "log_softmax_backward": ("log_softmax_backward", "log_softmax_backward_columns", lambda z: (z, fs.log_softmax(z))),
    "cross_entropy_with_grad": ("mean_cross_entropy_with_grad", None, lambda z: (z, np.arange(len(z)) % z.shape[1])),
    "cross_entropy": ("mean_cross_entropy", None, lambda z: (z, np.arange(len(z)) % z.shape[1])),
    "logsumexp": ("logsumexp", None, lambda z: (z,)),
    "relu": ("relu", None, lambda z: (z,)),
    "relu_backward": ("relu_backward", None, lambda z: (z[::-1].copy(), z)),
    "affine": ("affine", None, lambda z: (z, z[: z.shape[1]].copy(), z[0].copy())),
    "affine_backward": ("affine_backward", None, lambda z: (z, z[::-1].copy(), z[: z.shape[1]].copy())),
}
WITHOUT_OUT = {"cross_entropy", "logsumexp", "affine_backward"}  # the last one has a tuple: by itself below
WITHOUT_AXIS = {"relu", "relu_backward", "affine", "affine_backward"}
ROWS_AND_COLUMNS = [(name, k) for name, kernels in FUNCTIONS.items() for k in (0, 1) if kernels[k]]


def kernel_of(name_and_k):
    return FUNCTIONS[name_and_k[0]][name_and_k[1]]


@pytest.fixture(params=ROWS_AND_COLUMNS, ids=kernel_of)
def small(request, dtype):
    """(the public function, its arrays, its small call, axis)"""
    return small_call(*request.param, dtype)


@pytest.fixture(params=[p for p in ROWS_AND_COLUMNS if p[0] not in WITHOUT_OUT], ids=kernel_of)
def filling(request, dtype):
    """Those that take `out`."""
    return small_call(*request.param, dtype)


def small_call(name, k, dtype):
    arrays = FUNCTIONS[name][2](Z.astype(dtype))
    axis = 0 if k else -1
    public = getattr(fs, name)

    @wraps(public)
    def function(*arguments, axis):
        return public(*arguments) if name in WITHOUT_AXIS else public(*arguments, axis=axis)

    for _ in range(2):  # built, and asked for
        function(*arrays, axis=axis)
    small = BY_NAME[FUNCTIONS[name][k]].small

    def call(*arguments):
        *arguments, axis, out = arguments
        if name not in WITHOUT_AXIS:
            arguments.append(axis)
        if name not in WITHOUT_OUT:
            return small(*arguments, out)
        assert out is None
        return small(*arguments, True, None) if name == "affine_backward" else small(*arguments)

    return function, arrays, call, axis


def parts(result):
    return result if isinstance(result, tuple) else (result,)


def assert_same(result, expected):
    for a, b in zip(parts(result), parts(expected), strict=True):
        assert type(a) is type(b)
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_results_are_those_of_the_long_way(small):
    function, arrays, call, axis = small
    with no_small_calls():
        expected = function(*arrays, axis=axis)
    for same_axis in (axis, 1 if axis else -2):
        result = call(*arrays, same_axis, None)
        assert_same(result, expected)
        if isinstance(made := parts(result)[-1], np.ndarray):
            assert made.flags.owndata
            assert made.flags.c_contiguous
    assert_same(function(*arrays, axis=axis), expected)


@pytest.mark.parametrize("place", [lambda a: a.copy(), lambda a: elsewhere(a)], ids=["its own", "within another"])
def test_the_result_is_put_where_it_is_wanted(place, filling):
    function, arrays, call, axis = filling
    with no_small_calls():
        expected = function(*arrays, axis=axis)
    out = place(np.full_like(arrays[0], 7))
    result = call(*map(place, arrays), axis, out)
    assert parts(result)[-1] is out
    assert_same(result, expected)


@pytest.mark.parametrize("shape", [(10, 1), (10, 1, 1), (10,), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "softmax_backward"])
def test_one_row_along_the_first_axis(name, shape, dtype):
    z = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    arrays = FUNCTIONS[name][2](z)
    with no_small_calls():
        expected = getattr(fs, name)(*arrays, axis=0)
    getattr(fs, name)(*arrays)
    getattr(fs, name)(*arrays)
    for axis in (0, -z.ndim):
        assert_same(BY_NAME[name].small(*arrays, axis, None), expected)


@pytest.mark.parametrize("shape", [(1, 10), (10,), (2, 3, 10), (1, 1, 1, 9), (3, 1)], ids=str)
def test_any_number_of_dimensions(shape, dtype):
    z = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    fs.softmax(z)
    fs.logsumexp(z)
    for axis in (-1, z.ndim - 1):
        with no_small_calls():
            expected = fs.softmax(z, axis), fs.logsumexp(z, axis)
        fs.softmax(z, -1)
        assert_same(BY_WIDTH["softmax"].small(z, axis, None), expected[0])
        assert_same(BY_WIDTH["logsumexp"].small(z, axis), expected[1])


def test_in_place(filling):
    function, arrays, call, axis = filling
    with no_small_calls():
        expected = function(*arrays, axis=axis)
    if function.__name__ in ("cross_entropy_with_grad", "affine"):  # what is read once more must be there still
        before = arrays[0].copy()
        assert call(*arrays, axis, arrays[0]) is None
        assert_same(arrays[0], before)
        return
    for k in range(len(arrays)):
        for out_of in (lambda a: a), (lambda a: a[:]):
            copies = [a.copy() for a in arrays]
            out = out_of(copies[k])
            assert call(*copies, axis, out) is out
            assert_same(copies[k], expected)


def elsewhere(a):
    """The same array within another."""
    return np.stack([a, a])[0]


def misaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(a.tobytes(), np.uint8)
    return raw[1:].view(a.dtype).reshape(a.shape)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


ARRAYS = {
    "a list": lambda a: a.tolist(),
    "None": lambda a: None,
    "a number": lambda a: 1.0,
    "another dtype": lambda a: a.astype("f4" if a.dtype == "f8" else "f8"),
    "half": lambda a: a.astype("f2"),
    "integers": lambda a: a.astype("i4"),
    "the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "not contiguous": lambda a: np.repeat(a, 2, axis=0)[::2],
    "in Fortran's order": np.asfortranarray,
    "misaligned": misaligned,
    "a subclass": lambda a: a.view(Subclass),
    "masked": np.ma.masked_array,
    "a type": lambda a: np.ndarray,
    "no dimensions": lambda a: np.array(1, a.dtype),
    "empty": lambda a: a[:0],
    "a row less": lambda a: a[:-1].copy(),
    "a column less": lambda a: a[..., :-1].copy(),
    "another shape": lambda a: a.reshape(-1, 2),
    "more dimensions": lambda a: a[None],
}
AXES = [None, 2, -3, 2**70, -(2**70), True, 1.0, np.int64(-1), (-1,), "1"]


@pytest.mark.parametrize("kind", ARRAYS)
def test_other_arrays_are_declined(small, kind):
    function, arrays, call, axis = small
    for k, a in enumerate(arrays):
        other = ARRAYS[kind](a)
        if k == 0 and len(arrays) == 1 and kind in ("a row less", "a column less", "another shape", "more dimensions"):
            continue  # of that shape, and taken
        if function.__name__ == "affine" and (k, kind) in ((0, "a row less"), (2, "None")):
            continue  # likewise
        if np.ndim(a) == 1 and kind == "in Fortran's order":
            continue  # a vector is in every order
        assert call(*arrays[:k], other, *arrays[k + 1 :], axis, None) is None


@pytest.mark.parametrize("kind", [kind for kind in ARRAYS if kind != "None"])
def test_results_in_other_arrays_are_declined(filling, kind):
    _, arrays, call, axis = filling
    before = arrays[0].copy()
    assert call(*arrays, axis, ARRAYS[kind](arrays[0])) is None
    assert_same(arrays[0], before)


ALL_AXES = ["softmax", "log_softmax", "logsumexp", "softmax_backward", "log_softmax_backward"]  # may be taken together


@pytest.mark.parametrize("shape", [(6, 9), (54,), (2, 3, 1, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ALL_AXES)
def test_all_axes_at_once(name, shape, dtype, monkeypatch):
    """As SciPy has it by default: an array is one row, whatever its shape, even if nothing else is ever asked for."""
    arrays = FUNCTIONS[name][2](np.random.default_rng(1).standard_normal(shape).astype(dtype))
    function = getattr(fs, name)
    with no_small_calls():
        expected = function(*arrays, axis=None)
    monkeypatch.setattr(BY_NAME[name], "small", lambda *arguments: None)
    for _ in range(2):
        assert_same(function(*arrays, axis=None), expected)
    out = () if name in WITHOUT_OUT else (None,)
    result = BY_NAME[name].small(*arrays, None, *out)
    assert_same(result, expected)
    assert np.shape(result) == np.shape(expected)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("which", [p for p in ROWS_AND_COLUMNS if p[0] not in WITHOUT_AXIS], ids=kernel_of)
def test_other_axes_are_declined(which, axis, dtype):
    if axis is None and kernel_of(which) in ALL_AXES:
        axis = ()  # None means all of them
    _, arrays, call, _ = small_call(*which, dtype)
    assert call(*arrays, axis, None) is None


def test_other_results_are_declined(filling):
    _, arrays, call, axis = filling
    out = read_only(arrays[0])
    before = out.copy()
    assert call(*arrays, axis, out) is None
    assert_same(out, before)


def side_by_side(a, b, shared):
    """Copies of two arrays, of which the second begins `shared` bytes before the first one ends."""
    raw = np.zeros(a.nbytes + b.nbytes, np.uint8)
    one = raw[: a.nbytes].view(a.dtype).reshape(a.shape)
    other = raw[a.nbytes - shared :][: b.nbytes].view(b.dtype).reshape(b.shape)
    other[...] = b
    one[...] = a
    return one, other


def test_a_result_that_reaches_into_what_is_read_is_declined(filling):
    """By 8 bytes, at either end; or begins with it, where it is not a result in place."""
    function, arrays, call, axis = filling
    with no_small_calls():
        expected = function(*arrays, axis=axis)
    result = np.full_like(arrays[0], 7)
    for k, array in enumerate(arrays):
        for shared, taken in (0, True), (8, False):
            for first in True, False:
                pair = side_by_side(array, result, shared) if first else side_by_side(result, array, shared)
                own, out = pair if first else pair[::-1]
                before = out.copy()
                returned = call(*arrays[:k], own, *arrays[k + 1 :], axis, out)
                assert (returned is not None) is taken
                assert_same(out, parts(expected)[-1] if taken else before)
        if function.__name__ in ("cross_entropy_with_grad", "affine") and array.nbytes <= result.nbytes:
            own, out = side_by_side(array, result, array.nbytes)
            assert call(*arrays[:k], own, *arrays[k + 1 :], axis, out) is None


def test_arrays_that_are_not_small_are_declined(small):
    function, arrays, call, axis = small
    most = SMALL
    if function.__name__ in ("softmax", "log_softmax"):
        most = SHORT // arrays[0].itemsize
    elif function.__name__.startswith("affine"):
        most = SMALL_PRODUCT // 16
    for rows, taken in ((most // 16, True), (most // 16 + 1, False)):
        z = np.ones((rows, 16), arrays[0].dtype)
        z = z if axis else np.ascontiguousarray(z.T)
        arrays = FUNCTIONS[function.__name__][2](z)
        assert (call(*arrays, axis, None) is not None) is taken


@pytest.mark.parametrize("n_columns", [2, 3, 7])
@pytest.mark.parametrize("n", [3, 10, 63, 64, 104, 300])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_backward", "log_softmax_backward"])
def test_few_columns_are_taken(name, n, n_columns, dtype):
    rows = FUNCTIONS[name][2](np.random.default_rng(2).standard_normal((n_columns, n)).astype(dtype))
    expected, columns = getattr(fs, name)(*rows).T.copy(), [a.T.copy() for a in rows]
    for _ in range(2):
        assert_same(getattr(fs, name)(*columns, axis=0), expected)
    assert_same(BY_NAME[name + "_columns"].small(*columns, 0, None), expected)


OPTIONS = {
    "labels": {},
    "class weights": {"class_weight": np.arange(1.0, 11.0)},
    "sample weights": {"sample_weight": np.arange(1.0, 25.0)},
    "ignored": {"ignore_index": 3, "reduction": "sum"},
    "smoothed": {"label_smoothing": 0.1},
    "each": {"reduction": "none", "class_weight": np.arange(1.0, 11.0, dtype=np.float32)},
}


@pytest.mark.parametrize("n_rows", [1, 2, 24])
@pytest.mark.parametrize("targets", ["labels", "one-hot", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_losses_down_the_columns_of_small_matrices(options, targets, n_rows, dtype):
    """They are those of the rows, a copy of which goes a shorter way."""
    z, options = Z[:n_rows].astype(dtype), dict(options)
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"][:n_rows]
    if targets != "labels":
        options.pop("ignore_index", None)
    of_rows = {
        "labels": T[:n_rows], "one-hot": np.eye(10, dtype=int)[T[:n_rows]],
        "probabilities": fs.softmax(Z[::-1][:n_rows].astype(dtype)),
    }[targets]  # fmt: skip
    loss, grad = fs.cross_entropy_with_grad(z, of_rows, **options)
    given = z.T.copy(), of_rows.T.copy()
    before = [a.copy() for a in given]
    for way in contextlib.nullcontext, no_small_calls:
        with way():
            assert_same(fs.cross_entropy_with_grad(*given, axis=0, **options), (loss, grad.T.copy()))
            assert_same(fs.cross_entropy(*given, axis=0, **options), loss)
            assert_same(fs.cross_entropy_with_grad(*given, axis=0, **options, out=np.empty_like(given[0]))[1], grad.T.copy())
            assert_same(fs.logsumexp(given[0], axis=0), fs.logsumexp(z))
            assert_same(fs.logsumexp(given[0], axis=0, keepdims=True), fs.logsumexp(z)[None])
    assert_same(given, tuple(before))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_results_for_rows_that_are_copied_are_arrays_of_their_own(name, dtype):
    """Not views, which would hold more memory than theirs."""
    call, z = getattr(fs, name), Z.astype(dtype)
    for x in z.tolist(), z[::2], z.astype(np.float16), z[::-1, ::-1]:
        result = call(x)
        assert result.flags.owndata
        assert_same(result, call(np.array(x)))
    cube = np.arange(24.0, dtype=dtype).reshape(2, 3, 4)[:, ::-1]
    assert_same(call(cube, axis=(1, 2)), call(cube.reshape(2, 12)).reshape(2, 3, 4))


def test_what_does_not_fit_down_the_columns_is_told_in_their_shape():
    z = Z.T.copy()
    for targets, got in (T[:3], r"\(3,\)"), (np.ones((24, 10)), r"\(24, 10\)"), (np.ones((10, 24, 1)), r"\(10, 24, 1\)"):
        with pytest.raises(ValueError, match=r"\(24,\) for class indices or \(10, 24\) for probabilities, got " + got):
            fs.cross_entropy_with_grad(z, targets, axis=0)
    with pytest.raises(IndexError, match="row 5 has label 10"):
        fs.cross_entropy(z, np.where(np.arange(24) == 5, 10, T), axis=0)


@pytest.mark.parametrize(
    "targets",
    [[1, 10], [-1, 1], [-100, -100], [1], [1, 2, 3], [[1], [2]], [1.0, 2.0]],
    ids=str,
)
def test_labels_to_be_looked_at_more_closely_are_declined(targets, dtype):
    z = Z[:2].astype(dtype)
    fs.cross_entropy_with_grad(z, np.array([1, 2]))
    out = np.full_like(z, 7)
    fs.cross_entropy(z, np.array([1, 2]))
    call, loss_alone = BY_WIDTH["mean_cross_entropy_with_grad"].small, BY_WIDTH["mean_cross_entropy"].small
    assert call(z, np.array([1, -100]), -1, None) is not None
    assert loss_alone(z, np.array([1, -100]), -1) is not None
    for given in None, out:
        assert call(z, np.array(targets), -1, given) is None
    assert loss_alone(z, np.array(targets), -1) is None
    assert (out == 7).all()
    for other in np.array([1, 2], np.int32), np.array([1.0, 2.0]):
        assert call(z, other, -1, None) is None
        assert loss_alone(z, other, -1) is None


def test_nothing_is_kept(small):
    """Neither memory nor references, whether a call is taken or declined."""
    function, arrays, call, axis = small
    out = np.empty_like(arrays[0])
    calls = [(*arrays, axis, None), (*arrays, 7, None), (None,) * (len(arrays) + 2)]
    if len(arrays) == 2 and arrays[1].ndim == 1:
        calls.append((arrays[0], arrays[1] - 1, axis, None))  # declined when the result is there already
    if function.__name__ not in WITHOUT_OUT:
        calls += [(*others, out) for *others, _ in calls]
        calls.append((*arrays, axis, read_only(out)))
    if function.__name__ == "affine":
        calls.append((*arrays[:2], None, axis, None))
    if function.__name__ == "logsumexp":
        calls.append((arrays[0][0].copy(), axis, None))  # a scalar
    watched = [*arrays, out, np.ndarray, arrays[0].dtype]

    def state():
        gc.collect()
        return [sys.getrefcount(a) for a in watched], tracemalloc.get_traced_memory()[0]

    gc.freeze()  # what there was before needs no look: it took 5 s
    tracemalloc.start()
    try:
        for n in (10, 2000):
            before = state()
            for _ in range(n):
                for arguments in calls:
                    call(*arguments)
            after = state()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert after[0] == before[0]
    assert after[1] - before[1] < 1000  # bytes; one array each time were 200 times as many


@pytest.mark.parametrize("name", [name for name in BY_WIDTH if not name.startswith("cross_entropy")])
def test_rows_of_few_and_of_many_classes(name, dtype):
    """Each kernel declines the other's rows, and the one that was used last is tried first."""
    rows, public = BY_WIDTH[name], name.removeprefix("mean_")
    least = NARROW32 if "cross_entropy" not in name and dtype == np.float32 else NARROW
    for n in (least - 1, least, least + 1, least - 1, 10):
        arrays = FUNCTIONS[public][2](np.random.default_rng(n).standard_normal((5, n)).astype(dtype))
        with no_small_calls():
            expected = getattr(fs, public)(*arrays)
        out = () if public in WITHOUT_OUT else (None,)
        own, other = (rows.narrow, rows.wide) if n < least else (rows.wide, rows.narrow)
        assert_same(own[dtype](*arrays, -1, *out), expected)
        assert other[dtype](*arrays, -1, *out) is None
        for _ in range(2):
            assert_same(getattr(fs, public)(*arrays), expected)
        assert rows.small is own[dtype]


@pytest.mark.parametrize("shape", [(6, 9), (54,), (2, 3, 9), (1, 1)], ids=str)
def test_dimensions_that_are_kept(shape, dtype):
    z = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    for axis in (-1, z.ndim - 1, None):
        with no_small_calls():
            expected = fs.logsumexp(z, axis, keepdims=True)
        for _ in range(2):
            assert_same(fs.logsumexp(z, axis, keepdims=True), expected)


@pytest.mark.parametrize(
    "kind", ["not contiguous", "in Fortran's order", "misaligned", "the other byte order", "half", "a list"]
)
@pytest.mark.parametrize("n_rows", [24, 2000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_arrays_that_are_copied_are_so_once(name, n_rows, kind, dtype, monkeypatch):
    """The result is where the copy was; what was given stays."""
    function, z = getattr(fs, name), np.random.default_rng(1).standard_normal((n_rows, 10)).astype(dtype)
    z, given = z.astype(np.float16).astype(dtype) if kind == "half" else z, ARRAYS[kind](z)
    computed_in = {"half": np.float32, "a list": np.float64}.get(kind, dtype)
    expected = function(z.astype(computed_in)).astype(np.asarray(given).dtype.newbyteorder("="))
    monkeypatch.setattr(fs.functional, "to_rows", None)
    assert_same(function(given), expected)
    assert_same(function(given, 1), expected)
    np.testing.assert_array_equal(given, z)


class Undecided:
    """Neither true nor false."""

    def __bool__(self):
        raise OverflowError


def test_a_small_layer_without_what_it_need_not_have(dtype):
    """No bias; no gradient of x."""
    _, (x, weight, bias), call, _ = small_call("affine", 0, dtype)
    with no_small_calls():
        expected = fs.affine(x, weight)
    assert (expected != fs.affine(x, weight, bias)).any()
    assert_same(call(x, weight, None, None, None), expected)

    _, arrays, _, _ = small_call("affine_backward", 0, dtype)
    backward = KERNELS["affine_backward"].small
    all_three = backward(*arrays, 1, None)
    assert backward(*arrays, "", None) == (None, *[pytest.approx(a, rel=0, abs=0) for a in all_three[1:]])
    everything = [sys.getrefcount(a) for a in arrays]
    with pytest.raises(OverflowError):
        backward(*arrays, Undecided(), None)
    assert [sys.getrefcount(a) for a in arrays] == everything

    class Resizing:
        def __bool__(self):
            x.resize((2, 2), refcheck=False)
            return True

    x = arrays[1].copy()
    assert backward(arrays[0], x, arrays[2], Resizing(), None) is None  # it is looked at before the arrays are


@pytest.fixture
def backward(dtype):
    """(the small call of `affine_backward`, its arrays, places for its results, what they are)"""
    _, arrays, _, _ = small_call("affine_backward", 0, dtype)
    with no_small_calls():
        expected = fs.affine_backward(*arrays)
    return KERNELS["affine_backward"].small, arrays, tuple(np.full_like(a, 7) for a in expected), expected


@pytest.mark.parametrize("given", [(0, 1, 2), (0,), (1,), (2,), (1, 2), ()], ids=str)
@pytest.mark.parametrize("need_grad_x", [True, False])
def test_gradients_of_a_small_layer_are_put_where_they_are_wanted(given, need_grad_x, backward):
    """Those that are given no place come in a new array."""
    small, arrays, places, expected = backward
    out = tuple(place if k in given else None for k, place in enumerate(places))
    result = small(*arrays, need_grad_x, out)
    if not need_grad_x:
        if 0 in given:
            assert result is None
            assert (places[0] == 7).all()
            return
        assert result[0] is None
        result, expected, out = result[1:], expected[1:], out[1:]
    assert_same(result, expected)
    assert all(a is b or b is None for a, b in zip(result, out, strict=True))
    assert_same(fs.affine_backward(*arrays, need_grad_x=need_grad_x, out=(None,) * (3 - len(out)) + out)[-len(out) :], expected)


@pytest.mark.parametrize(
    ("k", "kind"),
    [
        (k, kind) for k in range(3) for kind in (*ARRAYS, "read-only")
        if kind != "None" and (k, kind) != (2, "in Fortran's order")  # a vector is in every order
    ],
)  # fmt: skip
def test_places_for_the_gradients_of_a_small_layer_that_are_declined(k, kind, backward):
    small, arrays, places, _ = backward
    change = {"read-only": read_only, **ARRAYS}[kind]
    assert small(*arrays, True, (*places[:k], change(places[k]), *places[k + 1 :])) is None
    assert all((place == 7).all() for place in places)


def test_a_small_layer_with_places_in_one_another_is_declined(dtype, backward):
    small, arrays, places, expected = backward
    for out in places[:2], (*places, None), [*places], places[1], 1.0, (1, 2, 3):
        assert small(*arrays, True, out) is None
    square = np.arange(9, dtype=dtype).reshape(3, 3).copy()
    one, two, vector = square.copy(), square.copy(), square[0].copy()
    assert small(square, one, two, True, (None, None, vector)) is not None
    for out in (one, None, None), (two, None, None), (square, None, None), (None, two, None), (vector, None, None):
        assert small(square, one, two, True, out) is None
    other = square.copy()
    for out in (other, other, None), (other, other[:], None), (other, None, other[2]), (None, other, other[2]):
        assert small(square, one, two, True, out) is None
    for k, array in enumerate(arrays):
        for j, place in enumerate(places):
            for shared, taken in (0, True), (8, False):
                own, out = side_by_side(array, place, shared)
                given = (*arrays[:k], own, *arrays[k + 1 :])
                result = small(*given, True, (*places[:j], out, *places[j + 1 :]))
                assert (result is not None) is taken
                if taken:
                    assert_same(result, expected)
    for j, place in enumerate(places):
        for i in range(j):
            for shared, taken in (0, True), (8, False):
                out = list(places)
                out[j], out[i] = side_by_side(place, places[i], shared)
                assert (small(*arrays, True, tuple(out)) is not None) is taken


@pytest.mark.parametrize("given", [(0, 1, 2), (0, 2), (2,)], ids=str)
def test_gradients_of_a_small_layer_within_other_arrays(given, backward):
    small, arrays, places, expected = backward
    out = tuple(elsewhere(place) if k in given else None for k, place in enumerate(places))
    result = small(*map(elsewhere, arrays), True, out)
    assert_same(result, expected)
    assert all(a is b or b is None for a, b in zip(result, out, strict=True))


def test_places_for_gradients_are_not_kept(backward):
    small, arrays, places, _ = backward
    calls = [places, (None, *places[1:]), (*places[:2], None), (*places[:2], read_only(places[2])), places[:2]]
    watched = [*arrays, *places, None, np.ndarray, arrays[0].dtype]
    before = [sys.getrefcount(a) for a in watched]
    for _ in range(1000):
        for need_grad_x in True, False:
            for out in calls:
                small(*arrays, need_grad_x, out)
    after = [sys.getrefcount(a) for a in watched]
    assert [b - a < 100 for a, b in zip(before, after, strict=True)] == [True] * len(watched)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 11), (1, 5, 40), (9, 33, 10), (130, 17, 3), (40, 20, 100)], ids=str)
def test_small_layers_of_all_kinds(shape, dtype, rng):
    """Few rows, few columns, tiles and what is left over by them: the bits of the long way."""
    n_rows, n_in, n_out = shape
    shapes = (n_rows, n_in), (n_in, n_out), n_out, (n_rows, n_out)
    x, weight, bias, grad_out = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    with no_small_calls():
        out, gradients = fs.affine(x, weight, bias), fs.affine_backward(grad_out, x, weight)
    for _ in range(2):
        fs.affine(x, weight), fs.affine_backward(grad_out, x, weight)
    assert_same(KERNELS["affine"].small(x, weight, bias, None), out)
    assert_same(KERNELS["affine_backward"].small(grad_out, x, weight, True, None), gradients)


def test_another_dtype_is_small_too_from_its_second_call_on():
    for dtype in (np.float32, np.float64, np.float32):
        z = Z.astype(dtype)
        fs.softmax(z)
        fs.softmax(z)
        assert BY_WIDTH["softmax"].small(z, -1, None).dtype == dtype


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3, 4), (1,) * 12], ids=len)
def test_an_entry_says_how_many_arguments_it_takes(arguments):
    with pytest.raises(TypeError, match="softmax_narrow_float64 takes 7 arguments"):
        KERNELS["softmax_narrow"][np.dtype(np.float64)](*arguments)


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3, 4, 5, 6)], ids=len)
@pytest.mark.parametrize(("name", "n"), [("mean_cross_entropy_narrow", 3), ("mean_cross_entropy_with_grad_wide", 4)])
def test_so_does_one_for_small_calls_alone(name, n, arguments):
    with pytest.raises(TypeError, match=f"{name}_float64 takes {n} arguments"):
        KERNELS[name][np.dtype(np.float64)](*arguments)
