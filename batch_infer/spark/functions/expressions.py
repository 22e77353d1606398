"""Owns reading and making Catalyst expressions through Py4J: types, constants, NULL guards, lambdas. On the driver."""

from __future__ import annotations

from typing import Any

import msgspec
from pyspark.sql.types import ArrayType, MapType, StructType, _parse_datatype_json_string

from batch_infer.spark.session import active_session


def type_of(expression: Any) -> Any:
    """An expression's type, as PySpark has it."""
    return _parse_datatype_json_string(expression.dataType().json())


def seq(jvm: Any, items: list[Any]) -> Any:
    """A Scala `Seq`."""
    return jvm.PythonUtils.toSeq(items)


def null_where_null(jvm: Any, guard: Any, value: Any) -> Any:
    """The value, and NULL where the guard is: a vectorised UDF cannot give a NULL struct itself."""
    expressions = jvm.org.apache.spark.sql.catalyst.expressions
    null = expressions.Literal(None, value.dataType())
    return getattr(expressions, "If")(expressions.IsNull(guard), null, value)  # noqa: B009 - a keyword in disguise


def constant_of(jvm: Any, expression: Any) -> Any:
    """The value of a foldable expression as plain Python; Spark itself turns it into JSON on the way."""
    catalyst = jvm.org.apache.spark.sql.catalyst
    kind = expression.dataType()
    schema = jvm.org.apache.spark.sql.types.StructType().add("value", kind)
    value = catalyst.CatalystTypeConverters.convertToScala(expression.eval(None), kind)
    row = catalyst.expressions.GenericRowWithSchema(_array(jvm, value), schema)
    return _with_text_keys(msgspec.json.decode(row.json())["value"], type_of(expression))


def _array(jvm: Any, value: Any) -> Any:
    gateway = active_session().sparkContext._gateway  # noqa: SLF001 - the only way to a Java array
    array = gateway.new_array(jvm.java.lang.Object, 1)
    array[0] = value
    return array


def uses_lambda_freely(expression: Any) -> bool:
    """Whether an expression stands inside a lambda, or has one that uses the variable of another around it.

    Spark does not evaluate a Python function there.
    """
    leaves = expression.collectLeaves()
    return any(_is_variable(leaves.apply(i)) for i in range(leaves.size())) and _has_free_variable(expression)


def _is_variable(expression: Any) -> bool:
    return bool(expression.getClass().getSimpleName().endswith("LambdaVariable"))


def _has_free_variable(expression: Any, bound: frozenset[str] = frozenset()) -> bool:
    """Whether a variable is used outside the very lambda that has it: `transform(xs, x -> f(x))` by itself is none."""
    if _is_variable(expression):
        return expression.toString() not in bound
    if expression.getClass().getSimpleName() == "LambdaFunction":
        variables = expression.arguments()
        bound = frozenset(variables.apply(i).toString() for i in range(variables.size()))
    children = expression.children()
    return any(_has_free_variable(children.apply(i), bound) for i in range(children.size()))


def _with_text_keys(value: Any, kind: Any) -> Any:
    """The value with each MAP as an object: Spark writes one whose keys are not text as a list of keys and values."""
    if value is None:
        return None
    if isinstance(kind, MapType):
        pairs = value.items() if isinstance(value, dict) else ((pair["key"], pair["value"]) for pair in value)
        return {str(key): _with_text_keys(inner, kind.valueType) for key, inner in pairs}
    if isinstance(kind, ArrayType):
        return [_with_text_keys(item, kind.elementType) for item in value]
    if isinstance(kind, StructType):
        return {field.name: _with_text_keys(value.get(field.name), field.dataType) for field in kind.fields}
    return value
