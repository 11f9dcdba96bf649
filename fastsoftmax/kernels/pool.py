"""What a worker of the pool runs."""

from __future__ import annotations

from ._board import OPEN, TAKEN, add, at, call_at, pause, read, replace
from ._jit import INDEX, signature
from ._layout import ARGUMENT, FUNCTION, LIMIT, LOOKING, STATE, TICKET


@signature(INDEX, INDEX)
def serve(board, looks):
    """Help with what is on the board; return when there was nothing for so many looks."""
    add(at(board, LOOKING), 1)
    last, idle = -1, 0
    while idle < looks:
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
    add(at(board, LOOKING), -1)
