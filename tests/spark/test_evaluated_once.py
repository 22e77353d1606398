"""How often each row is asked, counted at the endpoint: once, and where Spark itself repeats, how often."""

import pytest

import batch_infer as bi
from batch_infer.adapters.ledger import Ledger
from batch_infer.testing import chat_text

ROWS = 40


@pytest.fixture(params=["without a ledger", "with a ledger"])
def ledger(spark, request, tmp_path):
    """Whether there is one; each test's own, empty at its beginning."""
    is_on = request.param == "with a ledger"
    spark.conf.set("spark.batch_infer.ledger", str(tmp_path / "ledger") if is_on else "off")
    yield is_on
    spark.conf.unset("spark.batch_infer.ledger")


@pytest.fixture
def asked(spark, endpoint, ledger):
    """A view `asked(id, r)` over 40 rows in 2 partitions; `requests` counts what the endpoint saw."""
    spark.range(0, ROWS, 1, 2).selectExpr("id", "concat('p ', id) body").createOrReplaceTempView("rows_to_ask")
    spark.sql("SELECT id, ai_query('echo', body, details => true) r FROM rows_to_ask").createOrReplaceTempView("asked")
    return endpoint


def requests(endpoint):
    calls = endpoint.calls_by_prompt()
    assert sum(calls.values()) == endpoint.stats()["requests"]
    return endpoint.stats()["requests"]


def test_three_fields_of_one_struct_are_one_call_a_row(spark, asked):
    assert len(spark.sql("SELECT r.result, r.usage.total_tokens, r.request_key FROM asked").collect()) == ROWS
    assert requests(asked) == ROWS


def test_all_fields_of_the_struct_are_one_call_a_row(spark, asked):
    assert len(spark.sql("SELECT r.* FROM asked").collect()) == ROWS
    assert requests(asked) == ROWS


def test_fields_of_a_python_column_are_one_call_a_row(spark, asked):
    df = spark.table("rows_to_ask").withColumn("r", bi.ai_query("echo", "body", details=True))
    assert len(df.select("r.result", "r.usage", "r.*").collect()) == ROWS
    assert requests(asked) == ROWS


def test_a_cached_view_used_twice_is_one_call_a_row(spark, asked):
    spark.sql("CACHE TABLE asked")
    assert spark.sql("SELECT max(r.result) FROM asked").count() == 1
    assert len(spark.sql("SELECT r.usage FROM asked").collect()) == ROWS
    spark.sql("UNCACHE TABLE asked")
    assert requests(asked) == ROWS


def test_a_filter_on_the_result_is_one_call_a_row(spark, asked):
    rows = spark.sql("SELECT r.result FROM asked WHERE r.result LIKE '%7' AND r.error IS NULL").collect()
    assert len(rows) == ROWS / 10
    assert requests(asked) == ROWS


def test_a_filter_on_a_result_that_takes_its_time_is_one_call_a_row(spark, start_endpoint, ledger):
    endpoint = start_endpoint("slow", latency_s=1.0)
    query = "SELECT r FROM (SELECT ai_query('slow', concat('p ', id)) r FROM range(0, 40, 1, 2)) WHERE r LIKE '%7'"
    assert len(spark.sql(query).collect()) == ROWS / 10
    assert requests(endpoint) == ROWS


def test_the_same_call_written_twice_in_one_query_is_two_calls_a_row_without_a_ledger_and_one_with(
    spark, asked, ledger
):
    spark.sql("SELECT ai_query('echo', body) FROM rows_to_ask WHERE ai_query('echo', body) LIKE 'echo%'").collect()
    assert requests(asked) == (ROWS if ledger else 2 * ROWS)


def test_a_filter_on_another_column_goes_below_the_call_with_a_ledger_and_not_without_one(spark, asked, ledger):
    assert len(spark.sql("SELECT r.result FROM asked WHERE id < 4").collect()) == 4
    assert requests(asked) == (4 if ledger else ROWS)


def test_a_filter_below_asks_the_rows_that_are_left(spark, asked):
    spark.sql("SELECT ai_query('echo', body) FROM (SELECT * FROM rows_to_ask WHERE id < 4)").collect()
    assert requests(asked) == 4


def test_limit_10_below_asks_10_rows(spark, asked, ledger, tmp_path):
    df = spark.sql("SELECT ai_query('echo', body) r FROM (SELECT * FROM rows_to_ask LIMIT 10)")
    assert len(df.collect()) == 10
    assert requests(asked) == 10
    df.write.parquet(str(tmp_path / "out"))
    assert requests(asked) == (10 if ledger else 20)
    column = spark.table("rows_to_ask").limit(10).withColumn("r", bi.ai_query("echo", "body"))
    assert len(column.collect()) == 10
    assert requests(asked) == (10 if ledger else 30)


def test_two_partitions_are_one_call_a_row_and_each_prompt_once(spark, asked):
    assert len(spark.table("asked").collect()) == ROWS
    assert asked.calls_by_prompt() == {f"p {i}": 1 for i in range(ROWS)}


def test_a_column_that_nobody_reads_is_not_asked(spark, asked):
    assert spark.sql("SELECT count(*) n FROM asked").first().n == ROWS
    assert len(spark.sql("SELECT id FROM asked").collect()) == ROWS
    assert requests(asked) == 0


def test_two_actions_ask_twice_without_a_ledger_and_once_with_one(spark, asked, ledger):
    df = spark.table("asked")
    df.collect()
    df.collect()
    assert requests(asked) == (ROWS if ledger else 2 * ROWS)


def test_order_by_the_result_asks_twice_without_a_ledger_and_once_with_one_because_spark_samples_the_ranges(
    spark, asked, ledger
):
    assert len(spark.sql("SELECT * FROM asked ORDER BY r.result").collect()) == ROWS
    assert requests(asked) == (ROWS if ledger else 2 * ROWS)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT ai_query('echo', body) r, count(*) n FROM rows GROUP BY ai_query('echo', body)",
        "SELECT ai_query('echo', body) r, count(*) n FROM rows GROUP BY ALL",
        "SELECT ai_query('echo', body) r, count(*) n FROM rows GROUP BY r",
        "SELECT ai_query('echo', body) r, count(*) n FROM rows GROUP BY 1 HAVING ai_query('echo', body) > ''",
    ],
)
@pytest.mark.parametrize("ledger", ["with a ledger"], indirect=True)
def test_with_a_ledger_a_call_can_be_grouped_by_and_is_one_call_a_row(spark, asked, ledger, query):
    spark.range(0, 2 * ROWS, 1, 2).selectExpr("concat('p ', id DIV 2) body").createOrReplaceTempView("rows")
    counted = spark.sql(query).collect()
    assert sorted((row.r, row.n) for row in counted) == sorted((chat_text(f"p {i}"), 2) for i in range(ROWS))
    assert requests(asked) == ROWS


def test_calls_with_other_constants_are_not_taken_for_one(spark, asked, ledger):
    parameters = "modelParameters => named_struct('max_tokens', {})"
    columns = ", ".join(f"ai_query('echo', body, {parameters.format(n)}) r{n}" for n in (1, 2, 1))
    (row,) = spark.sql(f"SELECT {columns} FROM (SELECT 'p' body)").collect()
    assert len(row) == 3
    assert requests(asked) == (2 if ledger else 3)


def test_order_by_a_materialised_result_is_one_call_a_row(spark, asked):
    assert len(spark.table("asked").localCheckpoint().orderBy("r.result").collect()) == ROWS
    assert requests(asked) == ROWS


def test_a_self_union_asks_twice_without_a_ledger_and_with_one_only_what_runs_at_the_same_time(
    spark, asked, ledger, tmp_path
):
    assert len(spark.sql("SELECT * FROM asked UNION ALL SELECT * FROM asked").collect()) == 2 * ROWS
    if not ledger:
        assert requests(asked) == 2 * ROWS
    else:  # two tasks may ask the same at the same moment: that is counted openly
        assert requests(asked) == ROWS + Ledger.open(tmp_path / "ledger").audit().billed_again


@pytest.fixture
def many(spark):
    spark.range(0, 4000, 1, 2).selectExpr("concat('p ', id) body").createOrReplaceTempView("many")


def test_limit_5_above_asks_5_rows_when_collected(spark, endpoint, ledger, many):
    assert len(spark.sql("SELECT ai_query('echo', body) r FROM many LIMIT 5").collect()) == 5
    assert requests(endpoint) == 5


def test_limit_5_above_asks_5_rows_of_each_partition_when_written(spark, endpoint, ledger, many, tmp_path):
    spark.sql("SELECT ai_query('echo', body) r FROM many LIMIT 5").write.parquet(str(tmp_path / "out"))
    assert requests(endpoint) == 10


def test_limit_above_a_filter_on_the_result_asks_the_partition_that_it_reads(spark, endpoint, ledger, many):
    # Rows this small fit into Spark's buffers as a whole; the second partition is not asked.
    query = "SELECT r FROM (SELECT ai_query('echo', body) r FROM many) WHERE r LIKE '%7' LIMIT 5"
    assert len(spark.sql(query).collect()) == 5
    assert 256 <= requests(endpoint) <= 2000
