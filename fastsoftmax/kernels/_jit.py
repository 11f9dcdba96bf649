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

from ._borrow import Borrowed, as_array
from ._cache import DiskCache

# error_model "numpy": a division by zero gives inf or NaN, as in NumPy, and leaves no branch in the loop.
# fastmath stays off: it folds away the rounding tricks of the exponential and drops NaN; where a sum may be
# reassociated, the kernel says so at that sum. Not parallel: threads are `fastsoftmax._threads`' subject.
OPTIONS = {"error_model": "numpy"}
# Helpers are always inlined: left to its own judgement LLVM made the larger ones calls that pass vectors through memory
# (fused loss-gradient, float64, 10 classes: 1.97 -> 1.75 ns an element).
INLINE = {**OPTIONS, "forceinline": True}

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


def signature(*kinds: Kind, returns: Kind | tuple[Kind, ...] | None = None) -> Callable[..., Any]:
    """Declare a kernel: the kinds of its arguments and of what it returns."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        function.kinds = kinds
        function.returns = returns
        return inline(function)

    return declare


# --- The GIL and chunks. numba's nogil=True is decided at compile time; here one compiled kernel serves tiny calls,
# which keep the GIL, and long ones, which release it. The entry that Python calls has one argument more, `job`:
#   0 (False)    run the kernel and keep the GIL;
#   1 (True)     run it with the GIL released;
#   an address   of int64 values: the next chunk's number, how many rows a chunk has, and a place for what the kernel
#                returns for each. Run it on chunks of (first, last) until none is left, with the GIL released. Several
#                threads may work on one job. They fetch the GIL back once a call, not once a chunk: beside a busy
#                Python thread that costs 5 ms a time (1024 x 1000: 42 ms in 8 chunks, 5.6 ms so).


def _with_job(kernel: Dispatcher, sig: Signature) -> Callable[..., Any]:
    """An intrinsic ``call(arguments, job)`` that runs `kernel`, compiling it when it is compiled itself."""
    takes_rows = sig.args[-2:] == (types.int64, types.int64)
    chunked = takes_rows and sig.return_type in (types.void, types.int64, types.float64)

    @intrinsic
    def call(typingctx, arguments, job):
        kernel.compile(sig)
        compiled = kernel.overloads[sig.args]

        def codegen(context, builder, _, args):
            context.active_code_library.add_linking_library(compiled.library)
            python = context.get_python_api(builder)
            taken, job = cgutils.unpack_tuple(builder, args[0]), args[1]
            unpacked = [
                as_array(context, builder, kind, value) if isinstance(kind, Borrowed) else value
                for kind, value in zip(arguments, taken, strict=True)
            ]
            zero, one = job.type(0), job.type(1)

            def run(*arguments):
                status, value = context.call_internal_no_propagate(builder, compiled.fndesc, sig, arguments)
                with cgutils.if_unlikely(builder, status.is_error):
                    # Kernels do not raise, but numba may inside them (out of memory, NUMBA_BOUNDSCHECK=1): only with
                    # the GIL held again may the error travel on.
                    release_end()
                    context.call_conv.return_status_propagate(builder, status)
                return value

            def release_end():
                with builder.if_then(released):
                    python.restore_thread(builder.load(state))

            released = builder.icmp_signed("!=", job, zero)
            state = cgutils.alloca_once(builder, cgutils.voidptr_t)
            with builder.if_then(released):
                builder.store(python.save_thread(), state)
            if not chunked:
                value = run(*unpacked)
                release_end()
                return value

            # One call of the kernel in the code, so that it is compiled once: without a job it is the only chunk.
            *before, first, last = unpacked
            has_job = builder.icmp_signed(">", job, one)
            size = cgutils.alloca_once_value(builder, builder.sub(last, first))
            chunk = cgutils.alloca_once_value(builder, zero)
            result = cgutils.alloca_once(builder, context.get_value_type(sig.return_type))
            fields = builder.inttoptr(job, job.type.as_pointer())

            def take():
                builder.store(builder.atomic_rmw("add", fields, one, "monotonic"), chunk)

            with builder.if_then(has_job):
                builder.store(builder.load(builder.gep(fields, [one])), size)
                take()
            head, body, end = (builder.append_basic_block(name) for name in ("chunk.next", "chunk.run", "chunk.end"))
            builder.branch(head)
            builder.position_at_end(head)
            begin = builder.add(first, builder.mul(builder.load(chunk), builder.load(size)))
            nothing_left = builder.and_(has_job, builder.icmp_signed(">=", begin, last))
            builder.cbranch(nothing_left, end, body)
            builder.position_at_end(body)
            stop = builder.add(begin, builder.load(size))
            stop = builder.select(builder.icmp_signed("<", stop, last), stop, last)
            value = run(*before, begin, stop)
            builder.store(value, result)
            with builder.if_then(builder.not_(has_job)):
                builder.branch(end)
            if sig.return_type != types.void:
                place = builder.gep(fields, [builder.add(builder.load(chunk), job.type(2))])
                builder.store(value, builder.bitcast(place, value.type.as_pointer()))
            take()
            builder.branch(head)
            builder.position_at_end(end)
            release_end()
            return builder.load(result)

        return sig.return_type(arguments, job), codegen

    return call


# numba would pack *args into a tuple object at each call; hence an entry with as many parameters as the kernel has.
_ENTRY = """
def {name}({parameters}, job):
    return call(({parameters},), job)
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


def compiled(kernel: Callable[..., Any], dtype: np.dtype) -> Dispatcher:
    """The entry of `kernel` for `dtype`, from the disk if it is there: a dispatcher with one signature."""
    if config.DISABLE_JIT:
        raise RuntimeError("fastsoftmax is compiled by numba, but NUMBA_DISABLE_JIT is set; unset it")
    name = f"{kernel.__name__}_{np.dtype(dtype).name}"
    real = from_dtype(np.dtype(dtype))
    arguments = [kind(real) for kind in kernel.kinds]
    result = _result_type(kernel.returns, real)
    # Neither needs a C wrapper, and only the entry one for Python: that halves the time to compile.
    inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(kernel)
    entry = njit(no_cfunc_wrapper=True, **OPTIONS)(_entry(kernel, name, _with_job(inner, result(*arguments))))
    entry._cache = DiskCache(name, OPTIONS)
    entry.compile(result(*(Borrowed(a) if isinstance(a, types.Array) else a for a in arguments), types.int64))
    entry.disable_compile()
    return entry


def build(kernel: Callable[..., Any], dtype: np.dtype) -> Callable[..., Any]:
    """What Python calls: not the dispatcher, which would work out the types of its arguments each time (110 ns)."""
    (only,) = compiled(kernel, dtype).overloads.values()
    return only.entry_point
