"""How a kernel is declared and compiled: every JIT option, each with its reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher
from numba.core.typing.templates import Signature
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import from_dtype

from ._cache import DiskCache

# error_model "numpy": a division by zero gives inf or NaN, as in NumPy, and leaves no branch in the loop.
# fastmath stays off: it folds away the rounding tricks of the exponential and drops NaN; where a sum may be
# reassociated, the kernel says so at that sum. Not parallel: threads are `fastsoftmax._threads`' subject.
OPTIONS = {"error_model": "numpy"}

# --- What a kernel's arguments are. Each kind maps the kernel's dtype to a numba type.


def _array(ndim: int, *, readonly: bool = False, dtype: types.Type | None = None) -> Callable[[types.Type], types.Type]:
    return lambda real: types.Array(dtype or real, ndim, "C", readonly=readonly)


# Inputs are typed read-only: such a signature takes writable arrays too, so one compilation serves both.
VECTOR_IN = _array(1, readonly=True)
VECTOR_OUT = _array(1)
MATRIX_IN = _array(2, readonly=True)
MATRIX_OUT = _array(2)
CUBE_IN = _array(3, readonly=True)
CUBE_OUT = _array(3)
LABELS = _array(1, readonly=True, dtype=types.int64)
DOUBLES_IN = _array(1, readonly=True, dtype=types.float64)
DOUBLES_OUT = _array(1, dtype=types.float64)


def SCALAR(real: types.Type) -> types.Type:
    """A number of the kernel's own dtype."""
    return real


def INDEX(real: types.Type) -> types.Type:
    """A size, a row number, a class index."""
    return types.int64


def REAL(real: types.Type) -> types.Type:
    """A float64, whatever the kernel's dtype."""
    return types.float64


def FLAG(real: types.Type) -> types.Type:
    """A truth value."""
    return types.boolean


Kind = Callable[[types.Type], types.Type]


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call `function`; it is compiled into each of its callers and stays callable from Python."""
    return register_jitable(**OPTIONS)(function)


def by_type(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call `choose` by name; given the arguments' types, it returns the function to compile in its place."""
    overload(choose, jit_options=OPTIONS)(choose)
    return choose


def signature(*kinds: Kind, returns: Kind | tuple[Kind, ...] | None = None) -> Callable[..., Any]:
    """Declare a kernel: the kinds of its arguments and of what it returns."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        function.kinds = kinds
        function.returns = returns
        return inline(function)

    return declare


# --- The GIL. numba's nogil=True is decided at compile time; here one compiled kernel serves tiny calls, which keep
# the GIL, and long ones, which release it: the entry that Python calls has one argument more, `release_gil`.


def _gil_optional(kernel: Dispatcher, sig: Signature) -> Callable[..., Any]:
    """An intrinsic ``call(arguments, release_gil)`` that runs `kernel`, compiling it when it is compiled itself."""

    @intrinsic
    def call(typingctx, arguments, release_gil):
        kernel.compile(sig)
        compiled = kernel.overloads[sig.args]

        def codegen(context, builder, _, args):
            python = context.get_python_api(builder)
            packed, release = args
            state = cgutils.alloca_once_value(builder, cgutils.get_null_value(cgutils.voidptr_t))
            with builder.if_then(release):
                builder.store(python.save_thread(), state)
            context.add_linking_libs([compiled.library])
            unpacked = cgutils.unpack_tuple(builder, packed)
            status, result = context.call_internal_no_propagate(builder, compiled.fndesc, sig, unpacked)
            with builder.if_then(release):
                python.restore_thread(builder.load(state))
            # Kernels do not raise, but numba may inside them (out of memory, NUMBA_BOUNDSCHECK=1): only now, with the
            # GIL held again, may the error travel on.
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return result

        return sig.return_type(arguments, release_gil), codegen

    return call


# numba would pack *args into a tuple object at each call; hence an entry with as many parameters as the kernel has.
_ENTRY = """
def {name}({parameters}, release_gil):
    return call(({parameters},), release_gil)
"""


def _entry(kernel: Callable[..., Any], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    namespace = {"__name__": kernel.__module__, "call": call}
    exec(_ENTRY.format(name=name, parameters=", ".join(inspect.signature(kernel).parameters)), namespace)
    return namespace[name]


def _result_type(returns: Any, real: types.Type) -> types.Type:
    if returns is None:
        return types.void
    if isinstance(returns, tuple):
        return types.Tuple([kind(real) for kind in returns])
    return returns(real)


def build(kernel: Callable[..., Any], dtype: np.dtype) -> Callable[..., Any]:
    """The compiled `kernel` for `dtype`, from the disk if it is there: one dispatcher with one signature."""
    if config.DISABLE_JIT:
        raise RuntimeError("fastsoftmax is compiled by numba, but NUMBA_DISABLE_JIT is set; unset it")
    name = f"{kernel.__name__}_{np.dtype(dtype).name}"
    real = from_dtype(np.dtype(dtype))
    arguments = [kind(real) for kind in kernel.kinds]
    result = _result_type(kernel.returns, real)
    # Neither needs a C wrapper, and only the entry one for Python: that halves the time to compile.
    inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(kernel)
    entry = njit(no_cfunc_wrapper=True, **OPTIONS)(_entry(kernel, name, _gil_optional(inner, result(*arguments))))
    entry._cache = DiskCache(name, OPTIONS)
    entry.compile(result(*arguments, types.boolean))
    entry.disable_compile()
    return entry
