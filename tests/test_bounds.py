"""No kernel reads or writes one element too far: guard pages around every array, numba's own check, and row ranges."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from guard_pages import COLUMNS, FEW, LARGE, ROWS
from tolerance import assert_same_bits

import fastsoftmax as fs
from fastsoftmax.kernels import BY_WIDTH, KERNELS, _narrow

CALLS = 150_640  # of the slow run: 35 calls, 538 sizes, 2 dtypes, 2 ends, small arrays and as if large

linux = pytest.mark.skipif(sys.platform != "linux", reason="protects pages by Linux' mprotect")


def child(code, **env):
    """A script in a process of its own, with the tests' helpers in reach."""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=900,
    )


def run(code, **env):
    result = child(code, **env)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stderr[-2000:]}"
    return result.stdout.strip()


# ---- guard pages ---------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("index", ["end:", ":start"])
def test_a_guard_page_kills(index):
    """What the tests below rely on."""
    beyond = "array.size" if index == "end:" else "-1"
    code = f"""
        import ctypes
        from guard_pages import place
        array = place((5,), "f4", {index == "end:"})
        array[...] = 1
        print(array.sum(), flush=True)
        ctypes.c_float.from_address(array.ctypes.data + 4 * ({beyond})).value
    """
    result = child(code)
    assert result.stdout.split() == ["5.0"]
    assert result.returncode == -signal.SIGSEGV


@linux
def test_no_call_touches_what_lies_beyond_its_arrays():
    """Every function, with every argument, result and copy against a page that nobody may touch."""
    code = f"""
        import guard_pages
        scratch = guard_pages.guard_scratch()
        for large in (False, True):
            for dtype in ("float32", "float64"):
                for at_end in (True, False):
                    print(guard_pages.main(dtype, at_end, {FEW}, large=large))
        made, alive = scratch()
        print(made > 1000, alive)
    """
    assert run(code).split() == [str(35 * len(FEW))] * 8 + ["True", "0"]


@linux
def test_training_touches_nothing_beyond_its_arrays():
    """Mini-batches, hidden layers, the optimizers' updates, predictions."""
    code = """
        import guard_pages
        scratch = guard_pages.guard_scratch()
        for dtype in ("float32", "float64"):
            for at_end in (True, False):
                print(guard_pages.training(dtype, at_end))
        made, alive = scratch()
        print(made > 1000, alive)
    """
    assert run(code).split() == ["144"] * 4 + ["True", "0"]


@linux
@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_no_call_touches_what_lies_beyond_its_arrays_for_any_size(at_end, large, dtype):
    """The same around the widths of vectors and tiles, with chunks on threads, and as large arrays are treated."""
    sizes = [(n, k) for n in ROWS for k in COLUMNS] + LARGE
    code = f"""
        import guard_pages
        scratch = guard_pages.guard_scratch()
        print(guard_pages.main({dtype.name!r}, {at_end}, {sizes}, large={large}))
        made, alive = scratch()
        print(made > 1000, alive)
    """
    assert run(code).split() == [str(CALLS // 8), "True", "0"]


def test_a_kernel_without_memory_raises():
    code = """
        import ctypes
        import numpy as np
        from llvmlite import binding
        import fastsoftmax as fs

        nothing = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(lambda size: None)
        binding.add_symbol("malloc", ctypes.cast(nothing, ctypes.c_void_p).value)
        for call in (lambda z: fs.softmax(z, 0), lambda z: fs.affine(z, z.T.copy())):
            for n in (10, 300):  # a small call, and one that releases the GIL
                try:
                    call(np.ones((n, n), np.float32))
                except RuntimeError as error:
                    print(error)
    """
    assert run(code).splitlines() == ["a kernel ran out of memory, or out of bounds where NUMBA_BOUNDSCHECK=1"] * 4


# ---- numba's own check ---------------------------------------------------------------------------------------------

# Row 1 of a result that has only row 0: an array's index, which numba can check, not a vector's address.
OUT_OF_BOUNDS = """
    import numpy as np
    from fastsoftmax.kernels import KERNELS
    for job in (0, 1):  # with the GIL, and without
        logits, lse = np.zeros((2, 100)), np.full(2, 7.0)
        try:
            KERNELS["logsumexp_wide"][np.dtype("f8")](logits, lse[:1], 100, 0, 2, job)
            print("not checked", lse[1] != 7)
        except RuntimeError as error:
            print(error)
"""


@pytest.mark.slow
def test_kernels_compiled_with_numbas_check_are_other_kernels(tmp_path):
    """Of one cache folder: neither setting finds the other's machine code."""
    env = {"FASTSOFTMAX_CACHE_DIR": str(tmp_path)}
    for _ in range(2):  # compiled, then from the cache
        assert run(OUT_OF_BOUNDS, **env).splitlines() == ["not checked True"] * 2
        assert run(OUT_OF_BOUNDS, NUMBA_BOUNDSCHECK="1", **env).count("out of bounds") == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_narrow_tiles_have_room():
    """On the stack, of a fixed size: tiles of whole squares, up to six vectors beside each, and one tile more."""
    for n in range(1, _narrow.NARROW32):
        for lanes, itemsize in ((16, 4), (8, 8)):
            squares = -(-n // lanes)
            vectors = _narrow.tiles_together(n) * (squares * lanes + 6) + squares * lanes
            assert vectors * lanes * itemsize <= _narrow.TILES, n


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [64, 65, 104, 110, 300, 1024])
def test_streamed_rows_wherever_they_lie_in_a_page(n_classes, dtype, rng):
    """How far the row before is written ahead depends on where it lies in its page: the same bits, nothing beyond."""
    n_rows = 3
    logits = rng.standard_normal((n_rows, n_classes)).astype(dtype)
    labels, none = rng.integers(0, n_classes, n_rows), np.empty(0)
    expected = {name: getattr(fs, name)(logits) for name in ("softmax", "log_softmax")}
    expected["cross_entropy_with_grad"] = fs.cross_entropy_with_grad(logits, labels, reduction="sum")[1]
    for at in range(0, 4096 // dtype.itemsize, 37):
        room = np.full(logits.size + 8192 // dtype.itemsize, 7, dtype)
        out = room[at : at + logits.size].reshape(logits.shape)
        for name, arguments in {
            "softmax": (logits, out, n_classes, True),
            "log_softmax": (logits, out, n_classes, True),
            "cross_entropy_with_grad": (logits, labels, none, none, -100, none, 1.0, 1.0, out[0, :0], out, True),
        }.items():
            BY_WIDTH[name].wide[dtype](*arguments, 0, n_rows, 0)
            assert_same_bits(out, expected[name], label=f"{name}, {at} elements into the page")
        assert (room[:at] == 7).all()
        assert (room[at + logits.size :] == 7).all()


@pytest.mark.parametrize("n_classes", [1, 2, 7, 8, 10, 15, 16, 17, 33, 63, 64, 65, 100, 103, 104])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 5), (5, 12), (0, 37), (16, 33), (7, 40)])
def test_a_kernel_writes_its_rows_and_no_others(n_classes, first, last, dtype, rng):
    """Other threads have the rows before and after; a whole vector may spill into a row only if that is written after it."""
    n_rows = 41
    logits = rng.standard_normal((n_rows, n_classes)).astype(dtype)
    probs = fs.softmax(logits)
    labels, none = rng.integers(0, n_classes, n_rows), np.empty(0)
    before = np.full((n_rows, n_classes), 7, dtype)
    out, lse = before.copy(), before[:, 0].copy()
    for name, arguments in {
        "softmax": (logits, out, n_classes, False),
        "log_softmax": (logits, out, n_classes, False),
        "softmax_backward": (logits, probs, out, n_classes, False),
        "log_softmax_backward": (logits, probs, out, n_classes, False),
        "softmax_hessian": (logits, none, 1.0, out),
    }.items():
        out[...] = before
        kernel = BY_WIDTH[name].of(dtype, n_classes) if name in BY_WIDTH else KERNELS[name][dtype]
        kernel(*arguments, first, last, 0)
        _only_rows(out, first, last, name)
    BY_WIDTH["logsumexp"].of(dtype, n_classes)(logits, lse, n_classes, first, last, 0)
    _only_rows(lse, first, last, "logsumexp")
    losses, grad = before[:, 0].copy(), before.copy()
    BY_WIDTH["cross_entropy_with_grad"].of(dtype, n_classes)(
        logits, labels, none, none, -100, none, 1.0, 1.0, losses, grad, False, first, last, 0
    )
    _only_rows(losses, first, last, "losses")
    _only_rows(grad, first, last, "cross_entropy_with_grad")
    losses, grad = before[:, 0].copy(), before.copy()
    KERNELS["soft_cross_entropy_with_grad"][dtype](
        logits, labels[:0], probs, 0.1, none, none, -100, none, 1.0, 1.0, losses, grad, first, last, 0
    )
    _only_rows(losses, first, last, "soft losses")
    _only_rows(grad, first, last, "soft_cross_entropy_with_grad")


@pytest.mark.parametrize("n_classes", [1, 5, 8, 16, 21, 63, 64, 100, 1030])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 10), (1, 5), (2, 7), (5, 9), (6, 10)])
@pytest.mark.parametrize("inner", [65, 79])
def test_a_kernel_writes_its_columns_and_no_others(n_classes, first, last, inner, dtype, rng):
    """Strips of 64 bytes, counted through both matrices."""
    strip = 64 // dtype.itemsize
    inner *= strip // 8
    per_matrix = -(-inner // strip)
    first, last = (k * 2 * per_matrix // 10 for k in (first, last))
    z, g = rng.standard_normal((2, 2, n_classes, inner)).astype(dtype)
    y, log_y = fs.softmax(z, axis=1), fs.log_softmax(z, axis=1)
    mine = np.zeros((2, inner), bool)
    for k in range(first, last):
        mine[k // per_matrix, k % per_matrix * strip :][:strip] = True
    mine = np.broadcast_to(mine[:, None], z.shape)
    rows = np.ascontiguousarray(z.swapaxes(1, 2))
    for name, arguments, as_rows, expected in [
        ("softmax_columns", (z,), (), y),
        ("log_softmax_columns", (z,), (), log_y),
        ("softmax_backward_columns", (g, y), (), fs.softmax_backward(g.swapaxes(1, 2), y.swapaxes(1, 2)).swapaxes(1, 2)),
        ("log_softmax_backward_columns", (g, log_y), (),
         fs.log_softmax_backward(g.swapaxes(1, 2), log_y.swapaxes(1, 2)).swapaxes(1, 2)),
        ("turn", (z,), (False,), z),
        ("turn", (rows,), (True,), z),
    ]:  # fmt: skip
        to_rows = as_rows == (False,)
        out = np.full(rows.shape if to_rows else z.shape, 7, dtype)
        KERNELS[name][dtype](*arguments, out, *as_rows, n_classes, inner, first, last, 0)
        result = out.swapaxes(1, 2) if to_rows else out
        assert_same_bits(result, np.where(mine, expected, dtype.type(7)), label=name)


@pytest.mark.parametrize(("n_classes", "vectors"), [(6, 29500), (17, 10368), (150, 1200)])
@pytest.mark.parametrize("more", [0, 3])
def test_a_large_gradient_is_written_in_its_columns_and_no_others(n_classes, vectors, more, dtype, rng):
    """More than 32 MiB of all arrays, past the caches: whole lines, and what is left before and after them."""
    strip = 64 // dtype.itemsize
    inner, first, last = vectors * strip + more, 5, 900
    g, y = rng.standard_normal((2, n_classes, inner), np.float32).astype(dtype)
    y = fs.softmax(y, axis=0, out=y)
    expected = np.ascontiguousarray(fs.softmax_backward(np.ascontiguousarray(g.T), np.ascontiguousarray(y.T)).T)
    expected[:, : first * strip] = expected[:, last * strip :] = 7
    out = np.full_like(g, 7)
    KERNELS["softmax_backward_columns"][dtype](g, y, out, n_classes, inner, first, last, 0)
    assert_same_bits(out, expected)


@pytest.mark.parametrize(("n_classes", "inner"), [(40, 8), (517, 21), (300, 130)])
def test_a_kernel_of_shared_classes_writes_its_share_and_no_more(n_classes, inner, dtype, rng):
    """Parts of the classes, lanes of a row, and rows of the result."""
    z, g = rng.standard_normal((2, n_classes, inner)).astype(dtype)
    probs, out, step = fs.softmax(z, axis=0), np.full_like(z, 7), 64 // dtype.itemsize
    run = -(-inner // step) * step
    maxima, factors, dots = np.full((5, run), 7, dtype), np.ones((2, run), dtype), np.ones((2, run), dtype)
    KERNELS["shared_maxima"][dtype](z, maxima, n_classes, inner, 1, 3, 0)
    _only_rows(maxima, 1, 3, "maxima")
    most = z.max(axis=0)
    most.resize(run)
    for keep, exact in ((True, False), (False, True)):
        sums, halves, e = np.full((2, step, run), 7, dtype), np.full((step, 16 * run // step), 7.0), np.full_like(z, 7)
        KERNELS["shared_sums"][dtype](z, most, e, sums.reshape(-1, run), halves, keep, exact, n_classes, inner, 2, 5, 0)
        _only_rows(sums[0], 2, 5, "sums")
        _only_rows(sums[1], 2, 5, "what sums lost")
        _only_rows(halves, 2, 5, "halves")
        written = (np.arange(n_classes) % step >= 2) & (np.arange(n_classes) % step < 5) & keep
        np.testing.assert_array_equal((e != 7).all(axis=1), written)
        np.testing.assert_array_equal((e != 7).any(axis=1), written)
    products = np.full(32 * run + 8, 7.0)
    products = products[-products.ctypes.data // 8 % 8 :][: 32 * run]
    KERNELS["shared_products"][dtype](g, probs, products.base, n_classes, inner, 3, step + 2, 0)
    _only_rows(products.reshape(2 * step, -1), 3, step + 2, "products")
    for streaming in (False, True):
        for name, arguments in {
            "shared_softmax": (z, most, factors, out, not streaming, inner),
            "shared_log_softmax": (z, most, factors, out, streaming, inner),
            "shared_softmax_backward": (g, probs, dots, out, streaming, inner),
        }.items():
            out.fill(7)
            KERNELS[name][dtype](*arguments, 6, 31, 0)
            _only_rows(out, 6, 31, name)


def _only_rows(out, first, last, label):
    written = out.reshape(len(out), -1) != 7
    assert not written[:first].any(), label
    assert not written[last:].any(), label
    assert written[first:last].all(), label
