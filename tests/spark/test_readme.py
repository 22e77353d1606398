"""The examples of the README and of the documentation run as they are written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.adapters.providers.registry import find_endpoint
from batch_infer.spark.session import _local_servers
from tests.support.paths import ROOT

pytestmark = [pytest.mark.spark, pytest.mark.local_model]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    return [
        block
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]


@pytest.fixture(scope="module")
def tickets(spark):
    rows = spark.read.parquet(str(ROOT / "sample_data/tickets.parquet")).where("ticket_id <= 3")
    rows.createOrReplaceTempView("tickets")
    said = '{"role": "assistant", "content": "So."}'
    answers = spark.sql(f"SELECT 'Why?' AS question, named_struct('message', '{said}') AS r")
    answers.createOrReplaceTempView("answers")
    local = find_endpoint("local/chat", {})
    url = _local_servers.url("chat")
    bi.register_endpoint("support-model", base_url=url, model=local.model, max_concurrency=2)
    return rows


def statements():
    text = "\n".join(re.sub(r"--.*", "", block) for block in blocks("sql"))
    return [part for part in re.split(r"(?=^SELECT)", text, flags=re.MULTILINE) if part.strip()]


@pytest.mark.parametrize("statement", statements())
def test_every_sql_example_runs(spark, tickets, statement):
    rows = spark.sql(statement.strip().rstrip(";")).collect()
    assert rows
    assert rows[0][-1] is not None


def test_the_dataframe_example_runs(spark, tickets, capsys):
    (example,) = [block for block in blocks("python") if "replies = tickets" in block]
    exec(example, {"bi": bi, "F": F, "tickets": tickets})
    assert "total_tokens" in capsys.readouterr().out


def test_the_python_job_examples_run(spark, tickets, tmp_path, capsys):
    (job,) = [block for block in blocks("python") if "bi.run(" in block]
    (shown,) = [block for block in blocks("python") if "inference_table(" in block]
    for example in (job, shown):
        here = example.replace("out/five", str(tmp_path / "five"))
        exec(here, {"bi": bi, "spark": spark, "tickets": tickets})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 1 + 3, "a header, and a row for each ticket"


def test_the_endpoint_example_is_accepted():
    (example,) = [block for block in blocks("python") if "register_endpoint(" in block]
    exec(example, {"bi": bi})


def test_every_python_example_is_run_by_a_test_here():
    known = ("getOrCreate", "replies = tickets", "bi.run(", "inference_table(", "register_endpoint(")
    assert all(any(word in block for word in known) for block in blocks("python"))


def test_the_job_example_runs(tmp_path):
    (example,) = [block for block in blocks("console") if "jobs/ai_query.py" in block]
    words = shlex.split(example.split("$ ", 1)[1].split("\n\n")[0])
    command = [str(Path(sys.executable).parent / words[0]), "--master", "local[2]", "--conf", "spark.ui.enabled=false"]
    arguments = [str(tmp_path / "out") if word == "out/summaries" else word for word in words[1:] if word != "\n"]
    done = subprocess.run(
        [*command, *arguments, "--limit", "3"], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "3 rows: 3 answered" in done.stdout
