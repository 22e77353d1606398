"""Owns typed results: which Spark types a reply can become, and reading a reply's text as one.

Types come in Spark's own JSON form (`DataType.jsonValue()`), so that this module needs no Spark. A reply is read
leniently in its wrapping (code fences and text around the JSON are dropped) and strictly in its content: a value of the
wrong type is that row's error, never a silent NULL. Their JSON Schema is `contract.json_schema`'s.

On driver and workers.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from decimal import Context, Decimal, InvalidOperation
from typing import Any, cast

import msgspec

from batch_infer.contract.errors import ConfigError

TypeJson = str | dict[str, Any]

INTEGER_BITS = {"byte": 8, "short": 16, "integer": 32, "long": 64}
FRACTIONS = ("float", "double")
MOMENTS: dict[str, type[dt.date]] = {"date": dt.date, "timestamp": dt.datetime}
"""Read from text in ISO 8601; a timestamp without a zone is in UTC."""
MOST_PROBLEMS = 5
"""Problems of one reply that a message names, at most."""
TOO_LARGE = 10**308 * 2
"""Smallest integer above every DOUBLE; `float` of a larger one raises."""

_DDL_NAMES = {"byte": "TINYINT", "short": "SMALLINT", "integer": "INT", "long": "BIGINT"}
_LARGEST = {"float": 3.4028234663852886e38, "double": sys.float_info.max}
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")
_exact = msgspec.json.Decoder(float_hook=Decimal)
"""Fractions are read as they are written, so that a DECIMAL has every digit of them."""
_FENCE = re.compile(r"```[A-Za-z]*\s*\n?(.*?)```", re.DOTALL)


class TypeMismatch(ValueError):
    """A reply is not what was asked for; the message says where, naming the first few problems."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems[:MOST_PROBLEMS]))
        self.problems = problems
        self.text = ""
        """The reply's text, filled in by whoever reads a reply."""


def check_result_type(kind: TypeJson, task: str, path: str = "", argument: str = "returnType") -> None:
    """Refuses a type that no reply can become; `argument` is the one that a message names.

    Raises:
        ConfigError: names the part of the type, and what is allowed.
    """
    where = f" at {path}" if path else ""
    if task == "embeddings":
        element = kind["elementType"] if isinstance(kind, dict) and kind["type"] == "array" else None
        if element not in FRACTIONS:
            raise ConfigError(f"{argument}: an embeddings endpoint gives ARRAY<FLOAT> (or ARRAY<DOUBLE>).")
        return
    if isinstance(kind, str):
        if kind in ("string", "boolean", *INTEGER_BITS, *FRACTIONS, *MOMENTS) or _DECIMAL.fullmatch(kind):
            return
        raise ConfigError(
            f"{argument}: {kind!r}{where} cannot be read from a reply. Allowed are STRING, BOOLEAN, TINYINT to BIGINT, "
            "FLOAT, DOUBLE, DECIMAL, DATE, TIMESTAMP, and ARRAY, STRUCT and MAP<STRING, …> of these; read others as "
            "STRING and cast."
        )
    if kind["type"] == "array":
        check_result_type(kind["elementType"], task, f"{path}[]", argument)
    elif kind["type"] == "struct":
        if not kind["fields"]:
            raise ConfigError(f"{argument}: a STRUCT{where} has no fields.")
        for field in kind["fields"]:
            check_result_type(field["type"], task, f"{path}.{field['name']}".lstrip("."), argument)
    elif kind["type"] == "map" and kind["keyType"] == "string":
        check_result_type(kind["valueType"], task, f"{path}{{}}", argument)
    else:
        raise ConfigError(f"{argument}: {kind['type']!r}{where} cannot be read from a reply; a MAP needs STRING keys.")


def ddl_of(kind: TypeJson) -> str:
    """The type as Spark DDL, field names quoted. Everything in it may be NULL, as it is in a row without a result."""
    if isinstance(kind, str):
        return _DDL_NAMES.get(kind, kind.upper())
    if kind["type"] == "array":
        return f"ARRAY<{ddl_of(kind['elementType'])}>"
    if kind["type"] == "map":
        return f"MAP<STRING, {ddl_of(kind['valueType'])}>"
    fields = (f"`{field['name'].replace('`', '``')}`: {ddl_of(field['type'])}" for field in kind["fields"])
    return f"STRUCT<{', '.join(fields)}>"


def read_reply(text: str, kind: TypeJson) -> Any:
    """Reads a reply's text as a value of the type: Python values that Arrow takes (STRUCT as dict, DECIMAL as Decimal).

    Raises:
        TypeMismatch: says where the text departs from the type.
    """
    if kind == "string":
        return text
    word = text.strip()
    if kind == "boolean" and word.strip(".").lower() in ("true", "false"):
        return word.strip(".").lower() == "true"
    if isinstance(kind, str) and kind in MOMENTS and not word.startswith(('"', "`")):
        return convert(word, kind)
    containers = "" if isinstance(kind, str) else "[" if kind["type"] == "array" else "{"
    return convert(json_in(text, containers)[1], kind)


def json_in(text: str, containers: str) -> tuple[str, Any]:
    """The JSON that a reply holds, as it is written, and its value; fractions as Decimal.

    Args:
        text: The reply.
        containers: `{`, `[` or both, where an object or array may stand in other text; `""` for neither.

    Raises:
        TypeMismatch: there is none.
    """
    candidates = [text.strip()]
    fenced = _FENCE.search(text)
    if fenced:
        candidates.append(fenced.group(1).strip())
    for opening in sorted(containers, key=text.find):
        start, end = text.find(opening), text.rfind("}" if opening == "{" else "]")
        if 0 <= start < end:
            candidates.append(text[start : end + 1])
    for candidate in candidates:
        with suppress(ValueError, RecursionError):  # msgspec's errors are ValueErrors, as is an integer of 5,000 digits
            return candidate, _exact.decode(candidate)
    raise TypeMismatch("the reply holds no JSON")


def convert(value: Any, kind: TypeJson, *, absent_is_null: bool = False) -> Any:
    """A decoded value (fractions as Decimal) as a value of the type.

    Args:
        value: What the JSON says.
        kind: The type.
        absent_is_null: A field that may be NULL may also be missing: for replies that follow a schema of their own.

    Raises:
        TypeMismatch: says where it departs from the type.
    """
    if value is None:
        raise TypeMismatch("reply is null")  # NULL would be neither a result nor an error
    conversion = _Conversion(absent_is_null)
    converted = conversion.of(value, kind, "reply")
    if conversion.problems:
        raise TypeMismatch(*conversion.problems)
    return converted


class _Conversion:
    """One value's way into its type; notes every problem and goes on."""

    def __init__(self, absent_is_null: bool) -> None:
        self.problems: list[str] = []
        self._absent_is_null = absent_is_null

    def of(self, value: Any, kind: TypeJson, path: str) -> Any:
        if value is None:
            return None
        if isinstance(kind, str):
            try:
                return _scalar(value, kind, path)
            except TypeMismatch as mismatch:
                self.problems += mismatch.problems
                return None
        if kind["type"] == "array":
            if isinstance(value, list):
                return [self.of(item, kind["elementType"], f"{path}[{i}]") for i, item in enumerate(value)]
            self.problems.append(f"{path} is {_json_name(value)}, not an array")
            return None
        if not isinstance(value, dict):
            self.problems.append(f"{path} is {_json_name(value)}, not an object")
            return None
        if kind["type"] == "map":
            return [(key, self.of(item, kind["valueType"], f"{path}.{key}")) for key, item in value.items()]
        return self._struct(value, kind["fields"], path)

    def _struct(self, value: dict[str, Any], fields: Sequence[dict[str, Any]], path: str) -> dict[str, Any]:
        may_be_null = {field["name"]: field.get("nullable", True) for field in fields}
        may_be_absent = may_be_null if self._absent_is_null else {}
        missing = [name for name in may_be_null if name not in value and not may_be_absent.get(name)]
        if missing:
            self.problems.append(f"{path} lacks {', '.join(map(repr, missing))}")
        self.problems += [
            f"{path}.{name} is null, and the field is NOT NULL"
            for name, nullable in may_be_null.items()
            if not nullable and name in value and value[name] is None
        ]
        return {
            field["name"]: self.of(value.get(field["name"]), field["type"], f"{path}.{field['name']}")
            for field in fields
        }


def _scalar(value: Any, kind: str, path: str) -> Any:
    if kind in MOMENTS:
        return _moment(value, kind, path)
    if kind in ("string", "boolean"):
        if isinstance(value, str if kind == "string" else bool):
            return value
        raise TypeMismatch(f"{path} is {_json_name(value)}, not a {kind}")
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise TypeMismatch(f"{path} is {_json_name(value)}, not a number")
    if kind in INTEGER_BITS:
        bound = 1 << (INTEGER_BITS[kind] - 1)
        if -bound <= value < bound and value == int(value):
            return int(value)
    elif kind in FRACTIONS:
        if -TOO_LARGE < value < TOO_LARGE and abs(fraction := float(value)) <= _LARGEST[kind]:
            return fraction
    else:
        number = _decimal(value, kind)
        if number is not None:
            return number
    raise TypeMismatch(f"{path} is {str(value)[:40]}, which does not fit {ddl_of(kind)}")


def _decimal(value: int | Decimal, kind: str) -> Decimal | None:
    """Rounded to the type's scale; `None` where it has too many digits before the point."""
    precision, scale = map(int, cast("re.Match[str]", _DECIMAL.fullmatch(kind)).groups())
    try:
        number = Decimal(value).quantize(Decimal(1).scaleb(-scale), context=Context(prec=precision + 1))
    except InvalidOperation:
        return None
    return number if number.adjusted() < precision - scale or not number else None


def _moment(value: Any, kind: str, path: str) -> dt.date:
    if not isinstance(value, str):
        raise TypeMismatch(f"{path} is {_json_name(value)}, not a {kind} as text")
    try:
        moment = msgspec.convert(value, MOMENTS[kind])
    except msgspec.ValidationError:
        example = "2026-01-31" if kind == "date" else "2026-01-31T12:00:00Z"
        raise TypeMismatch(f"{path} is {value[:40]!r}, not a {kind} such as {example}") from None
    if not isinstance(moment, dt.datetime):
        return moment
    try:
        return moment.replace(tzinfo=moment.tzinfo or dt.UTC).astimezone(dt.UTC)
    except OverflowError:
        raise TypeMismatch(f"{path} is {value[:40]!r}, which in UTC is not in the years 1 to 9999") from None


def _json_name(value: Any) -> str:
    names = {
        bool: "a boolean",
        str: "a string",
        list: "an array",
        dict: "an object",
        int: "a number",
        Decimal: "a number",
    }
    return names.get(type(value), "null")
