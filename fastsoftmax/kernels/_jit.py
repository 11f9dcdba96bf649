"""How a kernel is declared and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import from_dtype

from ._cache import name_of, save
from ._entry import entry
from ._linker import callable_at, symbol
from ._part import OPTIONS, PART, part

# Helpers are always inlined: left to its own judgement LLVM made the larger ones calls that pass vectors through memory
# (fused loss-gradient, float64, 10 classes: 1.97 -> 1.75 ns an element).
INLINE = {**PART, "forceinline": True}


@intrinsic
def no_vector(typingctx, like):
    """A vector of no length, of that dtype, or of the dtype of an array or a pointer: it stands for one that is not given."""
    kind = types.Array(like.dtype, 1, "C", readonly=True)
    return kind(like), lambda context, builder, sig, args: cgutils.get_null_value(context.get_value_type(kind))


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


def compiled(kernel: Callable[..., Any], dtype: np.dtype) -> Any:
    """The library that holds the C function of `kernel` for `dtype`, see `_entry`."""
    if config.DISABLE_JIT:
        raise RuntimeError("fastsoftmax is compiled by numba, but NUMBA_DISABLE_JIT is set; unset it")
    real = from_dtype(np.dtype(dtype))
    sig = _result_type(kernel.returns, real)(*(kind(real) for kind in kernel.kinds))
    dispatcher = njit(**OPTIONS)(entry(part(kernel), sig, name_of(kernel.__name__, dtype), kernel.small))
    dispatcher.compile(())
    (only,) = dispatcher.overloads.values()
    return only.library


def build(kernel: Callable[..., Any], dtype: np.dtype) -> Callable[..., Any]:
    """What Python calls, compiled anew and kept on the disk."""
    name, library = name_of(kernel.__name__, dtype), compiled(kernel, dtype)
    function = callable_at(library.get_pointer_to_function(symbol(name)), name, library)
    save(name, lambda: library.serialize_using_object_code()[2][0])
    return function
