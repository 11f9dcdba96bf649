"""What the compiler made of the kernels: vectors in the loops over a row, and no call of the C library's exp or log.

A kernel that has fallen back to scalar code is right and slow: no other test would notice. Read in a process of its own
with an empty cache, because code that comes from the cache cannot be inspected.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from functools import cache

import pytest

from fastsoftmax.kernels import BY_WIDTH, KERNELS

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86-64 assembly"),
    pytest.mark.skipif(os.environ.get("NUMBA_CPU_NAME") == "generic", reason="neither AVX nor FMA to look for"),
]

PROGRAM = """
import importlib, sys
from pathlib import Path
from fastsoftmax.kernels import MODULES, _jit
folder, dtype, *names = sys.argv[1:]
for name in names:
    module = importlib.import_module("fastsoftmax.kernels." + MODULES[name])
    Path(folder, name).write_text(_jit.compiled(getattr(module, name), dtype).get_asm_str())
"""
ROW_KERNELS = [
    *(f"{name}_{form}" for name in BY_WIDTH for form in ("narrow", "wide")),
    "exp", "soft_cross_entropy", "soft_cross_entropy_with_grad", "softmax_backward", "log_softmax_backward", "softmax_hessian",
    "affine", "affine_backward", "affine_parts", "add_parts", "affine_grad_weight", "thin_grad_weight", "add_thin_parts",
    "linear_cross_entropy", "sgd_update", "momentum_update", "adam_update", "softmax_columns", "log_softmax_columns",
    "softmax_backward_columns", "log_softmax_backward_columns", "cross_entropy_columns", "cross_entropy_with_grad_columns",
    "shared_maxima", "shared_sums", "shared_factors", "shared_softmax", "shared_log_softmax", "shared_products", "shared_dots",
    "shared_softmax_backward",
]  # fmt: skip
# Kernels that do no arithmetic on the elements of a row.
OTHERS = {
    "check_targets": "compares labels",
    "relu": "selects",
    "relu_backward": "selects",
    "turn": "copies",
    "gather": "copies",
    "gather_bytes": "copies and converts",
    "play": "runs other kernels",
    "rewind": "sets counters",
    "serve": "runs other kernels",
    "wake": "wakes who runs them",
}
# Loops in scalars that are meant to be, for they do not run over the elements of every row.
SCALAR_LOOPS = {
    "logsumexp_narrow": "looks for a NaN in a row whose sum came out as one",
    "logsumexp_wide": "looks for a NaN in a row whose sum came out as one",
    "cross_entropy_narrow": "weights: one number a row",
    "cross_entropy_wide": "weights: one number a row",
    "cross_entropy_with_grad_narrow": "weights: one number a row",
    "cross_entropy_with_grad_wide": "weights: one number a row",
    "mean_cross_entropy_with_grad_wide": "losses: one number a row",
    "cross_entropy_columns": "weights: one number a column",
    "cross_entropy_with_grad_columns": "weights: one number a column",
    "soft_cross_entropy": "weights: one number a row or a class",
    "soft_cross_entropy_with_grad": "weights: one number a row or a class",
    "linear_cross_entropy": "weights: one number a row",
    "add_thin_parts": "a bias: one number a class",
}
ARITHMETIC = r"v?(?:add|sub|mul|div|max|min|fn?m(?:add|sub)\d*)"
LIBM = r"(?:__)?(?:exp|exp2|expm1|log|log2|log1p|pow|fma|ldexp|scalbn|round|rint|floor|fmax|fmin)f?(?:_finite)?"


def assemblies(folder, dtype, *kernels):
    """kernel -> its assembly, of kernels compiled in one process: what they share is compiled once."""
    environment = {**os.environ, "FASTSOFTMAX_CACHE_DIR": str(folder / "cache")}
    subprocess.check_call([sys.executable, "-c", PROGRAM, str(folder), dtype, *kernels], env=environment)
    return {name: (folder / name).read_text() for name in kernels}


def innermost_loops(text):
    """The bodies of the innermost loops: from a label to a jump back to it, with no other such pair inside."""
    lines = text.splitlines()
    labels = {match.group(1): i for i, line in enumerate(lines) if (match := re.match(r"(\.L\w+):", line))}
    pairs = set()
    for i, line in enumerate(lines):
        match = re.match(r"\s+j\w+\s+(\.L\w+)", line)
        if match and labels.get(match.group(1), i) < i:
            pairs.add((labels[match.group(1)], i))
    inner = [(a, b) for a, b in pairs if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in pairs)]
    return ["\n".join(lines[a:b]) for a, b in inner]


def loops_in_vectors_and_scalars(text):
    """The innermost loops with arithmetic on vectors of 256 or 512 bits, and those with scalar arithmetic alone."""
    loops = innermost_loops(text)
    vector = [loop for loop in loops if re.search(rf"\s{ARITHMETIC}p[sd]\s.*%[yz]mm", loop)]
    scalar = [loop for loop in loops if loop not in vector and re.search(rf"\s{ARITHMETIC}s[sd]\s", loop)]
    return vector, scalar


def check(kernel, dtype, text):
    called = set(re.findall(rf"(?:\$|call\w*\s+|jmp\s+)({LIBM})\b(?!\w)", text))
    assert not called, f"{kernel}, {dtype}: calls {sorted(called)}"
    vector, scalar = loops_in_vectors_and_scalars(text)
    assert vector, f"{kernel}, {dtype}: no loop in vectors"
    if kernel not in SCALAR_LOOPS:
        assert not scalar, f"{kernel}, {dtype}: {len(scalar)} loops in scalars, the first:\n{scalar[0]}"


def test_softmax_of_float32(tmp_path):
    for name, text in assemblies(tmp_path, "float32", "softmax_narrow", "softmax_wide").items():
        check(name, "float32", text)


def test_every_kernel_is_looked_at_or_excused():
    assert set(ROW_KERNELS) | set(OTHERS) == set(KERNELS)
    assert set(SCALAR_LOOPS) <= set(ROW_KERNELS)


@pytest.fixture(scope="module")
def of_all_kernels(tmp_path_factory):
    """dtype -> the assemblies of all row kernels."""
    return cache(lambda dtype: assemblies(tmp_path_factory.mktemp(dtype), dtype, *ROW_KERNELS))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ROW_KERNELS)
def test_row_kernel(kernel, dtype, of_all_kernels):
    check(kernel, dtype.name, of_all_kernels(dtype.name)[kernel])


@pytest.mark.slow
def test_only_the_entry_is_made_machine_code(tmp_path):
    """What numba would do for each of a kernel's helpers as well takes longer than the rest of building it."""
    program = """
from numba.core.codegen import JitEngine

made, add_module = [], JitEngine.add_module
JitEngine.add_module = lambda engine, module: made.append(module.name) or add_module(engine, module)
import inspect
from fastsoftmax.kernels import kernel
kernel("softmax_wide", "float32")
from fastsoftmax.kernels import _math, _narrow, _wide, softmax
helpers = {name for module in (_math, _narrow, _wide, softmax) for name, _ in inspect.getmembers(module, inspect.isfunction)}
print("softmax_wide_float32" in made, len(helpers) > 20, sorted(helpers & set(made)))
"""
    environment = {**os.environ, "FASTSOFTMAX_CACHE_DIR": str(tmp_path)}
    text = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert text.split(maxsplit=2) == ["True", "True", "[]\n"]


def test_scalar_code_would_be_seen(tmp_path):
    """The reader of assembly itself, on a loop as one would write it by hand: scalar maximum, exp of the C library."""
    program = """
import math
from numba import float32, njit

@njit(float32(float32[::1]))
def naive(z):
    m, s = z[0], float32(0)
    for i in range(z.size):
        m = max(m, z[i])
    for i in range(z.size):
        s += math.exp(z[i] - m)
    return s

print(naive.inspect_asm(naive.signatures[0]))
"""
    text = subprocess.check_output([sys.executable, "-c", program], text=True)
    vector, scalar = loops_in_vectors_and_scalars(text)
    assert not vector
    assert scalar
    assert re.search(rf"(?:\$|call\w*\s+|jmp\s+)({LIBM})\b(?!\w)", text)
