"""Records and their bytes: what is written comes back, and damage stays where it is."""

from __future__ import annotations

import math
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.adapters.ledger import records as ledger
from batch_infer.adapters.ledger.scan import Scan
from batch_infer.contract.reply import Failure, Outcome, Reply, ToolCall, Usage

KEY = "00112233445566778899aabbccddeeff"

texts = st.text(max_size=40)
counts = st.none() | st.integers(0, 2**40)
usages = st.builds(Usage, counts, counts, counts, counts, counts)
vectors = st.lists(st.floats(allow_nan=False), min_size=1, max_size=8)
replies = st.builds(
    Reply,
    text=st.none() | texts,
    embedding=st.none() | vectors,
    choices=st.lists(texts, max_size=2).map(tuple),
    finish_reason=st.none() | texts,
    reasoning=st.none() | texts,
    tool_calls=st.lists(st.builds(ToolCall, st.none() | texts, texts, texts), max_size=2).map(tuple),
    message=st.none() | texts,
    model=st.none() | texts,
    usage=usages,
)


def log_of(payloads):
    return b"".join(ledger.frame(payload) for payload in payloads)


def scanned(data, chunk=None):
    scan = Scan(lambda offset, length: data[offset : offset + length], len(data))
    return [payload for _, _, payload in scan], scan


@settings(deadline=None)
@given(reply=replies, usage=usages, content=texts | st.binary(max_size=9) | st.lists(st.integers(0, 9), max_size=3))
def test_a_reply_comes_back_as_it_was_recorded(reply, usage, content):
    outcome = Outcome(reply=reply, usage=usage, attempts=3, latency_ms=12)
    record = ledger.record_of(KEY, content, outcome, at_us=5)
    payload = ledger.payload_of(ledger.encode(record))
    assert ledger.reply_of(ledger.decode(payload)) == reply
    key, served = ledger.decode_outcome(payload)
    assert key == KEY
    assert (served.reply, served.failure, served.usage) == (reply, None, usage)
    assert (served.attempts, served.latency_ms, served.from_ledger) == (3, 12, True)


@settings(deadline=None)
@given(status=st.none() | st.integers(100, 599), message=texts, fresh=st.booleans())
def test_a_failure_comes_back_as_it_was_recorded_(status, message, fresh):
    failure = Failure("rate_limited", message, status, retryable=True)
    record = ledger.record_of(KEY, None, Outcome(failure=failure, attempts=2), at_us=5, fresh=fresh)
    payload = ledger.payload_of(ledger.encode(record))
    assert ledger.decode(payload).failure == failure
    assert ledger.decode(payload).status == status
    key, served = ledger.decode_outcome(payload)
    assert (key, served.reply, served.failure, served.from_ledger) == (KEY, None, failure, True)
    assert not ledger.is_final(served, "")
    assert ledger.decode_heading(payload).failed


def test_an_embedding_that_models_compute_takes_four_bytes_a_number_and_any_other_is_exact():
    singles = [struct.unpack("<f", struct.pack("<f", x))[0] for x in (0.1, -2.5, 3e-8)]
    assert len(ledger.pack_vector(singles)) == 16
    for values in (singles, [0.1, 1e300, -0.0], []):
        assert ledger.unpack_vector(ledger.pack_vector(values), len(values)) == values
    unpacked = ledger.unpack_vector(ledger.pack_vector([math.nan, math.inf]), 2)
    assert math.isnan(unpacked[0])
    assert unpacked[1] == math.inf


def test_a_reply_with_lone_surrogates_is_kept_with_replacement_characters():
    outcome = Outcome(reply=Reply(text="a\ud800b"))
    payload = ledger.payload_of(ledger.encode(ledger.record_of(KEY, "p", outcome, at_us=1)))
    assert ledger.decode_outcome(payload)[1].reply.text == "a?b"


def test_fields_of_a_later_version_are_ignored():
    payload = b'{"t":"o","key":"%s","at_us":1,"reply":{"text":"a","new":1},"newer":[2]}' % KEY.encode()
    assert ledger.decode_outcome(payload)[1].reply == Reply(text="a")


def test_the_marker_cannot_occur_in_a_payload():
    with pytest.raises(UnicodeDecodeError):
        ledger.MARKER.decode()


@settings(deadline=None)
@given(times=st.lists(st.tuples(st.integers(0, 2**60), st.booleans()), min_size=1, unique=True))
def test_the_newest_fresh_answer_takes_precedence_and_else_the_oldest(times):
    chosen = max(times, key=lambda entry: ledger.precedence(entry[0], fresh=entry[1]))
    fresh = [at for at, is_fresh in times if is_fresh]
    assert chosen == ((max(fresh), True) if fresh else (min(at for at, _ in times), False))


@settings(deadline=None)
@given(times=st.lists(st.tuples(st.integers(0, 2**60), st.booleans(), st.booleans()), min_size=1, unique=True))
def test_a_failure_never_hides_an_answer_and_of_failures_the_newest_counts(times):
    at, fresh, failed = max(times, key=lambda entry: ledger.precedence(entry[0], fresh=entry[1], failed=entry[2]))
    rank = ledger.precedence(at, fresh=fresh, failed=failed)
    assert (rank < ledger.LEAST_ANSWER) == failed == all(entry[2] for entry in times)
    if failed:
        assert at == max(entry[0] for entry in times)


@pytest.mark.parametrize(
    ("kind", "retryable", "attempts", "asked_for", "final"),
    [
        ("bad_request", False, 1, "other", True),
        ("content_filter", False, 1, "other", True),
        ("server_error", True, 4, "same", False),
        ("type_mismatch", False, 1, "same", True),
        ("type_mismatch", False, 1, "other", False),
        ("too_large", False, 0, "same", False),  # refused by a limit of ours, which may be another one tomorrow
    ],
)
def test_a_failure_is_final_when_sending_again_would_give_it_again(kind, retryable, attempts, asked_for, final):
    failed = Outcome(failure=Failure(kind, "no", 400, retryable), attempts=attempts)
    record = ledger.record_of(KEY, "p", failed, at_us=5, result_type="same", run="one.1")
    _, served = ledger.decode_outcome(ledger.payload_of(ledger.encode(record)))
    assert ledger.is_final(served, asked_for) == final


def test_a_continuation_is_the_same_run_and_no_name_is_no_run():
    assert ledger.same_run("a.1", "a.2")
    assert ledger.same_run("a", "a")
    assert not ledger.same_run("a.1", "b.1")
    assert not ledger.same_run("", "")


def test_records_of_a_version_that_knew_no_runs_are_read():
    payload = b'{"t":"o","key":"%s","at_us":1,"attempts":1,"failed":true,"failure":%s}' % (
        KEY.encode(),
        b'{"kind":"bad_request","message":"m","status":400,"retryable":false}',
    )
    _, served = ledger.decode_outcome(payload)
    assert (served.run, served.result_type) == ("", "")
    assert ledger.is_final(served, "any")
    assert ledger.decode(b'{"t":"i","at_us":1,"keys":["%s"]}' % KEY.encode()).run == ""


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=6), cut=st.integers(0, 400))
def test_a_torn_tail_is_counted_and_what_is_before_it_is_read(texts, cut):
    frames = [ledger.frame(msgspec.json.encode(text)) for text in texts]
    data = b"".join(frames)[:cut]
    whole, size = 0, 0
    while whole < len(frames) and size + len(frames[whole]) <= len(data):
        size += len(frames[whole])
        whole += 1
    found, scan = scanned(data)
    assert [msgspec.json.decode(payload) for payload in found] == texts[:whole]
    assert scan.end == size
    assert (scan.torn, scan.corrupt) == (int(size < len(data)), 0)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=6), data=st.data())
def test_a_flipped_bit_loses_one_record_and_is_counted(texts, data):
    frames = [ledger.frame(msgspec.json.encode(text)) for text in texts]
    whole = bytearray(b"".join(frames))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    hit, end = 0, len(frames[0])
    while bit // 8 >= end:
        hit += 1
        end += len(frames[hit])
    found, scan = scanned(bytes(whole))
    assert [msgspec.json.decode(payload) for payload in found] == texts[:hit] + texts[hit + 1 :]
    assert scan.corrupt + scan.torn == 1
    if hit < len(frames) - 1:
        assert scan.torn == 0


def test_records_longer_than_a_chunk_are_read(monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.ledger.scan.CHUNK_BYTES", 7)
    payloads = [b'"%s"' % (b"x" * n) for n in (0, 3, 50, 1, 200)]
    data = log_of(payloads)
    assert scanned(data)[0] == payloads
    garbage = b"\x00" * 33 + b"\xff"
    found, scan = scanned(garbage + data[:40] + garbage + data)
    assert found[-5:] == payloads
    assert scan.corrupt >= 1


def test_bytes_of_zeros_at_the_end_are_a_torn_tail():
    found, scan = scanned(log_of([b"1", b"2"]) + b"\0" * 5000)
    assert found == [b"1", b"2"]
    assert (scan.torn, scan.corrupt) == (1, 0)


def test_a_length_field_beyond_the_limit_is_damage():
    with pytest.raises(ValueError, match="longer than"):
        ledger.frame(memoryview(bytearray(ledger.MAX_PAYLOAD_BYTES + 1)))
    data = ledger.FRAME_HEADER.pack(ledger.MARKER, ledger.MAX_PAYLOAD_BYTES + 1, 0) + log_of([b"1"])
    found, scan = scanned(data)
    assert found == [b"1"]
    assert scan.corrupt == 1
