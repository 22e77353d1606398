"""Owns the nearest name to a misspelt one: in messages, and for keyword arguments of public functions. Pure.

On driver and workers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

from batch_infer.contract.errors import ArgumentNameError

P = ParamSpec("P")
R = TypeVar("R")


def did_you_mean(given: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence with a leading space that offers the nearest known name; empty where none is near."""
    near = get_close_matches(str(given), list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def names_near_misses(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function refuse unknown keyword arguments with the nearest name that it has.

    The signature, and what type checkers and editors see of it, stays the function's own.

    Raises:
        ArgumentNameError: at the call; it is a `ConfigError`, and a `TypeError` as Python's own would be.
    """
    parameters = inspect.signature(function).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind is not parameter.POSITIONAL_ONLY]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for given in kwargs:
            if given not in parameters:
                raise ArgumentNameError(
                    f"{function.__name__}: there is no argument {given!r}.{did_you_mean(given, names)} The arguments "
                    f"are: {', '.join(names)}."
                )
        return function(*args, **kwargs)

    return checked
