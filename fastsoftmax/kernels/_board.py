"""The board on which a call offers its chunks to other threads, and the atomic operations it is made of.

A call with several chunks puts them on the board, works through them itself, and takes them off again; workers that look at
the board meanwhile (`pool.serve`) join in. All of that happens with the GIL released: a thread that needs the GIL to begin or
to end waits for whoever holds it, and one that sleeps takes some 50 us to wake, longer than a chunk.

A worker that has nothing to do looks at the board for some 300 us before it sleeps. It sleeps on a lock of Python's that needs
no GIL: one that slept in Python would wake to find the GIL taken again, call after call. A call wakes it when its work lies on
the board, not before: where the two processors are one of the host's, who wakes another may stand still until that sleeps again
(1 ms, one call in a hundred on Ice Lake; in bad minutes one in two, and then each took as long as alone).

A worker keeps off the caller's processor: the system wakes a thread where its waker runs, and may leave both there for many
calls (1024 x 1000, float32, after a pause: 200 to 850 us, and 300 with one thread). So its waker forbids it that processor,
and it is allowed it again when it runs; and one that finds itself there all the same leaves.

A processor that something else keeps busy is no help: each few milliseconds the system gives it away, and the call waits for
the chunk that lies there, where fewer threads would have been moved out of the way. So caller and workers see how long they
are kept waiting, and calls do with fewer workers for a while, longer each time if that is still so, with the others asleep.

The board is an array of int64. Its state: 0, nothing there; OPEN + the number of workers inside; TAKEN + the same, while the
call that put something there fills or empties it. Two calls at a time: the second finds it taken and works alone.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from ._layout import (
    ARGUMENT,
    AWAKE,
    BEGUN,
    BOARD,
    CALLER,
    FEWER,
    FORBIDDEN,
    FUNCTION,
    LIMIT,
    LOCK,
    PERIOD,
    SINCE,
    SLEEPS,
    STATE,
    THREAD,
    TICKET,
    UNTIL,
    USED,
    WAKES,
    WATCHED,
    WORKED,
    WORKER,
)  # fmt: skip

OPEN, TAKEN = 1 << 40, 1 << 41
PATIENCE = 1000  # looks, 30 us, before a waiting thread offers its processor to others

KEPT = 500_000  # nanoseconds without a processor that are more than the system's own small tasks take
_OFTEN = 2  # times as long at work: two threads kept no more often gain more than they lose (beside a neighbour: 5 %)
_SOON, _LONGEST = 2 * 10**7, 10**9  # nanoseconds after it happened; of doing with fewer at a time
_MONOTONIC, _OF_THREAD = 1, 3  # Linux's clocks

_int64, _byte = ir.IntType(64), ir.IntType(8)
_X86 = platform.machine() in ("x86_64", "AMD64")
LINUX = sys.platform == "linux"
_MASK = 16  # words of 64 processors


def _call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@intrinsic
def read(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _int64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def write(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], _int64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to what is there; what was there before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _int64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def replace(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    """Write `new` where `old` is; whether it was."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _int64.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire"), 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """A moment in a loop that waits."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if _X86:
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx: Any) -> Any:
    """Let another thread have this processor."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if os.name == "posix":
            _call(builder, "sched_yield", ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_at(typingctx: Any, function: Any, argument: Any, who: Any) -> Any:
    """function(argument, who), a C function of an address and of who calls: 0 the call itself, 1 a worker."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_byte.as_pointer(), _int64])
        argument = builder.inttoptr(args[1], _byte.as_pointer())
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [argument, args[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def processor(typingctx: Any) -> Any:
    """The number of the processor that runs this, -1 where the system does not say."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not LINUX:
            return _int64(-1)
        return builder.sext(_call(builder, "sched_getcpu", ir.IntType(32)), _int64)

    return types.int64(), codegen


def _clock(kind: int) -> Any:
    def of(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if not LINUX:
                return _int64(0)
            time = cgutils.alloca_once(builder, _int64, size=2)  # seconds and nanoseconds
            _call(builder, "clock_gettime", ir.IntType(32), ir.Constant(ir.IntType(32), kind), time)
            seconds, rest = (builder.load(builder.gep(time, [_int64(k)])) for k in range(2))
            return builder.add(builder.mul(seconds, _int64(10**9)), rest)

        return types.int64(), codegen

    return intrinsic(of)


now = _clock(_MONOTONIC)  # 20 ns
used = _clock(_OF_THREAD)  # the time that this thread had a processor; 400 ns


@intrinsic
def this_thread(typingctx: Any) -> Any:
    """What `allow` knows this thread by."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "pthread_self", _int64) if LINUX else _int64(0)

    return types.int64(), codegen


@intrinsic
def allow(typingctx: Any, thread: Any, cpu: Any, allowed: Any) -> Any:
    """Let a thread run on a processor, or not, beside those it may run on; whether the system did so.

    Not if that is the only one. A thread that runs there is moved at once.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not LINUX:
            return cgutils.false_bit
        thread, cpu, allowed = args
        mask, done = cgutils.alloca_once(builder, _int64, size=_MASK), cgutils.alloca_once_value(builder, cgutils.false_bit)
        arguments = thread, _int64(8 * _MASK), builder.bitcast(mask, _byte.as_pointer())
        known = _call(builder, "pthread_getaffinity_np", ir.IntType(32), *arguments)
        inside = builder.icmp_unsigned("<", cpu, _int64(64 * _MASK))
        with builder.if_then(builder.and_(builder.icmp_signed("==", known, known.type(0)), inside)):
            word, bit = builder.gep(mask, [builder.lshr(cpu, _int64(6))]), builder.and_(cpu, _int64(63))
            rest = builder.and_(builder.load(word), builder.not_(builder.shl(_int64(1), bit)))
            builder.store(builder.or_(rest, builder.shl(builder.zext(allowed, _int64), bit)), word)
            refused = _call(builder, "pthread_setaffinity_np", ir.IntType(32), *arguments)
            builder.store(builder.icmp_signed("==", refused, refused.type(0)), done)
        return builder.load(done)

    return types.boolean(types.int64, types.int64, types.boolean), codegen


_lock = _byte.as_pointer()


@intrinsic
def new_lock(typingctx: Any) -> Any:
    """The address of a lock, held."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lock = _call(builder, "PyThread_allocate_lock", _lock)
        _call(builder, "PyThread_acquire_lock", ir.IntType(32), lock, ir.Constant(ir.IntType(32), 1))
        return builder.ptrtoint(lock, _int64)

    return types.int64(), codegen


def _on_a_lock(name: str, *more: ir.Constant) -> Any:
    def of(typingctx: Any, lock: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _call(builder, name, ir.IntType(32), builder.inttoptr(args[0], _lock), *more)
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return intrinsic(of)


wait_for = _on_a_lock("PyThread_acquire_lock", ir.Constant(ir.IntType(32), 1))
release = _on_a_lock("PyThread_release_lock")
drop_lock = _on_a_lock("PyThread_free_lock")


@intrinsic
def at(typingctx: Any, board: Any, field: Any) -> Any:
    """The address of one of the board's values."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.add(args[0], builder.mul(args[1], _int64(8)))

    return types.int64(types.int64, types.int64), codegen


@register_jitable
def fail_if(failed: bool) -> None:
    """Hand on that a call made from compiled code failed."""
    if failed:
        raise RuntimeError


# ---- compiled into every kernel's entry -------------------------------------------------------------------------------
def offer(board: int, function: int, argument: int, limit: int, long: int) -> bool:
    """Put function(argument) on the board for up to `limit` workers, and wake them if asked to; whether there was room."""
    if board == 0 or not replace(at(board, STATE), 0, TAKEN):
        return False
    write(at(board, FUNCTION), function)
    write(at(board, ARGUMENT), argument)
    write(at(board, LIMIT), limit)
    here, begun = processor(), now()
    write(at(board, CALLER), here)
    write(at(board, BEGUN), begun)
    write(at(board, USED), used() if long or begun < read(at(board, WATCHED)) else 0)
    add(at(board, TICKET), 1)
    add(at(board, STATE), OPEN - TAKEN)
    if replace(at(board, WAKES), 1, 0):
        wake_off(board, limit, here)
    return True


@register_jitable
def wake_off(board: int, workers: int, here: int) -> None:
    """Wake those of the first `workers` workers that sleep, off the processor `here`."""
    for worker in range(workers):
        own = at(board, BOARD + WORKER * worker)
        if replace(at(own, SLEEPS), 1, 0):
            add(at(board, AWAKE), 1)
            if allow(read(at(own, THREAD)), here, False):
                write(at(own, FORBIDDEN), here + 1)
            release(read(at(own, LOCK)))


def take_back(board: int) -> None:
    """Let nobody in any more, and wait for those inside: they are at their last chunk.

    A call that was taken for a short one and took long was kept from a processor, or this CPU is slower than thought: the next
    ones look at both clocks.
    """
    add(at(board, STATE), TAKEN - OPEN)
    looks = 0
    while read(at(board, STATE)) != TAKEN:
        pause()
        looks += 1
        if looks > PATIENCE:
            give_way()
    end, used_then = now(), read(at(board, USED))
    took = end - read(at(board, BEGUN))
    if took > KEPT and used_then == 0:
        write(at(board, WATCHED), end + _SOON)
    else:
        kept = took - (used() - used_then) if took > KEPT else 0
        step_back(board, end, kept, took)
        add(at(board, WORKED), took - kept)
    write(at(board, STATE), 0)


@register_jitable
def step_back(board: int, time: int, kept: int, took: int) -> None:
    """Let calls do with fewer workers (`_threads.threads_now`) if one of their threads was kept from a processor for so long.

    If that is more than it saves: n - 1 threads take n / (n - 1) of the time that n would have taken. (Of 60 products of 1024 x
    1024 x 1000, float64, on two processors whose host is busy, 33, in another run 9, were made alone: 43 ms, and not 25.)
    With one fewer, as long as it was kept; with twice as many fewer if they are kept even so; twice as long as last time if
    calls have worked since then for less than some times as long as it was kept. Now and then that costs little, and beside a
    neighbour that stays it happens once a second.
    """
    threads = 1 + read(at(board, LIMIT))
    # not the system's own small tasks, nor what others have seen
    if kept > KEPT and kept * threads > took and time - kept >= read(at(board, SINCE)):
        fewer, period = read(at(board, FEWER)), read(at(board, PERIOD))
        if time < read(at(board, UNTIL)):
            fewer *= 2
        elif read(at(board, WORKED)) < _OFTEN * kept:
            fewer, period = max(1, fewer), max(kept, 2 * period)
        else:
            fewer, period = 1, kept
        period = min(period, _LONGEST)
        write(at(board, FEWER), fewer)
        write(at(board, PERIOD), period)
        write(at(board, WORKED), 0)
        write(at(board, SINCE), time)
        write(at(board, UNTIL), time + period)
