"""Owns the few file operations that tables need, on any store that Spark reaches. Does not know what a table is.

Hadoop's FileSystem API, through the driver's JVM: the same code serves local disks, HDFS and object stores.

On the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError, SinkError

ATOMIC_SCHEMES = frozenset({"file", "hdfs", "viewfs", "webhdfs", "swebhdfs"})
"""Schemes of stores on which the rename of a folder is one step for certain. Elsewhere (S3, GCS) it is a copy of file
after file. Source: Hadoop's FileSystem specification. ABFS is atomic only with a hierarchical namespace, so it is not
here."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder in a listing."""

    name: str
    is_folder: bool


class Files:
    """The file system of one path. Runs on the driver.

    Args:
        spark: A classic session: Spark Connect gives no way to the file system.
        path: Any path or URI that Spark takes; relative ones are taken as Spark takes them.

    Raises:
        ConfigError: the path is empty, or no file system serves it.
    """

    def __init__(self, spark: SparkSession, path: str) -> None:
        if not hasattr(spark, "_jsparkSession"):
            raise ConfigError(
                "tables are written through the driver's JVM, which Spark Connect does not give. Use a classic "
                "session, or write the DataFrame yourself with df.write."
            )
        if not path:
            raise ConfigError("the output's path is empty. Give a folder to write the table to.")
        if ":" in path.rstrip("/").rpartition("/")[2]:
            raise ConfigError(
                f"the output's name {path.rstrip('/').rpartition('/')[2]!r} holds a colon, which Hadoop's file systems "
                "cannot have in a name. Write to another one; the folders above it may hold colons."
            )
        self._jvm = spark._jvm  # noqa: SLF001 - Spark has no public file API
        try:
            hadoop_path = self._jvm.org.apache.hadoop.fs.Path(path)
            conf = spark._jsparkSession.sessionState().newHadoopConf()  # noqa: SLF001
            self._fs = hadoop_path.getFileSystem(conf)
            qualified = self._fs.makeQualified(hadoop_path)
        except Py4JJavaError as error:
            raise ConfigError(
                f"the output's path {path!r} cannot be used: {_first_line(error)}. Check its scheme and spelling."
            ) from None
        self.root: str = qualified.toString()
        """The path, fully qualified."""
        self.is_atomic: bool = qualified.toUri().getScheme() in ATOMIC_SCHEMES
        """Whether the rename of a folder is one step here."""

    def _path(self, path: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(path)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        with _explained("look at", path):
            return bool(self._fs.exists(self._path(path)))

    def is_file(self, path: str) -> bool:
        """Whether there is a file, and not a folder."""
        with _explained("look at", path):
            return bool(self._fs.exists(self._path(path))) and bool(self._fs.getFileStatus(self._path(path)).isFile())

    def list(self, path: str) -> list[Entry]:
        """What a folder holds, hidden files too, by name; nothing where there is no folder."""
        with _explained("list", path):
            if not self._fs.exists(self._path(path)):
                return []
            statuses = self._fs.listStatus(self._path(path))
            entries = [Entry(status.getPath().getName(), bool(status.isDirectory())) for status in statuses]
        return sorted(entries, key=lambda entry: entry.name)

    def modified_ms(self, path: str) -> int:
        """When it was last changed, in milliseconds since 1970."""
        with _explained("look at", path):
            return int(self._fs.getFileStatus(self._path(path)).getModificationTime())

    def make_folder(self, path: str) -> None:
        """Makes a folder and those above it."""
        with _explained("make the folder", path):
            self._fs.mkdirs(self._path(path))

    def rename(self, source: str, target: str) -> None:
        """Renames to a name that must be free: Hadoop would move a folder *into* an existing one."""
        with _explained(f"rename {source} to", target):
            if self._fs.exists(self._path(target)):
                raise SinkError(
                    f"could not rename {source} to {target}: that name is taken. Is another run writing there?"
                )
            if not self._fs.rename(self._path(source), self._path(target)):
                raise SinkError(
                    f"could not rename {source} to {target}: the file system refused. Are both names writable?"
                )

    def delete(self, path: str) -> None:
        """Deletes a file, or a folder with what it holds; nothing happens where there is none."""
        with _explained("delete", path):
            self._fs.delete(self._path(path), True)

    def read_text(self, path: str) -> str:
        """The whole of a small file."""
        with _explained("read", path):
            stream = self._fs.open(self._path(path))
            try:
                return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
            finally:
                stream.close()

    def write_text(self, path: str, text: str) -> None:
        """Writes a small file; on disks and HDFS it appears whole or not at all."""
        folder, _, name = path.rpartition("/")
        draft = f"{folder}/.{name}.draft"
        self.rewrite_text(draft, text)
        self.delete(path)
        self.rename(draft, path)

    def rewrite_text(self, path: str, text: str) -> None:
        """Writes a small file in place: it is there all the time, and for a moment not whole."""
        with _explained("write", path):
            stream = self._fs.create(self._path(path), True)
            try:
                stream.write(bytearray(text.encode()))
            finally:
                stream.close()


def read_parquet(spark: SparkSession, *paths: str, schema: StructType | str | None = None) -> DataFrame:
    """A Parquet table at paths that are names, not patterns: `[`, `{`, `*` and `?` stand for themselves."""
    reader = spark.read.option("__globPaths__", "false")
    return (reader if schema is None else reader.schema(schema)).parquet(*paths)


@contextmanager
def _explained(action: str, path: str) -> Iterator[None]:
    try:
        yield
    except Py4JJavaError as error:
        raise SinkError(f"could not {action} {path}: {_first_line(error)}") from None


def _first_line(error: Py4JJavaError) -> str:
    text = str(error.java_exception.toString()).splitlines()
    return text[0] if text else "no reason was given"
