"""The job engine: rows in = rows out, what the summary says, and what is refused before anything is paid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.testing import Rule, chat_text, count_tokens
from tests.support.paths import ROOT

pytestmark = pytest.mark.spark

TICKETS = str(ROOT / "sample_data" / "tickets.parquet")


@pytest.fixture(scope="module")
def tickets(spark):
    return spark.read.parquet(TICKETS)


def test_every_sample_ticket_comes_back_with_its_reply_and_usage_adds_up(spark, endpoint, tickets, tmp_path):
    out = str(tmp_path / "out")
    summary = bi.run(tickets.repartition(3), endpoint="echo", prompt="Say: {body}", output=out, progress=False)
    rows = spark.read.parquet(out).orderBy("ticket_id").collect()
    source = tickets.orderBy("ticket_id").collect()
    assert [row.ticket_id for row in rows] == [row.ticket_id for row in source]
    for row, given in zip(rows, source, strict=True):
        assert row.result == (None if given.body is None else chat_text(f"Say: {given.body}"))
    stats = endpoint.stats()
    assert (
        summary.prompt_tokens
        == stats["prompt_tokens"]
        == sum(row.usage.prompt_tokens for row in rows if row.usage and not row.from_ledger)
    )
    assert summary.completion_tokens == stats["completion_tokens"]
    assert (summary.rows, summary.null, summary.failed) == (264, 5, 0)
    assert spark.read.parquet(out).where("result is null and request_key is not null and error is null").count() == 0


def test_order_is_kept_within_partitions(spark, endpoint, tickets, tmp_path):
    ordered = tickets.coalesce(1).orderBy("ticket_id")
    replies = ordered.select("ticket_id", "body", bi.ai_query("echo", "body").alias("r")).collect()
    assert [row.ticket_id for row in replies] == list(range(1, 265))
    assert all(row.r == (None if row.body is None else chat_text(row.body)) for row in replies)


def test_prompt_tokens_of_the_job_are_those_of_its_prompts(spark, endpoint, tmp_path):
    df = spark.createDataFrame([(1, "one two"), (2, "three")], "id INT, body STRING")
    summary = bi.run(df, endpoint="echo", prompt="{body}", output=str(tmp_path / "o"), progress=False)
    assert summary.prompt_tokens == count_tokens("one two") + count_tokens("three")


def test_a_bad_row_costs_that_row_and_the_summary_names_its_kind(spark, start_endpoint, tmp_path):
    start_endpoint("moody", rules=[Rule(match="bad", status=400)])
    df = spark.createDataFrame([(i, "bad" if i % 10 == 3 else f"row {i}") for i in range(40)], "id INT, body STRING")
    summary = bi.run(df, endpoint="moody", request="body", output=str(tmp_path / "o"), progress=False)
    assert (summary.succeeded, summary.failed, summary.errors) == (36, 4, {"bad_request": 4})
    errors = spark.read.parquet(str(tmp_path / "o")).where("error is not null")
    assert {(row.id % 10, row.error.status, row.error.retryable) for row in errors.collect()} == {(3, 400, False)}


def test_cost_is_the_bill(spark, start_endpoint, tmp_path):
    priced = {"usd_per_million_prompt_tokens": 1000, "usd_per_million_completion_tokens": 2000}
    endpoint = start_endpoint("priced", fields=priced)
    df = spark.range(50).select(F.concat(F.lit("row "), F.col("id").cast("string")).alias("body"))
    summary = bi.run(df, endpoint="priced", request="body", output=str(tmp_path / "o"), progress=False)
    stats = endpoint.stats()
    assert summary.cost_usd == pytest.approx((stats["prompt_tokens"] * 1000 + stats["completion_tokens"] * 2000) / 1e6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Say {bodie}"}, "no column 'bodie'. Did you mean {body}?"),
        ({"prompt": "Say {body"}, "Write '{{'"),
        ({"prompt": "Say nothing"}, "names no column"),
        ({"prompt": "{body}", "request": "body"}, "either a prompt template or a request column"),
        ({"request": "body", "result_column": "id"}, "already has the columns 'id'"),
        ({"request": "id"}, "takes a STRING"),
        ({"request": "body", "endpoint": "ecko"}, "Did you mean 'echo'?"),
        ({"request": "body", "format": "csv"}, "csv"),
        ({"request": "body", "mode": "overwrit"}, "overwrit"),
        ({"request": "body", "sample": "nope"}, "no column 'nope'"),
    ],
)
def test_what_is_wrong_is_said_before_any_call(spark, endpoint, tmp_path, options, message):
    df = spark.createDataFrame([(1, "x")], "id INT, body STRING")
    given = {"endpoint": "echo", "output": str(tmp_path / "o"), "progress": False, **options}
    with pytest.raises(bi.BatchInferError) as caught:
        bi.run(df, **given)
    assert message in str(caught.value)
    assert endpoint.stats()["requests"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"request": "id"},
        {"request": "body", "format": "csv"},
        {"request": "body", "endpoint": "ecko"},
        {"prompt": "{bodie}"},
        {"request": "body", "model_parameters": {"max_tokens": "many"}},
    ],
)
def test_what_is_refused_leaves_no_ledger_and_no_work_behind(spark, endpoint, tmp_path, options):
    df = spark.createDataFrame([(1, "x")], "id INT, body STRING")
    with pytest.raises(bi.BatchInferError):
        bi.run(df, **{"endpoint": "echo", "output": str(tmp_path / "o"), "progress": False, **options})
    assert list(tmp_path.iterdir()) == []


def test_a_query_that_is_refused_leaves_no_ledger_behind(spark, endpoint, tmp_path):
    spark.conf.set("spark.batch_infer.ledger", str(tmp_path / "ledger"))
    try:
        for arguments in ("1", "'x', sample => 'a'", "'x', files => 1", "'x', nope => 1"):
            with pytest.raises(Exception, match="ai_query"):
                spark.sql(f"SELECT ai_query('echo', {arguments})")
        assert list(tmp_path.iterdir()) == []
        spark.sql("SELECT ai_query('echo', 'x')")
        assert [path.name for path in tmp_path.iterdir()] == ["ledger"]
    finally:
        spark.conf.unset("spark.batch_infer.ledger")


@pytest.mark.parametrize("reference", ["env:BATCH_INFER_NO_SUCH_KEY", "file:/no/such/key"])
def test_a_key_that_leads_to_nothing_is_said_before_the_input_is_read(spark, start_endpoint, tmp_path, reference):
    endpoint = start_endpoint("guarded", fields={"api_key": reference})
    read = tmp_path / "read"
    df = spark.range(3).select(F.udf(lambda i: read.write_text("") and "x")("id").alias("body"))
    with pytest.raises(bi.ConfigError, match=rf"endpoint 'guarded': the secret '{reference}' was found neither"):
        bi.run(df, endpoint="guarded", request="body", output=str(tmp_path / "o"), progress=False)
    assert list(tmp_path.iterdir()) == []
    assert endpoint.stats()["requests"] == 0


def test_a_relative_ledger_is_the_same_one_for_the_driver_and_the_workers(spark, endpoint, tmp_path, monkeypatch):
    df = spark.createDataFrame([("x",)], "body STRING")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"endpoint": "echo", "request": "body", "ledger": "~/kept", "progress": False}
    summary = bi.run(df, output=str(tmp_path / "o"), **given)
    assert (summary.ledger, summary.in_doubt) == (str(tmp_path / "kept"), 0)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir() if path.name[0] != ".") == [
        "index",
        "log",
        "table",
    ]
    assert not Path("~").exists()


def test_an_existing_output_is_refused_before_any_call(spark, endpoint, tmp_path):
    df = spark.createDataFrame([("x",)], "body STRING")
    out = str(tmp_path / "o")
    bi.run(df, endpoint="echo", request="body", output=out, progress=False)
    endpoint.reset()
    with pytest.raises(bi.BatchInferError, match="there is a table at"):
        bi.run(df, endpoint="echo", request="body", output=out, progress=False)
    assert endpoint.stats()["requests"] == 0


def submit(*arguments, timeout_s=120):
    """Runs the job as its users do, in a process of its own."""
    submit_command = Path(sys.executable).parent / "spark-submit"
    command = [
        str(submit_command),
        "--master",
        "local[2]",
        "--conf",
        "spark.ui.enabled=false",
        str(ROOT / "jobs/ai_query.py"),
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def test_spark_submit_writes_the_table_and_prints_progress_and_summary(spark, start_endpoint, tmp_path):
    endpoint = start_endpoint("unused")
    conf = tmp_path / "endpoints.toml"
    conf.write_text(f'[endpoint.mine]\nbase_url = "{endpoint.base_url}"\nmodel = "m"\n')
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "spark-submit"), "--master", "local[2]",
            "--conf", "spark.ui.enabled=false", "--conf", f"spark.batch_infer.endpoints_file={conf}",
            str(ROOT / "jobs/ai_query.py"), "--endpoint", "mine", "--input", TICKETS, "--prompt", "Say: {body}",
            "--output", str(tmp_path / "out"), "--model-parameters", '{"max_tokens": 9}', "--limit", "50",
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "50 rows: 48 answered, 0 failed, 2 NULL" in done.stdout
    assert re.search(r"^\[mine\] [1-9]\d* rows · ", done.stdout, re.MULTILINE)  # spark-submit merges the two streams
    assert spark.read.parquet(str(tmp_path / "out")).count() == 50
    assert endpoint.bodies()[0]["max_tokens"] == 9


def test_spark_submit_refuses_an_unknown_column_with_status_2(tmp_path):
    done = submit(
        "--endpoint", "local/chat", "--input", TICKETS, "--prompt", "Say: {boddy}", "--output", str(tmp_path / "o")
    )
    assert done.returncode == 2
    assert "error: prompt template: the input has no column 'boddy'. Did you mean {body}?" in done.stdout
