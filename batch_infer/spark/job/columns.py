"""Owns the columns of a job: the request made of the input's, what the input may be called, and the output's.

On the driver; makes plans and reads no row.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.rows import DETAIL_FIELDS
from batch_infer.spark.job.phases import ANSWER, INTERNAL, OUTCOME
from batch_infer.spark.job.template import Field, Text, check_columns, parse_template
from batch_infer.spark.tables.rules import quoted


def request_column(df: DataFrame, prompt: str | None, request: Column | str | None) -> Column:
    """What each row asks.

    Raises:
        ConfigError: neither or both are given, or a column is missing.
    """
    if prompt is not None and request is None:
        return prompt_column(df, prompt)
    if request is not None and prompt is None:
        if not isinstance(request, str):
            return request
        check_names([request], df, "request")
        return column_named(df, request)
    raise ConfigError("run: give either a prompt template or a request column.")


def check_names(names: Sequence[str], df: DataFrame, argument: str) -> None:
    """Refuses a name that is no column of the input.

    Raises:
        ConfigError: names the nearest one, and how to write a constant prompt.
    """
    for name in names:
        try:
            check_columns([Field(name)], df.columns)
        except ConfigError as error:
            hint = (
                f" For the same prompt for every row, write {argument}=F.lit({name!r})."
                if argument == "request"
                else ""
            )
            said = str(error).removeprefix("prompt template: ").replace("{", "'").replace("}", "'")
            raise ConfigError(f"run: {argument}: {said}{hint}") from None


def check_input(df: DataFrame, files: str | None, sample: str | None, added: Sequence[str]) -> None:
    """Refuses an input whose columns are of wrong types, or whose names the job needs itself.

    Raises:
        ConfigError: says which column, and what to do.
    """
    kinds = {field.name: field.dataType.simpleString() for field in df.schema}
    for argument, name, allowed in (
        ("files", files, ("binary", "array<binary>")),
        ("sample", sample, ("tinyint", "smallint", "int", "bigint")),
    ):
        if name is None:
            continue
        check_names([name], df, argument)
        kind = kinds.get(name, allowed[0])
        if kind not in allowed:
            raise ConfigError(f"run: {argument}={name!r} is {kind.upper()}; it is {' or '.join(allowed).upper()}.")
    _check_distinct(df)
    taken = {name.lower() for name in (*added, *INTERNAL, OUTCOME, ANSWER)}
    clashes = [name for name in df.columns if name.lower() in taken]
    if clashes:
        raise ConfigError(
            f"run: the input already has the columns {', '.join(map(repr, clashes))}, which the job writes. "
            "Rename them first, or choose another result_column."
        )


def _check_distinct(df: DataFrame) -> None:
    seen: dict[str, str] = {}
    for name in df.columns:
        if name.lower() in seen:
            raise ConfigError(
                f"run: the input has two columns named {seen[name.lower()]!r} and {name!r}, which a table cannot keep "
                "apart. Rename or drop one of them first."
            )
        seen[name.lower()] = name


def added_names(details: bool, result_column: str) -> list[str]:
    """The columns that a job adds to its input's."""
    return [result_column, *(DETAIL_FIELDS if details else ("error_message",))]


def output_columns(df: DataFrame, details: bool, result_column: str) -> list[Column]:
    """The output's columns over the rows of the last phase."""
    kept = [F.col(quoted(name)) for name in df.columns]
    result = F.col(f"{ANSWER}.result").alias(result_column)
    if not details:
        return [*kept, result, F.col(f"{ANSWER}.error.message").alias("error_message")]
    return [*kept, result, *(F.col(f"{ANSWER}.{name}") for name in DETAIL_FIELDS)]


def prompt_column(df: DataFrame, template: str) -> Column:
    """A template as a column: its columns as text, NULL where any of them is NULL.

    Raises:
        ConfigError: the template is malformed, or names a column that `df` does not have.
    """
    parts = parse_template(template)
    check_columns(parts, df.columns)
    return F.concat(
        *(F.lit(part.text) if isinstance(part, Text) else column_named(df, part.path).cast("string") for part in parts)
    )


def column_named(df: DataFrame, path: str) -> Column:
    """The column of this name, dots and all, where there is one; else a path into a struct: `address.city`."""
    return F.col(quoted(path) if path.lower() in {name.lower() for name in df.columns} else path)
