"""Paying once: what repeated rows, actions and runs cost, counted at the endpoint, and what the ledger keeps."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.adapters.ledger import Ledger
from batch_infer.testing import Rule, chat_text

pytestmark = pytest.mark.spark

USD_PER_MILLION = {"usd_per_million_prompt_tokens": 1_000, "usd_per_million_completion_tokens": 2_000}
SMALL = (2_000, 50)
FULL = pytest.param((100_000, 1_000), marks=[pytest.mark.long, pytest.mark.timeout(900)])


def rows_of(spark, rows, distinct, word="prompt"):
    """`rows` rows with `distinct` prompts, in 4 partitions that each have most of the prompts."""
    return spark.range(0, rows, 1, 4).selectExpr("id", f"concat('{word} ', id % {distinct}) body")


def bill(endpoint):
    stats = endpoint.stats()
    return (stats["prompt_tokens"] * 1_000 + stats["completion_tokens"] * 2_000) / 1e6


def requests(endpoint):
    return endpoint.stats()["requests"]


@pytest.fixture
def priced(start_endpoint):
    return start_endpoint("priced", fields=USD_PER_MILLION)


@pytest.fixture
def job(tmp_path):
    """Runs the job on `priced` with this test's output and ledger."""

    def run(df, **options):
        given = {"endpoint": "priced", "prompt": "{body}", "output": str(tmp_path / "out"), "progress": False}
        return bi.run(df, **{**given, **options})

    return run


# Jobs


@pytest.mark.parametrize("size", [SMALL, FULL], ids=str)
def test_each_distinct_prompt_is_one_call_and_a_second_run_makes_none(spark, priced, job, tmp_path, size):
    rows, distinct = size
    first = job(rows_of(spark, *size))
    assert requests(priced) == distinct
    assert (first.rows, first.asked, first.from_ledger, first.in_doubt) == (rows, distinct, rows - distinct, 0)
    table = spark.read.parquet(str(tmp_path / "out"))
    paid = table.where("NOT from_ledger").agg(F.sum("cost_usd"), F.count("*")).first()
    assert paid[1] == distinct
    assert paid[0] == pytest.approx(bill(priced)) == pytest.approx(first.cost_usd)
    assert table.where("result = concat('echo: ', body)").count() == rows == table.select("id").distinct().count()
    second = job(rows_of(spark, *size), mode="overwrite")
    assert requests(priced) == distinct
    assert (second.rows, second.asked, second.from_ledger, second.cost_usd) == (rows, 0, rows, 0)
    assert spark.read.parquet(str(tmp_path / "out")).count() == rows
    print(f"{rows:,} rows, {distinct:,} prompts: first run {first.seconds:.1f} s, second {second.seconds:.1f} s")


@pytest.mark.parametrize("size", [SMALL, FULL], ids=str)
def test_a_sample_column_asks_equal_prompts_once_a_sample(spark, priced, job, tmp_path, size):
    rows, _ = size
    summary = job(rows_of(spark, *size), sample="id")
    assert requests(priced) == summary.asked == rows
    assert summary.from_ledger == 0
    assert spark.read.parquet(str(tmp_path / "out")).select("request_key").distinct().count() == rows
    print(f"{rows:,} rows, each its own sample: {summary.seconds:.1f} s")


def test_fresh_asks_a_job_again_and_its_answers_replace_the_old_ones(spark, start_endpoint, job):
    endpoint = start_endpoint("priced", rules=[Rule(times=10, text="old"), Rule(times=10, text="new")])
    df = rows_of(spark, 10, 10)
    assert job(df).asked == 10
    assert job(df, mode="overwrite", fresh=True).asked == 10
    assert requests(endpoint) == 20
    third = job(df, mode="overwrite")
    assert third.asked == 0
    assert {row.result for row in spark.read.parquet(third.output).collect()} == {"new"}
    assert requests(endpoint) == 20


def test_a_row_that_failed_for_good_keeps_its_error_without_a_call_until_it_is_to_be_asked_again(
    spark, start_endpoint, job, tmp_path
):
    endpoint = start_endpoint("priced", rules=[Rule(match="prompt 3", per_prompt_times=1, status=400)])
    df = rows_of(spark, 60, 20)
    first = job(df)
    assert (first.rows, first.succeeded, first.failed) == (60, 57, 3)
    assert requests(endpoint) == 20
    second = job(df, mode="overwrite")
    assert (second.succeeded, second.failed, second.asked, second.from_ledger) == (57, 3, 0, 60)
    assert requests(endpoint) == 20
    errors = spark.read.parquet(str(tmp_path / "out")).where("error IS NOT NULL").collect()
    assert {(row.body, row.error.status, row.from_ledger) for row in errors} == {("prompt 3", 400, True)}
    with pytest.raises(bi.JobRejected, match="nothing was sent now"):
        job(df, mode="overwrite", fail_on_error=True)
    assert requests(endpoint) == 20
    third = job(df, mode="overwrite", retry_failed=True)
    assert (third.succeeded, third.failed, third.asked, third.from_ledger) == (60, 0, 1, 59)
    assert requests(endpoint) == 21


def test_a_row_whose_failure_may_pass_is_asked_again_by_the_next_run(spark, start_endpoint, job):
    rules = [Rule(match="prompt 3", per_prompt_times=2, status=500)]
    endpoint = start_endpoint("priced", rules=rules, fields={"max_attempts": 2})
    df = rows_of(spark, 60, 20)
    assert (job(df).failed, requests(endpoint)) == (3, 21)
    second = job(df, mode="overwrite")
    assert (second.failed, second.asked, second.from_ledger) == (0, 1, 59)
    assert requests(endpoint) == 22


def test_a_reply_that_is_no_number_is_asked_again_only_for_another_type(spark, start_endpoint, job):
    endpoint = start_endpoint("priced", rules=[Rule(text="twelve")], fields={"max_repairs": 0})
    df = rows_of(spark, 4, 4)
    assert (job(df, return_type="INT").errors, requests(endpoint)) == ({"type_mismatch": 4}, 4)
    again = job(df, mode="overwrite", return_type="INT")
    assert (again.errors, again.asked, requests(endpoint)) == ({"type_mismatch": 4}, 0, 4)
    assert (job(df, mode="overwrite").succeeded, requests(endpoint)) == (4, 8)


def test_requests_in_doubt_are_this_runs_own(spark, start_endpoint, job):
    endpoint = start_endpoint("priced", unauthorized_after=10, fields={"max_concurrency": 4})
    with pytest.raises(Exception, match="401"):
        job(rows_of(spark, 40, 40))
    endpoint.configure(unauthorized_after=None)
    other = job(rows_of(spark, 10, 10, "elsewhere"), mode="overwrite")
    assert other.in_doubt == 0, "what another run left in doubt is not this one's"
    continued = job(rows_of(spark, 40, 40), mode="overwrite")
    assert 0 < continued.in_doubt <= 5
    assert job(rows_of(spark, 40, 40), mode="overwrite").in_doubt == 0, "it sent nothing"


def test_mode_error_leaves_the_table_alone_and_asks_nothing(spark, priced, job, tmp_path):
    job(rows_of(spark, 20, 20))
    with pytest.raises(bi.ConfigError, match="there is a table at"):
        job(rows_of(spark, 40, 40))
    assert requests(priced) == 20
    assert spark.read.parquet(str(tmp_path / "out")).count() == 20


def test_mode_append_adds_rows_and_asks_what_is_new(spark, priced, job, tmp_path):
    job(rows_of(spark, 20, 20))
    summary = job(rows_of(spark, 30, 30), mode="append")
    assert (summary.rows, summary.asked, summary.from_ledger) == (30, 10, 20)
    assert requests(priced) == 30
    assert spark.read.parquet(str(tmp_path / "out")).groupBy("body").count().where("count = 2").count() == 20


def test_mode_overwrite_replaces_the_table_and_keeps_the_ledger(spark, priced, job, tmp_path):
    job(rows_of(spark, 20, 20))
    assert job(rows_of(spark, 10, 10), mode="overwrite").asked == 0
    assert spark.read.parquet(str(tmp_path / "out")).count() == 10
    assert requests(priced) == 20


def test_mode_resume_continues_a_broken_run_on_the_input_as_that_run_read_it(spark, start_endpoint, job, tmp_path):
    endpoint = start_endpoint("priced", unauthorized_after=25, fields={"max_concurrency": 2})

    def other_every_time():
        return spark.range(0, 40, 1, 2).selectExpr("id", "uuid() body")

    with pytest.raises(Exception, match="401"):
        job(other_every_time())
    assert not (tmp_path / "out").exists()
    endpoint.configure(unauthorized_after=None)
    summary = job(other_every_time(), mode="resume")
    assert summary.rows == spark.read.parquet(str(tmp_path / "out")).where("result IS NOT NULL").count() == 40
    assert set(endpoint.billed_by_prompt().values()) == {1}
    assert len(endpoint.billed_by_prompt()) == 40
    assert not list(tmp_path.glob(".*.work")), "a finished job leaves no work folder"


def test_mode_resume_never_replaces_a_table_that_no_broken_run_left(spark, priced, job, tmp_path):
    assert job(rows_of(spark, 20, 20), mode="resume").rows == 20, "nothing is there: it begins"
    with pytest.raises(bi.ConfigError, match=r"nothing to resume.*there is a table.*'overwrite'.*'append'"):
        job(rows_of(spark, 5, 5), mode="resume")
    assert spark.read.parquet(str(tmp_path / "out")).count() == 20
    assert requests(priced) == 20


def test_a_broken_fresh_job_is_resumed_without_asking_again_what_it_has_asked(spark, start_endpoint, job):
    endpoint = start_endpoint("priced", fields={"max_concurrency": 2})
    df = rows_of(spark, 40, 40)
    job(df)
    endpoint.reset()
    endpoint.configure(unauthorized_after=25)
    with pytest.raises(Exception, match="401"):
        job(df, mode="overwrite", fresh=True)
    endpoint.configure(unauthorized_after=None)
    assert len(endpoint.billed_by_prompt()) == 24
    assert job(df, mode="resume", fresh=True).rows == 40
    assert endpoint.billed_by_prompt() == {f"prompt {i}": 1 for i in range(40)}


def test_the_inference_table_has_every_request_typed_and_failed_ones_too(spark, start_endpoint, job, tmp_path):
    fields = {**USD_PER_MILLION, "max_attempts": 1}
    start_endpoint("priced", rules=[Rule(match="prompt 3", status=400)], fields=fields)
    job(rows_of(spark, 100, 10))
    table = bi.inference_table(spark, str(tmp_path / "out.ledger"))
    kinds = {field.name: field.dataType.typeName() for field in table.schema}
    assert kinds["time"].startswith("timestamp")
    assert (kinds["usage"], kinds["cost_usd"], kinds["request_key"]) == ("struct", "double", "string")
    rows = table.collect()
    assert len(rows) == 10
    assert {row.endpoint for row in rows} == {"priced"}
    (failed,) = [row for row in rows if row.error is not None]
    assert (failed.status, failed.reply) == (400, None)
    assert {json.loads(row.request)["prompt"] for row in rows} == {f"prompt {i}" for i in range(10)}
    replies = {json.loads(row.reply)["text"] for row in rows if row is not failed}
    assert replies == {f"echo: prompt {i}" for i in range(10) if i != 3}


# Columns


def test_actions_on_one_column_pay_for_each_prompt_once(spark, priced, tmp_path):
    df = rows_of(spark, 60, 20, "actions").withColumn("r", bi.ai_query("priced", "body"))
    assert df.count() == 60
    assert requests(priced) == 0, "a count needs no reply"
    assert df.where("r LIKE 'echo: actions%'").count() == 60
    df.write.parquet(str(tmp_path / "out"))
    df.orderBy("r").collect()
    assert spark.read.parquet(str(tmp_path / "out")).where("r = concat('echo: ', body)").count() == 60
    assert sorted(priced.calls_by_prompt()) == sorted(f"actions {i}" for i in range(20))
    again = rows_of(spark, 60, 20, "actions").withColumn("r", bi.ai_query("priced", "body"))
    before = requests(priced)
    again.collect()
    assert requests(priced) == before


def test_prompts_of_one_partition_are_asked_once_in_an_action(spark, priced):
    df = rows_of(spark, 60, 20, "one part").coalesce(1).withColumn("r", bi.ai_query("priced", "body"))
    assert {row.r for row in df.collect()} == {chat_text(f"one part {i}") for i in range(20)}
    df.collect()
    assert priced.calls_by_prompt() == {f"one part {i}": 1 for i in range(20)}


def test_details_say_which_row_was_paid_for(spark, priced):
    query = "SELECT ai_query('priced', body, details => true) r FROM to_ask"
    rows_of(spark, 60, 20, "details").coalesce(1).createOrReplaceTempView("to_ask")
    first = [row.r for row in spark.sql(query).collect()]
    assert sum(not r.from_ledger for r in first) == requests(priced) == 20
    assert sum(r.cost_usd for r in first if not r.from_ledger) == pytest.approx(bill(priced))
    assert all(row.r.from_ledger for row in spark.sql(query).collect())
    assert requests(priced) == 20


def test_a_query_gives_a_failure_that_would_only_repeat_without_a_call(spark, start_endpoint):
    endpoint = start_endpoint("priced", rules=[Rule(match="rude 3", status=400)])
    rows_of(spark, 8, 8, "rude").createOrReplaceTempView("to_ask")
    query = "SELECT ai_query('priced', body, details => true) r FROM to_ask"
    for from_ledger in (False, True):
        (row,) = [row for row in spark.sql(query).collect() if row.r.error is not None]
        assert (row.r.error.status, row.r.from_ledger) == (400, from_ledger)
        assert requests(endpoint) == 8
    with pytest.raises(Exception, match="nothing was sent now"):
        spark.sql("SELECT ai_query('priced', body) r FROM to_ask").collect()
    assert requests(endpoint) == 8
    spark.sql("SELECT ai_query('priced', body, failOnError => false, fresh => true) r FROM to_ask").collect()
    assert requests(endpoint) == 16


def test_fresh_asks_again_at_every_new_query(spark, priced):
    rows_of(spark, 20, 20, "fresh").createOrReplaceTempView("to_ask")
    spark.sql("SELECT ai_query('priced', body) r FROM to_ask").collect()
    spark.sql("SELECT ai_query('priced', body, fresh => true) r FROM to_ask").collect()
    assert requests(priced) == 40


def test_with_the_ledger_off_every_action_asks(spark, priced, no_ledger):
    df = rows_of(spark, 20, 20, "off").withColumn("r", bi.ai_query("priced", "body"))
    df.collect()
    df.collect()
    assert requests(priced) == 40


# Ledgers that cannot be used


def test_an_unusable_ledger_is_refused_before_any_call(spark, priced, job, tmp_path):
    (tmp_path / "file").write_text("in the way")
    bad = str(tmp_path / "file" / "ledger")
    with pytest.raises(bi.SinkError, match=r"ledger at .* cannot be made: .*\. Nothing was sent"):
        job(rows_of(spark, 20, 20), ledger=bad)
    spark.conf.set("spark.batch_infer.ledger", bad)
    try:
        with pytest.raises(bi.SinkError, match="cannot be made"):
            bi.ai_query("priced", "body")
    finally:
        spark.conf.unset("spark.batch_infer.ledger")
    assert requests(priced) == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 18 MB: 2 MB above what the ledger leaves free for what is in flight. `disk("ro")` remounts it."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(*options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(path)], capture_output=True, check=False
        )

    done = mount("size=18m") if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield path, lambda *options: mount("remount", *options)
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_stops_the_calls_and_keeps_every_complete_reply(spark, start_endpoint, job, disk, tmp_path):
    endpoint = start_endpoint("priced", reply_words=2_000, fields={"max_concurrency": 16})
    path, remount = disk
    with pytest.raises(Exception, match=r"less than 16,777,216 bytes free, so no further request is sent"):
        job(rows_of(spark, 800, 800), ledger=str(path / "ledger"))
    assert not (tmp_path / "out").exists()
    sent = requests(endpoint)
    audit = Ledger.open(path / "ledger").audit()
    assert 50 < audit.answered <= sent < 800
    assert sent - audit.answered <= audit.in_doubt + audit.asked_again <= 16
    assert audit.corrupt_records == 0
    assert remount("size=64m").returncode == 0
    summary = job(rows_of(spark, 800, 800), ledger=str(path / "ledger"))
    assert (summary.rows, summary.succeeded) == (800, 800)
    assert summary.asked == 800 - audit.answered
    assert requests(endpoint) <= 800 + audit.in_doubt


def test_a_read_only_ledger_is_refused_before_any_call(spark, priced, job, disk):
    path, remount = disk
    assert remount("ro").returncode == 0
    with pytest.raises(bi.SinkError, match="Read-only file system. Nothing was sent and nothing is lost"):
        job(rows_of(spark, 20, 20), ledger=str(path / "ledger"))
    assert requests(priced) == 0
