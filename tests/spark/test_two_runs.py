"""Two runs that would write one table at the same time: the second is refused, and a dead one is in nobody's way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import msgspec
import pytest

import batch_infer as bi
from batch_infer.spark.job import claim as ownership
from batch_infer.spark.job.claim import Claim, Owner
from batch_infer.spark.tables.filesystem import Files
from batch_infer.testing import Rule

pytestmark = pytest.mark.spark


def claims(tmp_path):
    return sorted(path.name for path in tmp_path.glob(".*.owner"))


def leave_claim(tmp_path, name="out", **changes):
    """The claim of another run, last refreshed now."""
    pid = changes.get("pid", os.getpid())
    owner = Owner(
        "0" * 16, "job", True, socket.gethostname(), ownership._machine(), pid, ownership._born(pid), time.time() - 60
    )
    path = tmp_path / f".{name}.batch_infer-{'0' * 16}.owner"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(owner, **changes)))
    return path


def age(path, seconds):
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.fixture
def take(spark, tmp_path):
    held = []

    def taking(job="job", *, name="out", alone=True, **options):
        held.append(Claim.take(Files(spark, str(tmp_path / name)), job, alone=alone, **options))
        return held[-1]

    yield taking
    for claim in held:
        claim.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "batch_infer-owner"]


@pytest.mark.parametrize("mode", ["overwrite", "append", "resume", "error"])
def test_the_second_of_two_runs_is_refused_before_any_call_and_the_first_is_not_disturbed(
    spark, start_endpoint, tmp_path, mode
):
    endpoint = start_endpoint("slow", rules=[Rule(hold=True)])
    df = spark.range(4).selectExpr("concat('p ', id) body")
    done = []

    def first():
        done.append(bi.run(df, endpoint="slow", request="body", output=str(tmp_path / "out"), progress=False))

    running = threading.Thread(target=first)
    running.start()
    try:
        endpoint.wait_until("requests", at_least=1, timeout_s=60)
        refusal = rf"a run on host \S+ \(process {os.getpid()}\), since .* UTC, is writing to .*/out.*nothing was sent"
        with pytest.raises(bi.SinkError, match=refusal):
            bi.run(df, endpoint="slow", request="body", output=str(tmp_path / "out"), mode=mode, progress=False)
    finally:
        endpoint.configure(rules=[])
        endpoint.release()
        running.join(60)
    assert (done[0].succeeded, endpoint.stats()["requests"]) == (4, 4)
    assert not claims(tmp_path)


def test_a_refused_argument_leaves_no_claim(spark, endpoint, tmp_path):
    df = spark.createDataFrame([("x",)], "body STRING")
    with pytest.raises(bi.ConfigError):
        bi.run(df, endpoint="echo", request="body", output=str(tmp_path / "out"), mode="merge", progress=False)
    assert not claims(tmp_path)


def test_a_claim_is_refreshed_so_that_it_does_not_lapse(take, tmp_path):
    take(beat_s=0.05)
    (path,) = tmp_path.glob(".out.*.owner")
    age(path, 100)
    old = path.stat().st_mtime
    until = time.monotonic() + 20
    while path.stat().st_mtime == old:
        assert time.monotonic() < until
        time.sleep(0.02)
    with pytest.raises(bi.SinkError, match="is writing to"):
        take()


def test_a_run_that_gave_no_sign_of_life_for_half_a_minute_is_in_nobodys_way(take, tmp_path):
    path = leave_claim(tmp_path, host="far-away", machine="far-away")
    age(path, 29)
    with pytest.raises(bi.SinkError, match=r"host far-away .* its claim lapses 30 s after its last sign of life"):
        take()
    age(path, 2)
    take()
    assert not path.exists()


def test_a_dead_process_of_this_machine_is_in_nobodys_way_at_once(take, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave_claim(tmp_path, pid=process.pid)
    with pytest.raises(bi.SinkError, match=f"process {process.pid}"):
        take()
    process.communicate(b"\n", timeout=20)
    take()


def test_a_dead_process_that_nobody_has_waited_for_is_in_nobodys_way_either(take, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave_claim(tmp_path, pid=process.pid)
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    take()
    process.wait(20)


def test_another_process_that_has_the_dead_ones_number_is_not_taken_for_it(take, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave_claim(tmp_path, pid=process.pid, born="1")
    take()
    process.communicate(b"\n", timeout=20)


def test_the_same_process_number_in_another_container_may_be_alive(take, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(20)
    leave_claim(tmp_path, pid=process.pid, machine="another container on this host")
    with pytest.raises(bi.SinkError, match="is writing to"):
        take()


def test_what_a_broken_off_run_of_this_process_left_is_no_live_run(take, tmp_path):
    leave_claim(tmp_path)
    take()


def test_an_unreadable_claim_counts_until_it_lapses(take, tmp_path):
    path = tmp_path / ".out.batch_infer-1.owner"
    path.write_text("")
    with pytest.raises(bi.SinkError, match="another run is writing to"):
        take()
    age(path, 31)
    take()


def test_of_many_runs_that_begin_at_once_there_is_never_a_second_owner(spark, tmp_path):
    files = Files(spark, str(tmp_path / "out"))
    start, owners, most, refused = threading.Barrier(6), [], [], []

    def run():
        start.wait(20)
        try:
            claim = Claim.take(files, "job", alone=True)
        except bi.SinkError as error:
            refused.append(str(error))
            return
        owners.append(claim)
        most.append(len(owners))
        time.sleep(0.3)
        owners.remove(claim)
        claim.release()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(most) <= {1}
    assert len(most) + len(refused) == 6
    assert not claims(tmp_path)


def test_jobs_that_share_a_table_keep_out_only_runs_of_their_own(take):
    take("one", alone=False)
    take("two", alone=False)
    with pytest.raises(bi.SinkError, match="is writing to"):
        take("two", alone=False)
    with pytest.raises(bi.SinkError, match="is writing to"):
        take("three", alone=True)
    take("one", name="elsewhere")


def test_a_run_that_lost_its_claim_writes_nothing(take, tmp_path):
    claim = take()
    claim.check()
    next(tmp_path.glob(".out.*.owner")).unlink()
    with pytest.raises(bi.SinkError, match="claim on .*/out is gone"):
        claim.check()
