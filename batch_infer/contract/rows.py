"""Owns the row contract: the columns that `details => true` and jobs give, their types, and where values come from.

Types are in Spark's JSON form; DDL, Arrow types, the ledger's columns and a job's measures derive from them. Pure; on
driver and workers.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from batch_infer.contract.reply import NO_OUTCOME, Outcome, Reply, Usage
from batch_infer.contract.request import Request
from batch_infer.contract.result_types import TypeJson


class Shape(Enum):
    """What one `ai_query` column looks like."""

    RESULT = "result"
    """T itself; the first failure stops the job (`failOnError => true`)."""
    RESULT_AND_ERROR = "result_and_error"
    """`STRUCT<result: T, errorMessage: STRING>` (`failOnError => false`)."""
    DETAILS = "details"
    """The whole row contract (`details => true`)."""


def struct(**fields: TypeJson) -> TypeJson:
    """A struct type in Spark's JSON form."""
    described = [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in fields.items()]
    return {"type": "struct", "fields": described}


def array(element: TypeJson) -> TypeJson:
    """An array type in Spark's JSON form."""
    return {"type": "array", "elementType": element, "containsNull": True}


T: TypeJson = "T"
"""Stand-in for the result's type."""
ERROR = struct(kind="string", status="integer", message="string", retryable="boolean")
"""Type of a row's error; its members are attributes of `contract.reply.Failure`."""
USAGE_FIELDS: tuple[str, ...] = Usage.__struct_fields__
"""Names of the token counts."""
USAGE = struct(**dict.fromkeys(USAGE_FIELDS, "long"))
"""Type of a row's usage."""
TOOL_CALL = struct(id="string", name="string", arguments="string")
"""Type of one tool call; its members are attributes of `contract.reply.ToolCall`."""


@dataclass(frozen=True, slots=True)
class RowView:
    """What one row's columns are made of."""

    request: Request | None
    outcome: Outcome
    reply: Reply | None
    """What the endpoint said, also where it is not what was asked for."""
    values: tuple[Any, ...]
    """The result as T, or every choice's; empty where there is none."""
    has_choices: bool
    cost_usd: float | None

    @classmethod
    def of(
        cls, request: Request | None, outcome: Outcome | None, values: tuple[Any, ...], cost_usd: float | None
    ) -> RowView:
        """The view of a row; an outcome that is `None` is a NULL request's."""
        given = outcome or NO_OUTCOME
        reply = given.reply
        has_choices = reply is not None and bool(reply.choices)
        if reply is None and given.failure is not None:
            reply = given.failure.reply
        return cls(request, given, reply, values, has_choices, cost_usd)

    def said(self, name: str) -> Any:
        """A member of the reply; NULL where there is none."""
        return None if self.reply is None else getattr(self.reply, name)


@dataclass(frozen=True, slots=True)
class RowField:
    """One column of the row contract."""

    name: str
    type: TypeJson
    text: str
    """What it holds, for documentation."""
    get: Callable[[RowView], Any]
    """Its value: of a struct an object with the members as attributes, of an array a sequence of them."""


ROW_CONTRACT: tuple[RowField, ...] = (
    RowField("result", T, "the reply as T", lambda row: row.values[0] if row.values else None),
    RowField("error", ERROR, "NULL on success", lambda row: row.outcome.failure),
    RowField(
        "usage",
        USAGE,
        "tokens that the endpoint billed for this row, failed and repeated attempts included; of a packed embeddings "
        "request, the row's exact share",
        lambda row: row.outcome.usage,
    ),
    RowField("cost_usd", "double", "US dollars; NULL where the endpoint has no price", lambda row: row.cost_usd),
    RowField(
        "finish_reason",
        "string",
        "why the model stopped: `stop`, `length`, `content_filter`, `tool_calls`, …",
        lambda row: row.said("finish_reason"),
    ),
    RowField("reasoning", "string", "the model's visible reasoning", lambda row: row.said("reasoning")),
    RowField("tool_calls", array(TOOL_CALL), "functions that the model asks for", lambda row: row.said("tool_calls")),
    RowField(
        "choices",
        array(T),
        "every choice as T, when `n > 1`; `result` is the first",
        lambda row: list(row.values) if row.has_choices else None,
    ),
    RowField(
        "message",
        "string",
        "the whole assistant message as JSON, unmodified: what the next turn sends back",
        lambda row: row.said("message"),
    ),
    RowField("model", "string", "the model's name as the endpoint reported it", lambda row: row.said("model")),
    RowField("attempts", "integer", "requests sent for this row", lambda row: row.outcome.attempts),
    RowField("latency_ms", "long", "of the last attempt, queueing excluded", lambda row: row.outcome.latency_ms),
    RowField(
        "request_key",
        "string",
        "hash of everything that decides the reply",
        lambda row: None if row.request is None else row.request.key,
    ),
    RowField("from_ledger", "boolean", "`true`: this row cost nothing now", lambda row: row.outcome.from_ledger),
)
"""The columns, in their order."""

DETAIL_FIELDS = tuple(field.name for field in ROW_CONTRACT[1:])
"""Names of the columns beside `result`."""


def type_with(kind: TypeJson, result: TypeJson) -> TypeJson:
    """A type of the contract, with the result's type in T's place."""
    if isinstance(kind, str):
        return result if kind == T else kind
    if kind["type"] == "array":
        return {**kind, "elementType": type_with(kind["elementType"], result)}
    return {**kind, "fields": [{**each, "type": type_with(each["type"], result)} for each in kind["fields"]]}


_DDL = {"integer": "INT", "long": "BIGINT"}


def _ddl(kind: TypeJson, result: str) -> str:
    if isinstance(kind, str):
        return result if kind == T else _DDL.get(kind, kind.upper())
    if kind["type"] == "array":
        return f"ARRAY<{_ddl(kind['elementType'], result)}>"
    return "STRUCT<" + ", ".join(f"{each['name']}: {_ddl(each['type'], result)}" for each in kind["fields"]) + ">"


def column_ddl(shape: Shape, result: str, contract: tuple[RowField, ...] = ROW_CONTRACT) -> str:
    """The column's type as Spark DDL, around the result's type T."""
    if shape is Shape.RESULT:
        return result
    if shape is Shape.RESULT_AND_ERROR:
        return f"STRUCT<result: {result}, errorMessage: STRING>"
    return _ddl(struct(**{field.name: field.type for field in contract}), result)
