"""What tests need to know of this machine's processes, from /proc, and how they end those that they started."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

ESTABLISHED = "01"


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def tree_of(root: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def kill_tree(root: int) -> None:
    """SIGKILL to a process and all that descend from it, as when a machine goes away."""
    for pid in tree_of(root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def connections_to(url: str, pid: int) -> int:
    """How many connections a process has open to the server at a URL."""
    port = f"{urlsplit(url).port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if line[2].endswith(f":{port}") and line[3] == ESTABLISHED}
    count = 0
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                count += str(descriptor.readlink()) in sockets
    return count


def asking_workers(root: int, url: str) -> list[int]:
    """The Python workers below a process that have connections to an endpoint, the busiest first."""
    counts = {pid: connections_to(url, pid) for pid in tree_of(root) if "pyspark.daemon" in command_of(pid)}
    return sorted((pid for pid in counts if counts[pid]), key=lambda pid: -counts[pid])


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
