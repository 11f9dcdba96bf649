"""What a worker of the pool runs, and how it is woken."""

from __future__ import annotations

from ._board import (
    OPEN,
    TAKEN,
    add,
    at,
    call_at,
    drop_lock,
    new_lock,
    pause,
    read,
    release,
    replace,
    wait_for,
    write,
)  # fmt: skip
from ._jit import INDEX, signature
from ._layout import ARGUMENT, BOARD, CLOSED, FUNCTION, LIMIT, STATE, TICKET

_LOOKS = 14_000  # 400 us


@signature(INDEX, INDEX)
def serve(board, worker):
    """Help with what is on the board, look for more, sleep until woken; return when the board is closed."""
    sleeps, lock = at(board, BOARD + 2 * worker), new_lock()
    write(at(board, BOARD + 2 * worker + 1), lock)
    last, idle = -1, 0
    while read(at(board, CLOSED)) == 0:
        ticket, state = read(at(board, TICKET)), read(at(board, STATE))
        if (
            ticket != last and OPEN <= state < TAKEN and state - OPEN < read(at(board, LIMIT))
            and replace(at(board, STATE), state, state + 1)
        ):  # fmt: skip
            last, idle = read(at(board, TICKET)), 0
            call_at(read(at(board, FUNCTION)), read(at(board, ARGUMENT)))
            add(at(board, STATE), -1)
        pause()
        idle += 1
        if idle == _LOOKS:
            write(sleeps, 1)
            wait_for(lock)
            idle = 0
    drop_lock(lock)


@signature(INDEX, INDEX)
def wake(board, workers):
    """Wake those of the first `workers` workers that sleep."""
    for worker in range(workers):
        if replace(at(board, BOARD + 2 * worker), 1, 0):
            release(read(at(board, BOARD + 2 * worker + 1)))
