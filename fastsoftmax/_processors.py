"""How many processors this process may use: those that it may run on, or fewer if its control groups give it less time.

A container's limit (``docker run --cpus``, Kubernetes' ``limits.cpu``) is a quota of time in each period of 0.1 s, and leaves
all processors of the host in sight. Threads beyond the quota use it up sooner; then all stand still until the next period
(one processor's time on two, softmax, 4096 x 1000, float32: with two threads one call of a hundred takes 37 ms, with one 4.3;
on average they take 3.4 and 3.1).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from functools import cache


@cache
def processors() -> int:
    """At least 1; a part of a processor's time counts as one."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(n, quota())))


def quota(root: str = "") -> float:
    """How many processors' time the tightest of the process's control groups allows; infinite if none has a limit."""
    return min(map(_limit, _groups(root)), default=math.inf)


def _groups(root: str) -> Iterator[str]:
    """The folders of the groups that this process is in: its own, the one around that, and so on.

    In a container the path may be the host's, of which only the last folder is there: the container's own group.
    """
    with contextlib.suppress(OSError, ValueError), open(f"{root}/proc/self/cgroup", encoding="utf-8", errors="replace") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = f"{root}/sys/fs/cgroup" + ("/cpu" if controllers else "")  # of version 1, or of version 2
            while path.strip("/"):
                yield top + path
                path = path.rpartition("/")[0]
            yield top


def _limit(folder: str) -> float:
    """Of one group."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of version 2, of version 1
        with contextlib.suppress(OSError, ValueError):  # not there; "max": no limit
            time, period = (int(word) for name in files for word in _words(f"{folder}/{name}"))
            if time > 0:  # -1: no limit
                return time / period
    return math.inf


def _words(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()
