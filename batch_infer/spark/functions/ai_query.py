"""Owns `ai_query` in SQL: its record, and the expression of a call. Does not check values: `spark.planning` does.

Other functions that ask a model build their expression with `asked`. On the driver, during analysis.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields, replace
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.options import CallOptions, camel_case, sql_arguments
from batch_infer.spark.functions.expressions import null_where_null, seq, type_of
from batch_infer.spark.functions.record import SqlCall, SqlFunction
from batch_infer.spark.planning import INPUT_OPTIONS, check_ledger, check_request_type, plan_column
from batch_infer.spark.session import active_session, close_call, find_call
from batch_infer.spark.udf import ColumnPlan, build_udf

KEPT_UDFS = 100
"""Calls with different constants whose UDFs are kept for the next query."""


def _build(call: SqlCall) -> Any:
    by_name = {camel_case(each.name): each.name for each in fields(CallOptions)}
    given = {by_name[name]: value for name, value in call.constants.items() if value is not None}
    given |= {by_name[name]: value for name, value in call.columns.items()}
    return asked(call, CallOptions(**given))


def asked(call: SqlCall, options: CallOptions) -> Any:
    """The expression of a call: options whose `request`, `files` and `sample` are expressions.

    Raises:
        ConfigError: an argument is wrong.
    """
    plan = plan_column(active_session(), options, function=call.function)
    task = plan.call.endpoint.task
    check_request_type(type_of(options.request), task, call.function)
    dynamic = [_as_json(call, options.request) if task == "custom" else options.request]
    if options.has_files:
        dynamic.append(_images(call, options.files))
    if options.has_sample:
        dynamic.append(_integer(call, options.sample))
    check_ledger(plan)
    udf = _udf_of(call, plan)
    unwrapped = getattr(udf, "_unwrapped", udf)
    answer = unwrapped._judf.builder(seq(call.jvm, dynamic))  # noqa: SLF001 - what Column expressions are made of
    return null_where_null(call.jvm, options.request, answer)


def _udf_of(call: SqlCall, plan: ColumnPlan) -> Any:
    """The UDF of a plan: of calls with equal constants the same one, so that Spark sees that they are equal.

    Only where it is deterministic. What was built for an earlier query serves as long as the driver knows its call.
    """
    if plan.call.ledger is None or plan.call.fresh:
        return build_udf(plan)
    udfs: OrderedDict[bytes, tuple[str, Any]] = call.kept.setdefault("udfs", OrderedDict())
    constants = msgspec.json.encode(replace(plan, call=replace(plan.call, call_id="", run="")))
    known_id, known = udfs.get(constants, ("", None))
    if known is not None and find_call(known_id) is not None:
        close_call(plan.call.call_id)
        udfs.move_to_end(constants)
        return known
    built = build_udf(plan)
    udfs[constants] = plan.call.call_id, built
    while len(udfs) > KEPT_UDFS:
        udfs.popitem(last=False)
    return built


def _as_json(call: SqlCall, inputs: Any) -> Any:
    """As `to_json`, for a custom model's inputs."""
    expressions = call.jvm.org.apache.spark.sql.catalyst.expressions
    parser = active_session()._jsparkSession.sessionState().sqlParser()  # noqa: SLF001 - how a literal is made
    words = [parser.parseExpression(f"'{word}'") for option in INPUT_OPTIONS.items() for word in option]
    return expressions.StructsToJson(inputs, expressions.CreateMap(seq(call.jvm, words), False))


def _integer(call: SqlCall, expression: Any) -> Any:
    kind = expression.dataType().simpleString()
    if kind not in ("tinyint", "smallint", "int", "bigint"):
        raise ConfigError(
            f"{call.function}: the argument 'sample' is a whole number (BIGINT), constant or column; got "
            f"{kind.upper()}."
        )
    return expression


def _images(call: SqlCall, expression: Any) -> Any:
    kind = expression.dataType().simpleString()
    if kind not in ("binary", "array<binary>", "void"):
        raise ConfigError(
            f"{call.function}: the argument 'files' is BINARY or ARRAY<BINARY>, the images themselves; got "
            f"{kind.upper()}."
        )
    return expression


AI_QUERY = SqlFunction(
    name="ai_query",
    arguments=sql_arguments(),
    build=_build,
    required=("request",),
    usage="{name}(endpoint, request, …), or {name}(request => …) for the session's spark.batch_infer.default_endpoint",
)
