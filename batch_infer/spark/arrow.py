"""Owns the border between Arrow and the engine's records: batches to requests, outcomes to columns. Pure; no Spark.

On workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import pyarrow as pa

from batch_infer.adapters.arrow_types import array_of_lists, array_of_records, arrow_type
from batch_infer.contract.content import read_content
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import JobRejected, RowRejected
from batch_infer.contract.reply import Failure, Outcome
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import CallIdentity, Request
from batch_infer.contract.result_types import TypeJson, TypeMismatch
from batch_infer.contract.rows import (
    ERROR,
    ROW_CONTRACT,
    TOOL_CALL,
    USAGE,
    RowField,
    RowView,
    Shape,
    array,
    type_with,
)
from batch_infer.engine.token_estimates import estimate_prompt_tokens

TOOL_CALLS = array(TOOL_CALL)
"""Type of the column `tool_calls`."""


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
            reader.values(outcome.reply)
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
    *,
    contract: Sequence[RowField] = ROW_CONTRACT,
) -> pa.Array:
    """The column of one batch, in the shape asked for. A NULL request gives a NULL row, also where rows are structs."""
    values = [() if outcome is None or outcome.reply is None else reader.values(outcome.reply) for outcome in outcomes]
    if shape is not Shape.DETAILS:
        results = pa.array([value[0] if value else None for value in values], arrow_type(reader.result_type))
        return results if shape is Shape.RESULT else _with_errors(results, outcomes)
    costs = [None if outcome is None else _cost(endpoint, outcome) for outcome in outcomes]
    views = [
        RowView.of(request, outcome, value, cost)
        for request, outcome, value, cost in zip(requests, outcomes, values, costs, strict=True)
    ]
    columns = [_array(list(map(field.get, views)), type_with(field.type, reader.result_type)) for field in contract]
    return pa.StructArray.from_arrays(columns, [field.name for field in contract], mask=_nulls(outcomes))


def _array(values: list[Any], kind: TypeJson) -> pa.Array:
    """A column of the row contract; a struct's members are attributes of the values."""
    arrow = arrow_type(kind)
    if kind in (ERROR, USAGE):
        return array_of_records(values, arrow)
    if pa.types.is_list(arrow) and kind == TOOL_CALLS:
        return array_of_lists(values, arrow)
    return pa.array(values, arrow)


def _with_errors(results: pa.Array, outcomes: Sequence[Outcome | None]) -> pa.Array:
    """`STRUCT<result, errorMessage>`."""
    said = [outcome.failure.message if outcome and outcome.failure else None for outcome in outcomes]
    return pa.StructArray.from_arrays(
        [results, pa.array(said, pa.string())], ["result", "errorMessage"], mask=_nulls(outcomes)
    )


def _nulls(outcomes: Sequence[Outcome | None]) -> pa.Array:
    return pa.array([outcome is None for outcome in outcomes], pa.bool_())


def _cost(endpoint: Endpoint, outcome: Outcome) -> float | None:
    usage = outcome.usage
    return endpoint.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
