"""What one ledger gives back: answers, never failures; the same one every time; from every writer."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter
from batch_infer.adapters.ledger.catalog import current_logs, log_path
from batch_infer.adapters.ledger.records import record_of
from batch_infer.contract.errors import SinkError
from batch_infer.contract.reply import Failure, Outcome, Reply, Usage
from batch_infer.contract.request import Request
from batch_infer.engine.ports import Store


def key_of(i):
    return hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest()


def request(i):
    return Request(key_of(i), f"prompt {i}")


def answer(text, tokens=3):
    return Outcome(reply=Reply(text=text), usage=Usage(total_tokens=tokens), attempts=1, latency_ms=7)


FAILED = Outcome(failure=Failure("server_error", "500", 500, retryable=True), attempts=4)


class Ticking:
    """A clock that moves one second a reading."""

    def __init__(self, at=1000.0):
        self.at = at

    def __call__(self):
        self.at += 1
        return self.at


@pytest.fixture
def root(tmp_path):
    return tmp_path / "answers.ledger"


def store(root, name="task", clock=None, **options):
    writer = LedgerWriter(root, name, clock=clock or Ticking())
    return LedgerStore(Ledger.open(root), writer, **options)


def fill(root, numbers, text="answer", **options):
    filled = store(root, **options)
    for i in numbers:
        filled.intend([request(i)])
        filled.record(request(i), answer(f"{text} {i}"))
    filled.close()


def texts(found):
    return {key: outcome.reply.text for key, outcome in found.items()}


def test_it_is_a_store(root):
    made: Store = store(root)
    assert made.find([]) == {}


def test_a_recorded_reply_is_found_as_it_was_billed(root):
    fill(root, range(3))
    found = Ledger.open(root).find([key_of(1), key_of(9), key_of(1)])
    assert set(found) == {key_of(1)}
    outcome = found[key_of(1)]
    assert (outcome.reply, outcome.failure) == (Reply(text="answer 1"), None)
    assert (outcome.usage, outcome.latency_ms) == (Usage(total_tokens=3), 7)
    assert (outcome.attempts, outcome.from_ledger) == (1, True)


def test_an_open_writer_finds_what_it_recorded_itself(root, monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.ledger.memtable.UNSORTED_ENTRIES", 5)
    own = store(root)
    for i in range(33):
        own.record(request(i), answer(f"answer {i}"))
        assert texts(own.find([request(j).key for j in range(40)])) == {key_of(j): f"answer {j}" for j in range(i + 1)}
    own.close()
    assert len(Ledger.open(root).find([key_of(i) for i in range(40)])) == 33


def test_a_failure_is_recorded_but_never_an_answer(root):
    failing = store(root)
    failing.record(request(1), FAILED)
    assert failing.find([key_of(1)]) == {}
    failing.close()
    ledger = Ledger.open(root)
    assert ledger.find([key_of(1)]) == {}
    assert ledger.audit().failures == 1


def test_a_failure_does_not_hide_an_earlier_reply(root):
    fill(root, [1])
    failing = store(root, fresh=True)
    failing.record(request(1), FAILED)
    failing.close()
    assert texts(Ledger.open(root).find([key_of(1)])) == {key_of(1): "answer 1"}


@pytest.mark.parametrize("indexed", [False, True])
def test_of_two_replies_to_one_request_the_first_wins(root, indexed):
    fill(root, [1], "late", clock=Ticking(2000))
    fill(root, [1], "early", clock=Ticking(1000))
    fill(root, [1], "later", clock=Ticking(3000))
    ledger = Ledger.open(root)
    if indexed:
        ledger.compact_index()
    assert texts(ledger.find([key_of(1)])) == {key_of(1): "early 1"}


@pytest.mark.parametrize("indexed", [False, True])
def test_fresh_asks_again_and_its_newest_reply_is_served_from_then_on(root, indexed):
    fill(root, [1, 2], clock=Ticking(1000))
    fill(root, [1], "fresh", fresh=True, clock=Ticking(2000))
    fill(root, [1], "fresher", fresh=True, clock=Ticking(3000))
    fill(root, [1], "again", clock=Ticking(4000))
    again = store(root, fresh=True)
    assert again.find([key_of(1), key_of(2)]) == {}
    again.close()
    ledger = Ledger.open(root)
    if indexed:
        ledger.compact_index()
    assert texts(ledger.find([key_of(1), key_of(2)])) == {key_of(1): "fresher 1", key_of(2): "answer 2"}


def test_a_second_attempt_of_a_fresh_job_finds_what_the_first_one_asked(root):
    fill(root, [1, 2], clock=Ticking(1000))
    fill(root, [1], "yesterday", fresh=True, run="yesterday", clock=Ticking(2000))
    fill(root, [2], "attempt one", fresh=True, run="today.1", clock=Ticking(3000))
    second = store(root, fresh=True, run="today.2")
    second.record(request(3), answer("own"))
    assert texts(second.find([key_of(1), key_of(2), key_of(3)])) == {key_of(2): "attempt one 2", key_of(3): "own"}


@pytest.mark.parametrize("indexed", [False, True])
def test_a_fresh_reply_counts_although_the_clock_of_its_worker_is_slow(root, indexed):
    fill(root, [1], "fast clock", fresh=True, run="yesterday", clock=Ticking(9000))
    today = store(root, fresh=True, run="today", clock=Ticking(1000))
    assert today.find([key_of(1)]) == {}
    today.record(request(1), answer("today"))
    assert texts(today.find([key_of(1)])) == {key_of(1): "today"}
    today.close()
    ledger = Ledger.open(root)
    if indexed:
        ledger.compact_index()
    assert texts(ledger.find([key_of(1)])) == {key_of(1): "today"}
    assert texts(store(root, fresh=True, run="today").find([key_of(1)])) == {key_of(1): "today"}


REFUSED = Outcome(failure=Failure("bad_request", "400", 400), usage=Usage(total_tokens=2), attempts=1, latency_ms=3)
MISFIT = Outcome(failure=Failure("type_mismatch", "no INT", 200), attempts=1)


def failed(root, outcome, **options):
    failing = store(root, **options)
    failing.intend([request(1)])
    failing.record(request(1), outcome)
    failing.close()


@pytest.mark.parametrize("indexed", [False, True])
def test_a_failure_that_would_only_repeat_is_served_as_what_it_is(root, indexed):
    failed(root, REFUSED)
    if indexed:
        Ledger.open(root).compact_index()
    (served,) = store(root).find([key_of(1)]).values()
    assert (served.failure, served.reply, served.from_ledger) == (REFUSED.failure, None, True)
    assert (served.usage, served.attempts, served.latency_ms) == (Usage(total_tokens=2), 1, 3)
    assert Ledger.open(root).find([key_of(1)]) == {}, "it is no answer"
    fill(root, [1], "in the end")
    assert texts(store(root).find([key_of(1)])) == {key_of(1): "in the end 1"}


def test_failures_are_asked_again_when_that_is_wanted_but_once_a_run(root):
    failed(root, REFUSED, run="first")
    again = store(root, retry_failed=True, run="second.1")
    assert again.find([key_of(1)]) == {}
    again.record(request(1), REFUSED)
    assert again.find([key_of(1)])[key_of(1)].failure == REFUSED.failure
    again.close()
    assert key_of(1) in store(root, retry_failed=True, run="second.2").find([key_of(1)])
    assert store(root, retry_failed=True, run="third").find([key_of(1)]) == {}
    assert store(root, fresh=True, run="fourth").find([key_of(1)]) == {}


@pytest.mark.parametrize("again", ["retry_failed", "fresh"])
def test_a_failure_that_ended_the_run_is_asked_again_when_the_run_is_continued_so(root, again):
    first = store(root, run="one.1", fail_fast=True, fresh=again == "fresh")
    first.record(request(1), REFUSED)
    first.record(request(2), answer("kept"))
    first.close()
    continued = store(root, run="one.2", fail_fast=True, **{again: True})
    assert continued.find([key_of(1), key_of(2)]).keys() == {key_of(2)}
    continued.record(request(1), REFUSED)
    assert key_of(1) in continued.find([key_of(1)])
    assert key_of(1) in store(root, run="one.2", fail_fast=True).find([key_of(1)])


def test_a_newer_failure_that_may_pass_sends_the_request_again(root):
    failed(root, REFUSED, clock=Ticking(1000))
    failed(root, FAILED, clock=Ticking(2000))
    assert store(root).find([key_of(1)]) == {}


def test_a_reply_of_the_wrong_type_is_asked_again_for_another_type(root):
    failed(root, MISFIT, result_type="INT")
    assert store(root, result_type="INT").find([key_of(1)])[key_of(1)].failure.kind == "type_mismatch"
    assert store(root, result_type="DOUBLE").find([key_of(1)]) == {}


def test_two_writers_of_one_name_share_a_ledger(root):
    one, two = store(root), store(root)
    for i in range(100):
        (one if i % 2 else two).record(request(i), answer(str(i)))
    one.close()
    two.close()
    found = Ledger.open(root).find([key_of(i) for i in range(100)])
    assert texts(found) == {key_of(i): str(i) for i in range(100)}


def test_a_writer_that_was_never_closed_loses_nothing(root):
    killed = store(root)
    killed.record(request(1), answer("kept"))
    os.close(killed._writer._log._handle)  # what a SIGKILL does
    assert texts(Ledger.open(root).find([key_of(1)])) == {key_of(1): "kept"}


def test_a_live_writer_is_left_alone_until_it_closes(root):
    live = store(root)
    live.record(request(1), answer("live"))
    ledger = Ledger.open(root)
    assert ledger.find([key_of(1)]) == {}
    live.close()
    ledger.refresh()
    assert texts(ledger.find([key_of(1)])) == {key_of(1): "live"}


def test_refresh_takes_in_new_logs_and_keeps_the_old(root):
    ledger = Ledger.open(root)
    for i in range(5):
        fill(root, [i])
        ledger.refresh()
        assert len(ledger.find([key_of(j) for j in range(9)])) == i + 1
        if i == 2:
            Ledger.open(root).compact_index()


def test_a_writer_that_recorded_nothing_leaves_nothing(root):
    idle = store(root)
    idle.close()
    idle.close()
    assert list((root / "log").iterdir()) == []


def test_only_the_owner_can_read_it(root):
    fill(root, [1])
    Ledger.open(root).compact_index()
    Ledger.open(root).compact()
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_path_that_is_a_file_is_refused_before_anything_is_sent(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="Nothing was sent"):
        LedgerWriter(tmp_path / "file", "task")
    with pytest.raises(SinkError, match="Nothing was sent"):
        LedgerWriter(tmp_path / "file" / "below", "task")


def test_a_ledger_that_is_not_there_is_empty(tmp_path):
    ledger = Ledger.open(tmp_path / "none")
    assert ledger.find([key_of(1)]) == {}
    assert ledger.audit().outcomes == 0
    assert not (tmp_path / "none").exists()


def test_little_room_on_the_disk_stops_requests_but_not_replies(root):
    tight = LedgerStore(Ledger.open(root), LedgerWriter(root, "task"))
    tight._writer._log._min_free_bytes = 1 << 60
    for _ in range(16):
        tight._writer._log._until_check = 0
        with pytest.raises(SinkError, match="no further request is sent"):
            tight.intend([request(1)])
    tight.record(request(2), answer("in flight"))
    tight.close()
    assert key_of(2) in Ledger.open(root).find([key_of(2)])
    with pytest.raises(SinkError, match="free"):
        LedgerWriter(root, "task", min_free_bytes=1 << 60)


def test_a_full_disk_says_what_was_kept_and_leaves_no_torn_record(root, monkeypatch):
    full = store(root)
    full.record(request(1), answer("kept"))
    log = full._writer._log
    write = os.write

    def short(handle, data):
        if handle == log._handle and len(data) > 30:
            return write(handle, data[:30])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(SinkError, match=rf"No space left.*{key_of(2)} was not kept.*All 1 replies.*kept"):
        full.record(request(2), answer("lost"))
    monkeypatch.undo()
    with pytest.raises(SinkError, match="No space left"):
        full.intend([request(3)])
    full.close()
    ledger = Ledger.open(root)
    assert texts(ledger.find([key_of(1), key_of(2)])) == {key_of(1): "kept"}
    audit = ledger.audit()
    assert (audit.torn_tails, audit.corrupt_records) == (0, 0)


def test_a_damaged_record_is_asked_for_again_and_its_neighbours_are_served(root):
    fill(root, range(5))
    ledger = Ledger.open(root)
    (name,) = current_logs(ledger.files)[0]
    path = root / log_path(name)
    data = bytearray(path.read_bytes())
    data[data.find(b"answer 2")] ^= 4
    path.write_bytes(data)
    for opened in (ledger, Ledger.open(root)):
        assert set(opened.find([key_of(i) for i in range(5)])) == {key_of(i) for i in (0, 1, 3, 4)}
        assert opened.unreadable == 1
    assert ledger.audit().corrupt_records == 1


def test_requests_can_be_kept_out_of_the_ledger(root):
    fill(root, [1], keep_requests=False)
    assert Ledger.open(root).to_arrow().column("request").to_pylist() == [None]
    assert b"prompt 1" not in b"".join(path.read_bytes() for path in (root / "log").iterdir())


def test_an_embedding_is_served_as_it_was_recorded(root):
    own = store(root)
    own.record(request(1), Outcome(reply=Reply(embedding=[0.1, -2.0])))
    assert own.find([key_of(1)])[key_of(1)].reply.embedding == [0.1, -2.0]
    own.close()
    assert Ledger.open(root).find([key_of(1)])[key_of(1)].reply.embedding == [0.1, -2.0]


def test_another_attempt_of_the_same_task_is_seen_while_it_still_writes(tmp_path):
    root = tmp_path / "ledger"
    first, second, other = (LedgerWriter(root, name) for name in ("1-2-3", "1-2-30", "1-20-3"))
    twins = second.twins("1-2", lambda log: False)
    for writer, key in ((first, "a" * 32), (other, "c" * 32)):
        outcome = Outcome(reply=Reply(text=key[0]), usage=Usage(1, 1, 2), attempts=1)
        writer.record(record_of(key, "hello", outcome, at_us=writer.now_us()))
    found = twins.find(["a" * 32, "b" * 32, "c" * 32])
    assert {key: outcome.reply.text for key, outcome in found.items()} == {"a" * 32: "a"}
    assert found["a" * 32].from_ledger
    outcome = Outcome(reply=Reply(text="later"), attempts=1)
    first.record(record_of("b" * 32, "hello", outcome, at_us=first.now_us()))
    assert twins.find(["b" * 32])["b" * 32].reply.text == "later"
    twins.close()
    for writer in (first, second, other):
        writer.close()


def test_a_speculative_attempt_asks_only_what_the_other_one_has_not_answered(root):
    ledger, writer = Ledger.open(root), LedgerWriter(root, "7-0-1")
    slow = LedgerStore(ledger, writer, twins=writer.twins("7-0", ledger.reads))
    slow.record(request(1), answer("by the slow one"))
    writer = LedgerWriter(root, "7-0-9")
    copy = LedgerStore(ledger, writer, twins=writer.twins("7-0", ledger.reads))
    assert texts(copy.find([key_of(1), key_of(2)])) == {key_of(1): "by the slow one"}
    copy.record(request(2), answer("by the copy"))
    assert texts(slow.find([key_of(2)])) == {key_of(2): "by the copy"}
    slow.close()
    copy.close()


def test_logs_of_earlier_runs_that_the_reader_knows_are_not_read_once_more(root, monkeypatch):
    fill(root, range(3), name="7-0-1")
    ledger, writer = Ledger.open(root), LedgerWriter(root, "7-0-2")
    twins = writer.twins("7-0", ledger.reads)
    fill(root, range(3, 5), name="7-0-3")  # begun and closed since the reader looked
    opened = []
    monkeypatch.setattr(twins, "_take_in", lambda log, handle, size: opened.append(size))
    twins.find([key_of(1)])
    assert len(opened) == 1
    monkeypatch.undo()
    twins._ends = [0]
    assert texts(twins.find([key_of(i) for i in range(5)])) == {key_of(3): "answer 3", key_of(4): "answer 4"}
    twins.close()
    writer.close()
