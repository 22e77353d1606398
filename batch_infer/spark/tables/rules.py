"""Owns what can be said of an output table without touching one: its arguments, names, schema rules, messages.

Types are in Spark's JSON form (`StructType.jsonValue()`). Does not read or write: `spark.tables` does.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batch_infer.contract.errors import ConfigError

FORMATS = ("parquet", "delta")
MODES = ("error", "overwrite", "append", "merge")

DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
DELTA_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
_DELTA_RELEASES = {"3.5": "delta-spark_{scala}:3.3.2", "4": "delta-spark_{spark}_{scala}:4.4.0"}
"""Jars by Spark version: Delta 3.3 is the last for Spark 3.5; since Delta 4.1 a jar's name holds Spark's version.

Source: Maven Central's metadata of io.delta. The newest is 4.4.0; Python's delta-spark 4.4.1 has no jar of its own."""
_NOT_IN_DELTA_NAMES = frozenset(" ,;{}()\n\t=")
"""Source: Delta's protocol without column mapping, which follows Parquet's old rule for names."""
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


def check_choice(*, format: str, mode: str, merge_key: Sequence[str]) -> None:  # noqa: A002 - the user's own word
    """Refuses unknown formats and modes, and those that do not go together.

    Raises:
        ConfigError: with the names that exist.
    """
    for what, value, known in (("format", format, FORMATS), ("mode", mode, MODES)):
        if value not in known:
            near = difflib.get_close_matches(str(value), known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            offered = (*known, "resume") if what == "mode" else known  # which is known before this is asked
            raise ConfigError(f"the output's {what} is one of {', '.join(offered)}; got {value!r}.{hint}")
    if mode == "merge" and format != "delta":
        raise ConfigError("mode 'merge' updates rows in place, which Parquet cannot. Use format='delta'.")
    if mode == "merge" and not merge_key:
        raise ConfigError(
            "mode 'merge' needs merge_key: the columns that say which row of the table a new row replaces."
        )
    if mode != "merge" and merge_key:
        raise ConfigError(f"merge_key is given, but mode is {mode!r}, which has no use for it. Use mode='merge'.")


def check_schema(
    schema: Schema,
    *,
    format: str,  # noqa: A002
    merge_key: Sequence[str] = (),
    partition_by: Sequence[str] = (),
) -> None:
    """Refuses what no table of this format can hold, whatever is at the path.

    Raises:
        ConfigError: a column without a type, two of one name, a name that Delta has no room for, an unknown column.
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
    if format == "delta":
        _check_delta_names(schema)
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


def _check_delta_names(schema: Schema) -> None:
    for place in _names(schema, ""):
        unfit = sorted(_NOT_IN_DELTA_NAMES.intersection(place))
        if unfit:
            raise ConfigError(f"a Delta column's name cannot hold {unfit[0]!r}: {place!r}. Rename it with .alias(…).")


def check_fit(
    schema: Schema,
    existing: Schema,
    *,
    path: str,
    format: str,  # noqa: A002
    untyped: Sequence[str] = (),
) -> None:
    """Refuses a schema that does not fit an existing table: names and types are equal, nullability aside.

    A Delta table may have columns that the output has not: they are NULL in new rows, and kept in merged ones.

    Args:
        schema: Of the rows to write.
        existing: Of the table.
        path: Of the table, for the message.
        format: Of both.
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
    if format == "parquet":
        lower = {name.lower() for name in new}
        differences += [
            f"{name} {ddl(kind)} is missing here" for name, kind in old.items() if name.lower() not in lower
        ]
    if not differences:
        return
    remedy = "Select and cast the columns to fit, or write to another path."
    if format == "delta" and len(added) == len(differences):
        remedy = f"Add them first: ALTER TABLE delta.{quoted(path)} ADD COLUMNS ({', '.join(added)})"
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


def _names(kind: Any, place: str) -> list[str]:
    names = []
    for name, child in _children(kind, place):
        names += [name, *_names(child, name)]
    return names


def merge_statement(path: str, view: str, key: Sequence[str], columns: Sequence[str]) -> str:
    """MERGE by key: rows of the view update those of the table, or are inserted. NULL keys are equal to each other."""
    on = " AND ".join(f"t.{quoted(name)} <=> s.{quoted(name)}" for name in key)
    updates = ", ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in columns if name not in key)
    names = ", ".join(map(quoted, columns))
    values = ", ".join(f"s.{quoted(name)}" for name in columns)
    matched = f"WHEN MATCHED THEN UPDATE SET {updates} " if updates else ""
    return (
        f"MERGE INTO delta.{quoted(path)} t USING {quoted(view)} s ON {on} {matched}"  # noqa: S608 - all are quoted
        f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"
    )


def quoted(name: str) -> str:
    """A name as an identifier of Spark SQL, in backticks."""
    return "`" + name.replace("`", "``") + "`"


def delta_package(spark_version: str, scala_version: str) -> str:
    """The Maven coordinates of Delta for a running Spark, as `--packages` takes them."""
    spark = ".".join(spark_version.split(".")[:2])
    scala = ".".join(scala_version.split(".")[:2])
    release = _DELTA_RELEASES.get(spark) or _DELTA_RELEASES["4"]
    return f"io.delta:{release.format(spark=spark, scala=scala)}"


def how_to_get_delta(missing: str, spark_version: str, scala_version: str) -> str:
    """The message for a session that cannot speak Delta: what is missing, and the lines that add it."""
    package = delta_package(spark_version, scala_version)
    catalog = "spark.sql.catalog.spark_catalog"
    return (
        f"format 'delta': {missing}. It must be there when the session starts; start it again with either\n"
        f"  spark-submit --packages {package} \\\n"
        f"    --conf spark.sql.extensions={DELTA_EXTENSION} \\\n"
        f"    --conf {catalog}={DELTA_CATALOG} …\n"
        "or, in Python, after spark.stop() and in a fresh process if the jar is what is missing:\n"
        "  SparkSession.builder \\\n"
        f'    .config("spark.jars.packages", "{package}") \\\n'
        f'    .config("spark.sql.extensions", "{DELTA_EXTENSION}") \\\n'
        f'    .config("{catalog}", "{DELTA_CATALOG}") \\\n'
        "    .getOrCreate()\n"
        "or write format='parquet'."
    )
