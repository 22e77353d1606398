"""Owns the way from the arguments of one `ai_query` to its `ColumnPlan`: every check that needs no row. On the driver.

Both surfaces come through here, the Python Column and the SQL function, so that they accept and refuse the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
from pyspark.sql import SparkSession
from pyspark.sql.types import DataType, StringType

from batch_infer.adapters.ledger import LedgerWriter
from batch_infer.adapters.local.server import check_installed
from batch_infer.adapters.registry import find_endpoint
from batch_infer.adapters.wire.choose import check_wire
from batch_infer.adapters.worker import CallPlan
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.parameters import check_parameters, parse_response_format
from batch_infer.contract.rows import Shape
from batch_infer.contract.typed import check_result_type, ddl_of, response_format_of
from batch_infer.spark.session import ledger_path, open_call, settings_of, task_slots
from batch_infer.spark.udf import ColumnPlan

DEFAULT_ENDPOINT_SETTING = "spark.batch_infer.default_endpoint"


def plan_column(
    spark: SparkSession,
    endpoint_name: str | None,
    *,
    return_type: str | DataType | None = None,
    fail_on_error: bool = True,
    model_parameters: Mapping[str, Any] | None = None,
    response_format: str | Mapping[str, Any] | None = None,
    details: bool = False,
    stop_on_row_error: bool | None = None,
    has_files: bool = False,
    has_sample: bool = False,
    fresh: bool = False,
    ledger: str | None = None,
) -> ColumnPlan:
    """Checks a call's constant arguments and opens it on the driver's service. Sends nothing.

    `ledger` is a path, `"off"`, or `None` for the session's own (`spark.batch_infer.ledger`, or in local mode a
    folder that lives as long as the session). `stop_on_row_error` says whether a failed row ends the job; by default
    `fail_on_error`, unless `details`.

    Raises:
        ConfigError: says which argument, what is wrong with it, and what is allowed.
    """
    settings = settings_of(spark)
    if not isinstance(endpoint_name, str | None):
        raise ConfigError(
            f"ai_query: the endpoint is the name of one, as text; got {type(endpoint_name).__name__}. "
            "Use one query per endpoint, or union them."
        )
    name = endpoint_name or settings.get(DEFAULT_ENDPOINT_SETTING)
    if not name:
        raise ConfigError(
            f"ai_query: no endpoint is named. Name one, or set {DEFAULT_ENDPOINT_SETTING}; "
            "'local/chat' and 'local/embed' work with nothing configured."
        )
    endpoint = find_endpoint(name, settings)
    if endpoint.provider == "local":
        check_installed()
    parameters = check_parameters(model_parameters, endpoint.task)
    wire_format = _response_format(spark, response_format, endpoint)
    check_wire(endpoint, parameters, wire_format)
    result = _result_type(spark, return_type, endpoint)
    if has_files and endpoint.task != "chat":
        raise ConfigError(
            f"ai_query: endpoint {name!r} is for {endpoint.task}, and files can only go to a chat endpoint."
        )
    result_json = result.jsonValue()
    check_result_type(result_json, endpoint.task)
    remembered = ledger_path(spark, settings, ledger)
    if remembered is not None:
        LedgerWriter(remembered, "check").close()  # refuses an unusable ledger before anything is paid
    call_id, address = open_call(spark, endpoint)
    call = CallPlan(
        call_id=call_id,
        endpoint=endpoint,
        parameters=msgspec.json.encode(parameters).decode(),
        response_format=msgspec.json.encode(wire_format).decode() if wire_format is not None else None,
        result_type=result_json,
        fail_on_error=fail_on_error and not details if stop_on_row_error is None else stop_on_row_error,
        slots=task_slots(spark),
        service=address,
        ledger=remembered,
        fresh_since=time.time() if fresh else None,
    )
    shape = Shape.DETAILS if details else Shape.RESULT if fail_on_error else Shape.RESULT_AND_ERROR
    return ColumnPlan(
        call=call, shape=shape, result_ddl=ddl_of(result_json), has_files=has_files, has_sample=has_sample
    )


def check_request_type(request: DataType, task: str) -> None:
    """Refuses a request column that the endpoint's task cannot take.

    Raises:
        ConfigError: names the column's type and what is allowed.
    """
    kind = request.typeName()
    if kind in ("string", "void") or kind.startswith(("varchar", "char")):
        return
    if kind == "array" and task == "chat":
        element = request.elementType
        if element.typeName() == "struct" and {"role", "content"} <= set(element.fieldNames()):
            return
    messages = ", or an ARRAY<STRUCT<role: STRING, content: STRING>> of messages" if task == "chat" else ""
    raise ConfigError(
        f"ai_query: the request is {request.simpleString().upper()}; a {task} endpoint takes a STRING{messages}. "
        "Cast it, or convert it with to_json."
    )


def check_argument_names(given: Mapping[str, Any] | list[str], allowed: tuple[str, ...]) -> None:
    """Refuses an argument that `ai_query` does not have.

    Raises:
        ConfigError: names the argument, the nearest one, and all.
    """
    for name in given:
        if name not in allowed:
            near = get_close_matches(name, allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"ai_query: there is no argument {name!r}.{hint} The arguments are: {', '.join(allowed)}."
            )


def _response_format(
    spark: SparkSession, given: str | Mapping[str, Any] | None, endpoint: Endpoint
) -> dict[str, Any] | None:
    if given is None:
        return None
    if endpoint.task != "chat":
        raise ConfigError(
            f"responseFormat: endpoint {endpoint.name!r} is for {endpoint.task}; only chat endpoints take it."
        )
    if isinstance(given, str) and given.strip()[:6].upper() in ("STRUCT", "ARRAY<"):
        kind = _parse_type(spark, given, "responseFormat").jsonValue()
        check_result_type(kind, endpoint.task)
        return response_format_of(kind)
    return parse_response_format(given)


def _result_type(spark: SparkSession, given: str | DataType | None, endpoint: Endpoint) -> DataType:
    if given is None:
        return _parse_type(spark, "ARRAY<FLOAT>", "") if endpoint.task == "embeddings" else StringType()
    return given if isinstance(given, DataType) else _parse_type(spark, given, "returnType")


def _parse_type(spark: SparkSession, ddl: str, argument: str) -> DataType:
    parser = spark._jsparkSession.sessionState().sqlParser()  # noqa: SLF001 - DDL is parsed by Spark itself
    try:
        text = parser.parseDataType(ddl).json()
    except Exception as error:  # noqa: BLE001 - Py4J's, whose class depends on the Spark version
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise ConfigError(
            f"{argument}: {ddl!r} is not a type. Write one such as 'STRING', 'ARRAY<FLOAT>' or "
            f"'STRUCT<name: STRING, age: INT>'. Spark says: {reason}"
        ) from None
    return _from_json(text)


def _from_json(text: str) -> DataType:
    from pyspark.sql import types  # noqa: PLC0415 - a private helper, looked up where it is used

    return types._parse_datatype_json_string(text)  # noqa: SLF001 - the inverse of DataType.json()
