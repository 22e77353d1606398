"""Owns typed results: which Spark types a reply can become, their JSON Schema, and reading a reply's text as one.

Types come in Spark's own JSON form (`DataType.jsonValue()`), so that this module needs no Spark. A reply is read
leniently in its wrapping (code fences and text around the JSON are dropped) and strictly in its content: a value of the
wrong type is that row's error, never a silent NULL.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from decimal import Context, Decimal, InvalidOperation
from typing import Any, cast

import msgspec

from batch_infer.contract.errors import ConfigError

TypeJson = str | dict[str, Any]

_INTEGER_BITS = {"byte": 8, "short": 16, "integer": 32, "long": 64}
_DDL_NAMES = {"byte": "TINYINT", "short": "SMALLINT", "integer": "INT", "long": "BIGINT"}
_FRACTIONS = ("float", "double")
TOO_LARGE = 10**308 * 2
"""Above any DOUBLE; `float` of a larger integer raises."""
_LARGEST = {"float": 3.4028234663852886e38, "double": sys.float_info.max}
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")
_exact = msgspec.json.Decoder(float_hook=Decimal)
"""Fractions are read as they are written, so that a DECIMAL has every digit of them."""
_FENCE = re.compile(r"```[A-Za-z]*\s*\n?(.*?)```", re.DOTALL)


class TypeMismatch(ValueError):
    """A reply does not have the type asked for; the message says where."""


def check_result_type(kind: TypeJson, task: str, path: str = "") -> None:
    """Refuses a type that no reply can become.

    Raises:
        ConfigError: names the part of the type, and what is allowed.
    """
    where = f" at {path}" if path else ""
    if task == "embeddings":
        element = kind["elementType"] if isinstance(kind, dict) and kind["type"] == "array" else None
        if element not in _FRACTIONS:
            raise ConfigError("returnType: an embeddings endpoint gives ARRAY<FLOAT> (or ARRAY<DOUBLE>).")
        return
    if isinstance(kind, str):
        if kind in ("string", "boolean", *_INTEGER_BITS, *_FRACTIONS) or _DECIMAL.fullmatch(kind):
            return
        raise ConfigError(
            f"returnType: {kind!r}{where} cannot be read from a reply. Allowed are STRING, BOOLEAN, TINYINT to BIGINT, "
            "FLOAT, DOUBLE, DECIMAL, and ARRAY, STRUCT and MAP<STRING, …> of these; read others as STRING and cast."
        )
    if kind["type"] == "array":
        check_result_type(kind["elementType"], task, f"{path}[]")
    elif kind["type"] == "struct":
        if not kind["fields"]:
            raise ConfigError(f"returnType: a STRUCT{where} has no fields.")
        for field in kind["fields"]:
            check_result_type(field["type"], task, f"{path}.{field['name']}".lstrip("."))
    elif kind["type"] == "map" and kind["keyType"] == "string":
        check_result_type(kind["valueType"], task, f"{path}{{}}")
    else:
        raise ConfigError(f"returnType: {kind['type']!r}{where} cannot be read from a reply; a MAP needs STRING keys.")


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


def json_schema(kind: TypeJson) -> dict[str, Any]:
    """The JSON Schema of a type, strict: every field required, none beside them, no nulls."""
    schema: dict[str, Any]
    if isinstance(kind, str):
        name = "string" if kind == "string" else "boolean" if kind == "boolean" else "number"
        schema = {"type": "integer" if kind in _INTEGER_BITS else name}
    elif kind["type"] == "array":
        schema = {"type": "array", "items": json_schema(kind["elementType"])}
    elif kind["type"] == "map":
        schema = {"type": "object", "additionalProperties": json_schema(kind["valueType"])}
    else:
        schema = {
            "type": "object",
            "properties": {field["name"]: json_schema(field["type"]) for field in kind["fields"]},
            "required": [field["name"] for field in kind["fields"]],
            "additionalProperties": False,
        }
    return schema


def response_format_of(kind: TypeJson) -> dict[str, Any]:
    """The wire's `response_format` for a type given as DDL.

    A STRUCT with exactly one field, itself a STRUCT, names the schema (the form that Databricks documents); any other
    type is the schema itself, under the name `reply`.
    """
    name = "reply"
    if isinstance(kind, dict) and kind["type"] == "struct" and len(kind["fields"]) == 1:
        field = kind["fields"][0]
        if isinstance(field["type"], dict) and field["type"]["type"] == "struct":
            name, kind = field["name"], field["type"]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema(kind), "strict": True}}


def read_reply(text: str, kind: TypeJson) -> Any:
    """Reads a reply's text as a value of the type: Python values that Arrow takes (STRUCT as dict, DECIMAL as Decimal).

    Raises:
        TypeMismatch: says where the text departs from the type.
    """
    if kind == "string":
        return text
    if kind == "boolean" and text.strip().strip(".").lower() in ("true", "false"):
        return text.strip().strip(".").lower() == "true"
    value = _decode(text, kind)
    if value is None:
        raise TypeMismatch("reply is null")  # NULL would be neither a result nor an error
    return _convert(value, kind, "reply")


def _decode(text: str, kind: TypeJson) -> Any:
    candidates = [text.strip()]
    fenced = _FENCE.search(text)
    if fenced:
        candidates.append(fenced.group(1).strip())
    if not isinstance(kind, str):
        opening, closing = "[]" if kind["type"] == "array" else "{}"
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            candidates.append(text[start : end + 1])
    for candidate in candidates:
        with suppress(ValueError, RecursionError):  # msgspec's errors are ValueErrors, as is an integer of 5,000 digits
            return _exact.decode(candidate)
    raise TypeMismatch("the reply holds no JSON")


def _convert(value: Any, kind: TypeJson, path: str) -> Any:
    if value is None:
        return None
    if isinstance(kind, str):
        return _scalar(value, kind, path)
    if kind["type"] == "array":
        if not isinstance(value, list):
            raise TypeMismatch(f"{path} is {_json_name(value)}, not an array")
        return [_convert(item, kind["elementType"], f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        raise TypeMismatch(f"{path} is {_json_name(value)}, not an object")
    if kind["type"] == "map":
        return [(key, _convert(item, kind["valueType"], f"{path}.{key}")) for key, item in value.items()]
    names = [field["name"] for field in kind["fields"]]
    missing = [name for name in names if name not in value]
    if missing:
        raise TypeMismatch(f"{path} lacks {', '.join(map(repr, missing))}")
    return {
        field["name"]: _convert(value[field["name"]], field["type"], f"{path}.{field['name']}")
        for field in kind["fields"]
    }


def _scalar(value: Any, kind: str, path: str) -> Any:
    if kind in ("string", "boolean"):
        if isinstance(value, str if kind == "string" else bool):
            return value
        raise TypeMismatch(f"{path} is {_json_name(value)}, not a {kind}")
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise TypeMismatch(f"{path} is {_json_name(value)}, not a number")
    if kind in _INTEGER_BITS:
        bound = 1 << (_INTEGER_BITS[kind] - 1)
        if -bound <= value < bound and value == int(value):
            return int(value)
    elif kind in _FRACTIONS:
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
