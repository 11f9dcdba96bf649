"""How a kernel is declared and compiled: every JIT option, each with its reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher
from numba.core.typing.templates import Signature
from numba.extending import intrinsic, overload, register_jitable
from numba.np.numpy_support import from_dtype

from ._board import offer, take_back
from ._borrow import Borrowed, as_array
from ._cache import DiskCache
from ._layout import (
    DONE,
    FAILED,
    FROM_END,
    JOB_BOARD,
    JOB_HELPERS,
    JOB_HOLDS,
    JOB_LONG,
    JOB_RECORD,
    JOB_RESULTS,
    JOB_ROWS,
    OF_FRAME,
    OF_FUNCTION,
    OF_TALLY,
    RECORD,
    TAKEN,
    TALLY,
)  # fmt: skip
from ._part import PartCompiler

# error_model "numpy": a division by zero gives inf or NaN, as in NumPy, and leaves no branch in the loop.
# fastmath stays off: it folds away the rounding tricks of the exponential and drops NaN; where a sum may be
# reassociated, the kernel says so at that sum. Not parallel: threads are `fastsoftmax._threads`' subject.
OPTIONS = {"error_model": "numpy"}
# Only entries are called from elsewhere; what they are made of needs no wrapper and no machine code of its own.
PART = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": PartCompiler}
# Helpers are always inlined: left to its own judgement LLVM made the larger ones calls that pass vectors through memory
# (fused loss-gradient, float64, 10 classes: 1.97 -> 1.75 ns an element).
INLINE = {**PART, "forceinline": True}

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
#   an address   of a job, see `_layout`: run it on chunks of (first, last) with the GIL released, until none is left;
#                so do the workers that find it on the board (`_board`). Or make a record of the call, for a program.
_int64 = ir.IntType(64)
_NOTHING_LEFT = _int64(1 << 40)
_FAILURE = "a kernel ran out of memory, or out of bounds where NUMBA_BOUNDSCHECK=1"


def _share(context: Any, module: ir.Module, compiled: Any, sig: Signature, frame: ir.LiteralStructType) -> ir.Function:
    """A C function of a frame and of who calls: work until nothing is left.

    The frame: the kernel's arguments, its job, the call's tally, and where results of chunks go.

    The caller (0) takes chunks from the front, workers (1) from the end: call after call over the same arrays a core finds
    the same rows in its cache (1024 x 1000, float32, two threads: 247 us if all take from the front, 165 so).
    """
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), _int64])
    function = ir.Function(module, kind, name=f"share.{compiled.fndesc.mangled_name}")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    values = builder.load(builder.bitcast(function.args[0], frame.as_pointer()))
    *before, first, last, job, tally, results = (builder.extract_value(values, k) for k in range(len(frame.elements)))
    of_job, of_tally, one = partial(_field, builder, job), partial(_field, builder, tally), _int64(1)
    helps = builder.icmp_signed("!=", function.args[1], _int64(0))
    rows = builder.load(of_job(JOB_ROWS))
    n_chunks = _chunks(builder, first, last, rows)
    from_front = cgutils.alloca_once_value(builder, _int64(0))
    counter = builder.select(helps, of_tally(FROM_END), from_front)
    head, body, end = (function.append_basic_block(name) for name in ("next", "run", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    taken = builder.atomic_rmw("add", of_tally(TAKEN), one, "monotonic")
    builder.cbranch(builder.icmp_signed(">=", taken, n_chunks), end, body)
    builder.position_at_end(body)
    k = builder.atomic_rmw("add", counter, one, "monotonic")
    chunk = builder.select(helps, builder.sub(builder.sub(n_chunks, one), k), k)
    begin = builder.add(first, builder.mul(chunk, rows))
    stop = builder.add(begin, rows)
    stop = builder.select(builder.icmp_signed("<", stop, last), stop, last)
    status, value = context.call_internal_no_propagate(builder, compiled.fndesc, sig, [*before, begin, stop])
    with cgutils.if_unlikely(builder, status.is_error):  # kernels do not raise, but numba may inside them
        builder.store(one, of_tally(FAILED))
        builder.store(_NOTHING_LEFT, of_tally(TAKEN))
        builder.store_atomic(_NOTHING_LEFT, of_tally(DONE), "release", 8)
    if sig.return_type != types.void:
        builder.store(value, builder.gep(builder.inttoptr(results, value.type.as_pointer()), [chunk]))
    builder.atomic_rmw("add", of_tally(DONE), one, "release")
    builder.branch(head)
    builder.position_at_end(end)
    builder.ret_void()
    return function


def _chunks(builder: Any, first: Any, last: Any, rows: Any) -> Any:
    return builder.sdiv(builder.add(builder.sub(last, first), builder.sub(rows, _int64(1))), rows)


def _added(builder: Any, results: Any, n: Any) -> Any:
    """The n results of chunks, added up in their order."""
    kind = results.type.pointee
    add = builder.fadd if isinstance(kind, ir.DoubleType) else builder.add
    total = cgutils.alloca_once_value(builder, kind(0))
    with cgutils.for_range(builder, n) as loop:
        builder.store(add(builder.load(total), builder.load(builder.gep(results, [loop.index]))), total)
    return builder.load(total)


def _memory(builder: Any, name: str, result: ir.Type, argument: Any) -> Any:
    """Python's raw allocator, which needs no GIL."""
    kind = ir.FunctionType(result, [argument.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"PyMem_Raw{name}"), [argument])


def _field(builder: Any, job: Any, k: int) -> Any:
    return builder.gep(builder.inttoptr(job, _int64.as_pointer()), [_int64(k)])


def _with_job(kernel: Dispatcher, sig: Signature) -> Callable[..., Any]:
    """An intrinsic ``call(arguments, job)`` that runs `kernel`, compiling it when it is compiled itself."""
    takes_rows = [*inspect.signature(kernel.py_func).parameters][-2:] == ["first", "last"]
    chunked = takes_rows and sig.return_type in (types.void, types.int64, types.float64)

    @intrinsic
    def call(typingctx, arguments, job):
        kernel.compile(sig)
        compiled = kernel.overloads[sig.args]

        def codegen(context, builder, _, args):
            context.active_code_library.add_linking_library(compiled.library)
            python = context.get_python_api(builder)
            job = args[1]
            values = [
                as_array(context, builder, kind, value) if isinstance(kind, Borrowed) else value
                for kind, value in zip(arguments, cgutils.unpack_tuple(builder, args[0]), strict=True)
            ]
            none, one = _int64(0), _int64(1)
            state = cgutils.alloca_once(builder, cgutils.voidptr_t)

            @contextmanager
            def without_gil(condition):
                with builder.if_then(condition):
                    builder.store(python.save_thread(), state)
                yield
                with builder.if_then(condition):
                    python.restore_thread(builder.load(state))

            def in_one():
                with without_gil(builder.icmp_signed("!=", job, none)):
                    return context.call_internal_no_propagate(builder, compiled.fndesc, sig, values)

            if not chunked:
                status, value = in_one()
                with cgutils.if_unlikely(builder, status.is_error):
                    context.call_conv.return_status_propagate(builder, status)
                return value

            result, tally = cgutils.alloca_once_value(builder, none), cgutils.alloca_once(builder, _int64, size=TALLY)
            for k in range(TALLY):
                builder.store(none, builder.gep(tally, [_int64(k)]))
            frame = ir.LiteralStructType([*(value.type for value in values), _int64, _int64, _int64])
            assert context.get_abi_sizeof(frame) <= 8 * (RECORD - OF_FRAME), "a record has no room for so many arguments"
            share = _share(context, builder.module, compiled, sig, frame)
            returns = None if sig.return_type == types.void else context.get_value_type(sig.return_type).as_pointer()

            def offered_to_others(field, address):
                board, long = builder.load(field(JOB_BOARD)), builder.load(field(JOB_LONG))
                offered = context.compile_internal(
                    builder, offer, types.boolean(*[types.int64] * 5),
                    [board, builder.ptrtoint(share, _int64), builder.ptrtoint(address, _int64),
                     builder.load(field(JOB_HELPERS)), long],
                )  # fmt: skip
                builder.call(share, [builder.bitcast(address, cgutils.voidptr_t), none])
                with builder.if_then(offered):
                    context.compile_internal(builder, take_back, types.void(types.int64), [board])

            def in_chunks():
                field = partial(_field, builder, job)
                record = builder.load(field(JOB_RECORD))
                recorded, of_record = cgutils.is_not_null(builder, record), partial(_field, builder, record)
                address = builder.bitcast(cgutils.alloca_once(builder, frame), _int64.as_pointer())
                address = builder.select(recorded, of_record(OF_FRAME), address)
                of_call = builder.ptrtoint(builder.select(recorded, of_record(OF_TALLY), tally), _int64)

                def fill(results):
                    filled = cgutils.pack_struct(builder, [*values, job, of_call, results])
                    builder.store(filled, builder.bitcast(address, frame.as_pointer()))

                with builder.if_else(recorded, likely=False) as (then, otherwise):
                    with then:
                        fill(builder.load(field(JOB_RESULTS)))
                        builder.store(builder.ptrtoint(share, _int64), of_record(OF_FUNCTION))
                    with otherwise, without_gil(builder.icmp_signed("==", builder.load(field(JOB_HOLDS)), none)):
                        if returns is None:
                            fill(none)
                            offered_to_others(field, address)
                        else:
                            n_chunks = _chunks(builder, values[-2], values[-1], builder.load(field(JOB_ROWS)))
                            size = builder.mul(n_chunks, _int64(context.get_abi_sizeof(returns.pointee)))
                            memory = _memory(builder, "Malloc", cgutils.voidptr_t, size)
                            with builder.if_else(cgutils.is_null(builder, memory), likely=False) as (no_room, room):
                                with no_room:
                                    builder.store(one, builder.gep(tally, [_int64(FAILED)]))
                                with room:
                                    fill(builder.ptrtoint(memory, _int64))
                                    offered_to_others(field, address)
                                    total = _added(builder, builder.bitcast(memory, returns), n_chunks)
                                    builder.store(total, builder.bitcast(result, returns))
                                    _memory(builder, "Free", ir.VoidType(), memory)

            with builder.if_else(builder.icmp_unsigned(">", job, one), likely=False) as (shared, alone):
                with shared:
                    in_chunks()
                with alone, builder.if_then(builder.icmp_signed("<", values[-2], values[-1])):
                    status, value = in_one()
                    builder.store(builder.zext(status.is_error, _int64), builder.gep(tally, [_int64(FAILED)]))
                    if returns is not None:
                        builder.store(value, builder.bitcast(result, returns))
            failed = builder.load(builder.gep(tally, [_int64(FAILED)]))
            with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, failed)):
                context.call_conv.return_user_exc(builder, RuntimeError, (_FAILURE,))
            return context.get_dummy_value() if returns is None else builder.load(builder.bitcast(result, returns))

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
    inner = njit(**PART)(kernel)
    entry = njit(no_cfunc_wrapper=True, **OPTIONS)(_entry(kernel, name, _with_job(inner, result(*arguments))))
    entry._cache = DiskCache(name, OPTIONS)
    entry.compile(result(*(Borrowed(a) if isinstance(a, types.Array) else a for a in arguments), types.int64))
    entry.disable_compile()
    return entry


def build(kernel: Callable[..., Any], dtype: np.dtype) -> Callable[..., Any]:
    """What Python calls: not the dispatcher, which would work out the types of its arguments each time (110 ns)."""
    (only,) = compiled(kernel, dtype).overloads.values()
    return only.entry_point
