"""Stores without append: immutable segments, a loss window that is said, copies kept on the machine."""

from __future__ import annotations

import hashlib
import logging
import stat
import time

import pyarrow.fs as arrow_fs
import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter, open_files, writer
from batch_infer.adapters.ledger.files import LocalFiles, RemoteFiles
from batch_infer.contract.errors import SinkError
from batch_infer.contract.reply import Outcome, Reply
from batch_infer.contract.request import Request


def key_of(i):
    return hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest()


@pytest.fixture
def bucket(tmp_path):
    """What a machine sees of a store; call it again for another machine."""
    (tmp_path / "bucket").mkdir()
    store = arrow_fs.SubTreeFileSystem(str(tmp_path / "bucket"), arrow_fs.LocalFileSystem())
    machines = []

    def machine():
        machines.append(1)
        return RemoteFiles(store, "answers.ledger", "test://answers.ledger", tmp_path / f"machine{len(machines)}")

    return machine


def open_store(files, **options):
    return LedgerStore(Ledger.open(files), LedgerWriter(files, "task", **options))


def record(store, numbers):
    for i in numbers:
        store.intend([Request(key_of(i), "p")])
        store.record(Request(key_of(i), f"prompt {i}"), Outcome(reply=Reply(text=f"answer {i}"), attempts=1))


def found(files, numbers):
    return {i for i in numbers if Ledger.open(files).find([key_of(i)])}


def test_what_is_recorded_is_found_by_the_writer_at_once_and_by_other_machines_after_close(bucket):
    here = bucket()
    store = open_store(here, loss_window_rows=7)
    for i in range(30):
        record(store, [i])
        assert set(store.find([key_of(j) for j in range(40)])) == {key_of(j) for j in range(i + 1)}
    store.close()
    other = Ledger.open(bucket())
    replies = other.find([key_of(i) for i in range(30)])
    assert {key: outcome.reply.text for key, outcome in replies.items()} == {
        key_of(i): f"answer {i}" for i in range(30)
    }
    assert other.compact_index() == 1
    assert found(bucket(), range(40)) == set(range(30))
    audit = other.audit()
    assert (audit.answered, audit.in_doubt, audit.asked_again, audit.logs) == (30, 0, 0, 5)


def test_a_full_segment_is_uploaded_without_waiting_for_close(bucket):
    store = open_store(bucket(), loss_window_rows=5, loss_window_s=600)
    record(store, range(12))
    until = time.monotonic() + 10
    while found(bucket(), range(12)) != set(range(10)) and time.monotonic() < until:
        time.sleep(0.01)
    assert found(bucket(), range(12)) == set(range(10))
    store.close()


def test_an_old_segment_is_uploaded_although_it_is_not_full(bucket):
    store = open_store(bucket(), loss_window_s=0.05)
    record(store, [1])
    until = time.monotonic() + 10
    while found(bucket(), [1]) != {1} and time.monotonic() < until:
        time.sleep(0.01)
    assert found(bucket(), [1]) == {1}
    store.close()


def test_the_loss_window_is_said_once(bucket, caplog):
    writer.said.forget()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            open_store(bucket(), loss_window_rows=7, loss_window_s=3).close()
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "up to 7 replies" in message
    assert "last 3 seconds" in message


def test_an_upload_that_fails_stops_requests_and_is_raised_by_close(bucket, monkeypatch):
    files = bucket()
    store = open_store(files, loss_window_rows=2, loss_window_s=600)

    def failing(source, path):
        raise OSError("Access denied")

    monkeypatch.setattr(files, "publish", failing)
    record(store, range(2))
    until = time.monotonic() + 10
    with pytest.raises(SinkError, match="Access denied"):
        while time.monotonic() < until:
            store.intend([Request(key_of(1), "p")])
    with pytest.raises(SinkError, match="Access denied"):
        store.close()


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_sent(tmp_path):
    (tmp_path / "bucket").write_text("a file")
    store = arrow_fs.SubTreeFileSystem(str(tmp_path / "bucket"), arrow_fs.LocalFileSystem())
    files = RemoteFiles(store, "x", "test://x", tmp_path / "cache")
    with pytest.raises(SinkError, match="Nothing was sent"):
        LedgerWriter(files, "task")


def test_tables_and_purges_work_on_such_a_store(bucket, tmp_path):
    files = bucket()
    store = open_store(files, loss_window_rows=4)
    record(store, range(10))
    store.close()
    ledger = Ledger.open(files)
    ledger.compact_index()
    assert ledger.compact() == 10
    assert ledger.purge(keys=[key_of(3)]).outcomes == 1
    other = bucket()
    assert found(other, range(10)) == set(range(10)) - {3}
    rows = pq.read_table(tmp_path / "bucket" / "answers.ledger" / "table").column("request_key").to_pylist()
    assert sorted(rows) == sorted(key_of(i) for i in range(10) if i != 3)


def test_copies_are_for_their_owner_only_and_are_used_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = bucket()
    store = open_store(files)
    record(store, [1])
    store.close()
    mine = RemoteFiles(files._fs, "answers.ledger", "test://answers.ledger")
    assert found(mine, [1]) == {1}
    home = mine._cache.parent
    assert home.parent == tmp_path
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    copies = {path: path.stat().st_mtime_ns for path in mine._cache.iterdir()}
    assert found(mine, [1]) == {1}
    assert copies == {path: path.stat().st_mtime_ns for path in mine._cache.iterdir()}
    home.chmod(0o777)
    assert RemoteFiles(files._fs, "answers.ledger", "test://answers.ledger")._cache.parent != home


def test_paths_and_uris_open_what_they_name(tmp_path):
    for root in (tmp_path, str(tmp_path), f"file://{tmp_path}", f"file:{tmp_path}"):
        files = open_files(root)
        assert isinstance(files, LocalFiles)
        assert files.root == str(tmp_path)
    with pytest.raises(SinkError, match="cannot be opened"):
        open_files("nosuch://bucket/x")


@pytest.mark.parametrize("scheme", ["s3", "s3a", "s3n"])
def test_a_ledger_beside_an_output_that_spark_writes_to_s3_is_found_there(tmp_path, scheme):
    files = open_files(f"{scheme}://bucket/out.ledger?region=eu-west-1", tmp_path)
    assert (files._fs.type_name, files._at("log")) == ("s3", "bucket/out.ledger/log")
