"""The row contract stands once: DDL, Arrow and the ledger's table follow from it."""

import asyncio
import json

import pyarrow as pa

from batch_infer.adapters.arrow_types import arrow_type
from batch_infer.adapters.ledger import table
from batch_infer.adapters.providers.calls import open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.adapters.transport import HttpReply
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract import rows
from batch_infer.contract.progress import Counters
from batch_infer.contract.reply import Failure, Outcome, Reply, ToolCall, Usage
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request
from batch_infer.contract.rows import ROW_CONTRACT, RowField, Shape, column_ddl
from batch_infer.engine.tally import Tally
from batch_infer.spark.arrow import column_of

ENDPOINT = build_endpoint("e", {"base_url": "https://example.com/v1", "model": "m", "usd_per_million_prompt_tokens": 1})
REQUEST = Request(key="k1", content="q")


def test_the_ddl_is_the_documented_one():
    assert column_ddl(Shape.DETAILS, "INT") == (
        "STRUCT<result: INT, error: STRUCT<kind: STRING, status: INT, message: STRING, retryable: BOOLEAN>, "
        "usage: STRUCT<prompt_tokens: BIGINT, completion_tokens: BIGINT, total_tokens: BIGINT, cached_tokens: BIGINT, "
        "reasoning_tokens: BIGINT>, cost_usd: DOUBLE, finish_reason: STRING, reasoning: STRING, "
        "tool_calls: ARRAY<STRUCT<id: STRING, name: STRING, arguments: STRING>>, choices: ARRAY<INT>, message: STRING, "
        "model: STRING, attempts: INT, latency_ms: BIGINT, request_key: STRING, from_ledger: BOOLEAN>"
    )


def test_arrow_has_the_contracts_names_and_types_for_every_kind_of_row():
    reply = Reply(text="7", choices=("7", "8"), tool_calls=(ToolCall("i", "f", "{}"),), usage=Usage(3, 1, 4))
    outcomes = [
        Outcome(reply=reply, usage=reply.usage, attempts=2, latency_ms=5),
        Outcome(failure=Failure("bad_request", "no", status=400), attempts=1),
        None,
    ]
    column = column_of(outcomes, [REQUEST, REQUEST, None], Shape.DETAILS, ReplyReader("integer"), ENDPOINT)
    assert [field.name for field in column.type] == [field.name for field in ROW_CONTRACT]
    for field in ROW_CONTRACT:
        expected = arrow_type(rows.type_with(field.type, "integer"))
        assert column.type.field(field.name).type == expected, field.name
    answered, failed, nothing = column.to_pylist()
    assert (answered["result"], answered["choices"], answered["attempts"]) == (7, [7, 8], 2)
    assert answered["tool_calls"] == [{"id": "i", "name": "f", "arguments": "{}"}]
    assert answered["usage"]["total_tokens"] == 4
    assert (failed["result"], failed["choices"], failed["tool_calls"]) == (None, None, None)
    assert failed["error"] == {"kind": "bad_request", "status": 400, "message": "no", "retryable": False}
    assert nothing is None


def test_a_field_is_added_in_one_place():
    words = RowField("words", "long", "words of the reply", lambda row: len((row.said("text") or "").split()))
    more = (*ROW_CONTRACT, words)
    assert column_ddl(Shape.DETAILS, "STRING", more).endswith("from_ledger: BOOLEAN, words: BIGINT>")
    outcome = Outcome(reply=Reply(text="one two three"))
    column = column_of([outcome], [REQUEST], Shape.DETAILS, ReplyReader("string"), ENDPOINT, contract=more)
    assert column.type.field("words").type == pa.int64()
    assert column.to_pylist()[0]["words"] == 3


def test_the_ledgers_table_has_the_contracts_error_and_usage():
    assert arrow_type(rows.ERROR) == table.SCHEMA.field("error").type
    assert arrow_type(rows.USAGE) == table.SCHEMA.field("usage").type
    assert Usage.__struct_fields__ == rows.USAGE_FIELDS


class Counting(ReplyReader):
    """A reader that counts how often a text is parsed."""

    reads = 0

    def read(self, text):
        self.reads += 1
        return super().read(text)


class Answering:
    async def post(self, url, headers, body, *, timeout_s):
        said = {"choices": [{"message": {"content": '{"a": 1}'}, "finish_reason": "stop"}]}
        return HttpReply(200, {}, json.dumps(said).encode())


def test_a_typed_reply_is_read_once_on_its_way_from_the_endpoint_to_the_column():
    kind = rows.struct(a="long")
    reader = Counting(kind)
    wire = open_wire(ENDPOINT, base_url=ENDPOINT.base_url, parameters={}, response_format=None, api_key=None)
    sent = asyncio.run(Sender(ENDPOINT, wire, Answering(), reader)([REQUEST]))
    (reply,) = sent.results
    column = column_of([Outcome(reply=reply)], [REQUEST], Shape.DETAILS, reader, ENDPOINT)
    assert column.to_pylist()[0]["result"] == {"a": 1}
    assert reader.reads == 1


def test_what_was_read_of_a_reply_is_no_part_of_it():
    reader, reply = Counting("integer"), Reply(text="7")
    assert reader.values(reply) == reader.values(reply) == (7,)
    assert reader.reads == 1
    assert reply == Reply(text="7")
    assert ReplyReader("string").values(reply) == ("7",), "another reader reads for itself"


def test_a_tally_is_the_counters_that_travel():
    tally = Tally()
    tally.fail("timeout")
    tally.bill(Usage(10, 2, 12, 4))
    counted = tally.snapshot(ENDPOINT)
    assert type(counted) is Counters
    assert Tally.__struct_fields__ == Counters.__struct_fields__
    assert (counted.rows_failed, counted.failures, counted.cached_tokens) == (1, {"timeout": 1}, 4)
    tally.fail("timeout")
    assert counted.failures == {"timeout": 1}, "what travels does not change"
