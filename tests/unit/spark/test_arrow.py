"""The border to Arrow: columns to requests, outcomes to columns of fixed types, NULL rows in their places."""

import json
from decimal import Decimal

import pyarrow as pa
import pytest

from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.reply import Failure, Outcome, Reply, ToolCall, Usage
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import CallIdentity, Request
from batch_infer.contract.rows import Shape, column_ddl
from batch_infer.spark.arrow import arrow_type, column_of, requests_of

IDENTITY = CallIdentity(endpoint=("openai", "x", "m"), task="chat", parameters={}, response_format=None)
ENDPOINT = build_endpoint(
    "e",
    {
        "base_url": "https://x",
        "model": "m",
        "usd_per_million_prompt_tokens": 1,
        "usd_per_million_completion_tokens": 10,
    },
)


def test_text_becomes_prompts_and_null_stays_null():
    for kind in (pa.string(), pa.large_string()):
        made = requests_of(pa.array(["a", None, ""], kind), None, None, IDENTITY)
        assert [None if row is None else row.content for row in made] == ["a", None, ""]
    assert requests_of(pa.nulls(2), None, None, IDENTITY) == [None, None]
    assert requests_of(pa.array([], pa.string()), None, None, IDENTITY) == []


def test_messages_become_canonical_json():
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    made = requests_of(pa.array([[{"role": "user", "content": "a"}], None], kind), None, None, IDENTITY)
    assert json.loads(made[0].content) == [{"role": "user", "content": "a"}]
    assert made[1] is None


def test_files_are_one_or_many_and_nulls_among_them_are_left_out():
    prompts = pa.array(["a", "b"])
    one = requests_of(prompts, pa.array([b"x", None]), None, IDENTITY)
    assert [row.files for row in one] == [(b"x",), ()]
    many = requests_of(prompts, pa.array([[b"x", None, b"y"], []], pa.list_(pa.binary())), None, IDENTITY)
    assert [row.files for row in many] == [(b"x", b"y"), ()]


def test_keys_and_numbers_that_are_known_are_taken_as_they_are():
    keys, numbers = pa.array(["k1", "k2"]), pa.array([7, 8], pa.int64())
    made = requests_of(pa.array(["a", "b"]), pa.array([b"x", None]), None, IDENTITY, keys=keys, origins=numbers)
    assert [(row.key, row.origin, row.content, row.files) for row in made] == [
        ("k1", 7, "a", (b"x",)),
        ("k2", 8, "b", ()),
    ]
    fresh = requests_of(pa.array(["a"]), None, None, IDENTITY)
    assert (fresh[0].key, fresh[0].origin) == (IDENTITY.key("a"), -1)


def test_the_sample_changes_the_key_and_null_is_zero():
    keys = [row.key for row in requests_of(pa.array(["a"] * 3), None, pa.array([0, None, 1]), IDENTITY)]
    assert keys[0] == keys[1] == requests_of(pa.array(["a"]), None, None, IDENTITY)[0].key
    assert keys[2] != keys[0]


GOOD = Outcome(reply=Reply(text="hi"), usage=Usage(3, 1, 4), attempts=1, latency_ms=5)
BAD = Outcome(failure=Failure("bad_request", "No.", 400), usage=Usage(), attempts=2, latency_ms=7)
REQUESTS = [Request(key="k1", content="a"), None, Request(key="k2", content="b")]


def test_a_plain_column_holds_the_results():
    column = column_of([GOOD, None, BAD], REQUESTS, Shape.RESULT, ReplyReader("string"), ENDPOINT)
    assert column.to_pylist() == ["hi", None, None]


def test_a_null_request_is_a_null_row_and_not_a_struct_of_nulls():
    column = column_of([GOOD, None, BAD], REQUESTS, Shape.RESULT_AND_ERROR, ReplyReader("string"), ENDPOINT)
    assert column.to_pylist() == [
        {"result": "hi", "errorMessage": None},
        None,
        {"result": None, "errorMessage": "No."},
    ]


def test_the_details_are_the_whole_row_contract():
    column = column_of([GOOD, None, BAD], REQUESTS, Shape.DETAILS, ReplyReader("string"), ENDPOINT)
    unknown = dict.fromkeys(("cached_tokens", "reasoning_tokens"))
    nothing = dict.fromkeys(("finish_reason", "reasoning", "tool_calls", "choices", "message", "model"))
    assert column.to_pylist() == [
        {
            "result": "hi",
            "error": None,
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, **unknown},
            "cost_usd": pytest.approx(13e-6),
            **nothing,
            "attempts": 1,
            "latency_ms": 5,
            "request_key": "k1",
            "from_ledger": False,
        },
        None,
        {
            "result": None,
            "error": {"kind": "bad_request", "status": 400, "message": "No.", "retryable": False},
            "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), None) | unknown,
            "cost_usd": None,
            **nothing,
            "attempts": 2,
            "latency_ms": 7,
            "request_key": "k2",
            "from_ledger": False,
        },
    ]


def test_every_field_is_typed_when_all_rows_are_null():
    full = column_of([GOOD], REQUESTS[:1], Shape.DETAILS, ReplyReader("string"), ENDPOINT)
    for rows in ([None, None], []):
        assert column_of(rows, [None] * len(rows), Shape.DETAILS, ReplyReader("string"), ENDPOINT).type == full.type


@pytest.mark.parametrize(("kind", "nothing"), [("integer", None), ("string", "")])
def test_choices_that_are_tool_calls_alone_are_as_the_result_is(kind, nothing):
    reply = Reply(text="", choices=("", "2"), tool_calls=(ToolCall("c", "f", "{}"),))
    reader = ReplyReader(kind)
    (row,) = column_of([Outcome(reply=reply)], [Request("k", "x")], Shape.DETAILS, reader, ENDPOINT).to_pylist()
    assert row["result"] == nothing
    assert row["choices"] == [nothing, reader.read("2")]


def test_choices_and_tool_calls():
    reply = Reply(text="1", choices=("1", "2"), tool_calls=(ToolCall("c", "f", "{}"),))
    column = column_of([Outcome(reply=reply)], REQUESTS[:1], Shape.DETAILS, ReplyReader("integer"), ENDPOINT)
    (row,) = column.to_pylist()
    assert (row["result"], row["choices"]) == (1, [1, 2])
    assert row["tool_calls"] == [{"id": "c", "name": "f", "arguments": "{}"}]


def test_embeddings_are_floats():
    kind = {"type": "array", "elementType": "float", "containsNull": True}
    column = column_of(
        [Outcome(reply=Reply(embedding=[0.5, 1.5])), None], REQUESTS[:2], Shape.RESULT, ReplyReader(kind), ENDPOINT
    )
    assert column.type == pa.list_(pa.float32())
    assert column.to_pylist() == [[0.5, 1.5], None]


def struct(**fields):
    return {"type": "struct", "fields": [{"name": n, "type": t, "nullable": True} for n, t in fields.items()]}


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("integer", "3", 3),
        ("boolean", "true", True),
        ("decimal(10,2)", "1.5", Decimal("1.50")),
        ("double", "1.5", 1.5),
        (struct(a="long", b="string"), '{"a":1,"b":null}', {"a": 1, "b": None}),
        ({"type": "array", "elementType": "byte"}, "[1,2]", [1, 2]),
        ({"type": "map", "keyType": "string", "valueType": "short"}, '{"a":1}', [("a", 1)]),
    ],
    ids=str,
)
def test_typed_results(kind, text, expected):
    column = column_of([Outcome(reply=Reply(text=text))], REQUESTS[:1], Shape.RESULT, ReplyReader(kind), ENDPOINT)
    assert column.type == arrow_type(kind)
    assert column.to_pylist() == [expected]


def test_the_columns_ddl_has_the_fields_of_the_arrow_column():
    column = column_of([GOOD], REQUESTS[:1], Shape.DETAILS, ReplyReader("string"), ENDPOINT)
    ddl = column_ddl(Shape.DETAILS, "STRING")
    position = -1
    for field in column.type:
        found = ddl.find(f"{field.name}: ", position + 1)
        assert found > position, field.name
        position = found
