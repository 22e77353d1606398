"""Owns the mapping between Spark types and JSON Schemas, in both directions. Does not read or check replies.

    STRING             {"type": "string"}                   DATE, TIMESTAMP    … with "format": "date", "date-time"
    BOOLEAN            {"type": "boolean"}                  ARRAY<T>           {"type": "array", "items": T}
    TINYINT … BIGINT   {"type": "integer"}                  MAP<STRING, T>     {"type": "object", "additionalProperties": T}
    FLOAT … DECIMAL    {"type": "number"}                   STRUCT<…>          {"type": "object", "properties": …}

A type's schema asks for no nulls, whether its fields are nullable or not: a model that may leave a value out often does.

On the driver.
"""  # noqa: E501 - the table reads best as one

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.result_types import INTEGER_BITS, MOMENTS, TypeJson, ddl_of

WRAPPING_KEY = "value"
"""Endpoints want an object at the top of a schema: any other type is asked for as the only field of one."""

_FORMATS = {"date": "date", "timestamp": "date-time"}
_MOMENTS = {form: name for name, form in _FORMATS.items()}
_KINDS = {"string": "string", "boolean": "boolean", "integer": "long", "number": "double"}
_MOST_DEPTH = 64


def json_schema(kind: TypeJson) -> dict[str, Any]:
    """The JSON Schema of a type, strict: every field required, none beside them, no nulls."""
    if isinstance(kind, str):
        if kind in MOMENTS:
            return {"type": "string", "format": _FORMATS[kind]}
        name = kind if kind in ("string", "boolean") else "number"
        return {"type": "integer" if kind in INTEGER_BITS else name}
    if kind["type"] == "array":
        return {"type": "array", "items": json_schema(kind["elementType"])}
    if kind["type"] == "map":
        return {"type": "object", "additionalProperties": json_schema(kind["valueType"])}
    return {
        "type": "object",
        "properties": {field["name"]: json_schema(field["type"]) for field in kind["fields"]},
        "required": [field["name"] for field in kind["fields"]],
        "additionalProperties": False,
    }


def schema_name(kind: TypeJson) -> str | None:
    """The name in `STRUCT<name: STRUCT<…>>`, the form that Databricks documents; `None` for any other type."""
    if isinstance(kind, dict) and kind["type"] == "struct" and len(kind["fields"]) == 1:
        field = kind["fields"][0]
        if isinstance(field["type"], dict) and field["type"]["type"] == "struct":
            return str(field["name"])
    return None


def is_wrapped(kind: TypeJson) -> bool:
    """Whether a type given as `responseFormat` is asked for inside an object, under `WRAPPING_KEY`."""
    return isinstance(kind, str) or kind["type"] == "array"


def response_format_of(kind: TypeJson) -> dict[str, Any]:
    """The wire's `response_format` for a type given as DDL.

    A STRUCT with exactly one field, itself a STRUCT, names the schema (the form that Databricks documents); any other
    type is the schema itself, under the name `reply`. It is strict, except with a MAP, which strict schemas cannot say.
    """
    name = schema_name(kind)
    if name is not None and isinstance(kind, dict):
        kind = kind["fields"][0]["type"]
    schema = json_schema(kind)
    if is_wrapped(kind):
        schema = {
            "type": "object",
            "properties": {WRAPPING_KEY: schema},
            "required": [WRAPPING_KEY],
            "additionalProperties": False,
        }
    return {
        "type": "json_schema",
        "json_schema": {"name": name or "reply", "schema": schema, "strict": not _has_map(kind)},
    }


def _has_map(kind: TypeJson) -> bool:
    if isinstance(kind, str):
        return False
    if kind["type"] == "array":
        return _has_map(kind["elementType"])
    return kind["type"] == "map" or any(_has_map(field["type"]) for field in kind["fields"])


def schema_to_ddl(schema: Mapping[str, Any]) -> str:
    """The Spark type, as DDL, that holds every reply which follows a JSON Schema; for `returnType`.

    Takes what structured outputs allow, and pydantic's `model_json_schema()`: objects, arrays, scalars, enums, `$ref`
    into `$defs`, and "this or null". Whole numbers become BIGINT, others DOUBLE. What the schema demands beyond types
    (`enum`, `minimum`, `pattern` …) is not in the DDL: give the schema itself as `responseFormat`.

    Raises:
        ConfigError: names the part of the schema that has no Spark type.
    """
    return ddl_of(type_of_schema(schema))


def type_of_schema(schema: Mapping[str, Any]) -> TypeJson:
    """As `schema_to_ddl`, in Spark's JSON form; fields that may be null or absent are nullable."""
    return _type_of(schema, schema, "", 0)[0]


def _type_of(schema: Any, root: Mapping[str, Any], path: str, depth: int) -> tuple[TypeJson, bool]:
    """The type of a part, and whether it may be null."""
    where = path or "the top"
    if not isinstance(schema, Mapping) or depth > _MOST_DEPTH:
        what = "it refers to itself" if depth > _MOST_DEPTH else f"{schema!r} says nothing of a type"
        raise ConfigError(f"JSON Schema: at {where[:100]}, {what}, so it has no Spark type.")
    if "$ref" in schema:
        return _type_of(resolve(schema["$ref"], root), root, path, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    several = next((schema[name] for name in ("anyOf", "oneOf", "allOf") if name in schema), None)
    if several is None and isinstance(kind, list):
        several = [{**schema, "type": one} for one in kind]
    if several is not None:
        return _type_of_several(several, root, path, depth)
    if kind is None and ("enum" in schema or "const" in schema):
        return _type_of_values(schema.get("enum", [schema.get("const")]), where)
    if kind == "array":
        return _array(_type_of(schema.get("items"), root, f"{path}[]", depth + 1)[0]), False
    if kind == "object":
        return _object(schema, root, path, depth), False
    if kind in _KINDS:
        return _MOMENTS.get(schema.get("format", ""), "string") if kind == "string" else _KINDS[kind], False
    raise ConfigError(f"JSON Schema: at {where}, the type {kind!r} has no Spark type. Read that part as STRING.")


def _type_of_several(schemas: Any, root: Mapping[str, Any], path: str, depth: int) -> tuple[TypeJson, bool]:
    others = [one for one in schemas if not (isinstance(one, Mapping) and one.get("type") == "null")]
    found = [_type_of(one, root, path, depth + 1) for one in others]
    if not found or any(kind != found[0][0] for kind, _ in found):
        raise ConfigError(
            f"JSON Schema: at {path or 'the top'}, it allows several types, and a Spark column has one. "
            "Read that part as STRING."
        )
    return found[0][0], len(others) < len(schemas) or any(nullable for _, nullable in found)


def _type_of_values(values: Any, where: str) -> tuple[TypeJson, bool]:
    names: dict[type, str] = {str: "string", bool: "boolean", int: "long", float: "double"}
    kinds: set[Any] = {names.get(type(value), "") for value in values if value is not None}
    if len(kinds) != 1 or "" in kinds:
        raise ConfigError(f"JSON Schema: at {where}, the values are of several types, and a Spark column has one.")
    return kinds.pop(), None in values


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], path: str, depth: int) -> TypeJson:
    properties, more = schema.get("properties") or {}, schema.get("additionalProperties")
    if not properties:
        if not isinstance(more, Mapping):
            raise ConfigError(f"JSON Schema: at {path or 'the top'}, an object without properties has no Spark type.")
        value = _type_of(more, root, f"{path}{{}}", depth + 1)[0]
        return {"type": "map", "keyType": "string", "valueType": value, "valueContainsNull": True}
    required = schema.get("required") or ()
    fields = []
    for name, part in properties.items():
        kind, nullable = _type_of(part, root, f"{path}.{name}".lstrip("."), depth + 1)
        nullable = nullable or name not in required
        fields.append({"name": name, "type": kind, "nullable": nullable, "metadata": {}})
    return {"type": "struct", "fields": fields}


def _array(element: TypeJson) -> TypeJson:
    return {"type": "array", "elementType": element, "containsNull": True}


def resolve(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a `$ref` inside a schema points to.

    Raises:
        ConfigError: it leads outside the schema, or nowhere.
    """
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise ConfigError(
            f"JSON Schema: the reference {reference!r} leads outside the schema, and nothing is fetched. "
            "Put that part under '$defs' and refer to it as '#/$defs/…'."
        )
    target: Any = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or name not in target:
            raise ConfigError(f"JSON Schema: the reference {reference!r} leads nowhere.")
        target = target[name]
    return target
