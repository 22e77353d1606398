"""Ctrl-C at a terminal where spark-submit runs: the signal goes to every process of the group, the JVM too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import Ledger
from batch_infer.testing import Rule
from tests.support.paths import ROOT
from tests.support.processes import kill_tree

pytestmark = pytest.mark.spark

ROWS = 200
ANSWERED = 150
IN_FLIGHT = 8


@pytest.fixture
def submit(tmp_path, start_endpoint):
    """Starts the job under spark-submit in a process group of its own, as a shell does."""
    endpoint = start_endpoint(rules=[Rule(times=ANSWERED), Rule(hold=True)])
    conf = tmp_path / "endpoints.toml"
    conf.write_text(f'[endpoint.mine]\nbase_url = "{endpoint.base_url}"\nmodel = "m"\nmax_concurrency = {IN_FLIGHT}\n')
    pq.write_table(pa.table({"id": range(ROWS), "body": [f"p {i}" for i in range(ROWS)]}), tmp_path / "in.parquet")
    command = [
        str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]",
        "--conf", "spark.ui.enabled=false", "--conf", f"spark.batch_infer.endpoints_file={conf}",
        "--conf", f"spark.local.dir={tmp_path}", "--driver-memory", "512m",
        str(ROOT / "jobs/ai_query.py"), "--endpoint", "mine", "--input", str(tmp_path / "in.parquet"),
        "--prompt", "{body}", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    started = []

    def start(*arguments):
        out = (tmp_path / f"submit-{len(started)}.txt").open("w+")
        process = subprocess.Popen(
            [*command, *arguments], stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=tmp_path
        )
        started.append((process, out))
        return process, out

    yield start, endpoint
    for process, out in started:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait(20)
        out.close()


def said(out):
    return Path(out.name).read_text()


@pytest.mark.parametrize("again", ["resume", "the same command"])
def test_ctrl_c_keeps_what_is_paid_says_how_to_go_on_and_the_next_run_pays_for_the_rest(submit, tmp_path, again):
    start, endpoint = submit
    process, out = start()
    endpoint.wait_until("requests", at_least=ANSWERED + IN_FLIGHT // 2, timeout_s=120)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, said(out)[-3000:]
    text = said(out)
    assert f"Interrupted. Every reply that arrived is kept in the ledger at {tmp_path / 'out'}.ledger" in text
    assert "Run the same command again, or with mode='resume', to continue" in text
    in_flight = endpoint.wait_until("in_flight", at_most=0, timeout_s=30)["abandoned"]
    audit = Ledger.open(tmp_path / "out.ledger").audit()
    assert (audit.answered, audit.billed_again) == (ANSWERED, 0)

    endpoint.configure(rules=[])
    process, out = start(*(["--mode", "resume"] if again == "resume" else []))
    assert process.wait(120) == 0, said(out)[-3000:]
    assert f"{ROWS} rows: {ROWS} answered, 0 failed, 0 NULL" in said(out)
    assert f"{ROWS - ANSWERED} requests asked now" in said(out)
    calls = Counter(endpoint.calls_by_prompt())
    assert calls.total() <= ROWS + in_flight <= ROWS + IN_FLIGHT
    assert pq.read_table(tmp_path / "out").num_rows == ROWS
