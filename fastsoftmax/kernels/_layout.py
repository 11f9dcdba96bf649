"""What compiled code and Python both know: sizes that decide the way of a call, and what lies where in arrays of int64."""

# Classes from which on rows do not lie across lanes, see `_narrow`; of floats, for softmax and its like (log_softmax, Zen 5,
# cycles a row of 80: 83 -> 74, 100: 103 -> 91; doubles are as fast either way, and gradients lose).
NARROW, NARROW32 = 64, 104
# Where a second thread begins to pay if it is awake, in elements of the rows; where a row takes exponentials and the call
# is short otherwise, in bytes (128 x 100, float64: 12.3 -> 8.6 us; float32 would take 3.7, not 3.2, and backward passes lose);
# and in multiply-adds of a product, 10 us (128 x 100 x 64, float32: 20 -> 13 us).
SMALL, SHORT, SMALL_PRODUCT = 1 << 16, 64 << 10, 1 << 19
IGNORED = -100  # the label of rows that do not count, if none is given
# So many columns, or fewer, of an array are all taken side by side (float64, 32000 x 256: 32 -> 15 ms, x 512: 66 -> 33).
SIDE_BY_SIDE = 1024

# A job: the rows of a chunk, the board's address or 0, how many workers may help, whether the caller holds the GIL, whether
# the call is a long one, and the address of a record to be made of the call instead of making it, or 0; then also that of a
# place for what the kernel returns for each chunk, if it returns anything. Many calls may share one.
JOB = 7
JOB_ROWS, JOB_BOARD, JOB_HELPERS, JOB_HOLDS, JOB_LONG, JOB_RESULTS, JOB_RECORD = range(JOB)

# How far a call has come: how many chunks are taken, how many of them from the end, how many are done, and whether one failed.
TALLY = 4
TAKEN, FROM_END, DONE, FAILED = range(TALLY)

# A record of a call, see `program`: how many chunks it has, its tally, its job, the function that works through its chunks,
# and what that takes: the kernel's arguments and the addresses of job, tally and results.
CHUNKS, OF_TALLY, OF_JOB, OF_FUNCTION, OF_FRAME = 0, 1, 1 + TALLY, 1 + TALLY + JOB, 2 + TALLY + JOB
RECORD = 256

# The board, see `_board`: its state, a function and its argument, which workers may come in, the first so many, a number for
# each job, whether workers are to end, the processor that the last caller ran on, what two clocks said when its call began (the
# second 0 if it did not look at it), until when all calls look at both, how many fewer workers calls do with, since when, until
# when and for how long, how long calls have worked since then, how many workers do not sleep, and whether the next call is
# to wake those that do; then for each worker whether it sleeps, the lock that it sleeps on, its thread, and the processor
# forbidden to it, plus one.
BOARD = 17
STATE, FUNCTION, ARGUMENT, LIMIT, TICKET, CLOSED, CALLER, BEGUN, USED, WATCHED = range(10)
FEWER, SINCE, UNTIL, PERIOD, WORKED, AWAKE, WAKES = range(10, BOARD)
WORKER = 4
SLEEPS, LOCK, THREAD, FORBIDDEN = range(WORKER)
