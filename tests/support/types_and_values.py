"""Spark types in Spark's JSON form, and values of them, for property-based tests."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal

from hypothesis import strategies as st

UTC = UTC


def array(element):
    return {"type": "array", "elementType": element, "containsNull": True}


def struct(**fields):
    return {
        "type": "struct",
        "fields": [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in fields.items()],
    }


def mapping(value, key="string"):
    return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": True}


KINDS = st.recursive(
    st.sampled_from(
        [
            *("string", "boolean", "byte", "short", "integer", "long", "float", "double"),
            *("decimal(20,3)", "date", "timestamp"),
        ]
    ),
    lambda inner: st.one_of(
        inner.map(array),
        inner.map(mapping),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), inner, min_size=1, max_size=3)
        .map(lambda fields: struct(**fields)),
    ),
    max_leaves=6,
)  # fmt: skip
BITS = {"byte": 7, "short": 15, "integer": 31, "long": 63}


def values(kind):
    """Values of a type: as JSON holds them, and as they are read."""
    if isinstance(kind, str):
        if kind == "string":
            return st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: (text, text))
        if kind == "boolean":
            return st.booleans().map(lambda value: (value, value))
        if kind == "date":
            return st.dates().map(lambda day: (day.isoformat(), day))
        if kind == "timestamp":
            return st.datetimes(timezones=st.just(UTC)).map(lambda moment: (moment.isoformat(), moment))
        if kind in BITS:
            return st.integers(-(2 ** BITS[kind]), 2 ** BITS[kind] - 1).map(lambda number: (number, number))
        if kind.startswith("decimal"):
            return st.integers(-(10**12), 10**12).map(lambda n: (n / 1000, Decimal(n) / 1000))
        return st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda number: (number, number))
    if kind["type"] == "array":
        return st.lists(values(kind["elementType"]), max_size=3).map(
            lambda xs: ([x[0] for x in xs], [x[1] for x in xs])
        )
    if kind["type"] == "map":
        keys = st.text(st.characters(exclude_categories=["Cs"]))
        return st.dictionaries(keys, values(kind["valueType"]), max_size=3).map(
            lambda xs: ({k: v[0] for k, v in xs.items()}, [(k, v[1]) for k, v in xs.items()])
        )
    fields = {field["name"]: values(field["type"]) for field in kind["fields"]}
    return st.fixed_dictionaries(fields).map(
        lambda xs: ({k: v[0] for k, v in xs.items()}, {k: v[1] for k, v in xs.items()})
    )
