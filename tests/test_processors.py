"""How many processors a process may use: what its control groups allow, read from files as Linux writes them."""

from __future__ import annotations

import math

import pytest

from fastsoftmax import _processors

NAMED = "11:pids:/docker/1f\n4:cpu,cpuacct:/docker/1f\n3:cpuset:/docker/1f\n1:name=systemd:/docker/1f\n"  # of version 1
GROUPS = {
    "none": ("", {}, math.inf),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
    "a container": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "part of a processor": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "its own": ("0::/a.slice/b.scope\n", {"a.slice/b.scope/cpu.max": "300000 100000", "a.slice/cpu.max": "max 100000"}, 3.0),
    "the one around": ("0::/a/b:c\n", {"a/b:c/cpu.max": "300000 100000\n", "a/cpu.max": "75000 50000\n"}, 1.5),
    "another's": ("0::/a\n", {"a/cpu.max": "max 100000\n", "b/cpu.max": "100000 100000\n"}, math.inf),
    "outside of what is seen": ("0::/../other\n", {"cpu.max": "400000 100000\n"}, 4.0),
    "version 1": (NAMED, {"cpu/docker/1f/cpu.cfs_quota_us": "250000", "cpu/docker/1f/cpu.cfs_period_us": "100000"}, 2.5),
    "version 1, a container": (NAMED, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 3.0),
    "version 1, no limit": (NAMED, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    "of processors' numbers alone": ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, math.inf),
    "both versions": (
        "0::/\n1:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n", "unified/cpu.pressure": "\n"},
        2.0,
    ),
    "no groups": ("nothing to be read\n", {"cpu.max": "100000 100000\n"}, math.inf),
    "not understood": ("0::/\n", {"cpu.max": "all of it\n"}, math.inf),
}


@pytest.mark.parametrize(("groups", "files", "allowed"), GROUPS.values(), ids=GROUPS)
def test_the_tightest_control_group_counts(tmp_path, groups, files, allowed):
    for name, content in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{f}": c for f, c in files.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert _processors.quota(str(tmp_path)) == allowed


def test_without_such_files_there_is_no_limit(tmp_path):
    assert _processors.quota(str(tmp_path)) == math.inf


@pytest.mark.parametrize(("allowed", "expected"), [(math.inf, 6), (8.0, 6), (6.0, 6), (2.0, 2), (1.5, 2), (1.0, 1), (0.25, 1)])
def test_processors(monkeypatch, allowed, expected):
    monkeypatch.setattr(_processors.os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(_processors, "quota", lambda: allowed)
    assert _processors.processors.__wrapped__() == expected
