"""Owns what a SQL function is: its name, its arguments, and how its expression is built. On the driver.

A function that asks a model is one module with one record: see `functions.ai_query`, whose `asked` builds the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from batch_infer.contract.options import SqlKind


@dataclass(frozen=True, slots=True)
class SqlCall:
    """One call of a function in a query, as the analyzer sees it."""

    function: str
    """Name under which it was registered and called."""
    jvm: Any
    """Py4J's view of the JVM."""
    columns: Mapping[str, Any]
    """Expressions of the arguments that may differ from row to row, by argument."""
    constants: Mapping[str, Any]
    """Values of the other arguments that were given, by argument."""
    kept: dict[Any, Any]
    """What the function keeps from call to call, in this session."""


@dataclass(frozen=True, slots=True)
class SqlFunction:
    """A function to register."""

    name: str
    arguments: Mapping[str, SqlKind]
    """Arguments in the order in which they may be given by position, with what each takes."""
    build: Callable[[SqlCall], Any]
    """Makes the call's expression; raises `ConfigError` for what is wrong with it."""
    required: tuple[str, ...] = ()
    """Arguments that must be given."""
    usage: str = ""
    """How it is called, for messages."""
