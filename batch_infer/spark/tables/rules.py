"""Owns what can be said of an output table without touching one: its arguments, names, schema rules, messages.

Types are in Spark's JSON form (`StructType.jsonValue()`). Does not read or write: `spark.tables` does.

On the driver.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batch_infer.contract.errors import ConfigError

_UNSTORABLE = ("void", "interval")

Schema = Mapping[str, Any]
"""A struct type in Spark's JSON form."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """The identity of one write: writing the same transaction again changes nothing.

    Args:
        app_id: Who writes: stable over the retries and restarts of a job, and different between jobs.
        version: Which write of theirs it is. Delta skips a version that is not above the last one of this `app_id`.
    """

    app_id: str
    version: int

    def __post_init__(self) -> None:
        if not self.app_id:
            raise ConfigError(
                "a transaction's app_id is empty. Give a name that a restart of the same job gives again."
            )
        if self.version < 0:
            raise ConfigError(f"a transaction's version counts from 0; got {self.version}.")

    @property
    def commit_id(self) -> str:
        """16 hexadecimal digits that name this transaction in files and commits."""
        return hashlib.sha256(f"{self.app_id}\0{self.version}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Written:
    """What a write left behind."""

    rows: int
    """Rows that this transaction wrote; for a merge, rows of its source. The same when it had been written before."""
    path: str
    """Fully qualified."""
    version: int | None = None
    """The version of a Delta table that this transaction made; `None` for Parquet."""


@dataclass(frozen=True, slots=True)
class Siblings:
    """Names beside a table and in it. Dots and underscores hide them from Spark, Hive and Arrow."""

    folder: str
    name: str
    commit_id: str

    @classmethod
    def of(cls, path: str, commit_id: str) -> Siblings:
        """The names for one commit to the table at this path."""
        folder, _, name = path.rstrip("/").rpartition("/")
        return cls(folder, name, commit_id)

    @property
    def prefix(self) -> str:
        """What names of all commits to this table start with."""
        return f".{self.name}.batch_infer-"

    @property
    def staging(self) -> str:
        """The data before it is committed."""
        return f"{self.folder}/{self.prefix}{self.commit_id}.tmp"

    @property
    def set_aside(self) -> str:
        """The table that is being replaced."""
        return f"{self.folder}/{self.prefix}{self.commit_id}.old"

    @property
    def creating(self) -> str:
        """Says that the files of a table without a commit are this transaction's leftovers."""
        return f"{self.folder}/{self.prefix}{self.commit_id}.new"

    @property
    def marker(self) -> str:
        """The file in a Parquet table which says that this commit is in it."""
        return f"_batch_infer-{self.commit_id}.json"

    @property
    def journal(self) -> str:
        """The file in a Parquet table which says what an append is moving in."""
        return f"_batch_infer-{self.commit_id}.moving.json"


def check_schema(
    schema: Schema,
    *,
    format: str,  # noqa: A002
    merge_key: Sequence[str] = (),
    partition_by: Sequence[str] = (),
) -> None:
    """Refuses what no table of this format can hold, whatever is at the path.

    Raises:
        ConfigError: a column without a type, two of one name, an unknown column.
    """
    names = [field["name"] for field in schema["fields"]]
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            raise ConfigError(
                f"the output has two columns named {seen[name.lower()]!r} and {name!r}. Rename one of them."
            )
        seen[name.lower()] = name
    _check_types(schema, format)
    for what, columns in (("merge_key", merge_key), ("partition_by", partition_by)):
        for column in columns:
            if column not in names:
                raise ConfigError(f"{what} names {column!r}, which is not a column of the output: {', '.join(names)}.")
    if partition_by and len(set(partition_by)) == len(names):
        raise ConfigError("partition_by names every column of the output; at least one must be left to be stored.")


def _check_types(schema: Schema, format: str) -> None:  # noqa: A002
    for place, kind in _leaves(schema, ""):
        if isinstance(kind, str) and kind.startswith(_UNSTORABLE):
            cast = "CAST(NULL AS STRING), or whichever type it has" if kind == "void" else f"CAST({place} AS STRING)"
            raise ConfigError(
                f"the output's {place} is of type {kind.upper()}, which a {format} table cannot hold. Write {cast}."
            )


def no_statement(path: str, columns: str) -> str | None:
    """For tables to which no statement adds columns."""
    del path, columns
    return None


def check_fit(
    schema: Schema,
    existing: Schema,
    *,
    path: str,
    may_lack_columns: bool = False,
    how_to_add: Callable[[str, str], str | None] = no_statement,
    untyped: Sequence[str] = (),
) -> None:
    """Refuses a schema that does not fit an existing table: names and types are equal, nullability aside.

    Args:
        schema: Of the rows to write.
        existing: Of the table.
        path: Of the table, for the message.
        may_lack_columns: Whether the table may have columns that the output has not: they are NULL in new rows, and
            kept in merged ones.
        how_to_add: The statement that adds columns to the table at a path, for the message.
        untyped: Columns whose type is not compared: the partition columns of a Parquet table are only text.

    Raises:
        ConfigError: with every difference.
    """
    old = {field["name"]: field["type"] for field in existing["fields"]}
    new = {field["name"]: field["type"] for field in schema["fields"]}
    differences = []
    added = []
    for name, kind in new.items():
        twin = next((other for other in old if other.lower() == name.lower()), None)
        if twin is None:
            added.append(f"{quoted(name)} {ddl(kind)}")
            differences.append(f"{name} {ddl(kind)} is not in the table")
        elif twin != name:
            differences.append(f"{name} is written {twin} there")
        elif ddl(kind) != ddl(old[name]) and name not in untyped:
            differences.append(f"{name} is {ddl(kind)} here and {ddl(old[name])} there")
    if not may_lack_columns:
        lower = {name.lower() for name in new}
        differences += [
            f"{name} {ddl(kind)} is missing here" for name, kind in old.items() if name.lower() not in lower
        ]
    if not differences:
        return
    remedy = "Select and cast the columns to fit, or write to another path."
    if len(added) == len(differences) and (statement := how_to_add(path, ", ".join(added))) is not None:
        remedy = f"Add them first: {statement}"
    raise ConfigError(f"the output does not fit the table at {path}: {'; '.join(differences)}. {remedy}")


def ddl(kind: Any) -> str:
    """A type in Spark's JSON form as DDL, without nullability: equal types have equal text."""
    if isinstance(kind, str):
        return {"integer": "INT", "long": "BIGINT", "short": "SMALLINT", "byte": "TINYINT"}.get(kind, kind.upper())
    if kind["type"] == "array":
        return f"ARRAY<{ddl(kind['elementType'])}>"
    if kind["type"] == "map":
        return f"MAP<{ddl(kind['keyType'])}, {ddl(kind['valueType'])}>"
    if kind["type"] == "struct":
        fields = (f"{quoted(field['name'])}: {ddl(field['type'])}" for field in kind["fields"])
        return f"STRUCT<{', '.join(fields)}>"
    return str(kind["type"]).upper()


def _children(kind: Any, place: str) -> list[tuple[str, Any]]:
    if isinstance(kind, str):
        return []
    if kind["type"] == "struct":
        return [(f"{place}.{field['name']}" if place else field["name"], field["type"]) for field in kind["fields"]]
    return [(place, kind[part]) for part in ("elementType", "keyType", "valueType") if part in kind]


def _leaves(kind: Any, place: str) -> list[tuple[str, Any]]:
    children = _children(kind, place)
    return [leaf for name, child in children for leaf in _leaves(child, name)] if children else [(place, kind)]


def names_in(kind: Any, place: str) -> list[str]:
    """Every name in a type, of fields inside fields too."""
    names = []
    for name, child in _children(kind, place):
        names += [name, *names_in(child, name)]
    return names


def quoted(name: str) -> str:
    """A name as an identifier of Spark SQL, in backticks."""
    return "`" + name.replace("`", "``") + "`"
