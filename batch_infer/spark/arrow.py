"""Owns the border between Arrow and the engine's records: batches to requests, outcomes to columns. Pure; no Spark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

import pyarrow as pa

from batch_infer.contract.content import read_content
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import JobRejected, RowRejected
from batch_infer.contract.reply import Failure, Outcome, Reply
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import CallIdentity, Request
from batch_infer.contract.result_types import TypeJson, TypeMismatch
from batch_infer.contract.rows import USAGE_FIELDS, Shape
from batch_infer.engine.token_estimates import estimate_prompt_tokens

_SCALARS = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")

ERROR = pa.struct([("kind", pa.string()), ("status", pa.int32()), ("message", pa.string()), ("retryable", pa.bool_())])
USAGE = pa.struct([(name, pa.int64()) for name in USAGE_FIELDS])
TOOL_CALLS = pa.list_(pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments", pa.string())]))


def arrow_type(kind: TypeJson) -> pa.DataType:
    """The Arrow type of a result type in Spark's JSON form."""
    if isinstance(kind, str):
        decimal = _DECIMAL.fullmatch(kind)
        return pa.decimal128(*map(int, decimal.groups())) if decimal else _SCALARS[kind]
    if kind["type"] == "array":
        return pa.list_(arrow_type(kind["elementType"]))
    if kind["type"] == "map":
        return pa.map_(pa.string(), arrow_type(kind["valueType"]))
    return pa.struct([(field["name"], arrow_type(field["type"])) for field in kind["fields"]])


def requests_of(
    request: pa.Array,
    files: pa.Array | None,
    sample: pa.Array | None,
    identity: CallIdentity,
    *,
    keys: pa.Array | None = None,
    origins: pa.Array | None = None,
    function: str = "ai_query",
) -> list[Request | None]:
    """A request per row; `None` where the request column is NULL.

    Args:
        request: In one of the forms of `contract.content`.
        files: BINARY or ARRAY<BINARY>, or `None`.
        sample: BIGINT, or `None`; NULL counts as 0.
        identity: What all keys share.
        keys: The rows' keys, where they are known; else they are made here.
        origins: The rows' numbers (`Request.origin`), where they have any.
        function: Name under which the call was made, for messages.
    """
    _check_types(request, files, sample, identity.task, function)
    contents = [read_content(value, identity.task) for value in request.to_pylist()]
    attached = [attached_files(value) for value in files.to_pylist()] if files is not None else [()] * len(contents)
    samples = [int(value or 0) for value in sample.to_pylist()] if sample is not None else [0] * len(contents)
    known: list[str | None] = keys.to_pylist() if keys is not None else [None] * len(contents)
    numbers: list[int] = origins.to_pylist() if origins is not None else [-1] * len(contents)
    requests: list[Request | None] = []
    for content, images, number, key, origin in zip(contents, attached, samples, known, numbers, strict=True):
        if content is None:
            requests.append(None)
            continue
        requests.append(
            Request(
                key=key or identity.key(content.hashed, images, number),
                content=content.sent,
                files=images,
                prompt_tokens=estimate_prompt_tokens(content.sent, len(images)),
                origin=origin,
                problem=content.problem,
            )
        )
    return requests


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _check_types(request: pa.Array, files: pa.Array | None, sample: pa.Array | None, task: str, function: str) -> None:
    """Refuses columns of other types before anything is sent: a Column's type is known no earlier than here."""
    kind = request.type
    is_array = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_messages = is_array and (pa.types.is_struct(kind.value_type) or _is_text(kind.value_type))
    if not _is_text(kind) and not (is_messages and task == "chat" and "map<" not in str(kind)):
        messages = ", or an ARRAY<STRUCT<role: STRING, content: STRING>>" if task == "chat" else ""
        _refuse(function, "request", kind, f"a STRING{messages}, because the endpoint is for {task}")
    if files is not None:
        held = (
            files.type.value_type if pa.types.is_list(files.type) or pa.types.is_large_list(files.type) else files.type
        )
        if not (pa.types.is_binary(held) or pa.types.is_large_binary(held) or pa.types.is_null(held)):
            _refuse(function, "files", files.type, "BINARY or ARRAY<BINARY>, the images themselves")
    if sample is not None and not (pa.types.is_integer(sample.type) or pa.types.is_null(sample.type)):
        _refuse(function, "sample", sample.type, "a whole number (BIGINT)")


def _refuse(function: str, argument: str, kind: pa.DataType, allowed: str) -> NoReturn:
    raise JobRejected(
        f"{function}: the argument {argument!r} is {allowed}; got the Arrow type {kind}. Cast the column.",
        kind="config",
    )


def attached_files(value: Any) -> tuple[bytes, ...]:
    """A row's files: none for NULL, one for BINARY, those that are not NULL of an ARRAY<BINARY>."""
    if value is None:
        return ()
    return (value,) if isinstance(value, bytes) else tuple(file for file in value if file is not None)


def typed(
    outcomes: Sequence[Outcome | None],
    requests: Sequence[Request | None],
    reader: ReplyReader,
    *,
    fail_on_error: bool = False,
) -> list[Outcome | None]:
    """The outcomes, where a reply from the ledger that cannot be read as asked is that row's failure.

    The type is not part of a request's identity: what was asked for as text may be asked for as a number later.

    Raises:
        RowRejected: with `fail_on_error`, at the first such reply.
    """
    if reader.takes_any_text:
        return list(outcomes)
    checked: list[Outcome | None] = []
    for request, outcome in zip(requests, outcomes, strict=True):
        if outcome is None or not outcome.from_ledger or outcome.reply is None or outcome.reply.embedding is not None:
            checked.append(outcome)
            continue
        try:
            _result(outcome, reader)
            _choices(outcome.reply, reader)
        except TypeMismatch as error:
            message = (
                f"the reply, known from before, is not of the form asked for: {error}.{reader.hint} "
                "To ask again, set fresh."
            )
            if fail_on_error:
                key = request.key if request is not None else None
                raise RowRejected(f"request {key}: {message}", kind="type_mismatch") from None
            failure = Failure("type_mismatch", message, reply=outcome.reply)
            checked.append(Outcome(failure=failure, from_ledger=True))
        else:
            checked.append(outcome)
    return checked


def column_of(
    outcomes: Sequence[Outcome | None],
    requests: Sequence[Request | None],
    shape: Shape,
    reader: ReplyReader,
    endpoint: Endpoint,
) -> pa.Array:
    """The column of one batch, in the shape asked for. A NULL request gives a NULL row, also where rows are structs."""
    kind = arrow_type(reader.result_type)
    results = pa.array([_result(outcome, reader) for outcome in outcomes], kind)
    if shape is Shape.RESULT:
        return results
    null_rows = pa.array([outcome is None for outcome in outcomes], pa.bool_())
    if shape is Shape.RESULT_AND_ERROR:
        messages = pa.array(
            [outcome.failure.message if outcome and outcome.failure else None for outcome in outcomes], pa.string()
        )
        return pa.StructArray.from_arrays([results, messages], ["result", "errorMessage"], mask=null_rows)
    columns = {"result": results, **_details(outcomes, requests, reader, endpoint)}
    return pa.StructArray.from_arrays(list(columns.values()), list(columns), mask=null_rows)


def _result(outcome: Outcome | None, reader: ReplyReader) -> Any:
    reply = outcome.reply if outcome is not None else None
    if reply is None:
        return None
    if reply.embedding is not None:
        return reply.embedding
    return _said(reply.text, reader)


def _choices(reply: Reply | None, reader: ReplyReader) -> list[Any] | None:
    if reply is None or not reply.choices:
        return None
    return [_said(text, reader) for text in reply.choices]


def _said(text: str | None, reader: ReplyReader) -> Any:
    if not text:  # tool calls alone
        return text if reader.result_type == "string" else None
    return reader.read(text)


def _details(
    outcomes: Sequence[Outcome | None],
    requests: Sequence[Request | None],
    reader: ReplyReader,
    endpoint: Endpoint,
) -> dict[str, pa.Array]:
    nothing = Outcome()
    rows = [outcome if outcome is not None else nothing for outcome in outcomes]
    failures = [row.failure for row in rows]
    # What the endpoint said is shown also where it is not what was asked for.
    replies = [row.reply or (row.failure.reply if row.failure is not None else None) for row in rows]
    usages = [row.usage for row in rows]

    def of_reply(name: str) -> list[Any]:
        return [getattr(reply, name) if reply is not None else None for reply in replies]

    error = pa.StructArray.from_arrays(
        [
            pa.array(
                [getattr(failure, field.name) if failure is not None else None for failure in failures], field.type
            )
            for field in ERROR
        ],
        fields=list(ERROR),
        mask=pa.array([failure is None for failure in failures], pa.bool_()),
    )
    usage = pa.StructArray.from_arrays(
        [pa.array([getattr(usage, name) for usage in usages], pa.int64()) for name in USAGE_FIELDS],
        fields=list(USAGE),
    )
    calls = [
        [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.tool_calls]
        if reply is not None and reply.tool_calls
        else None
        for reply in replies
    ]
    costs = [endpoint.cost_usd(u.prompt_tokens, u.completion_tokens, u.cached_tokens) for u in usages]
    return {
        "error": error,
        "usage": usage,
        "cost_usd": pa.array(costs, pa.float64()),
        "finish_reason": pa.array(of_reply("finish_reason"), pa.string()),
        "reasoning": pa.array(of_reply("reasoning"), pa.string()),
        "tool_calls": pa.array(calls, TOOL_CALLS),
        "choices": pa.array([_choices(row.reply, reader) for row in rows], pa.list_(arrow_type(reader.result_type))),
        "message": pa.array(of_reply("message"), pa.string()),
        "model": pa.array(of_reply("model"), pa.string()),
        "attempts": pa.array([row.attempts for row in rows], pa.int32()),
        "latency_ms": pa.array([row.latency_ms for row in rows], pa.int64()),
        "request_key": pa.array([request.key if request else None for request in requests], pa.string()),
        "from_ledger": pa.array([row.from_ledger for row in rows], pa.bool_()),
    }
