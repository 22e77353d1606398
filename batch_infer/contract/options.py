"""Owns the arguments of a call and of a job, each once: SQL, Python and the command line derive theirs from here.

`CallOptions` is what one `ai_query` is asked for, whatever the surface; `JobOptions` is what a job adds. On the driver.
SQL's names are the fields' in camelCase; a command line's are `--field-name`, unless the field's metadata says
otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from batch_infer.contract.field_texts import with_field_texts

DEFAULT_STOP_AFTER_FAILURES = 100
"""Requests that fail in one way, with none answered, before a job sends nothing further: enough to tell a broken call
from bad luck, and cheap."""

MODES = ("error", "overwrite", "append", "merge", "resume")
"""Names of what a job may do with a table that is there."""

SqlKind = Literal["column", "text", "flag", "any"]
"""What SQL takes for an argument: any expression, or a constant STRING, BOOLEAN, or of any type."""


def _argument(value: Any = None, *, sql: SqlKind | None = None, **command_line: Any) -> Any:
    """A field, with its kind in SQL (`None`: not there) and what the command line makes of it."""
    return field(default=value, metadata={"sql": sql, "cli": command_line})


@with_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The arguments of one call, in SQL's order."""

    endpoint: str | None = _argument(sql="text")
    """Registered name, `'provider/model'`, `'local/chat'` or `'local/embed'`; by default the session's
    `spark.batch_infer.default_endpoint`."""
    request: Any = _argument(sql="column", flag="--request-column")
    """Column of prompts, messages, or a custom model's inputs."""
    return_type: Any = _argument(sql="text")
    """Type of the result, as DDL such as `'STRUCT<label: STRING>'`; by default STRING, ARRAY<FLOAT> for embeddings, or
    in Python the type of `response_format`."""
    fail_on_error: bool = _argument(True, sql="flag", default=False)
    """Whether the first row that fails for good ends the query; otherwise the row has its error."""
    model_parameters: Any = _argument(sql="any", kind="json")
    """Parameters passed to the endpoint as they are, such as `{"max_tokens": 64, "temperature": 0}`."""
    response_format: Any = _argument(sql="text")
    """What the model must answer: a type as DDL, JSON text, or in Python a pydantic class or a dataclass."""
    files: Any = _argument(sql="column", flag="--files-column")
    """Column of images, BINARY or ARRAY<BINARY>; for chat endpoints."""
    details: bool = _argument(False, sql="flag", default=True)
    """Whether the whole row contract is given: error, usage, cost and more."""
    sample: Any = _argument(sql="column", flag="--sample-column")
    """BIGINT that tells equal prompts apart, so that each is asked."""
    fresh: bool = _argument(False, sql="flag")
    """Ask again although the ledger knows the reply."""

    @property
    def has_files(self) -> bool:
        """Whether images go with the requests."""
        return self.files is not None

    @property
    def has_sample(self) -> bool:
        """Whether equal prompts are told apart; the constant 0 tells nothing apart."""
        return self.sample is not None and not (isinstance(self.sample, int) and self.sample == 0)


@with_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """The arguments of a job beside its call's."""

    output: str = _argument("", required=True)
    """Path of the table to write."""
    prompt: str | None = _argument()
    """Template over columns, such as `'Summarise in one sentence: {body}'`, instead of a request column. A NULL column
    makes a NULL request."""
    format: str = _argument("parquet")
    """Format of the table: `parquet` or `delta`."""
    mode: str = _argument("error", choices=MODES)
    """What to do with a table that is there: `error`, `overwrite`, `append`, (Delta) `merge`, or `resume`: continue the
    run that was broken off."""
    merge_key: Sequence[str] = _argument((), kind="list", metavar="COLUMN")
    """Columns that identify a row, for mode `merge`."""
    ledger: str | None = _argument()
    """Path or URI of the ledger, shared by all workers; by default the session's `spark.batch_infer.ledger`, or
    `<output>.ledger`."""
    retry_failed: bool = _argument(False)
    """Ask again for every request that failed before, not only for those that may succeed."""
    result_column: str = _argument("result")
    """Name of the result's column."""
    max_error_ratio: float = _argument(1.0, kind="number", metavar="RATIO")
    """Part of the requests whose failure ends the sending, judged from the 100th on; 1 never does."""
    stop_after_failures: int | None = _argument(DEFAULT_STOP_AFTER_FAILURES, kind="count", metavar="N")
    """Requests that may fail in one way, before any was answered, until nothing further is sent; on the command line, 0
    never stops."""


def camel_case(name: str) -> str:
    """A field's name in SQL: `return_type` is `returnType`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def sql_arguments(options: type = CallOptions) -> Mapping[str, SqlKind]:
    """The arguments of the SQL function, in the order in which they may be given by position, with their kinds."""
    return {camel_case(each.name): each.metadata["sql"] for each in fields(options) if each.metadata["sql"] is not None}
