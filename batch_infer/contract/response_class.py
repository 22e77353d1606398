"""Owns a Python class as `response_format`: a pydantic model or a dataclass to its JSON Schema. Pure; on the driver.

pydantic is not imported: a class that has `model_json_schema` is one of its models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError


def is_response_class(value: Any) -> bool:
    """Whether a value is a class that describes a reply."""
    return isinstance(value, type) and (hasattr(value, "model_json_schema") or dataclasses.is_dataclass(value))


def response_format_of_class(kind: Any) -> dict[str, Any]:
    """The wire's `response_format` for a class.

    Strict, where every field is required; providers refuse strict schemas with optional fields.

    Raises:
        ConfigError: a field's type has no JSON Schema.
    """
    if hasattr(kind, "model_json_schema"):
        schema = kind.model_json_schema()
    else:
        try:
            schema = msgspec.json.schema(kind)
        except (TypeError, NameError) as error:
            raise ConfigError(f"response_format: the dataclass {kind.__name__} has no JSON Schema: {error}") from None
    schema = _closed(_with_root(schema))
    described: dict[str, Any] = {"name": kind.__name__, "schema": schema}
    if _all_required(schema):
        described["strict"] = True
    return {"type": "json_schema", "json_schema": described}


def _with_root(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose outermost part stands there itself, and not behind a reference."""
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    definitions = schema.get("$defs", {})
    root = definitions[reference.rpartition("/")[2]]
    return {**root, "$defs": definitions}


def _closed(schema: Any) -> Any:
    """The schema with objects that take no further members, as strict providers want them."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _all_required(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(map(_all_required, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict) and set(properties) - set(schema.get("required", ())):
        return False
    return all(_all_required(value) for value in schema.values())
