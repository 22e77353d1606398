"""Owns what makes a reply the one that was asked for: `responseFormat` and the result's type, checked together.

Also what a model is told when its reply is not. Does not send anything; types are read by `contract.result_types`.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.json_schema import WRAPPING_KEY, is_wrapped, json_schema, resolve, schema_name
from batch_infer.contract.reply import Reply
from batch_infer.contract.result_types import (
    MOST_PROBLEMS,
    TypeJson,
    TypeMismatch,
    convert,
    ddl_of,
    json_in,
    read_reply,
)

MOST_SCHEMA_CHARS = 4_000
"""Characters of the longest schema that is repeated to the model."""
_MOST_PROBLEM_CHARS = 200
_MOST_DDL_CHARS = 300
_READ = "_read"
"""Name, beside a reply's fields, of what was read of it: the reader and its values."""
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ReplyReader:
    """Checks replies' texts, and reads them as T. Made once per call: a JSON Schema is compiled here.

    Args:
        result_type: T, in Spark's JSON form.
        response_format: The wire's `response_format`, or `None`.
        format_type: The type that `responseFormat` was given as, where it was given as DDL.
    """

    def __init__(
        self,
        result_type: TypeJson,
        response_format: Mapping[str, Any] | None = None,
        format_type: TypeJson | None = None,
    ) -> None:
        self.result_type = result_type
        form = None if response_format is None else response_format["type"]
        self._is_json = form in ("json_object", "json_schema")
        self._is_object = form == "json_object"
        self._name = None if format_type is None else schema_name(format_type)
        self._is_wrapped = format_type is not None and is_wrapped(format_type)
        self._asked = format_type
        if self._name is not None and isinstance(format_type, dict):
            self._asked = format_type["fields"][0]["type"]
        self._validate = None
        if form == "json_schema" and format_type is None and response_format is not None:
            self._validate = compiled(response_format["json_schema"]["schema"])

    @property
    def takes_any_text(self) -> bool:
        """Whether every text is a result as it is."""
        return self.result_type == "string" and not self._is_json

    def read(self, text: str) -> Any:
        """The reply as a value of T. Where T is STRING and JSON was asked for: the JSON alone, as it is written.

        Raises:
            TypeMismatch: it does not follow the format, or is not a T; says where.
        """
        if not self._is_json:
            return read_reply(text, self.result_type)
        source, value = json_in(text, "{[" if self._takes_arrays else "{")
        if self._is_wrapped and isinstance(value, dict) and value.keys() == {WRAPPING_KEY}:
            source, value = bytes(_raw_members.decode(source)[WRAPPING_KEY]).decode(), value[WRAPPING_KEY]
        if self._is_object and not isinstance(value, dict):
            raise TypeMismatch("reply is not a JSON object")
        if self._validate is not None:
            self._validate(source)
        if self._asked is not None:
            convert(value, self._asked)
        if self.result_type == "string":
            return value if isinstance(value, str) else source
        if self._name is not None and schema_name(self.result_type) == self._name and isinstance(value, dict):
            value = value if self._name in value else {self._name: value}
        return convert(value, self.result_type, absent_is_null=self._validate is not None)

    def values(self, reply: Reply) -> tuple[Any, ...]:
        """The reply's result as T, or every choice's where there are several. Read once, however many ask.

        A choice without text (tool calls alone) is `''` where T is STRING, else `None`.

        Raises:
            TypeMismatch: as `read`; its `text` is the one that does not read.
        """
        if reply.embedding is not None:
            return (reply.embedding,)
        read: tuple[Any, tuple[Any, ...]] = reply.__dict__.get(_READ, (None, ()))
        reader, values = read
        if reader is not self:
            values = tuple(map(self._value, reply.choices or (reply.text,)))
            # The values stay with the reply: whoever looks at it next need not parse its text again.
            msgspec.structs.force_setattr(reply, _READ, (self, values))
        return values

    def _value(self, text: str | None) -> Any:
        if not text:
            return text if self.result_type == "string" else None
        try:
            return self.read(text)
        except TypeMismatch as mismatch:
            mismatch.text = text
            raise

    @property
    def _takes_arrays(self) -> bool:
        return self._is_wrapped or self._validate is not None

    def correction(self, mismatch: TypeMismatch) -> str:
        """What the model is told, so that it mends its reply."""
        problems = "\n".join(f"- {problem[:_MOST_PROBLEM_CHARS]}" for problem in mismatch.problems[:MOST_PROBLEMS])
        asked = ""
        if not self._is_json:
            schema = msgspec.json.encode(json_schema(self.result_type)).decode()
            asked = f" It must follow this JSON Schema: {schema}" if len(schema) <= MOST_SCHEMA_CHARS else ""
        return (
            f"Your reply is not what was asked for:\n{problems}\n"
            f"Reply with the corrected JSON alone, without any other text.{asked}"
        )

    @property
    def hint(self) -> str:
        """What a user can do about replies of another type; empty where it is done."""
        if self._is_json or self.result_type == "string":
            return ""
        ddl = ddl_of(self.result_type)
        ddl = ddl if len(ddl) <= _MOST_DDL_CHARS else "the same type"
        return f" To make the endpoint keep to the type, add responseFormat => '{ddl}'."


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuses what is no JSON Schema, and references that lead outside it or nowhere.

    Raises:
        ConfigError: says what is wrong.
    """
    from jsonschema import exceptions, validators  # noqa: PLC0415 - 70 ms, and few calls have a schema

    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(dict(schema))
    except exceptions.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise ConfigError(f"responseFormat: not a valid JSON Schema, at {where}: {error.message[:200]}") from None
    _check_references(schema, schema)


def _check_references(part: Any, root: Mapping[str, Any]) -> None:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            resolve(part["$ref"], root)
        for value in part.values():
            _check_references(value, root)
    elif isinstance(part, list):
        for value in part:
            _check_references(value, root)


def compiled(schema: Mapping[str, Any]) -> Any:
    """A function that raises `TypeMismatch` for JSON text which does not follow the schema. Fetches nothing."""
    from jsonschema import validators  # noqa: PLC0415 - 70 ms, and few calls have a schema
    from referencing import Registry, exceptions  # noqa: PLC0415

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    kind = validators.extend(kind, {"multipleOf": _multiple_of})
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER, registry=Registry())

    def validate(text: str) -> None:
        try:
            value = msgspec.json.decode(text)
            errors = sorted(validator.iter_errors(value), key=lambda error: str(error.json_path))
        except (msgspec.DecodeError, RecursionError, exceptions.Unresolvable) as error:
            raise TypeMismatch(f"the reply cannot be checked against its schema: {str(error)[:100]}") from None
        if errors:
            raise TypeMismatch(*(f"reply{error.json_path[1:]}: {_said(error)}" for error in errors))

    return validate


def _multiple_of(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 - jsonschema's
    """As decimal numbers: jsonschema divides floats, by which 19.99 is no multiple of 0.01."""
    from jsonschema import exceptions  # noqa: PLC0415 - 70 ms, and few calls have a schema

    if validator.is_type(value, "number") and Fraction(str(value)) % Fraction(str(step)):
        yield exceptions.ValidationError(f"{value!r} is not a multiple of {step!r}")


def _said(error: Any) -> str:
    """The validator's message; where that repeats a long value, the rule alone."""
    if len(error.message) <= _MOST_PROBLEM_CHARS:
        return str(error.message)
    return f"does not follow {error.validator!r}: {str(error.validator_value)[:100]}"
