"""A key that the driver learns after the executors started reaches them, and is written down nowhere on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300)]

KEY = "a-key-of-no-known-shape-4711"


def holders(folder):
    """Files below a folder that hold the key."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return [str(path) for path in files if KEY.encode() in path.read_bytes()], len(files)


def test_a_late_key_reaches_the_executors_and_is_in_no_setting_log_closure_or_packet(
    standalone_cluster, start_endpoint, tmp_path
):
    endpoint = start_endpoint(api_key=KEY)
    events, local, recorded = tmp_path / "events", tmp_path / "local", tmp_path / "recorded"
    events.mkdir()
    conf = {
        **standalone_cluster.conf,
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": events.as_uri(),
        "spark.eventLog.compress": "false",  # what is searched must be readable
        "spark.sql.parquet.compression.codec": "uncompressed",
        "spark.local.dir": str(local),
        "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
        "spark.batch_infer.ledger": str(tmp_path / "ledger"),
    }
    environment = {name: value for name, value in os.environ.items() if name != "BATCH_INFER_TEST_KEY"}
    done = subprocess.run(
        [
            sys.executable, str(Path(__file__).parent / "secret_driver.py"), standalone_cluster.url, endpoint.base_url,
            json.dumps(conf), str(recorded), str(tmp_path / "out"),
        ],
        input=KEY + "\n", capture_output=True, text=True, timeout=200, env=environment, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    assert lines, done.stderr[-3000:]
    said = json.loads(lines[0].removeprefix("@@"))
    stats = endpoint.stats()
    assert (stats["authorized"], stats["requests"]) == (48, 48), "every request of every executor had the key"
    for name, text in said.items():
        assert KEY not in text, name
    assert "env:BATCH_INFER_TEST_KEY" in said["closure"], "the reference travels"
    assert KEY not in done.stdout + done.stderr
    assert len(recorded.read_bytes()) > 1000, "the workers spoke to the driver through the recorder"
    logged = b"".join(path.read_bytes() for path in events.rglob("*") if path.is_file())
    assert b"SQLExecutionStart" in logged
    found, searched = holders(tmp_path)  # events, ledger, output, shuffle files, packets
    assert (found, searched > 10) == ([], True)
    found, _ = holders(standalone_cluster.folder)  # the executors' own logs and copies
    assert found == []
