"""The account, the inference table and purging: nothing lost, nothing doubled, whatever is cut short."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta

import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import SCHEMA, Ledger, LedgerStore, LedgerWriter
from batch_infer.adapters.ledger import table as table_module
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.reply import Failure, Outcome, Reply, Usage
from batch_infer.contract.request import Request


def key_of(i):
    return hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest()


def request(i):
    return Request(key_of(i), f"prompt {i}")


def answer(i, attempts=1):
    return Outcome(reply=Reply(text=f"answer {i}", model="m-1"), usage=Usage(2, 3, 5), attempts=attempts, latency_ms=7)


FAILED = Outcome(failure=Failure("server_error", "500", 500, retryable=True), attempts=1)


def open_store(root, at=None, **options):
    clock = {"clock": lambda: at} if at else {}
    return LedgerStore(Ledger.open(root), LedgerWriter(root, "task", **clock), **options)


def fill(root, numbers, at=None, **options):
    store = open_store(root, at, **options)
    for i in numbers:
        store.intend([request(i)])
        store.record(request(i), answer(i))
    store.close()


def parquet_keys(root):
    return sorted(pq.read_table(root / "table").column("request_key").to_pylist()) if any_parts(root) else []


def any_parts(root):
    return list((root / "table").glob("*.parquet"))


class Crash(BaseException):
    pass


# The account


def test_intents_without_an_outcome_are_in_doubt(tmp_path):
    store = open_store(tmp_path)
    store.intend([request(1), request(2)])
    store.record(request(2), answer(2))
    store.intend([request(3)])
    store.record(request(3), FAILED)
    store.close()
    audit = Ledger.open(tmp_path).audit()
    assert list(audit.in_doubt_keys()) == [key_of(1)]
    assert (audit.in_doubt, audit.answered, audit.failed, audit.intents) == (1, 1, 1, 3)
    assert (audit.outcomes, audit.failures, audit.asked_again, audit.billed_again) == (2, 1, 0, 0)


def test_the_account_of_one_run_has_what_it_sent_and_why_it_sent_it_again(tmp_path):
    for run, cut_off in (("old", [1, 2, 3]), ("new.1", [2, 4])):
        store = open_store(tmp_path, run=run)
        store.intend([request(i) for i in cut_off])
        store.close()
    fill(tmp_path, [2, 3, 5], run="new.2")
    of_all, of_new = Ledger.open(tmp_path).audit(), Ledger.open(tmp_path).audit(run="new.2")
    assert (of_all.in_doubt, of_all.asked_again) == (2, 2)
    assert list(of_new.in_doubt_keys()) == [key_of(4)], "of another run's requests, 1 was not sent again"
    assert sorted(of_new.asked_again_keys()) == sorted([key_of(2), key_of(3)])
    assert (of_new.answered, of_new.outcomes) == (of_all.answered, of_all.outcomes)
    assert Ledger.open(tmp_path).audit(run="none").in_doubt == 0


def test_a_request_that_was_cut_off_and_asked_again_may_have_been_billed_twice_and_is_named(tmp_path):
    first = open_store(tmp_path)
    first.intend([request(1)])
    first.close()
    assert list(Ledger.open(tmp_path).audit().in_doubt_keys()) == [key_of(1)]
    fill(tmp_path, [1, 2])
    audit = Ledger.open(tmp_path).audit()
    assert audit.in_doubt == 0
    assert list(audit.asked_again_keys()) == [key_of(1)]


def test_attempts_that_an_outcome_accounts_for_are_not_in_doubt(tmp_path):
    store = open_store(tmp_path)
    for _ in range(3):
        store.intend([request(1)])
    store.record(request(1), answer(1, attempts=3))
    store.close()
    assert Ledger.open(tmp_path).audit().asked_again == 0


def test_replies_billed_twice_are_counted_but_not_those_that_fresh_asked_for(tmp_path):
    fill(tmp_path, [1, 2, 3])
    fill(tmp_path, [2])
    fill(tmp_path, [3], fresh=True)
    audit = Ledger.open(tmp_path).audit()
    assert list(audit.billed_again_keys()) == [key_of(2)]
    assert (audit.answered, audit.outcomes, audit.fresh) == (3, 5, 1)


def test_usage_and_cost_are_added_up_and_unknown_is_none(tmp_path):
    fill(tmp_path, [1, 2], price=lambda outcome: outcome.usage.total_tokens / 10)
    fill(tmp_path, [3])
    audit = Ledger.open(tmp_path).audit()
    assert audit.usage == Usage(6, 9, 15)
    assert audit.cost_usd == pytest.approx(1.0)
    assert audit.unpriced == 1
    assert Ledger.open(tmp_path / "none").audit().cost_usd is None


def test_keys_that_end_in_zero_bytes_are_counted_as_themselves(tmp_path):
    store = open_store(tmp_path)
    ending = ["00" * 16, "ab" + "00" * 15, "00" * 15 + "01"]
    store.intend([Request(key, "p") for key in ending])
    store.close()
    assert sorted(Ledger.open(tmp_path).audit().in_doubt_keys()) == sorted(ending)


# The inference table


def test_the_table_has_one_row_an_outcome_failed_ones_too(tmp_path):
    store = open_store(tmp_path, 1_700_000_000.25, endpoint="mine", model="asked", price=lambda _: 0.5)
    store.record(request(1), answer(1))
    messages = b'[{"role":"user","content":"hi"}]'
    store.record(Request(key_of(2), messages, files=(b"x", b"y")), FAILED)
    store.record(Request(key_of(3), [1, 2]), Outcome(reply=Reply(embedding=[0.5, 0.25])))
    store.close()
    table = Ledger.open(tmp_path).to_arrow()
    assert table.schema == SCHEMA
    one, two, three = table.to_pylist()
    assert one["time"].timestamp() == 1_700_000_000.25
    assert (one["endpoint"], one["model"], one["status"], one["duration_ms"]) == ("mine", "m-1", 200, 7)
    assert (one["attempts"], one["cost_usd"], one["error"], one["fresh"]) == (1, 0.5, None, False)
    assert one["usage"]["total_tokens"] == 5
    assert json.loads(one["request"]) == {"prompt": "prompt 1"}
    assert json.loads(one["reply"])["text"] == "answer 1"
    assert json.loads(two["request"]) == {"messages": json.loads(messages), "files": 2}
    assert two["error"] == {"kind": "server_error", "status": 500, "message": "500", "retryable": True}
    assert (two["status"], two["model"], two["reply"]) == (500, "asked", None)
    assert json.loads(three["request"]) == {"input": [1, 2]}
    assert json.loads(three["reply"])["embedding"] == [0.5, 0.25]


def test_an_empty_ledger_has_an_empty_table_of_the_same_types(tmp_path):
    assert Ledger.open(tmp_path / "none").to_arrow().schema == SCHEMA


def test_compaction_writes_each_outcome_once(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "BATCH_ROWS", 3)
    monkeypatch.setattr(table_module, "PART_BYTES", 1000)
    ledger = Ledger.open(tmp_path)
    growing = open_store(tmp_path)
    for i in range(30):
        growing.record(request(i), answer(i))
        if i % 10 == 0:
            assert ledger.compact() > 0
    growing.close()
    fill(tmp_path, range(30, 35))
    assert ledger.compact() == 14
    assert ledger.compact() == 0
    assert parquet_keys(tmp_path) == sorted(key_of(i) for i in range(35))
    assert len(any_parts(tmp_path)) > 3


@pytest.mark.parametrize("step", ["publish", "before the second part", "after the second part"])
def test_a_compaction_that_crashes_loses_and_doubles_nothing(tmp_path, monkeypatch, step):
    monkeypatch.setattr(table_module, "BATCH_ROWS", 3)
    monkeypatch.setattr(table_module, "PART_BYTES", 1000)
    fill(tmp_path, range(20))
    calls = 0
    files = Ledger.open(tmp_path).files
    publish = files.publish

    def crashing(source, path):
        nonlocal calls
        calls += 1
        if step == "publish" or (step.startswith("before") and calls == 2):
            raise Crash
        publish(source, path)
        if step.startswith("after") and calls == 2:
            raise Crash

    monkeypatch.setattr(files, "publish", crashing)
    with pytest.raises(Crash):
        table_module.compact(files)
    assert len(parquet_keys(tmp_path)) == len(set(parquet_keys(tmp_path))) < 20
    Ledger.open(tmp_path).compact()
    assert parquet_keys(tmp_path) == sorted(key_of(i) for i in range(20))
    assert len(Ledger.open(tmp_path).find([key_of(i) for i in range(20)])) == 20


def test_two_compactions_at_once_without_a_lock_are_put_right_by_the_next(tmp_path):
    fill(tmp_path, range(10))
    ledger = Ledger.open(tmp_path)
    ledger.compact()
    (part,) = any_parts(tmp_path)
    part.with_name("part-zzz.parquet").write_bytes(part.read_bytes())
    ledger.compact()
    assert parquet_keys(tmp_path) == sorted(key_of(i) for i in range(10))


# Purging


def test_purge_by_key_takes_the_reply_out_of_logs_index_and_table(tmp_path):
    fill(tmp_path, range(10))
    fill(tmp_path, [3])
    ledger = Ledger.open(tmp_path)
    ledger.compact_index()
    ledger.compact()
    purged = ledger.purge(keys=[key_of(3)])
    assert (purged.outcomes, purged.intents, purged.logs, purged.busy) == (2, 2, 2, ())
    assert purged.freed_bytes > 0
    left = {key_of(i) for i in range(10)} - {key_of(3)}
    for opened in (ledger, Ledger.open(tmp_path)):
        assert set(opened.find([key_of(i) for i in range(10)])) == left
    assert parquet_keys(tmp_path) == sorted(left)
    assert b"prompt 3" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert ledger.audit().in_doubt == 0


def test_purge_by_age(tmp_path):
    fill(tmp_path, [1], at=1_000.0)
    fill(tmp_path, [2])
    ledger = Ledger.open(tmp_path)
    assert ledger.purge(older_than=timedelta(days=30)).outcomes == 1
    assert set(ledger.find([key_of(1), key_of(2)])) == {key_of(2)}


def test_purge_by_endpoint_and_age_takes_what_both_apply_to(tmp_path):
    fill(tmp_path, [1], at=1_000.0, endpoint="a")
    fill(tmp_path, [2], at=1_000.0, endpoint="b")
    fill(tmp_path, [3], endpoint="a")
    ledger = Ledger.open(tmp_path)
    assert ledger.purge(endpoint="a", older_than=timedelta(days=1)).outcomes == 1
    assert set(ledger.find([key_of(i) for i in (1, 2, 3)])) == {key_of(2), key_of(3)}


def test_purge_keeps_what_is_in_doubt_unless_it_is_asked_for(tmp_path):
    store = open_store(tmp_path)
    store.intend([request(1), request(2)])
    store.close()
    ledger = Ledger.open(tmp_path)
    ledger.purge(keys=[key_of(1)])
    assert list(ledger.audit().in_doubt_keys()) == [key_of(2)]


def test_purging_the_served_reply_brings_back_the_one_behind_it(tmp_path):
    fill(tmp_path, [1], at=1_000.0, endpoint="a")
    fill(tmp_path, [1], at=2_000.0, endpoint="b", fresh=True)
    ledger = Ledger.open(tmp_path)
    ledger.compact_index()
    ledger.purge(endpoint="b")
    assert ledger.find([key_of(1)])
    assert Ledger.open(tmp_path).find([key_of(1)])
    ledger.purge(endpoint="a")
    assert ledger.find([key_of(1)]) == {}


def test_a_reader_that_does_not_know_of_a_purge_still_finds_what_is_left(tmp_path):
    fill(tmp_path, range(10))
    unaware = Ledger.open(tmp_path)
    Ledger.open(tmp_path).purge(keys=[key_of(3)])
    assert set(unaware.find([key_of(i) for i in range(10)])) == {key_of(i) for i in range(10) if i != 3}


def test_a_live_tasks_log_is_left_alone_and_named(tmp_path):
    live = open_store(tmp_path)
    live.record(request(1), answer(1))
    purged = Ledger.open(tmp_path).purge(keys=[key_of(1)])
    assert (purged.outcomes, len(purged.busy)) == (0, 1)
    live.close()
    assert Ledger.open(tmp_path).purge(keys=[key_of(1)]).outcomes == 1


def test_purge_of_everything_must_be_said_otherwise(tmp_path):
    with pytest.raises(ConfigError):
        Ledger.open(tmp_path).purge()


@pytest.mark.parametrize("at", range(1, 9))
def test_a_purge_that_crashes_anywhere_loses_and_doubles_nothing_else(tmp_path, monkeypatch, at):
    fill(tmp_path, range(10))
    fill(tmp_path, range(10, 20))
    ledger = Ledger.open(tmp_path)
    ledger.compact_index()
    ledger.compact()
    calls = 0

    def counted(method):
        def crashing(*args):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Crash
            return method(*args)

        return crashing

    monkeypatch.setattr(ledger.files, "publish", counted(ledger.files.publish))
    monkeypatch.setattr(ledger.files, "delete", counted(ledger.files.delete))
    with pytest.raises(Crash):
        ledger.purge(keys=[key_of(3), key_of(13)])
    left = {key_of(i) for i in range(20)} - {key_of(3), key_of(13)}
    again = Ledger.open(tmp_path)
    assert set(again.find([key_of(i) for i in range(20)])) >= left
    audit = again.audit()
    assert (audit.in_doubt, audit.billed_again) == (0, 0)
    again.purge(keys=[key_of(3), key_of(13)])
    again.compact_index()
    again.compact()
    assert set(again.find([key_of(i) for i in range(20)])) == left
    assert parquet_keys(tmp_path) == sorted(left)
    assert len(list((tmp_path / "log").glob("task-*"))) == 4
    assert b"prompt 3" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [path for path in tmp_path.rglob("_tmp-*") if path.parent.name != "log"] == []
