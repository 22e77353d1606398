"""The index: few key files whatever the number of logs, the same answers with and without it."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter, keys
from batch_infer.adapters.ledger.indexing import MAX_KEY_FILES
from batch_infer.contract.reply import Failure, Outcome, Reply
from batch_infer.contract.request import Request


def key_of(i):
    return hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest()


def fill(root, numbers, text="answer"):
    filled = LedgerStore(Ledger.open(root), LedgerWriter(root, "task"))
    for i in numbers:
        filled.record(Request(key_of(i), "p"), Outcome(reply=Reply(text=f"{text} {i}")))
    filled.close()


def found(root, numbers):
    opened = Ledger.open(root)
    return {i: opened.find([key_of(i)])[key_of(i)].reply.text for i in numbers if opened.find([key_of(i)])}


def columns(entries):
    listed = [key for key, _ in entries]
    return keys.columns_of(listed, [(rank, i, 1, 0) for i, (_, rank) in enumerate(entries)])


some_keys = st.sampled_from(
    [high + low for high in ("00" * 8, "0a" * 8, "ff" * 8) for low in ("00" * 8, "01" * 8, "ff" * 8)]
)


@settings(deadline=None)
@given(entries=st.lists(st.tuples(some_keys, st.integers(1, 2**64 - 1)), max_size=30))
def test_sorting_keeps_the_best_entry_of_each_key_even_where_first_halves_are_equal(entries):
    expected = {}
    for i, (key, rank) in enumerate(entries):
        if key not in expected or rank > expected[key][0]:
            expected[key] = rank, i
    best = keys.best(columns(entries))
    wanted = [high + low for high in ("00" * 8, "0a" * 8, "ff" * 8) for low in ("00" * 8, "01" * 8, "ff" * 8)]
    rows = keys.positions(best, *keys.halves(wanted))
    assert {
        key: (int(best.rank[row]), int(best.offset[row])) for key, row in zip(wanted, rows, strict=True) if row >= 0
    } == expected
    assert best.size == len(expected)


@pytest.mark.parametrize("at_a_time", [3, 1_000_000])
def test_merging_in_ranges_gives_what_sorting_everything_does(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(keys, "MERGE_ENTRIES", at_a_time)
    random = np.random.default_rng(1)
    sources, everything = [], []
    for n in (0, 1, 50, 200):
        entries = [
            (key_of(int(i)), int(rank))
            for i, rank in zip(random.integers(0, 99, n), random.integers(1, 9, n), strict=True)
        ]
        part = keys.best(columns(entries))
        keys.write(tmp_path / str(n), [part], n + 3, [keys.Coverage(f"{n}.log", n, n)], closed=False)
        sources.append(keys.open_key_file(tmp_path / str(n), verify=True))
        everything.append(part._replace(log=part.log + {0: 0, 1: 1, 200: 2, 50: 3}[n]))
    keys.merge(tmp_path / "merged", sources)
    merged = keys.open_key_file(tmp_path / "merged", verify=True)
    assert [item.log for item in merged.footer.logs] == ["0.log", "1.log", "200.log", "50.log"]
    for ours, theirs in zip(merged.columns, keys.best(keys.joined(everything)), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_many_logs_become_few_key_files_and_every_reply_is_found(tmp_path):
    for n in range(40):
        fill(tmp_path, range(n * 5, n * 5 + 5 + n % 3))
        if n % 3 == 0:
            assert Ledger.open(tmp_path).compact_index() <= MAX_KEY_FILES
    assert found(tmp_path, range(250)).keys() == set(range(200))
    assert Ledger.open(tmp_path).compact_index() <= MAX_KEY_FILES
    ledger = Ledger.open(tmp_path)
    assert ledger._delta.size == 0
    assert len(ledger.find([key_of(i) for i in range(250)])) == 200


def test_key_files_of_unlike_sizes_are_not_merged_each_time(tmp_path):
    fill(tmp_path, range(500))
    Ledger.open(tmp_path).compact_index()
    (large,) = (tmp_path / "index").iterdir()
    fill(tmp_path, range(500, 510))
    assert Ledger.open(tmp_path).compact_index() == 2
    assert large.exists()


def test_a_log_of_failures_alone_is_indexed_once(tmp_path):
    failing = LedgerStore(Ledger.open(tmp_path), LedgerWriter(tmp_path, "task"))
    failing.record(Request(key_of(1), "p"), Outcome(failure=Failure("x", "y")))
    failing.close()
    assert Ledger.open(tmp_path).compact_index() == 1
    assert Ledger.open(tmp_path).find([key_of(1)]) == {}


def test_a_killed_writers_log_gets_its_keys_from_whoever_indexes(tmp_path):
    killed = LedgerWriter(tmp_path, "task")
    store = LedgerStore(Ledger.open(tmp_path), killed)
    store.record(Request(key_of(1), "p"), Outcome(reply=Reply(text="answer 1")))
    Ledger.open(tmp_path).compact_index()
    assert list((tmp_path / "log").glob("*.keys")) == []  # it lives: left alone
    path = killed._log._path
    os.close(killed._log._handle)
    with path.open("ab") as file:
        file.write(b"\xffBIL torn")
    Ledger.open(tmp_path).compact_index()
    assert len(list((tmp_path / "log").glob("*.keys"))) == 1
    before = set((tmp_path / "index").iterdir())
    Ledger.open(tmp_path).compact_index()
    assert set((tmp_path / "index").iterdir()) == before
    assert found(tmp_path, [1]) == {1: "answer 1"}


@pytest.mark.parametrize("folder", ["log", "index"])
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "footer", "columns"])
def test_a_damaged_key_file_costs_time_and_no_answer(tmp_path, folder, damage):
    fill(tmp_path, range(20))
    if folder == "index":
        Ledger.open(tmp_path).compact_index()
    (path,) = (tmp_path / folder).glob("*.keys")
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "zeros": b"\0" * len(data),
            "footer": data[:-20] + b"x" + data[-19:],
            "columns": bytes(len(data) // 2) + data[len(data) // 2 :],
        }[damage]
    )
    fill(tmp_path, range(20, 40))
    if damage != "columns":
        assert len(found(tmp_path, range(40))) == 40
    Ledger.open(tmp_path).compact_index()
    Ledger.open(tmp_path).compact_index()
    assert len(found(tmp_path, range(40))) == 40


def test_a_merge_that_was_cut_short_leaves_nothing_behind(tmp_path, monkeypatch):
    fill(tmp_path, range(20))
    Ledger.open(tmp_path).compact_index()
    fill(tmp_path, range(10, 30), "second")
    deleted = []
    monkeypatch.setattr("batch_infer.adapters.ledger.files.LocalFiles.delete", lambda _, path: deleted.append(path))
    Ledger.open(tmp_path).compact_index()
    monkeypatch.undo()
    assert len(list((tmp_path / "index").iterdir())) == 3
    assert len(deleted) == 2
    assert found(tmp_path, range(30)) == {i: f"{'answer' if i < 20 else 'second'} {i}" for i in range(30)}
    assert Ledger.open(tmp_path).compact_index() == 1
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_a_ledger_with_much_outside_the_index_indexes_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.ledger.reader.INDEX_ABOVE_ENTRIES", 10)
    fill(tmp_path, range(20))
    ledger = Ledger.open(tmp_path)
    assert ledger._delta.size == 0
    assert len(ledger._index) == 1
    assert len(ledger.find([key_of(i) for i in range(20)])) == 20


def test_only_one_maintenance_runs_at_a_time(tmp_path):
    fill(tmp_path, range(3))
    files = Ledger.open(tmp_path).files
    with files.maintaining(wait=True) as first, files.maintaining(wait=False) as second:
        assert (first, second) == (True, False)
    with files.maintaining(wait=False) as third:
        assert third
