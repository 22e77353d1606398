"""Owns what a kind of table must be able to do for a job: the `Sink` class. On the driver.

One module a kind exports one sink; `sinks` lists them. A sink checks no arguments: `spark.tables.write` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.tables.rules import Schema, Siblings, Transaction, Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One write, all arguments checked."""

    mode: str
    merge_key: Sequence[str]
    partition_by: Sequence[str]
    transaction: Transaction | None
    on_step: Callable[[str], None]
    """Told of each step that a crash could follow; for tests."""


class Sink:
    """A kind of table. The methods that have a body here suit a kind that is a folder of files."""

    name: str
    """What `format` says."""
    modes: Sequence[str] = ("error", "overwrite", "append")
    """What it can do with a table that is there; every sink has these three."""
    settles_conflicts = False
    """Whether it decides itself which of two writers that add at once is first."""
    may_lack_columns = False
    """Whether rows may be written without some of the table's columns, which are NULL then."""

    def check_session(self, spark: SparkSession) -> None:
        """Refuses a session that cannot write it. Raises `ConfigError` with the lines that mend it."""

    def check_names(self, schema: Schema) -> None:
        """Refuses column names that it has no room for. Raises `ConfigError`."""

    def has_table(self, files: Files, names: Siblings, mode: str) -> bool:
        """Whether there is one at the path. Raises `ConfigError` where something else is."""
        raise NotImplementedError

    def is_whole(self, files: Files) -> bool:
        """Whether the table's writer came to its end."""
        del files
        return True

    def written(self, spark: SparkSession, files: Files, names: Siblings, mode: str) -> Written | None:
        """What this commit wrote when it is in the table already, with its leftovers cleared; else `None`."""
        raise NotImplementedError

    def existing_schema(self, spark: SparkSession, files: Files) -> StructType | None:
        """The table's schema; `None` where it has none yet."""
        raise NotImplementedError

    def partition_columns(self, spark: SparkSession, files: Files) -> list[str]:
        """The table's columns that are folders."""
        del spark, files
        return []

    def untyped_columns(self, spark: SparkSession, files: Files) -> list[str]:
        """Columns of the table whose type is not known."""
        del spark, files
        return []

    def how_to_add(self, path: str, columns: str) -> str | None:
        """The statement that adds columns to a table; `None`: there is none."""
        del path, columns
        return None

    def check_merge_key(self, df: DataFrame, merge_key: Sequence[str]) -> None:
        """Refuses rows among which a merge key is not unique. Raises `ConfigError`."""
        del df, merge_key
        raise ConfigError(f"a {self.name} table cannot be merged into.")

    def write(self, df: DataFrame, files: Files, names: Siblings, write: Write) -> Written:
        """Writes and commits, once for each transaction. Raises `SinkError`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<sink {self.name}>"


def quietly(step: str) -> Any:
    """Tells nobody of a step."""
    del step
