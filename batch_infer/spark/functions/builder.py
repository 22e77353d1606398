"""Owns `ai_query` in plain SQL: a function builder in the session's registry. Does not check values: `planning` does.

A registered Python UDF has one return type; `ai_query` has as many as it has arguments. So what is registered is not a
UDF but a *builder*: during analysis Spark hands it the call's resolved argument expressions, it reads the constants
among them, and gives back an expression of the right type around a UDF made for this call.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import msgspec
import pyspark
from py4j.protocol import Py4JJavaError
from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import Column, SparkSession
from pyspark.sql.types import ArrayType, MapType, StructType, _parse_datatype_json_string

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.planning import (
    DEFAULT_ENDPOINT_SETTING,
    INPUT_OPTIONS,
    check_argument_names,
    check_ledger,
    check_request_type,
    plan_column,
)
from batch_infer.spark.session import (
    LEDGER_SETTING,
    active_session,
    close_call,
    find_call,
    ledger_path,
    settings_of,
)
from batch_infer.spark.udf import ColumnPlan, build_udf
from batch_infer.spark.vectors import TOLERANCE, is_normalized

logger = logging.getLogger("batch_infer")

ARGUMENTS = (
    "endpoint",
    "request",
    "returnType",
    "failOnError",
    "modelParameters",
    "responseFormat",
    "files",
    "details",
    "sample",
    "fresh",
)
"""In the order in which they may be given by position."""
COLUMNS = ("request", "files", "sample")
"""Arguments that may differ from row to row."""

BATCH_ROWS_SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"
BATCH_ROWS = 256
"""Rows in an Arrow batch: what a LIMIT above the function wastes at most, a task."""
EXCLUDED_RULES_SETTING = "spark.sql.optimizer.excludedRules"
LIMIT_RULES = (
    "org.apache.spark.sql.catalyst.optimizer.PushProjectionThroughLimit",
    "org.apache.spark.sql.catalyst.optimizer.PushProjectionThroughLimitAndOffset",
)

KEPT_UDFS = 100
"""Calls with different constants whose UDFs are kept for the next query."""

HAS_COLUMN_NODES = not pyspark.__version__.startswith("3.")
"""From Spark 4 on a Column is no longer a thin coat around an expression."""

_builders: list[Any] = []
"""Py4J holds Python objects by weak reference from the JVM's side; the registry's must live on."""


def register(spark: SparkSession, *, prefix: str = "", keep_limits: bool = True) -> list[str]:
    """Registers the SQL functions in this session.

    Also sets, unless the user has: 256 rows in an Arrow batch, and (with `keep_limits`) that a LIMIT stays below the
    function, so that `SELECT ai_query(…) FROM (SELECT … LIMIT 10)` calls ten times.

    Args:
        spark: The session.
        prefix: Put before the name, where a built-in function of the same name exists.
        keep_limits: Excludes the optimizer rules that move a projection below a limit.

    Returns:
        The names registered.

    Raises:
        ConfigError: the session has a built-in function of this name, which would win.
    """
    builders = {f"{prefix}ai_query": _Builder, f"{prefix}is_normalized": _IsNormalized}
    registry = spark._jsparkSession.sessionState().functionRegistry()  # noqa: SLF001 - see the module's docstring
    for name in builders:
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
    for name, kind in builders.items():
        builder = kind(spark._jvm, name)  # noqa: SLF001
        _builders.append(builder)
        registry.createOrReplaceTempFunction(name, builder, "python_udf")
    _apply_settings(spark, keep_limits=keep_limits)
    if ledger_path(spark, settings_of(spark)) is None:
        logger.warning(
            "No ledger is set, so whatever Spark evaluates again is paid for again. Set %s to a path that all workers "
            "share.",
            LEDGER_SETTING,
        )
    return list(builders)


def _apply_settings(spark: SparkSession, *, keep_limits: bool) -> None:
    conf = spark._jsparkSession.sessionState().conf()  # noqa: SLF001 - the public conf cannot tell set from default
    if not conf.contains(BATCH_ROWS_SETTING):
        spark.conf.set(BATCH_ROWS_SETTING, str(BATCH_ROWS))
    if keep_limits:
        rules = [rule for rule in (spark.conf.get(EXCLUDED_RULES_SETTING, None) or "").split(",") if rule]
        missing = [rule for rule in LIMIT_RULES if rule not in rules]
        if missing:
            spark.conf.set(EXCLUDED_RULES_SETTING, ",".join([*rules, *missing]))


class _Builder:
    """A Scala `Seq[Expression] => Expression`, implemented here and called by the analyzer through Py4J."""

    def __init__(self, jvm: Any, name: str) -> None:
        self._jvm = jvm
        self._name = name
        self._udfs: OrderedDict[bytes, tuple[str, Any]] = OrderedDict()

    def apply(self, arguments: Any) -> Any:
        """From resolved argument expressions to the call's expression."""
        try:
            return self._build(arguments)
        except ConfigError as error:
            message = str(error)
        except Py4JJavaError:
            raise
        except Exception as error:
            logger.exception("%s failed in analysis", self._name)
            message = f"{self._name}: {type(error).__name__}: {error}"
        raise Py4JJavaError(message, self._jvm.java.lang.IllegalArgumentException(message))

    def _build(self, arguments: Any) -> Any:
        given = self._by_name(arguments)
        constants = {name: self._constant(name, given[name]) for name in given if name not in COLUMNS}
        plan = plan_column(
            active_session(),
            _expect(constants, "endpoint", str),
            return_type=_expect(constants, "returnType", str),
            fail_on_error=_expect(constants, "failOnError", bool, default=True),
            model_parameters=constants.get("modelParameters"),
            response_format=_expect(constants, "responseFormat", str),
            details=_expect(constants, "details", bool, default=False),
            has_files="files" in given,
            has_sample="sample" in given,
            fresh=_expect(constants, "fresh", bool, default=False),
        )
        request = given["request"]
        check_request_type(_type_of(request), plan.call.endpoint.task)
        expressions = self._jvm.org.apache.spark.sql.catalyst.expressions
        dynamic = [self._json(request) if plan.call.endpoint.task == "custom" else request]
        if "files" in given:
            dynamic.append(_images(given["files"]))
        if "sample" in given:
            dynamic.append(_integer(given["sample"]))
        check_ledger(plan)
        udf = self._udf_of(plan)
        unwrapped = getattr(udf, "_unwrapped", udf)
        call = unwrapped._judf.builder(self._seq(dynamic))  # noqa: SLF001 - what Column expressions are made of
        # A vectorised UDF cannot give a NULL struct, so the NULL of a NULL request is made around it.
        null = expressions.Literal(None, call.dataType())
        return getattr(expressions, "If")(expressions.IsNull(request), null, call)  # noqa: B009 - a keyword in disguise

    def _udf_of(self, plan: ColumnPlan) -> Any:
        """The UDF of a plan: of calls with equal constants the same one, so that Spark sees that they are equal.

        Only where it is deterministic. What was built for an earlier query serves as long as the driver knows its call.
        """
        call = plan.call
        if call.ledger is None or call.fresh:
            return build_udf(plan)
        constants = msgspec.json.encode(replace(plan, call=replace(call, call_id="", run="")))
        known_id, known = self._udfs.get(constants, ("", None))
        if known is not None and find_call(known_id) is not None:
            close_call(call.call_id)
            self._udfs.move_to_end(constants)
            return known
        built = build_udf(plan)
        self._udfs[constants] = call.call_id, built
        while len(self._udfs) > KEPT_UDFS:
            self._udfs.popitem(last=False)
        return built

    def _json(self, inputs: Any) -> Any:
        """As `to_json`, for a custom model's inputs."""
        expressions = self._jvm.org.apache.spark.sql.catalyst.expressions
        parser = active_session()._jsparkSession.sessionState().sqlParser()  # noqa: SLF001
        words = [parser.parseExpression(f"'{word}'") for option in INPUT_OPTIONS.items() for word in option]
        return expressions.StructsToJson(inputs, expressions.CreateMap(self._seq(words), False))

    def _by_name(self, arguments: Any) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for position in range(arguments.size()):
            argument = arguments.apply(position)
            if argument.getClass().getSimpleName() == "NamedArgumentExpression":
                name, value = argument.key(), argument.value()
                matching = [known for known in ARGUMENTS if known.lower() == name.lower()]
                check_argument_names(matching or [name], ARGUMENTS)
                name = matching[0]
            elif position < len(ARGUMENTS):
                name, value = ARGUMENTS[position], argument
            else:
                raise ConfigError(
                    f"{self._name}: {arguments.size()} arguments are given; it takes at most {len(ARGUMENTS)}."
                )
            if name in given:
                raise ConfigError(f"{self._name}: the argument {name!r} is given twice.")
            given[name] = value
        if "request" not in given:
            raise ConfigError(
                f"{self._name}: the argument 'request' is missing. Write {self._name}(endpoint, request, …), or "
                f"{self._name}(request => …) for the session's {DEFAULT_ENDPOINT_SETTING}."
            )
        for name in COLUMNS:
            if name in given:
                self._refuse_lambda(given[name])
        return given

    def _refuse_lambda(self, expression: Any) -> None:
        leaves = expression.collectLeaves()
        if any(_is_lambda_variable(leaves.apply(i)) for i in range(leaves.size())) and _has_free_variable(expression):
            raise ConfigError(
                f"{self._name} cannot be called inside a lambda such as transform(xs, x -> …): Spark would not run "
                "it there. Explode the array into rows, call it on them, and collect the results. Nor does Spark run a "
                "Python function on an argument in which one lambda uses the variable of another."
            )

    def _constant(self, name: str, expression: Any) -> Any:
        """The value of a constant argument as plain Python; Spark itself turns it into JSON on the way."""
        if not expression.foldable():
            hint = " Use one query per endpoint, or UNION them." if name == "endpoint" else ""
            raise ConfigError(
                f"{self._name}: the argument {name!r} must be a constant; {expression.sql()!r} depends on the row."
                f"{hint}"
            )
        catalyst = self._jvm.org.apache.spark.sql.catalyst
        kind = expression.dataType()
        schema = self._jvm.org.apache.spark.sql.types.StructType().add("value", kind)
        value = catalyst.CatalystTypeConverters.convertToScala(expression.eval(None), kind)
        row = self._jvm.org.apache.spark.sql.catalyst.expressions.GenericRowWithSchema(self._array(value), schema)
        return _with_text_keys(msgspec.json.decode(row.json())["value"], _type_of(expression))

    def _array(self, value: Any) -> Any:
        gateway = active_session().sparkContext._gateway  # noqa: SLF001
        array = gateway.new_array(self._jvm.java.lang.Object, 1)
        array[0] = value
        return array

    def _seq(self, items: list[Any]) -> Any:
        return self._jvm.PythonUtils.toSeq(items)

    class Java:
        implements = ("scala.Function1",)


class _IsNormalized(_Builder):
    """`is_normalized(vector[, tol])`: the Column function's expression, over the arguments that SQL gives."""

    def _build(self, arguments: Any) -> Any:
        if arguments.size() not in (1, 2):
            raise ConfigError(f"{self._name}: it takes a vector and, if wanted, a tolerance; got {arguments.size()}.")
        vector, *rest = (arguments.apply(i) for i in range(arguments.size()))
        kind = vector.dataType().simpleString()
        if kind not in ("array<float>", "array<double>", "void"):
            raise ConfigError(f"{self._name}: the vector is an ARRAY<FLOAT> or ARRAY<DOUBLE>; got {kind.upper()}.")
        tol = self._constant("tol", rest[0]) if rest else TOLERANCE
        if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not tol > 0:
            raise ConfigError(f"{self._name}: the tolerance is a number above 0; got {tol!r}.")
        sql = self._jvm.org.apache.spark.sql
        if kind == "void":
            return sql.catalyst.expressions.Literal(None, sql.types.DataType.fromDDL("BOOLEAN"))
        if HAS_COLUMN_NODES:
            checked = is_normalized(Column(sql.classic.ExpressionUtils.column(vector)), tol)
            return active_session()._jsparkSession.expression(checked._jc)  # noqa: SLF001
        return is_normalized(Column(sql.Column(vector)), tol)._jc.expr()  # noqa: SLF001


def _expect(constants: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = constants.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        wanted = {str: "a STRING", bool: "true or false"}[kind]
        raise ConfigError(f"ai_query: the argument {name!r} is {wanted}; got {value!r}.")
    return value


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


def _is_lambda_variable(expression: Any) -> bool:
    return bool(expression.getClass().getSimpleName().endswith("LambdaVariable"))


def _has_free_variable(expression: Any, bound: frozenset[str] = frozenset()) -> bool:
    """Whether a variable is used outside the very lambda that has it: `transform(xs, x -> f(x))` by itself is none.

    Spark does not evaluate a Python UDF whose argument has a lambda that uses the variable of one around it.
    """
    if _is_lambda_variable(expression):
        return expression.toString() not in bound
    if expression.getClass().getSimpleName() == "LambdaFunction":
        variables = expression.arguments()
        bound = frozenset(variables.apply(i).toString() for i in range(variables.size()))
    children = expression.children()
    return any(_has_free_variable(children.apply(i), bound) for i in range(children.size()))


def _integer(expression: Any) -> Any:
    kind = expression.dataType().simpleString()
    if kind not in ("tinyint", "smallint", "int", "bigint"):
        raise ConfigError(
            f"ai_query: the argument 'sample' is a whole number (BIGINT), constant or column; got {kind.upper()}."
        )
    return expression


def _images(expression: Any) -> Any:
    kind = expression.dataType().simpleString()
    if kind not in ("binary", "array<binary>", "void"):
        raise ConfigError(
            f"ai_query: the argument 'files' is BINARY or ARRAY<BINARY>, the images themselves; got {kind.upper()}."
        )
    return expression


def _type_of(expression: Any) -> Any:
    return _parse_datatype_json_string(expression.dataType().json())
