"""Owns which SQL functions there are, and their registration in a session. On the driver."""

from __future__ import annotations

import logging
from typing import Any

from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.functions.ai_query import AI_QUERY
from batch_infer.spark.functions.builder import FunctionBuilder
from batch_infer.spark.functions.is_normalized import IS_NORMALIZED
from batch_infer.spark.functions.record import SqlFunction
from batch_infer.spark.session import LEDGER_SETTING, ledger_path, settings_of

logger = logging.getLogger("batch_infer")

FUNCTIONS: list[SqlFunction] = [AI_QUERY, IS_NORMALIZED]
"""Every function that `register` registers."""

BATCH_ROWS_SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"
BATCH_ROWS = 256
"""Rows in an Arrow batch: the most that a LIMIT above a function wastes, a task."""
EXCLUDED_RULES_SETTING = "spark.sql.optimizer.excludedRules"
LIMIT_RULES = (
    "org.apache.spark.sql.catalyst.optimizer.PushProjectionThroughLimit",
    "org.apache.spark.sql.catalyst.optimizer.PushProjectionThroughLimitAndOffset",
)
"""Optimizer rules that move a projection below a limit, and so ask for rows that the limit drops."""

_builders: list[Any] = []
"""Builders that live on: Py4J holds Python objects by weak reference from the JVM's side."""


def register_functions(spark: SparkSession, *, prefix: str, keep_limits: bool) -> list[str]:
    """Registers the SQL functions in this session; see `batch_infer.register`.

    Raises:
        ConfigError: the session has a built-in function of one of the names, which would win.
    """
    functions = {prefix + function.name: function for function in FUNCTIONS}
    registry = spark._jsparkSession.sessionState().functionRegistry()  # noqa: SLF001 - see the module's docstring
    for name in functions:
        if spark.sql(f"SHOW SYSTEM FUNCTIONS LIKE '{name}'").collect():
            raise ConfigError(
                f"this Spark has a function {name!r} of its own, which would be called (and may bill) instead of this "
                "one. Register under another name: register(spark, prefix='bi_')."
            )
    gateway = spark.sparkContext._gateway  # noqa: SLF001
    ensure_callback_server_started(gateway)
    # A Java exception raised in a callback arrives as itself, and not as a Python traceback inside a Py4JException.
    for name_of_parameters in ("python_parameters", "_callback_server_parameters", "callback_server_parameters"):
        parameters = getattr(gateway, name_of_parameters, None)
        if parameters is not None:
            parameters.propagate_java_exceptions = True
    for name, function in functions.items():
        builder = FunctionBuilder(spark._jvm, function, name)  # noqa: SLF001
        _builders.append(builder)
        registry.createOrReplaceTempFunction(name, builder, "python_udf")
    _apply_settings(spark, keep_limits=keep_limits)
    if ledger_path(spark, settings_of(spark)) is None:
        logger.warning(
            "No ledger is set, so whatever Spark evaluates again is paid for again. Set %s to a path that all workers "
            "share.",
            LEDGER_SETTING,
        )
    return list(functions)


def _apply_settings(spark: SparkSession, *, keep_limits: bool) -> None:
    conf = spark._jsparkSession.sessionState().conf()  # noqa: SLF001 - the public conf cannot tell set from default
    if not conf.contains(BATCH_ROWS_SETTING):
        spark.conf.set(BATCH_ROWS_SETTING, str(BATCH_ROWS))
    if keep_limits:
        rules = [rule for rule in (spark.conf.get(EXCLUDED_RULES_SETTING, None) or "").split(",") if rule]
        missing = [rule for rule in LIMIT_RULES if rule not in rules]
        if missing:
            spark.conf.set(EXCLUDED_RULES_SETTING, ",".join([*rules, *missing]))
