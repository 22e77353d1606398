"""Owns the prompt template of jobs: `"Summarise in one sentence: {body}"`. Does not evaluate it: Spark does.

`{name}` stands for a column (`{address.city}` for a field of a struct), `{{` and `}}` for single braces. There are no
format specifications: formatting belongs into a column.

On the driver.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from batch_infer.contract.errors import ConfigError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Text(NamedTuple):
    """Literal text."""

    text: str


class Field(NamedTuple):
    """A column, or a dotted path into a struct column."""

    path: str


def parse_template(template: str) -> tuple[Text | Field, ...]:
    """Splits a template into literal text and column references.

    Raises:
        ConfigError: an unbalanced brace, an empty `{}`, a format specification, or no column at all.
    """
    parts: list[Text | Field] = []
    text = ""
    position = 0
    for match in _TOKEN.finditer(template):
        text += template[position : match.start()]
        position = match.end()
        token = match.group()
        if token in ("{{", "}}"):
            text += token[0]
        elif match.group(1) is None:
            raise ConfigError(
                f"prompt template: a single {token!r} at character {match.start() + 1}. "
                f"Write {token * 2!r} for a literal brace, or {{column}} for a column's value."
            )
        else:
            path = match.group(1).strip()
            if not path or any(mark in path for mark in ":!"):
                raise ConfigError(
                    f"prompt template: {token!r} at character {match.start() + 1} is not a column. "
                    "Write {column}, without a format specification; format in a column of your own."
                )
            if text:
                parts.append(Text(text))
                text = ""
            parts.append(Field(path))
    text += template[position:]
    if text:
        parts.append(Text(text))
    if not any(isinstance(part, Field) for part in parts):
        raise ConfigError(
            "prompt template: it names no column, so every row would send the same prompt. "
            "Refer to a column in braces, such as 'Summarise in one sentence: {body}'."
        )
    return tuple(parts)


def check_columns(parts: Sequence[Text | Field], columns: Sequence[str]) -> None:
    """Refuses a template that names a column the input does not have. Case-insensitive, as Spark is by default.

    Raises:
        ConfigError: names the unknown column, the nearest one, and those that exist.
    """
    known = {column.lower(): column for column in columns}
    for part in parts:
        if not isinstance(part, Field):
            continue
        first = part.path.split(".", 1)[0].strip("`")
        if {part.path.lower(), part.path.strip("`").lower()} & set(known) or first.lower() in known:
            continue
        near = get_close_matches(first.lower(), known, n=1)
        hint = f" Did you mean {{{known[near[0]]}}}?" if near else ""
        raise ConfigError(
            f"prompt template: the input has no column {first!r}.{hint} Its columns: {', '.join(columns)}."
        )
