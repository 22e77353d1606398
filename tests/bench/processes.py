"""Owns figures about processes, read from /proc: CPU time of a tree, peak memory of Spark's Python workers. Linux."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class _Stat(NamedTuple):
    pid: int
    name: str
    parent: int
    cpu_s: float
    reaped_cpu_s: float


class Cpu(NamedTuple):
    """CPU seconds, user and system, of this process and all its descendants."""

    python_s: float
    """This process (the driver) and the Python workers, ended ones included."""
    jvm_s: float

    def since(self, earlier: Cpu) -> Cpu:
        return Cpu(self.python_s - earlier.python_s, self.jvm_s - earlier.jvm_s)


def cpu(without: Collection[int] = ()) -> Cpu:
    """What was used so far; `without` names processes that do not count, such as an endpoint's, with their children."""
    python_s = jvm_s = 0.0
    for stat in _tree(os.getpid(), without):
        python_s += stat.reaped_cpu_s
        if stat.name == "java":
            jvm_s += stat.cpu_s
        else:
            python_s += stat.cpu_s
    return Cpu(python_s, jvm_s)


def peak_worker_mb() -> float:
    """The largest `VmHWM` among the Python workers of this process's Spark: their peak resident memory in MB."""
    peaks = [0]
    for stat in _tree(os.getpid(), ()):
        if b"pyspark.daemon" in _read(stat.pid, "cmdline"):
            for line in _read(stat.pid, "status").splitlines():
                if line.startswith(b"VmHWM:"):
                    peaks.append(int(line.split()[1]))
    return max(peaks) / 1024


def _tree(root: int, without: Collection[int]) -> Iterator[_Stat]:
    stats = {stat.pid: stat for stat in _all()}
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    left = [root]
    while left:
        pid = left.pop()
        if pid in stats and pid not in without:
            yield stats[pid]
            left.extend(children.get(pid, ()))


def _all() -> Iterator[_Stat]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            raw = _read(int(entry.name), "stat").decode()
            if raw:
                name = raw[raw.index("(") + 1 : raw.rindex(")")]
                rest = raw[raw.rindex(")") + 2 :].split()
                user, system, reaped_user, reaped_system = (int(rest[i]) / TICKS_PER_S for i in range(11, 15))
                yield _Stat(int(entry.name), name, int(rest[1]), user + system, reaped_user + reaped_system)


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:  # it has ended
        return b""
