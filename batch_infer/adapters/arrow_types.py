"""Owns types in Spark's JSON form as Arrow types, and Python values as Arrow arrays of them. Pure; on workers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from batch_infer.contract.result_types import TypeJson

_SCALARS = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_DECIMAL = re.compile(r"decimal\((\d+),\s*(\d+)\)")


def arrow_type(kind: TypeJson) -> pa.DataType:
    """The Arrow type of a type in Spark's JSON form."""
    if isinstance(kind, str):
        decimal = _DECIMAL.fullmatch(kind)
        return pa.decimal128(*map(int, decimal.groups())) if decimal else _SCALARS[kind]
    if kind["type"] == "array":
        return pa.list_(arrow_type(kind["elementType"]))
    if kind["type"] == "map":
        return pa.map_(pa.string(), arrow_type(kind["valueType"]))
    return pa.struct([(field["name"], arrow_type(field["type"])) for field in kind["fields"]])


def array_of_records(records: Sequence[Any], kind: pa.StructType) -> pa.Array:
    """An array of structs from objects whose attributes are the members; `None` is NULL."""
    return pa.StructArray.from_arrays(
        [
            pa.array([None if record is None else getattr(record, field.name) for record in records], field.type)
            for field in kind
        ],
        fields=list(kind),
        mask=pa.array([record is None for record in records], pa.bool_()),
    )


def array_of_lists(lists: Sequence[Any], kind: pa.ListType) -> pa.Array:
    """An array of lists of such structs; an empty list and `None` are NULL."""
    names = [field.name for field in kind.value_type]
    rows = [[{name: getattr(item, name) for name in names} for item in items] if items else None for items in lists]
    return pa.array(rows, kind)
