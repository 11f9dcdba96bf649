"""Arrays that end, or begin, at a page nobody may touch: one element too far, read or written, and the process dies.

Kernels address memory by raw pointers, which no bounds check of numba's sees. So every array that a call reads or writes
is laid against such a page: the arguments, and, by a stand-in for `numpy` in the modules that call kernels, every copy,
result and piece of scratch that Python allocates for them, and what kernels allocate themselves, which must also be given
back. Run by test_bounds.py in a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys

import numpy as np
from long_way import no_small_calls

PAGE = mmap.PAGESIZE
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

# Around every width of a vector, a square, a tile, a panel; the switch from narrow rows to wide ones is at 64 or 104.
ROWS = 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 130
COLUMNS = *range(1, 20), 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 79, 80, 81, 103, 104, 105, 127, 128, 129, 257
# Panels are copied from 512 columns on, and chunks and threads come with size.
LARGE = [(40, 600), (300, 515), (3001, 301), (42000, 17), (1024, 385)]
FEW = [(1, 1), (2, 9), (17, 17), (9, 65), (33, 10), (40, 600)]


def place(shape, dtype, at_end):
    """An uninitialised array whose last element ends at a forbidden page, or whose first begins after one."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = -(-size // PAGE) * PAGE
    region = mmap.mmap(-1, room + 2 * PAGE)
    everything = np.frombuffer(region, np.uint8)
    address = everything.ctypes.data
    for guard in (address, address + PAGE + room):
        if _mprotect(guard, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    start = PAGE + (room - size if at_end else 0)
    return everything[start : start + size].view(dtype).reshape(shape)


# The C library's malloc and free for kernels: what was asked for ends less than 64 bytes before a forbidden page. Before it
# stand the region's address and size. No GIL is needed, and how many there are is counted.
_MALLOC = f"""
declare ptr @mmap(ptr, i64, i32, i32, i32, i64)
declare i32 @munmap(ptr, i64)
declare i32 @mprotect(ptr, i64, i32)
@made = global i64 0
@alive = global i64 0

define ptr @guarded_malloc(i64 %size) {{
  %more = add i64 %size, {16 + 64 + PAGE - 1}
  %room = and i64 %more, {-PAGE}
  %all = add i64 %room, {PAGE}
  %region = call ptr @mmap(ptr null, i64 %all, i32 {mmap.PROT_READ | mmap.PROT_WRITE},
                           i32 {mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}, i32 -1, i64 0)
  %guard = getelementptr i8, ptr %region, i64 %room
  call i32 @mprotect(ptr %guard, i64 {PAGE}, i32 0)
  %end = ptrtoint ptr %guard to i64
  %latest = sub i64 %end, %size
  %begin = and i64 %latest, -64
  %place = inttoptr i64 %begin to ptr
  %before = getelementptr i64, ptr %place, i64 -2
  store ptr %region, ptr %before
  %length = getelementptr i64, ptr %place, i64 -1
  store i64 %all, ptr %length
  atomicrmw add ptr @made, i64 1 seq_cst
  atomicrmw add ptr @alive, i64 1 seq_cst
  ret ptr %place
}}

define void @guarded_free(ptr %place) {{
  %before = getelementptr i64, ptr %place, i64 -2
  %region = load ptr, ptr %before
  %length = getelementptr i64, ptr %place, i64 -1
  %all = load i64, ptr %length
  call i32 @munmap(ptr %region, i64 %all)
  atomicrmw sub ptr @alive, i64 1 seq_cst
  ret void
}}
"""


def guard_scratch():
    """Have the kernels of this process, none of which may have been built, allocate so; returns what tells (made, alive)."""
    from llvmlite import binding

    from fastsoftmax.kernels import _linker, built

    assert not built()
    engine = _linker._engine()
    engine.add_module(binding.parse_assembly(_MALLOC))
    engine.finalize_object()
    for name in ("malloc", "free"):
        binding.add_symbol(name, engine.get_function_address(f"guarded_{name}"))
    places = [engine.get_global_value_address(name) for name in ("made", "alive")]
    return lambda keep=engine: tuple(ctypes.c_int64.from_address(place).value for place in places)


class GuardedNumpy:
    """numpy, except that new arrays lie against a forbidden page."""

    def __init__(self, at_end):
        self._at_end = at_end

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=float):
        return place((shape,) if np.ndim(shape) == 0 else tuple(shape), dtype, self._at_end)

    def zeros(self, shape, dtype=float):
        result = self.empty(shape, dtype)
        result[...] = 0
        return result

    def empty_like(self, a, order="K"):
        return self.empty(a.shape, a.dtype)

    def zeros_like(self, a, order="K"):
        return self.zeros(a.shape, a.dtype)

    def array(self, a, dtype=None, order=None):
        a = np.asarray(a)
        result = self.empty(a.shape, dtype or a.dtype)
        result[...] = a
        return result

    ascontiguousarray = array


def calls(fs, rng, dtype, n, k, put):
    """(function, arguments, options) of every function that takes arrays, for n rows of k classes; `put` places arrays."""
    rows = put((4 * rng.standard_normal((n, k))).astype(dtype))
    grad = put(rng.standard_normal((n, k)).astype(dtype))
    probs = put(rng.dirichlet(np.ones(k), n).astype(dtype))
    labels = rng.integers(0, k, n)
    labels[::3] = -100
    labels = put(labels)
    by_class, by_row = put(rng.uniform(0.5, 2, k)), put(rng.uniform(0.5, 2, n))
    columns = put((4 * rng.standard_normal((2, k, n))).astype(dtype))
    column_grad, column_probs = put(rng.standard_normal((2, k, n)).astype(dtype)), put(rng.random((2, k, n)).astype(dtype))
    column_labels = put(rng.integers(0, k, (2, n)))
    matrix, out_matrix = put((4 * rng.standard_normal((k, n))).astype(dtype)), put(np.full((k, n), np.nan, dtype))
    matrix_grad = put(rng.standard_normal((k, n)).astype(dtype))
    out, out_columns = put(np.full((n, k), np.nan, dtype)), put(np.full((2, k, n), np.nan, dtype))
    n_in = int(rng.choice(COLUMNS))
    x, bias = put(rng.standard_normal((n, n_in)).astype(dtype)), put(rng.standard_normal(k).astype(dtype))
    weight = put(rng.standard_normal((n_in, k)).astype(dtype))
    weights = {"class_weight": by_class, "sample_weight": by_row}
    none = {"reduction": "none"}
    return [
        (fs.softmax, (rows,), {}),
        (fs.softmax, (rows,), {"out": out}),
        (fs.softmax, (rows.T,), {"axis": 0}),
        (fs.softmax, (columns,), {"axis": 1, "out": out_columns}),
        (fs.softmax, (matrix,), {"axis": 0}),
        (fs.log_softmax, (matrix,), {"axis": 0, "out": out_matrix}),
        (fs.softmax_backward, (matrix_grad, matrix), {"axis": 0, "out": out_matrix}),
        (fs.log_softmax, (rows,), {"out": out}),
        (fs.log_softmax, (columns,), {"axis": 1, "out": out_columns}),
        (fs.logsumexp, (rows,), {}),
        (fs.logsumexp, (columns,), {"axis": 1}),
        (fs.softmax_backward, (grad, probs), {"out": out}),
        (fs.log_softmax_backward, (grad, probs), {"out": out}),
        (fs.softmax_backward, (column_grad, column_probs), {"axis": 1, "out": out_columns}),
        (fs.log_softmax_backward, (column_grad, column_probs), {"axis": 1}),
        (fs.cross_entropy, (rows, labels), none),
        (fs.cross_entropy, (rows, labels), weights),
        (fs.cross_entropy, (rows, labels), {"label_smoothing": 0.1, **none}),
        (fs.cross_entropy, (rows, probs), weights),
        (fs.cross_entropy_with_grad, (rows, labels), {"out": out}),
        (fs.cross_entropy_with_grad, (columns, column_labels), {"axis": 1, "out": out_columns}),
        (fs.cross_entropy, (matrix, labels), {"axis": 0, **none}),
        (fs.cross_entropy_with_grad, (matrix, labels), {"axis": 0, "out": out_matrix}),
        (fs.cross_entropy_with_grad, (rows, labels), {**weights, **none, "grad_loss": by_row}),
        (fs.cross_entropy_with_grad, (rows, labels), {**weights, "label_smoothing": 0.1, "out": out}),
        (fs.cross_entropy_with_grad, (rows, probs), {**weights, **none, "grad_loss": by_row, "out": out}),
        (fs.cross_entropy_grad_hess, (rows, labels), {"sample_weight": by_row}),
        (fs.affine, (x, weight), {}),
        (fs.affine, (x, weight, bias), {"out": out}),
        (fs.affine_backward, (grad, x, weight), {}),
        (fs.relu, (rows,), {"out": out}),
        (fs.relu_backward, (grad, rows), {"out": out}),
        (fs.linear_cross_entropy, (x, weight, labels, bias), weights),
        (fs.linear_cross_entropy_with_grad, (x, weight, labels, bias), {**none, **weights}),
        (fs.linear_cross_entropy_with_grad, (x, weight, probs), {}),
    ]


def bits(result):
    """What two runs must agree in."""
    if isinstance(result, tuple):
        return [b for part in result for b in bits(part)]
    return [None if result is None else np.asarray(result).tobytes()]


@contextlib.contextmanager
def in_place_of_numpy(guarded, *modules):
    for module in modules:
        module.np = guarded
    try:
        yield
    finally:
        for module in modules:
            module.np = np


def main(dtype, at_end, sizes, *, large=False):
    """Every call against the forbidden pages, and once more without them: it lives, and the results are the same.

    `large`: what is done with large arrays, done with all: results go past the caches, threads share the classes.
    """
    import fastsoftmax as fs
    from fastsoftmax import _affine, _arrays, _columns, _rows, _threads, functional

    modules = _affine, _arrays, _columns, _rows, _threads, functional
    guarded = GuardedNumpy(at_end)
    if large:
        fs.set_num_threads(2)
        _rows._STREAM = _rows._STREAM_ROW = _rows._ONCE = _columns._PAST = _columns._CLASSES = 0
        _columns._SHARED = {name: way._replace(least=0) for name, way in _columns._SHARED.items()}
    count = 0
    for n, k in sizes:
        plain = calls(fs, np.random.default_rng([n, k]), dtype, n, k, np.array)
        placed = calls(fs, np.random.default_rng([n, k]), dtype, n, k, guarded.array)
        for (function, arguments, options), (_, same_arguments, same_options) in zip(plain, placed):
            label = f"{function.__name__} {sorted(options)} {dtype} {n} x {k}, at the {'end' if at_end else 'start'}"
            sys.stderr.write(label + "\n")  # the last line names the call that died
            with no_small_calls() if large else contextlib.nullcontext():
                expected = bits(function(*arguments, **options))
            with no_small_calls(), in_place_of_numpy(guarded, *modules):  # they have results of NumPy's making
                result = function(*same_arguments, **same_options)
            assert bits(result) == expected, label
            count += 1
    return count


def training(dtype, at_end):
    """Models and optimizers likewise: mini-batches from bytes and floats, hidden layers, every update."""
    import fastsoftmax as fs
    from fastsoftmax import _affine, _arrays, _batches, _threads, _training, functional, layers, models, optimizers

    modules = _affine, _arrays, _batches, _threads, _training, functional, layers, models, optimizers
    guarded, rng = GuardedNumpy(at_end), np.random.default_rng(0)
    choices = [
        lambda: fs.SGD(0.1),
        lambda: fs.SGD(0.1, momentum=0.9),
        lambda: fs.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: fs.Adam(),
    ]

    def fit(x, targets, hidden, optimizer):
        model = fs.MLP(hidden, optimizer=optimizer(), dtype=dtype, l2=0.01)
        model.fit(x, targets, epochs=2, batch_size=7)
        return bits((*model.params, model.predict_proba(x), model.predict(x)))

    def update(params, grads, optimizer):
        made = optimizer()
        made.step(params, grads)
        made.step(params, grads)
        return bits(tuple(params))

    count = 0
    for n in (1, 2, 7, 8, 9, 15, 16, 17, 33):
        for hidden in ((), (1,), (9,), (17, 5)):
            for data in ("u1", "f2", dtype):
                x, targets = (100 * rng.random((23, n))).astype(data), rng.integers(0, 3, 23)
                optimizer = choices[count % len(choices)]
                sys.stderr.write(f"training {n} {hidden} {data} {dtype} {at_end}\n")
                expected = fit(x, targets, hidden, optimizer)
                with in_place_of_numpy(guarded, *modules):
                    assert fit(guarded.array(x), guarded.array(targets), hidden, optimizer) == expected
                count += 1
        for optimizer in choices:
            arrays = [rng.standard_normal(n).astype(dtype) for _ in range(2)]
            placed = [guarded.array(a) for a in arrays]
            expected = update(arrays[:1], arrays[1:], optimizer)
            with in_place_of_numpy(guarded, *modules):
                assert update(placed[:1], placed[1:], optimizer) == expected
            count += 1
    return count
