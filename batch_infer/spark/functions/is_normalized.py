"""Owns `is_normalized(vector[, tol])` in SQL: the Column function's expression, over the arguments that SQL gives.

On the driver.
"""

from __future__ import annotations

from typing import Any

import pyspark
from pyspark.sql import Column

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.functions.record import SqlCall, SqlFunction
from batch_infer.spark.session import active_session
from batch_infer.spark.vectors import TOLERANCE, is_normalized

HAS_COLUMN_NODES = not pyspark.__version__.startswith("3.")
"""Whether a Column is more than a thin coat around an expression, as from Spark 4 on."""


def _build(call: SqlCall) -> Any:
    vector = call.columns["vector"]
    kind = vector.dataType().simpleString()
    if kind not in ("array<float>", "array<double>", "void"):
        raise ConfigError(f"{call.function}: the vector is an ARRAY<FLOAT> or ARRAY<DOUBLE>; got {kind.upper()}.")
    tol = call.constants.get("tol", TOLERANCE)
    if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not tol > 0:
        raise ConfigError(f"{call.function}: the tolerance is a number above 0; got {tol!r}.")
    sql = call.jvm.org.apache.spark.sql
    if kind == "void":
        return sql.catalyst.expressions.Literal(None, sql.types.DataType.fromDDL("BOOLEAN"))
    if HAS_COLUMN_NODES:
        checked = is_normalized(Column(sql.classic.ExpressionUtils.column(vector)), tol)
        return active_session()._jsparkSession.expression(checked._jc)  # noqa: SLF001 - the inverse of `column`
    return is_normalized(Column(sql.Column(vector)), tol)._jc.expr()  # noqa: SLF001


IS_NORMALIZED = SqlFunction(
    name="is_normalized",
    arguments={"vector": "column", "tol": "any"},
    build=_build,
    required=("vector",),
    usage="{name}(vector[, tol])",
)
