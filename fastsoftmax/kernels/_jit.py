"""How a kernel is declared and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import from_dtype

from ._cache import DiskCache
from ._entry import callable_at, entry
from ._part import OPTIONS, PART, part

# Helpers are always inlined: left to its own judgement LLVM made the larger ones calls that pass vectors through memory
# (fused loss-gradient, float64, 10 classes: 1.97 -> 1.75 ns an element).
INLINE = {**PART, "forceinline": True}


@intrinsic
def no_doubles(typingctx):
    """A vector of doubles of no length: it stands for weights that are not given."""
    kind = types.Array(types.float64, 1, "C", readonly=True)
    return kind(), lambda context, builder, sig, args: cgutils.get_null_value(context.get_value_type(kind))


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
    return register_jitable(**INLINE)(function)


def by_type(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call `choose` by name; given the arguments' types, it returns the function to compile instead."""
    overload(choose, jit_options=INLINE)(choose)
    return choose


def signature(
    *kinds: Kind, returns: Kind | tuple[Kind, ...] | None = None, small: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Declare a kernel: the kinds of its arguments and of what it returns, and the plan of small calls (`_small`)."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        function.kinds = kinds
        function.returns = returns
        function.small = small
        return inline(function)

    return declare


def _result_type(returns: Any, real: types.Type) -> types.Type:
    if returns is None:
        return types.void
    if isinstance(returns, tuple):
        return types.Tuple([kind(real) for kind in returns])
    return returns(real)


def compiled(kernel: Callable[..., Any], dtype: np.dtype) -> Dispatcher:
    """The entry of `kernel` for `dtype`, from the disk if it is there: a dispatcher with one signature."""
    if config.DISABLE_JIT:
        raise RuntimeError("fastsoftmax is compiled by numba, but NUMBA_DISABLE_JIT is set; unset it")
    name = f"{kernel.__name__}_{np.dtype(dtype).name}"
    real = from_dtype(np.dtype(dtype))
    sig = _result_type(kernel.returns, real)(*(kind(real) for kind in kernel.kinds))
    dispatcher = njit(no_cpython_wrapper=True, **OPTIONS)(entry(part(kernel), sig, name, kernel.small))
    dispatcher._cache = DiskCache(name, OPTIONS)
    dispatcher.compile(types.int64(types.int64, types.int64, types.int64))
    dispatcher.disable_compile()
    return dispatcher


def build(kernel: Callable[..., Any], dtype: np.dtype) -> Callable[..., Any]:
    """What Python calls: not the dispatcher, which would work out the types of its arguments each time (110 ns)."""
    (only,) = compiled(kernel, dtype).overloads.values()
    address = only.library.get_pointer_to_function(only.fndesc.llvm_cfunc_wrapper_name)
    return callable_at(address, kernel.__name__, only.library)
