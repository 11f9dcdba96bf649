"""What a worker of the pool runs, and how it is woken."""

from __future__ import annotations

from ._board import (
    KEPT,
    LINUX,
    OPEN,
    TAKEN,
    add,
    allow,
    at,
    call_at,
    drop_lock,
    new_lock,
    now,
    pause,
    processor,
    read,
    replace,
    step_back,
    this_thread,
    used,
    wait_for,
    wake_off,
    write,
)  # fmt: skip
from ._jit import INDEX, inline, signature
from ._layout import (
    ARGUMENT,
    AWAKE,
    BOARD,
    CALLER,
    CLOSED,
    FORBIDDEN,
    FUNCTION,
    LIMIT,
    LOCK,
    SLEEPS,
    STATE,
    THREAD,
    TICKET,
    WORKER,
)  # fmt: skip

_STAYS, _LOOKS = 300_000, 14_000  # at most so many nanoseconds awake for nothing, or looks: 300 us (Ice Lake), 400 (Zen 3)
_GLANCE = 128  # looks, 3 us: how often to see what time it is, and which processor


@signature(INDEX, INDEX)
def serve(board, worker):
    """Help with what is on the board, look for more, sleep until woken; return when the board is closed."""
    own, lock = at(board, BOARD + WORKER * worker), new_lock()
    write(at(own, THREAD), this_thread())
    write(at(own, LOCK), lock)
    add(at(board, AWAKE), 1)
    last, idle = -1, 0
    seen, kept = now(), now() - used()
    since = seen
    while read(at(board, CLOSED)) == 0:
        ticket, state = read(at(board, TICKET)), read(at(board, STATE))
        if (
            ticket != last and OPEN <= state < TAKEN and worker < read(at(board, LIMIT))
            and replace(at(board, STATE), state, state + 1)
        ):  # fmt: skip
            last, idle = read(at(board, TICKET)), 0
            leave(board)
            call_at(read(at(board, FUNCTION)), read(at(board, ARGUMENT)), 1)
            add(at(board, STATE), -1)
            since = now()
            if since - seen > KEPT:
                before, kept, took, seen = kept, since - used(), since - seen, since
                step_back(board, since, kept - before, took)
        pause()
        idle += 1
        if idle % _GLANCE != 0:
            continue
        leave(board)
        if idle >= _LOOKS or now() - since > _STAYS:
            add(at(board, AWAKE), -1)
            write(at(own, SLEEPS), 1)
            wait_for(lock)
            idle, forbidden = 0, read(at(own, FORBIDDEN))
            seen, kept = now(), now() - used()
            since = seen
            if forbidden:
                allow(this_thread(), forbidden - 1, True)
                write(at(own, FORBIDDEN), 0)
    drop_lock(lock)


@inline
def leave(board: int) -> None:
    """Leave the caller's processor, if this is it."""
    here = processor()
    if LINUX and here == read(at(board, CALLER)) and allow(this_thread(), here, False):
        allow(this_thread(), here, True)


@signature(INDEX, INDEX)
def wake(board, workers):
    """Wake those of the first `workers` workers that sleep, for no call: to let them end."""
    wake_off(board, workers, processor())
