"""Owns the way through pandas, for Spark before 4.1, whose iterator UDFs take and give pandas objects. On workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Tuple  # noqa: UP035 - Spark reads these annotations and knows this form in every version

import numpy as np
import pandas as pd
import pyarrow as pa


def over_pandas(
    evaluate: Callable[[Iterator[tuple[pa.Array, ...]]], Iterator[pa.Array]], ddl: str, *, several: bool
) -> Any:
    """Wraps a function over Arrow columns for `pandas_udf`; the annotations tell Spark which kind of UDF it is."""
    is_struct = ddl.startswith("STRUCT")

    def one(columns: Iterator[Any]) -> Iterator[Any]:
        for column in evaluate((_to_arrow(item),) for item in columns):
            yield _to_pandas(column, is_struct)

    def many(columns: Iterator[Any]) -> Iterator[Any]:
        for column in evaluate(tuple(map(_to_arrow, items)) for items in columns):
            yield _to_pandas(column, is_struct)

    output = pd.DataFrame if is_struct else pd.Series
    function = many if several else one
    function.__name__ = "ai_query"
    function.__annotations__ = {
        "columns": Iterator[Tuple[pd.Series, ...]] if several else Iterator[pd.Series],  # noqa: UP006
        "return": Iterator[output],  # type: ignore[valid-type]
    }
    return function


def _to_arrow(series: Any) -> pa.Array:
    return pa.array([_plain(value) for value in series.tolist()])


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # pandas makes floats of whole numbers beside a NULL
    if isinstance(value, float):
        return None  # that NULL: no argument is a fraction
    return _unwrapped(value)


def _unwrapped(value: Any) -> Any:
    """Spark gives arrays as ndarray and structs as Row or dict."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "asDict"):
        value = value.asDict()
    if isinstance(value, dict):
        return {name: _unwrapped(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unwrapped(item) for item in value]
    return value


def _to_pandas(column: pa.Array, is_struct: bool) -> Any:
    rows = column.to_pylist()
    if "map<" in str(column.type):
        rows = [_with_maps(row, column.type) for row in rows]
    if not is_struct:
        return pd.Series(rows, dtype=object)
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    return pd.DataFrame(
        {name: pd.Series([None if row is None else row[name] for row in rows], dtype=object) for name in names}
    )


def _with_maps(value: Any, kind: pa.DataType) -> Any:
    """The value with each MAP as a dict, which Spark wants of pandas; Arrow gives pairs."""
    if value is None:
        return None
    if pa.types.is_map(kind):
        return {key: _with_maps(inner, kind.item_type) for key, inner in value}
    if pa.types.is_list(kind):
        return [_with_maps(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _with_maps(value[field.name], field.type) for field in kind}
    return value
