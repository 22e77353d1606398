"""Owns the bridge from Spark's analyzer to a `SqlFunction`: arguments bound, constants read, errors made Java's.

A registered Python UDF has one return type; `ai_query` has as many as it has arguments. So what is registered is not a
UDF but a *builder*: during analysis Spark hands it the call's resolved argument expressions, it reads the constants
among them, and gives back an expression of the right type around a UDF made for this call. Knows no function by name.
On the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from py4j.protocol import Py4JJavaError

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.misspelt import did_you_mean
from batch_infer.spark.functions.expressions import constant_of, uses_lambda_freely
from batch_infer.spark.functions.record import SqlCall, SqlFunction

logger = logging.getLogger("batch_infer")

WANTED = {"text": (str, "a STRING"), "flag": (bool, "true or false")}
"""Python's type of a constant argument's value, by kind, and what SQL calls it."""


class FunctionBuilder:
    """A Scala `Seq[Expression] => Expression`, implemented here and called by the analyzer through Py4J.

    Args:
        jvm: Py4J's view of the JVM.
        function: What to build.
        name: Under which it is registered; every message has it.
    """

    def __init__(self, jvm: Any, function: SqlFunction, name: str) -> None:
        self._jvm = jvm
        self._function = function
        self._name = name
        self._kept: dict[Any, Any] = {}

    def apply(self, arguments: Any) -> Any:
        """From resolved argument expressions to the call's expression."""
        try:
            return self._function.build(self._call(arguments))
        except ConfigError as error:
            message = str(error)
        except Py4JJavaError:
            raise
        except Exception as error:
            logger.exception("%s failed in analysis", self._name)
            message = f"{self._name}: {type(error).__name__}: {error}"
        raise Py4JJavaError(message, self._jvm.java.lang.IllegalArgumentException(message))

    def _call(self, arguments: Any) -> SqlCall:
        given = self._by_name(arguments)
        kinds = self._function.arguments
        columns = {name: value for name, value in given.items() if kinds[name] == "column"}
        for value in columns.values():
            self._refuse_lambda(value)
        constants = {name: self._constant(name, value) for name, value in given.items() if name not in columns}
        return SqlCall(self._name, self._jvm, columns, constants, self._kept)

    def _by_name(self, arguments: Any) -> dict[str, Any]:
        known = list(self._function.arguments)
        given: dict[str, Any] = {}
        for position in range(arguments.size()):
            argument = arguments.apply(position)
            if argument.getClass().getSimpleName() == "NamedArgumentExpression":
                name, value = self._known(argument.key()), argument.value()
            elif position < len(known):
                name, value = known[position], argument
            else:
                raise ConfigError(
                    f"{self._name}: {arguments.size()} arguments are given; it takes at most {len(known)}."
                )
            if name in given:
                raise ConfigError(f"{self._name}: the argument {name!r} is given twice.")
            given[name] = value
        for name in self._function.required:
            if name not in given:
                raise ConfigError(
                    f"{self._name}: the argument {name!r} is missing. "
                    f"Write {self._function.usage.format(name=self._name)}."
                )
        return given

    def _known(self, name: str) -> str:
        check_argument_names(self._name, [name], self._function.arguments)
        return next(known for known in self._function.arguments if known.lower() == name.lower())

    def _constant(self, name: str, expression: Any) -> Any:
        if not expression.foldable():
            hint = " Use one query per endpoint, or UNION them." if name == "endpoint" else ""
            raise ConfigError(
                f"{self._name}: the argument {name!r} must be a constant; {expression.sql()!r} depends on the row."
                f"{hint}"
            )
        value = constant_of(self._jvm, expression)
        wanted = WANTED.get(self._function.arguments[name])
        if value is not None and wanted is not None and not isinstance(value, wanted[0]):
            raise ConfigError(f"{self._name}: the argument {name!r} is {wanted[1]}; got {value!r}.")
        return value

    def _refuse_lambda(self, expression: Any) -> None:
        if uses_lambda_freely(expression):
            raise ConfigError(
                f"{self._name} cannot be called inside a lambda such as transform(xs, x -> …): Spark would not run "
                "it there. Explode the array into rows, call it on them, and collect the results. Nor does Spark run a "
                "Python function on an argument in which one lambda uses the variable of another."
            )

    class Java:
        """What Py4J tells the JVM of this object."""

        implements = ("scala.Function1",)


def check_argument_names(function: str, given: list[str], known: Mapping[str, Any]) -> None:
    """Refuses an argument that a function does not have; upper and lower case are alike.

    Raises:
        ConfigError: names the argument, the nearest one, and all.
    """
    lower = {name.lower() for name in known}
    for name in given:
        if name.lower() not in lower:
            raise ConfigError(
                f"{function}: there is no argument {name!r}.{did_you_mean(name, known)} The arguments are: "
                f"{', '.join(known)}."
            )
