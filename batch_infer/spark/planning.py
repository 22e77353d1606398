"""Owns the way from the arguments of one `ai_query` to its `ColumnPlan`: every check that needs no row. On the driver.

Both surfaces come through here, the Python Column and the SQL function, so that they accept and refuse the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
from pyspark.sql.types import DataType, StringType

from batch_infer.adapters.credentials.secrets import resolve, unresolved_message
from batch_infer.adapters.ledger import LedgerWriter
from batch_infer.adapters.providers.calls import check_call, check_ready
from batch_infer.adapters.providers.model_list import check_model
from batch_infer.adapters.providers.registry import find_endpoint
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.json_schema import response_format_of
from batch_infer.contract.parameters import check_parameters, near_misses, parse_response_format
from batch_infer.contract.plan import CallPlan
from batch_infer.contract.reply_reader import check_schema
from batch_infer.contract.result_types import TypeJson, check_result_type, ddl_of
from batch_infer.contract.rows import Shape
from batch_infer.contract.secret import SecretReference
from batch_infer.spark.session import ledger_path, open_call, settings_of, task_slots
from batch_infer.spark.udf import ColumnPlan

logger = logging.getLogger("batch_infer")

DEFAULT_ENDPOINT_SETTING = "spark.batch_infer.default_endpoint"

INPUT_OPTIONS = {"ignoreNullFields": "false"}
"""Of `to_json`, for a custom model's inputs: a feature that is NULL is sent as null, and not left out."""


def plan_column(
    spark: SparkSession,
    endpoint_name: str | None,
    *,
    return_type: str | DataType | None = None,
    fail_on_error: bool = True,
    model_parameters: Mapping[str, Any] | str | None = None,
    response_format: str | Mapping[str, Any] | DataType | None = None,
    details: bool = False,
    stop_on_row_error: bool | None = None,
    has_files: bool = False,
    has_sample: bool = False,
    fresh: bool = False,
    retry_failed: bool = False,
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
    check_ready(endpoint)
    check_model(endpoint)
    parameters = check_parameters(model_parameters, endpoint.task)
    for given, near in near_misses(parameters).items():
        logger.warning("modelParameters: %r is sent as it is; did you mean %r?", given, near)
    wire_format, format_type = _response_format(spark, response_format, endpoint)
    check_call(endpoint, parameters, wire_format)
    result = _result_type(spark, return_type, endpoint)
    if has_files and endpoint.task != "chat":
        raise ConfigError(
            f"ai_query: endpoint {name!r} is for {endpoint.task}, and files can only go to a chat endpoint."
        )
    result_json = result.jsonValue()
    check_result_type(result_json, endpoint.task)
    remembered = ledger_path(spark, settings, ledger)
    call_id, address = open_call(spark, endpoint)
    call = CallPlan(
        call_id=call_id,
        endpoint=endpoint,
        parameters=msgspec.json.encode(parameters).decode(),
        response_format=msgspec.json.encode(wire_format).decode() if wire_format is not None else None,
        result_type=result_json,
        format_type=format_type,
        fail_on_error=fail_on_error and not details if stop_on_row_error is None else stop_on_row_error,
        slots=task_slots(spark),
        service=address,
        ledger=remembered,
        run=call_id,
        fresh=fresh,
        retry_failed=retry_failed,
    )
    shape = Shape.DETAILS if details else Shape.RESULT if fail_on_error else Shape.RESULT_AND_ERROR
    return ColumnPlan(
        call=call, shape=shape, result_ddl=ddl_of(result_json), has_files=has_files, has_sample=has_sample
    )


def check_ledger(plan: ColumnPlan) -> None:
    """Refuses a ledger that cannot be written, and makes it where there is none: so this is the last check of all.

    Raises:
        SinkError: says why.
    """
    if plan.call.ledger is not None:
        LedgerWriter(plan.call.ledger, "check").close()


def check_secret(spark: SparkSession, endpoint: Endpoint) -> None:
    """Refuses an endpoint whose api_key leads to nothing; on a cluster, where the workers may know it, only warns.

    Raises:
        ConfigError: names the reference, and what to do.
    """
    if endpoint.api_key is None:
        return
    reference = SecretReference.parse(endpoint.api_key)
    if resolve(reference) is not None:
        return
    if spark.sparkContext.master.startswith("local"):
        raise ConfigError(f"endpoint {endpoint.name!r}: {unresolved_message(reference)}")
    logger.warning(
        "endpoint %r: its api_key '%s' leads to nothing on the driver. Unless every worker knows it, the run fails.",
        endpoint.name,
        reference,
    )


def check_request_type(request: DataType, task: str) -> None:
    """Refuses a request column that the endpoint's task cannot take.

    Raises:
        ConfigError: names the column's type, the task, and what is allowed.
    """
    kind = request.typeName()
    is_text = _is_text(request)
    if kind == "void" or (is_text and task != "custom") or (task == "custom" and kind in ("struct", "map")):
        return
    if kind == "array" and task == "chat" and _is_message(request.elementType):
        return
    allowed = {
        "chat": "a STRING, or an ARRAY<STRUCT<role: STRING, content: STRING>> of messages",
        "custom": "a STRUCT (or MAP) of its inputs, such as named_struct('feature', column)",
    }.get(task, "a STRING")
    hint = " Cast it, or convert it with to_json."
    if task == "chat" and kind in ("struct", "map"):
        hint = " Named inputs go to a custom model; for a chat, make them text with to_json, or write messages."
    elif task in ("embeddings", "completions") and kind == "array":
        hint = " Messages go to a chat endpoint; give this one their text."
    elif task == "custom":
        hint = ""
    article = "an" if task[0] in "aeiou" else "a"
    raise ConfigError(
        f"ai_query: the request is {request.simpleString().upper()}; {article} {task} endpoint takes {allowed}.{hint}"
    )


def _is_text(kind: DataType) -> bool:
    return str(kind.typeName()).startswith(("string", "varchar", "char"))


def _is_message(element: Any) -> bool:
    """Whether an array of this holds messages: STRUCT<role, content>, without maps inside, or their JSON."""
    if _is_text(element):
        return True
    if element.typeName() != "struct" or not {"role", "content"} <= set(element.fieldNames()):
        return False
    content = element["content"].dataType
    return "map<" not in element.simpleString() and (content.typeName() in ("array", "void") or _is_text(content))


def as_sent(request: Column, task: str) -> Column:
    """The request column as the UDF takes it: a custom model's inputs as JSON, every other as it is."""
    return F.to_json(request, INPUT_OPTIONS) if task == "custom" else request


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
    spark: SparkSession, given: str | Mapping[str, Any] | DataType | None, endpoint: Endpoint
) -> tuple[dict[str, Any] | None, TypeJson | None]:
    """The wire's `response_format`, and the type that it was given as, if it was."""
    if given is None:
        return None, None
    if endpoint.task != "chat":
        raise ConfigError(
            f"responseFormat: endpoint {endpoint.name!r} is for {endpoint.task}; only chat endpoints take it."
        )
    if isinstance(given, DataType) or (isinstance(given, str) and not given.lstrip().startswith(("{", "[", '"'))):
        parsed = given if isinstance(given, DataType) else _parse_type(spark, given, "responseFormat")
        kind: TypeJson = parsed.jsonValue()
        check_result_type(kind, endpoint.task, argument="responseFormat")
        return response_format_of(kind), kind
    parsed_json = parse_response_format(given)
    if parsed_json["type"] == "json_schema":
        check_schema(parsed_json["json_schema"]["schema"])
    return parsed_json, None


def _result_type(spark: SparkSession, given: str | DataType | None, endpoint: Endpoint) -> DataType:
    if given is None and endpoint.task == "custom":
        raise ConfigError(
            f"returnType: endpoint {endpoint.name!r} serves a custom model, which can answer anything. Say the type of "
            "one row's prediction, such as returnType => 'DOUBLE'."
        )
    if given is None:
        return _parse_type(spark, "ARRAY<FLOAT>", "") if endpoint.task == "embeddings" else StringType()
    return given if isinstance(given, DataType) else _parse_type(spark, given, "returnType")


def _parse_type(spark: SparkSession, ddl: str, argument: str) -> DataType:
    parser = spark._jsparkSession.sessionState().sqlParser()  # noqa: SLF001 - DDL is parsed by Spark itself
    try:
        text = parser.parseDataType(ddl).json()
    except Exception as error:  # noqa: BLE001 - Py4J's, whose class depends on the Spark version
        reason = str(error).strip().split("\n", 1)[0][:200]
        is_format = argument == "responseFormat"
        also = ', or JSON such as {"type":"json_object"}' if is_format else ""
        no_type = "neither JSON nor a type" if is_format else "not a type"
        raise ConfigError(
            f"{argument}: {ddl!r} is {no_type}. Write one such as 'STRING', 'ARRAY<FLOAT>' or "
            f"'STRUCT<name: STRING, age: INT>'{also}. Spark says: {reason}"
        ) from None
    return _from_json(text)


def _from_json(text: str) -> DataType:
    from pyspark.sql import types  # noqa: PLC0415 - a private helper, looked up where it is used

    return types._parse_datatype_json_string(text)  # noqa: SLF001 - the inverse of DataType.json()
