"""What Python calls: a C function that finds a call's arguments where the interpreter has them, and shares chunks out.

numba's `nogil=True` is decided at compile time; here one compiled kernel serves tiny calls, which keep the GIL, and long ones,
which release it. The entry takes the kernel's arguments and one more, `job`:
  0 (False)    run the kernel and keep the GIL;
  1 (True)     run it with the GIL released;
  an address   of a job, see `_layout`: run it on chunks of (first, last) with the GIL released, until none is left;
               so do the workers that find it on the board (`_board`). Or make a record of the call, for a program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.dispatcher import Dispatcher
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

from ._arguments import FAILURE, read, refuse_if
from ._board import offer, take_back
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
from ._linker import symbol
from ._small import arguments_of, small_call

_int64 = ir.IntType(64)
_NOTHING_LEFT = _int64(1 << 40)


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


def entry(kernel: Dispatcher, sig: Signature, name: str, small: Callable[..., Any] | None) -> Callable[..., Any]:
    """A function that does nothing: compiled, it has beside it the C function `symbol(name)`, for `callable_at`.

    That runs `kernel`, which is compiled with it. `small` is the plan of a small call, if it takes such (`_small`). Those that
    numba would make itself need its runtime.
    """
    takes_rows = [*inspect.signature(kernel.py_func).parameters][-2:] == ["first", "last"]
    chunked = takes_rows and sig.return_type in (types.void, types.int64, types.float64)

    @intrinsic
    def define(typingctx):
        kernel.compile(sig)
        compiled = kernel.overloads[sig.args]

        def codegen(context, within, _, __):
            kind = ir.FunctionType(_int64, [_int64, _int64, _int64])  # of nothing, the arguments' address, and their number
            function = ir.Function(within.module, kind, name=symbol(name))
            builder = ir.IRBuilder(function.append_basic_block("entry"))
            builder.ret(body(context, builder, function.args[1:]))
            return context.get_dummy_value()

        def body(context, builder, args):
            context.active_code_library.add_linking_library(compiled.library)
            python = context.get_python_api(builder)
            kinds, none, one = (*sig.args, types.int64), _int64(0), _int64(1)
            result, end = cgutils.alloca_once_value(builder, none), builder.append_basic_block("end")
            objects = builder.inttoptr(args[0], python.pyobj.as_pointer())

            def run(function, returns, *integers):
                sig = returns(*[types.int64] * len(integers))
                helper = context.compile_subroutine(builder, function, sig)
                return context.call_internal_no_propagate(builder, helper.fndesc, sig, integers)[1]

            def argument(k):
                return builder.load(builder.gep(objects, [_int64(k)]))

            def return_object(obj):
                builder.store(builder.ptrtoint(obj, _int64), result)
                builder.branch(end)

            if small:
                n_small = arguments_of(sig, small)
                as_small, in_full, declined = (builder.append_basic_block(at) for at in ("small", "full", "declined"))
                builder.cbranch(builder.icmp_signed("==", args[1], _int64(n_small)), as_small, in_full)
                builder.position_at_end(as_small)
                call = small_call(python, sig, small, [argument(k) for k in range(n_small)], declined, end)
                status, value = context.call_internal_no_propagate(builder, compiled.fndesc, sig, call.values)
                return_object(call.returned(status.is_error, value))
                builder.position_at_end(declined)
                return_object(python.make_none())
                builder.position_at_end(in_full)
            if small and not chunked:  # there are small calls of it alone
                python.err_set_string("PyExc_TypeError", f"{name} takes {n_small} arguments")
                builder.branch(end)
                builder.position_at_end(end)
                return builder.load(result)
            unlike = builder.icmp_signed("!=", args[1], _int64(len(kinds)))
            refuse_if(python, unlike, "TypeError", f"{name} takes {len(kinds)} arguments", end)
            *values, job = (read(python, kind, argument(k), end) for k, kind in enumerate(kinds))
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

            def returned(failed, value):
                refuse_if(python, failed, "RuntimeError", FAILURE, end)
                return_object(python.make_none() if value is None else python.from_native_value(sig.return_type, value))
                builder.position_at_end(end)
                return builder.load(result)

            if not chunked:
                status, value = in_one()
                return returned(status.is_error, None if sig.return_type == types.void else value)

            value, tally = cgutils.alloca_once_value(builder, none), cgutils.alloca_once(builder, _int64, size=TALLY)
            for k in range(TALLY):
                builder.store(none, builder.gep(tally, [_int64(k)]))
            frame = ir.LiteralStructType([*(value.type for value in values), _int64, _int64, _int64])
            assert context.get_abi_sizeof(frame) <= 8 * (RECORD - OF_FRAME), "a record has no room for so many arguments"
            share = _share(context, builder.module, compiled, sig, frame)
            returns = None if sig.return_type == types.void else context.get_value_type(sig.return_type).as_pointer()

            def offered_to_others(field, address):
                board, long = builder.load(field(JOB_BOARD)), builder.load(field(JOB_LONG))
                addresses = builder.ptrtoint(share, _int64), builder.ptrtoint(address, _int64)
                offered = run(offer, types.boolean, board, *addresses, builder.load(field(JOB_HELPERS)), long)
                builder.call(share, [builder.bitcast(address, cgutils.voidptr_t), none])
                with builder.if_then(offered):
                    run(take_back, types.void, board)

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
                                    builder.store(total, builder.bitcast(value, returns))
                                    _memory(builder, "Free", ir.VoidType(), memory)

            with builder.if_else(builder.icmp_unsigned(">", job, one), likely=False) as (shared, alone):
                with shared:
                    in_chunks()
                with alone, builder.if_then(builder.icmp_signed("<", values[-2], values[-1])):
                    status, number = in_one()
                    builder.store(builder.zext(status.is_error, _int64), builder.gep(tally, [_int64(FAILED)]))
                    if returns is not None:
                        builder.store(number, builder.bitcast(value, returns))
            failed = cgutils.is_not_null(builder, builder.load(builder.gep(tally, [_int64(FAILED)])))
            return returned(failed, None if returns is None else builder.load(builder.bitcast(value, returns)))

        return types.void(), codegen

    def function():
        define()

    function.__name__ = function.__qualname__ = name  # part of its symbol's name, which must be the only one in a process
    return function
