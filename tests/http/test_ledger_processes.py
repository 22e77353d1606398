"""The ledger under processes that are killed, disks that are full, and directories that cannot be written."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter
from batch_infer.contract.errors import SinkError
from batch_infer.contract.reply import Outcome, Reply
from batch_infer.contract.request import Request

WRITER = """
import sys
from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter
from batch_infer.contract.reply import Outcome, Reply
from batch_infer.contract.request import Request
from hashlib import blake2b
root, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = LedgerStore(Ledger.open(root), LedgerWriter(root, "task"))
for i in range(start, stop):
    key = blake2b(b"%d" % i, digest_size=16).hexdigest()
    if store.find([key]):
        continue
    store.intend([Request(key, "p")])
    print("sent", i, flush=True)
    store.record(Request(key, "p"), Outcome(reply=Reply(text="x" * (i * 37 % 5000)), attempts=1))
    print("kept", i, flush=True)
store.close()
"""


def key_of(i):
    return hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest()


def spawn(root, start, stop):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root), str(start), str(stop)], stdout=subprocess.PIPE, text=True
    )


def lines_of(output, word):
    whole = output.rpartition("\n")[0]  # the process may have been killed in the middle of a line
    return [int(line.split()[1]) for line in whole.splitlines() if line.startswith(word)]


def test_a_writer_killed_in_mid_write_loses_at_most_what_was_in_flight(tmp_path):
    seeded = random.Random(7)
    sent, kept = [], []
    for _ in range(5):
        process = spawn(tmp_path, 0, 1_000_000)
        process.stdout.readline()
        time.sleep(seeded.uniform(0.02, 0.2))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        sent += lines_of(output, "sent")
        kept += lines_of(output, "kept")
        found = Ledger.open(tmp_path).find([key_of(i) for i in kept])
        assert len(found) == len(kept)
    assert len(set(kept)) == len(kept)
    audit = Ledger.open(tmp_path).audit()
    assert audit.billed_again == 0
    assert audit.in_doubt + audit.asked_again <= 5
    assert len(sent) - len(set(sent)) <= audit.asked_again
    assert audit.answered >= len(kept) > 50
    assert audit.corrupt_records == 0
    assert audit.torn_tails <= 5


def test_writers_readers_and_maintenance_at_the_same_time(tmp_path):
    processes = [spawn(tmp_path, n * 2000, n * 2000 + 3000) for n in range(3)]
    readers = [process.stdout for process in processes]
    threads = [threading.Thread(target=reader.read) for reader in readers]
    for thread in threads:
        thread.start()
    ledger = Ledger.open(tmp_path)
    tabled = 0
    while any(thread.is_alive() for thread in threads):
        ledger.refresh()
        ledger.compact_index()
        tabled += ledger.compact()
        ledger.find([key_of(i) for i in range(0, 7000, 50)])
    for thread, process in zip(threads, processes, strict=True):
        thread.join()
        assert process.wait(timeout=60) == 0
    ledger.refresh()
    assert len(ledger.find([key_of(i) for i in range(8000)])) == 7000
    audit = ledger.audit()
    assert (audit.answered, audit.in_doubt, audit.corrupt_records, audit.torn_tails) == (7000, 0, 0, 0)
    assert tabled + ledger.compact() == audit.outcomes
    assert ledger.unreadable == 0


def mounted(path, *options):
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")


@pytest.fixture
def small_disk(tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    path = tmp_path / "disk"
    mounted(path, "-o", "size=256k")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_keeps_every_reply_that_was_recorded_and_says_so(small_disk):
    with pytest.raises(SinkError, match="no further request is sent"):
        LedgerWriter(small_disk / "ledger", "task")
    store = LedgerStore(Ledger.open(small_disk), LedgerWriter(small_disk, "task", min_free_bytes=0))
    kept = 0
    with pytest.raises(SinkError, match=r"No space left on device.* kept\..*run the same again"):
        while True:
            store.intend([Request(key_of(kept), "p")])
            store.record(Request(key_of(kept), "p"), Outcome(reply=Reply(text="x" * 3000), attempts=1))
            kept += 1
    assert kept > 50
    store.close()
    ledger = Ledger.open(small_disk)
    assert len(ledger.find([key_of(i) for i in range(kept + 1)])) == kept
    audit = ledger.audit()
    assert (audit.answered, audit.torn_tails, audit.corrupt_records) == (kept, 0, 0)
    assert audit.in_doubt <= 1


def test_a_disk_that_fills_up_stops_requests_while_there_is_room_for_replies(small_disk):
    store = LedgerStore(Ledger.open(small_disk), LedgerWriter(small_disk, "task", min_free_bytes=128 * 1024))
    sent = 0
    with pytest.raises(SinkError, match="no further request is sent"):
        while True:
            store.intend([Request(key_of(sent), "p")])
            sent += 1
            store.record(Request(key_of(sent), "p"), Outcome(reply=Reply(text="x" * 1000), attempts=1))
    for i in range(1000, 1050):  # in flight when that was found out
        store.record(Request(key_of(i), "p"), Outcome(reply=Reply(text="x" * 1000), attempts=1))
    store.close()
    assert len(Ledger.open(small_disk).find([key_of(i) for i in range(1000, 1050)])) == 50


def test_a_read_only_ledger_is_refused_before_anything_is_sent_but_can_be_read(small_disk):
    store = LedgerStore(Ledger.open(small_disk), LedgerWriter(small_disk, "task", min_free_bytes=0))
    store.record(Request(key_of(1), "p"), Outcome(reply=Reply(text="kept")))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SinkError, match=r"Read-only file system.*Nothing was sent"):
        LedgerWriter(small_disk, "task")
    with pytest.raises(SinkError, match=r"Read-only file system.*Nothing was sent"):
        LedgerWriter(small_disk / "below", "task")
    ledger = Ledger.open(small_disk)
    assert ledger.find([key_of(1)])[key_of(1)].reply.text == "kept"
    assert ledger.audit().answered == 1
