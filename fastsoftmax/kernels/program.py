"""Calls that were recorded, made one after the other by several threads at once (`_program`)."""

from __future__ import annotations

from ._board import PATIENCE, at, call_at, fail_if, give_way, pause, read, write
from ._jit import INDEX, signature
from ._layout import CHUNKS, DONE, FAILED, OF_FRAME, OF_FUNCTION, OF_TALLY, TALLY


@signature(INDEX, INDEX)
def rewind(records, n):
    """Nothing of the n calls whose records' addresses lie at `records` is done."""
    for k in range(n):
        for field in range(TALLY):
            write(at(read(at(records, k)), OF_TALLY + field), 0)


@signature(INDEX, INDEX, INDEX, INDEX)
def play(records, n, first, last):
    """Take part in them: in each until no chunk is left, in the next when all chunks are done.

    Each thread does so once: threads, not rows, are what this kernel's own chunks are. One that comes late finds nothing left
    of the first calls.
    """
    for k in range(n):
        record = read(at(records, k))
        call_at(read(at(record, OF_FUNCTION)), at(record, OF_FRAME), 1 if first > 0 else 0)
        looks = 0
        while read(at(record, OF_TALLY + DONE)) < read(at(record, CHUNKS)):
            pause()
            looks += 1
            if looks > PATIENCE:
                give_way()
        fail_if(read(at(record, OF_TALLY + FAILED)) != 0)
