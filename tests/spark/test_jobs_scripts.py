"""The scripts in `jobs/` run as people type them, against a loopback endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.spark

SCRIPTS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem not in ("quickstart", "ai_query"))


@pytest.fixture(scope="module")
def three(spark, tmp_path_factory):
    path = tmp_path_factory.mktemp("input")
    rows = (
        spark.read.parquet(str(ROOT / "sample_data/tickets.parquet"))
        .where("ticket_id <= 3")
        .select("ticket_id", "body")
    )
    rows.write.parquet(str(path / "table"))
    rows.coalesce(1).write.csv(str(path / "csv"), header=True, escape='"')
    return path


def submit(script, *arguments, endpoint=None):
    command = [str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]"]
    settings = ["spark.ui.enabled=false"]
    if endpoint is not None:
        for field, value in (("base_url", endpoint.base_url), ("model", "m")):
            settings.append(f"spark.batch_infer.endpoint.mine.{field}={value}")
        arguments = (*arguments, "--endpoint", "mine")
    conf = [word for setting in settings for word in ("--conf", setting)]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    return subprocess.run(
        [*command, *conf, str(ROOT / "jobs" / script), *arguments],
        capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short(script):
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) < 40


def test_resume_begins_a_job_and_refuses_to_replace_a_finished_table(spark, three, endpoint, tmp_path):
    out = str(tmp_path / "out")
    done = submit(
        "resume.py", "--input", str(three / "table"), "--prompt", "Say {body}", "--output", out, endpoint=endpoint
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 rows answered" in done.stdout
    assert spark.read.parquet(out).where("result IS NOT NULL").count() == 3
    again = submit(
        "resume.py", "--input", str(three / "table"), "--prompt", "Say {body}", "--output", out, endpoint=endpoint
    )
    assert again.returncode == 2
    assert "there is nothing to resume" in again.stderr + again.stdout


def test_classify_csv_gives_one_of_the_labels(spark, three, tmp_path):
    out = str(tmp_path / "out")
    done = submit("classify_csv.py", "--input", str(three / "csv"), "--prompt", "Sort: {body}", "--labels", "a, b",
                  "--output", out)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    labels = {row.label for row in spark.read.parquet(out).select("result.label").collect()}
    assert labels <= {"a", "b"}


def test_extract_writes_typed_columns(spark, three, tmp_path):
    out = str(tmp_path / "out")
    fields = "topic STRING, urgent BOOLEAN"
    given = ["extract.py", "--input", str(three / "table"), "--column", "body", "--output", out]
    done = submit(*given, "--fields", fields)
    assert done.returncode == 0, done.stdout + done.stderr
    written = spark.read.parquet(out)
    assert dict(written.dtypes)["urgent"] == "boolean"
    assert written.count() == 3


def test_embed_writes_vectors(spark, three, tmp_path):
    out = str(tmp_path / "out")
    done = submit("embed.py", "--input", str(three / "table"), "--column", "body", "--output", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 rows embedded" in done.stdout
    assert spark.read.parquet(out).where("size(embedding) = 384").count() == 3
