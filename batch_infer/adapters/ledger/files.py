"""Owns access to a ledger's directory, on a local path or on any `pyarrow.fs`. Does not know what the files hold.

    <root>/log/     what was sent and answered: `<writer>.<generation>.log`, and its keys, `….keys`
    <root>/index/   keys of many logs, merged
    <root>/table/   the inference table, in Parquet

Files are written under a temporary name and renamed, or put in one piece where a store does that atomically, so that
whoever lists a directory sees complete files only. The one exception are local logs, which grow.

On driver and workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as arrow_fs

from batch_infer.contract.errors import SinkError

LOG, INDEX, TABLE = "log", "index", "table"
FOLDERS = (LOG, INDEX, TABLE)
TEMPORARY = "_tmp-"
ABANDONED_S = 3600
"""Temporary files not written to for so long belong to nobody."""
UNLOCKED_BUSY_S = 600
"""Seconds since its last write for which a log counts as busy, on stores without locks."""
ATOMIC_PUT = frozenset({"s3", "gcs", "abfs"})
"""Stores on which an object appears when its writer closes it, and not before."""


class Files(Protocol):
    """A ledger's directory. Paths are relative to it: `log/x.0.log`."""

    root: str
    grows: bool
    """Files can be appended to, and a lock shows that somebody does."""

    def exists(self) -> bool:
        """Whether there is a ledger, an empty one too. Raises `SinkError` when its store cannot be reached."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Names and sizes of the complete files in a folder; empty when there is no such folder."""
        ...

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file; fewer than asked for at its end. Raises `FileNotFoundError`."""
        ...

    def near(self, path: str) -> Path:
        """A file on this machine with the same content: the file itself, or a copy that stays. Complete files only."""
        ...

    def arrow(self, path: str) -> Any:
        """The file, open for pyarrow to read parts of it."""
        ...

    def scratch(self, folder: str) -> Path:
        """The path of a new temporary file, from which `publish` moves cheaply."""
        ...

    def publish(self, source: Path, path: str) -> None:
        """Moves a temporary file into place, atomically; what was there is replaced."""
        ...

    def keep(self, source: Path, path: str) -> None:
        """Lets this machine read a temporary file under its later name, before it is published."""
        ...

    def delete(self, path: str) -> None:
        """Deletes a file; nothing happens when there is none."""
        ...

    def prepare(self) -> None:
        """Makes the folders, for their owner only. Raises `SinkError`."""
        ...

    def busy(self, path: str) -> bool:
        """Whether a live process is appending to this log, as far as a lock can tell."""
        ...

    def maintaining(self, *, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """One maintenance at a time; gives False when another one is running and `wait` is not set."""
        ...


def open_files(root: str | os.PathLike[str], cache: Path | None = None) -> Files:
    """The directory at a path or URI; nothing is made yet.

    Args:
        root: A local path, `file://`, or a URI that `pyarrow.fs` knows (`hdfs://`, `s3://`, `gs://`, `abfs://`);
            `s3a://`, as Spark writes it, is `s3://`.
        cache: Where copies of remote files stay on this machine; a private directory of this user by default.

    Raises:
        SinkError: the URI is not understood, or its store cannot be reached.
    """
    text = os.fspath(root)
    if not re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:/", text):
        return LocalFiles(Path(text))
    if text.startswith("file:"):
        return LocalFiles(Path(unquote(urlsplit(text).path)))
    try:
        filesystem, base = arrow_fs.FileSystem.from_uri(re.sub(r"^s3[an]:", "s3:", text))  # Spark's names for S3
    except (OSError, pa.ArrowException) as error:
        raise SinkError(f"The ledger at {text} cannot be opened: {_reason(error)}.") from error
    return RemoteFiles(filesystem, base, text, cache)


class LocalFiles:
    """A directory of this machine, or one that is mounted."""

    grows = True

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    def exists(self) -> bool:
        """See `Files.exists`."""
        return (self._root / LOG).is_dir()

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Files.sizes`."""
        sizes = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith(("_", ".")):
                    with contextlib.suppress(FileNotFoundError):
                        sizes[entry.name] = entry.stat().st_size
        return sizes

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `Files.read`."""
        with (self._root / path).open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read() if length is None else _read_fully(file, length)

    def near(self, path: str) -> Path:
        """See `Files.near`."""
        return self._root / path

    def arrow(self, path: str) -> Any:
        """See `Files.arrow`."""
        return pa.OSFile(str(self._root / path))

    def scratch(self, folder: str) -> Path:
        """See `Files.scratch`."""
        return self._root / folder / f"{TEMPORARY}{secrets.token_hex(8)}"

    def publish(self, source: Path, path: str) -> None:
        """See `Files.publish`."""
        with source.open("rb+") as file:
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
        source.replace(self._root / path)

    def keep(self, source: Path, path: str) -> None:
        """See `Files.keep`. Publishing costs nothing here, so there is nothing to do before."""

    def delete(self, path: str) -> None:
        """See `Files.delete`."""
        (self._root / path).unlink(missing_ok=True)

    def prepare(self) -> None:
        """See `Files.prepare`."""
        try:
            self._root.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self._root, *(self._root / name for name in FOLDERS)):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SinkError(
                f"The ledger at {self.root} cannot be made: {_reason(error)}. Nothing was sent and nothing is lost. "
                "Give a directory that every task can write to."
            ) from error

    def busy(self, path: str) -> bool:
        """See `Files.busy`."""
        try:
            with (self._root / path).open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                except OSError:  # a file system without locks
                    return time.time() - os.fstat(file.fileno()).st_mtime < UNLOCKED_BUSY_S
        except FileNotFoundError:
            return False
        return False

    @contextlib.contextmanager
    def maintaining(self, *, wait: bool) -> Iterator[bool]:
        """See `Files.maintaining`."""
        handle = os.open(self._root / ".maintenance", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError:  # no locks on this file system: what maintenance does is safe, only wasteful, beside itself
                self._sweep(FOLDERS, ABANDONED_S)
            else:
                self._sweep((INDEX, TABLE), 0)  # only maintenance writes there, and this is the only one
                self._sweep((LOG,), ABANDONED_S)
            yield True
        finally:
            os.close(handle)

    def _sweep(self, folders: Iterable[str], age_s: float) -> None:
        for folder in folders:
            for path in (self._root / folder).glob(f"{TEMPORARY}*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime >= age_s:
                        path.unlink()


class RemoteFiles:
    """A directory on a store that cannot append (or does not promise that what is appended survives its writer).

    Files never change once they are there, so a copy of one is kept on this machine for all its workers.
    """

    grows = False

    def __init__(self, filesystem: Any, base: str, root: str, cache: Path | None = None) -> None:
        self.root = root
        self._fs = filesystem
        self._base = base.rstrip("/")
        self._cache = _private_folder(cache, root)

    def exists(self) -> bool:
        """See `Files.exists`."""
        try:
            found = self._fs.get_file_info(self._at(LOG))
        except (OSError, pa.ArrowException) as error:
            raise SinkError(f"The ledger at {self.root} cannot be opened: {_reason(error)}.") from error
        return bool(found.type == arrow_fs.FileType.Directory)

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Files.sizes`."""
        infos = self._fs.get_file_info(arrow_fs.FileSelector(self._at(folder), allow_not_found=True))
        sizes = {
            info.base_name: info.size
            for info in infos
            if info.type == arrow_fs.FileType.File and not info.base_name.startswith(("_", "."))
        }
        self._forget_copies(folder, sizes)
        return sizes

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """See `Files.read`."""
        with self.near(path).open("rb") as file:
            file.seek(offset)
            return file.read() if length is None else _read_fully(file, length)

    def near(self, path: str) -> Path:
        """See `Files.near`."""
        copy = self._cache / path.replace("/", "-")
        if not copy.exists():
            arriving = self.scratch("")
            with self._fs.open_input_stream(self._at(path)) as source, arriving.open("wb") as target:
                while chunk := source.read(8 * 1024 * 1024):
                    target.write(chunk)
            arriving.replace(copy)
        return copy

    def arrow(self, path: str) -> Any:
        """See `Files.arrow`."""
        return self._fs.open_input_file(self._at(path))

    def scratch(self, folder: str) -> Path:
        """See `Files.scratch`."""
        return self._cache / f"{TEMPORARY}{folder}{secrets.token_hex(8)}"

    def publish(self, source: Path, path: str) -> None:
        """See `Files.publish`."""
        atomic = self._fs.type_name in ATOMIC_PUT
        folder, _, name = path.rpartition("/")
        target = self._at(path if atomic else f"{folder}/{TEMPORARY}{secrets.token_hex(8)}-{name}")
        with source.open("rb") as data, self._fs.open_output_stream(target) as out:
            while chunk := data.read(8 * 1024 * 1024):
                out.write(chunk)
        if not atomic:
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_file(self._at(path))  # HDFS does not rename onto a file
            self._fs.move(target, self._at(path))
        source.replace(self._cache / path.replace("/", "-"))

    def keep(self, source: Path, path: str) -> None:
        """See `Files.keep`."""
        copy = self._cache / path.replace("/", "-")
        copy.unlink(missing_ok=True)
        os.link(source, copy)

    def delete(self, path: str) -> None:
        """See `Files.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._at(path))
        (self._cache / path.replace("/", "-")).unlink(missing_ok=True)

    def prepare(self) -> None:
        """See `Files.prepare`. A probe is written and deleted: making a directory proves nothing on an object store."""
        probe = self._at(f"{LOG}/{TEMPORARY}{secrets.token_hex(8)}")
        try:
            for name in FOLDERS:
                self._fs.create_dir(self._at(name), recursive=True)
            with self._fs.open_output_stream(probe) as out:
                out.write(b"probe")
            self._fs.delete_file(probe)
        except (OSError, pa.ArrowException) as error:
            raise SinkError(
                f"The ledger at {self.root} cannot be written: {_reason(error)}. Nothing was sent and nothing is lost. "
                "Check the path and the permissions of the workers."
            ) from error

    def busy(self, path: str) -> bool:  # noqa: ARG002 - segments are complete from the moment they are there
        """See `Files.busy`."""
        return False

    @contextlib.contextmanager
    def maintaining(self, *, wait: bool) -> Iterator[bool]:  # noqa: ARG002
        """See `Files.maintaining`. There is no lock here: run one maintenance at a time; two only waste work."""
        yield True

    def _forget_copies(self, folder: str, sizes: dict[str, int]) -> None:
        """Deletes copies of what is no longer there, such as purged logs; young ones may be on their way up."""
        for copy in self._cache.glob(f"{folder}-*"):
            if copy.name.removeprefix(f"{folder}-") not in sizes:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - copy.stat().st_mtime > ABANDONED_S:
                        copy.unlink()

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}"


def _private_folder(chosen: Path | None, root: str) -> Path:
    """A directory that only this user can read, the same one for all processes of this machine where possible."""
    home = chosen or Path(tempfile.gettempdir()) / f"batch_infer-ledger-{os.getuid()}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or (not chosen and found.st_mode & 0o077):
        home = Path(tempfile.mkdtemp(prefix="batch_infer-ledger-"))  # somebody else was there first
    folder = home / hashlib.blake2b(root.encode(), digest_size=16).hexdigest()
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _read_fully(file: Any, length: int) -> bytes:
    data: bytes = file.read(length)
    while len(data) < length:
        more = file.read(length - len(data))
        if not more:
            break
        data += more
    return data


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).rstrip(".")
