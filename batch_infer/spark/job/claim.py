"""Owns who is writing a table now: a claim beside it, refreshed while its run lives. Does not write the table.

Each run has a claim of its own, `.<name>.batch_infer-<id>.owner`: it writes the claim, and then looks for others. Of
two runs that begin at the same moment each sees the other, whatever the store; so there is never a second owner, and no
store need be able to create a file exclusively. Ages are differences between times that the store itself gave.

On the driver.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from batch_infer.contract.errors import SinkError
from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.tables.rules import Siblings

BEAT_S = 5.0
"""Seconds between the refreshes of a claim."""
EXPIRY_S = 30.0
"""A claim that was not refreshed for so long is of a dead run."""
ENDING = ".owner"
_YOUNG_S = 2.0
_TRIES = 3
_READS = 5

_held: set[str] = set()
"""Claims of live runs of this process."""


class Owner(msgspec.Struct, frozen=True):
    """What a claim says."""

    id: str
    job: str
    alone: bool
    """No other run may write the table; else none of the same job."""
    host: str
    machine: str
    """Tells apart what `host` may not: reboots, and containers that share a name. A process id is one of these."""
    pid: int
    born: str
    """When the process started (`_born`): a later one may have its number."""
    since: float
    """Seconds since 1970, by the owner's clock; for people."""


class _Other(NamedTuple):
    owner: Owner | None
    """`None`: its claim could not be read."""
    age_s: float


class Claim:
    """A table, claimed for one run, until `release`. Runs on the driver."""

    def __init__(self, files: Files, owner: Owner, path: str, beat_s: float) -> None:
        self._files = files
        self._owner = owner
        self._path = path
        self._beat_s = beat_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="batch_infer-owner", daemon=True)

    @classmethod
    def take(cls, files: Files, job: str, *, alone: bool, beat_s: float = BEAT_S, expiry_s: float = EXPIRY_S) -> Claim:
        """Claims the table at `files.root`.

        Args:
            files: Of the table's path.
            job: Names the job; two runs of one job never write at the same time.
            alone: Whether runs of other jobs are kept out, too.
            beat_s: Seconds between refreshes.
            expiry_s: Seconds after which another run's claim has lapsed.

        Raises:
            SinkError: another run owns it; says which, where, and since when.
        """
        names = Siblings.of(files.root, "")
        files.make_folder(names.folder)
        tries = 0
        while True:
            tries += 1
            claim = cls(files, *_claim(names, job, alone=alone), beat_s)
            _held.add(claim._owner.id)
            try:
                claim._write()
                other = claim._conflict(names, expiry_s)
            except BaseException:
                claim.release()
                raise
            if other is None:
                claim._thread.start()
                return claim
            claim.release()
            if other.age_s > _YOUNG_S or tries == _TRIES:
                raise SinkError(_refusal(files.root, other, expiry_s))
            time.sleep(random.uniform(0.1, 0.6))  # noqa: S311 - both have just begun: one of them will be first

    def check(self) -> None:
        """Raises `SinkError` when the claim is gone: this run was taken for dead, and another one may be writing."""
        if not self._files.exists(self._path):
            raise SinkError(
                f"this run's claim on {self._files.root} is gone: it was not refreshed for {EXPIRY_S:g} s, and another "
                "run has taken over. Nothing was written by this one, and its replies are in the ledger: run it again "
                "when the other one is done."
            )

    def release(self) -> None:
        """Gives the table free. Idempotent."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        _held.discard(self._owner.id)
        with contextlib.suppress(Exception):  # the JVM may be gone, after Ctrl-C: then the claim lapses by itself
            self._files.delete(self._path)

    def _write(self) -> None:
        self._files.rewrite_text(self._path, msgspec.json.encode(self._owner).decode())

    def _beat(self) -> None:
        while not self._over.wait(self._beat_s):
            with contextlib.suppress(Exception):
                if self._files.exists(self._path):
                    self._write()

    def _conflict(self, names: Siblings, expiry_s: float) -> _Other | None:
        """Another live run in this one's way; claims of dead ones are deleted."""
        now_ms = self._files.modified_ms(self._path)
        for entry in self._files.list(names.folder):
            path = f"{names.folder}/{entry.name}"
            if not (entry.name.startswith(names.prefix) and entry.name.endswith(ENDING)) or path == self._path:
                continue
            try:
                age_s = max(0.0, (now_ms - self._files.modified_ms(path)) / 1000)
            except SinkError:
                continue  # released meanwhile
            other = self._read(path)
            if age_s > expiry_s or (other is not None and _is_dead(other)):
                self._files.delete(path)
            elif other is None or other.alone or self._owner.alone or other.job == self._owner.job:
                return _Other(other, age_s if other is None else max(age_s, time.time() - other.since))
        return None

    def _read(self, path: str) -> Owner | None:
        for _ in range(_READS):  # it may be in the middle of its refresh
            with contextlib.suppress(SinkError, msgspec.MsgspecError):
                return msgspec.json.decode(self._files.read_text(path), type=Owner)
            time.sleep(0.05)
        return None


def _claim(names: Siblings, job: str, *, alone: bool) -> tuple[Owner, str]:
    """Who this process is, and the path of a claim of its own."""
    pid = os.getpid()
    owner = Owner(
        id=uuid.uuid4().hex[:16],
        job=job,
        alone=alone,
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        born=_born(pid),
        since=time.time(),
    )
    return owner, f"{names.folder}/{names.prefix}{owner.id}{ENDING}"


def _refusal(table: str, other: _Other, expiry_s: float) -> str:
    who, owner = "another run", other.owner
    if owner is not None:
        since = datetime.fromtimestamp(owner.since, UTC)
        who = f"a run on host {owner.host} (process {owner.pid}), since {since:%Y-%m-%d %H:%M:%S} UTC,"
    return (
        f"{who} is writing to {table}, so this one does not begin: nothing was sent. Wait until it is done, or write "
        f"to another path. If it is dead, try again: its claim lapses {expiry_s:g} s after its last sign of life."
    )


def _is_dead(owner: Owner) -> bool:
    """Whether the owner was a process of this machine, and is no more."""
    if owner.machine != _machine():
        return False
    if owner.pid == os.getpid():
        return owner.id not in _held
    return _born(owner.pid) != owner.born


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks; `-` when it has ended; `?` where that cannot be told."""
    try:
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return "-"
    except OSError:  # another user's, or a system without /proc
        return "?"
    return "-" if fields[0] in "ZX" else fields[19]  # ended, and nobody has asked how yet


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux has both, other systems neither
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
