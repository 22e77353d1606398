"""`ai_query` in plain SQL: every place a function can stand, and every way to give its arguments."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi

pytestmark = pytest.mark.usefixtures("no_ledger")

EXPECTED = {i: None if i in (3, 17) else f"echo: prompt {i:02}" for i in range(20)}


def answers(df, column="r"):
    return {row.id: row[column] for row in df.collect()}


def test_in_a_plain_select(spark, endpoint, prompts):
    assert answers(spark.sql("SELECT id, ai_query('echo', body) r FROM prompts")) == EXPECTED
    assert endpoint.stats()["requests"] == 18


def test_in_a_temporary_view(spark, endpoint, prompts):
    spark.sql("CREATE OR REPLACE TEMP VIEW asked AS SELECT id, ai_query('echo', body) r FROM prompts")
    assert endpoint.stats()["requests"] == 0
    assert answers(spark.sql("SELECT * FROM asked")) == EXPECTED


def test_in_a_global_temporary_view(spark, endpoint, prompts):
    spark.sql("CREATE OR REPLACE GLOBAL TEMP VIEW asked AS SELECT id, ai_query('echo', body) r FROM prompts")
    assert answers(spark.sql("SELECT * FROM global_temp.asked")) == EXPECTED


def test_in_a_cte_and_in_a_subquery(spark, endpoint, prompts):
    asked = "SELECT id, ai_query('echo', body) r FROM prompts"
    assert answers(spark.sql(f"WITH a AS ({asked}) SELECT * FROM a")) == EXPECTED
    assert answers(spark.sql(f"SELECT * FROM ({asked})")) == EXPECTED
    scalar = "SELECT (SELECT max(r) FROM (SELECT ai_query('echo', body) r FROM prompts)) r"
    assert spark.sql(scalar).first().r == "echo: prompt 19"


def test_directly_inside_an_aggregate_spark_refuses_it_before_any_call(spark, endpoint, prompts):
    with pytest.raises(AnalysisException, match="NONDETERMINISTIC"):
        spark.sql("SELECT max(ai_query('echo', body)) FROM prompts")
    assert endpoint.stats()["requests"] == 0


def test_in_select_expr_and_expr(spark, endpoint, prompts):
    df = spark.table("prompts")
    assert answers(df.selectExpr("id", "ai_query('echo', body) AS r")) == EXPECTED
    assert answers(df.select("id", F.expr("ai_query('echo', body)").alias("r"))) == EXPECTED


def test_with_parameters(spark, endpoint, prompts):
    text = "SELECT ai_query(:name, :prompt, modelParameters => named_struct('max_tokens', :most)) r"
    assert spark.sql(text, args={"name": "echo", "prompt": "it's", "most": 7}).first().r == "echo: it's"
    assert endpoint.bodies()[-1]["max_tokens"] == 7
    assert spark.sql("SELECT ai_query(?, ?) r", args=["echo", "x"]).first().r == "echo: x"


def test_insert_and_create_table_as_select(spark, endpoint, prompts):
    spark.sql("DROP TABLE IF EXISTS answers")
    spark.sql("CREATE TABLE answers USING parquet AS SELECT id, ai_query('echo', body, details => true) d FROM prompts")
    assert endpoint.stats()["requests"] == 18
    assert answers(spark.sql("SELECT id, d.result r FROM answers")) == EXPECTED
    spark.sql("INSERT INTO answers SELECT id + 100, ai_query('echo', body, details => true) FROM prompts")
    assert endpoint.stats()["requests"] == 36
    assert spark.table("answers").count() == 40
    assert spark.sql("SELECT count(*) n FROM answers WHERE d IS NULL").first().n == 4
    spark.sql("DROP TABLE answers")


def test_in_a_union(spark, endpoint, prompts):
    asked = "SELECT {} id, ai_query('echo', body) r FROM prompts"
    df = spark.sql(f"{asked.format('id')} UNION ALL {asked.format('id + 100')}")
    assert answers(df) == EXPECTED | {i + 100: text for i, text in EXPECTED.items()}
    assert endpoint.stats()["requests"] == 36


def test_chat_and_embeddings_in_one_select(spark, endpoint, prompts):
    df = spark.sql("SELECT id, ai_query('echo', body) r, ai_query('vectors', body) v FROM prompts")
    rows = {row.id: row for row in df.collect()}
    assert {i: row.r for i, row in rows.items()} == EXPECTED
    assert all((row.v is None) == (row.r is None) for row in rows.values())
    stats = endpoint.stats()
    assert stats["rows"] == 36
    assert stats["paths"]["/v1/chat/completions"] == 18


def test_over_the_result_of_another_call_asks_twice_a_row(spark, endpoint, prompts):
    df = spark.sql("SELECT id, ai_query('echo', ai_query('echo', body)) r FROM prompts")
    assert answers(df) == {i: None if text is None else f"echo: {text}" for i, text in EXPECTED.items()}
    assert endpoint.stats()["requests"] == 36


def test_in_where_case_group_and_join(spark, endpoint, prompts):
    df = spark.sql("SELECT id, body r FROM prompts WHERE ai_query('echo', body) LIKE '%07'")
    assert answers(df) == {7: "prompt 07"}
    assert endpoint.stats()["requests"] == 18
    grouped = spark.sql("SELECT left(ai_query('echo', body), 5) r, count(*) n FROM prompts GROUP BY 1").collect()
    assert {row.r: row.n for row in grouped} == {"echo:": 18, None: 2}


def test_a_null_from_a_case_keeps_a_row_from_being_asked(spark, endpoint, prompts):
    df = spark.sql("SELECT id, ai_query('echo', CASE WHEN id < 2 THEN body END) r FROM prompts")
    assert sum(text is not None for text in answers(df).values()) == 2
    assert endpoint.stats()["requests"] == 2


def test_from_several_driver_threads_at_once(spark, endpoint, prompts):
    def ask(number):
        df = spark.sql(f"SELECT id, ai_query('echo', concat('{number} ', body)) r FROM prompts WHERE id < 3")
        return answers(df) == {i: f"echo: {number} prompt {i:02}" for i in range(3)}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(12)))
    assert endpoint.stats()["requests"] == 36


@pytest.mark.parametrize(
    "call",
    [
        "ai_query('echo', 'x')",
        "ai_query(endpoint => 'echo', request => 'x')",
        "ai_query(request => 'x', endpoint => 'echo')",
        "ai_query('echo', request => 'x')",
        "AI_QUERY('echo', REQUEST => 'x', FAILONERROR => true)",
        "Ai_Query('echo', 'x', 'STRING')",
        "ai_query('echo', 'x', 'STRING', true, named_struct('max_tokens', 5))",
        "ai_query('echo', 'x', NULL, NULL, NULL, NULL, NULL, NULL, 0, false)",
        "ai_query('echo', 'x', 'STRING', failOnError => true, fresh => true)",
        "ai_query(concat('ec', 'ho'), 'x')",
    ],
)
def test_arguments_by_name_by_position_and_mixed(spark, endpoint, call):
    assert spark.sql(f"SELECT {call} r").first().r == "echo: x"
    assert endpoint.stats()["requests"] == 1


def test_defaults_send_the_model_and_the_message_alone(spark, endpoint):
    spark.sql("SELECT ai_query('echo', 'x')").collect()
    assert endpoint.bodies() == [{"model": "m", "messages": [{"role": "user", "content": "x"}]}]


@pytest.fixture
def setting(spark):
    """Sets session settings for one test."""
    names = []

    def put(name, value):
        names.append(name)
        spark.conf.set(name, value)

    yield put
    for name in names:
        spark.conf.unset(name)


def test_the_default_endpoint_of_the_session(spark, endpoint, setting):
    setting("spark.batch_infer.default_endpoint", "echo")
    assert spark.sql("SELECT ai_query(request => 'x') r").first().r == "echo: x"
    assert spark.sql("SELECT ai_query(NULL, 'x') r").first().r == "echo: x"


def test_an_endpoint_defined_by_settings(spark, endpoint, setting):
    setting("spark.batch_infer.endpoint.by_conf.base_url", endpoint.base_url)
    setting("spark.batch_infer.endpoint.by_conf.model", "from-conf")
    setting("spark.batch_infer.endpoint.by_conf.task", "chat")
    assert spark.sql("SELECT ai_query('by_conf', 'x') r").first().r == "echo: x"
    assert endpoint.bodies()[-1]["model"] == "from-conf"


def test_model_parameters_arrive_as_json_of_the_same_kind(spark, endpoint):
    parameters = """named_struct('max_tokens', 20, 'temperature', 0.7, 'top_p', 1e-1, 'seed', 12345678901L,
        'stop', array('a', 'b'), 'logprobs', false, 'user', 'ann',
        'inner', named_struct('x', 1.50, 'y', map('k', 2)))"""
    spark.sql(f"SELECT ai_query('echo', 'x', modelParameters => {parameters})").collect()
    (body,) = endpoint.bodies()
    del body["model"], body["messages"]
    assert body == {
        "max_tokens": 20,
        "temperature": 0.7,
        "top_p": 0.1,
        "seed": 12345678901,
        "stop": ["a", "b"],
        "logprobs": False,
        "user": "ann",
        "inner": {"x": 1.5, "y": {"k": 2}},
    }


def test_model_parameters_may_be_a_map(spark, endpoint):
    spark.sql("SELECT ai_query('echo', 'x', modelParameters => map('max_tokens', 5, 'seed', 7))").collect()
    body = endpoint.bodies()[-1]
    assert (body["max_tokens"], body["seed"]) == (5, 7)
    spark.sql("SELECT ai_query('echo', 'x', modelParameters => map('temperature', 0.5))").collect()
    assert endpoint.bodies()[-1]["temperature"] == 0.5


def test_usage_sums_to_what_the_endpoint_billed(spark, endpoint, prompts):
    calls = "ai_query('echo', body, details => true) a, ai_query('vectors', body, details => true) b"
    df = spark.sql(f"SELECT {calls} FROM prompts")
    rows = [part for row in df.collect() for part in row if part is not None]
    stats = endpoint.stats()
    assert sum(part.usage.prompt_tokens for part in rows) == stats["prompt_tokens"]
    assert sum(part.usage.completion_tokens or 0 for part in rows) == stats["completion_tokens"]


def test_another_session_needs_its_own_registration(spark, endpoint):
    other = spark.newSession()
    assert bi.register(other, prefix="my_") == ["my_ai_query", "my_is_normalized"]
    assert other.sql("SELECT my_ai_query('echo', 'x') r").first().r == "echo: x"
    # Spark's Python side counts the newest session as the active one.
    type(spark)._activeSession = spark
    spark._jvm.SparkSession.setActiveSession(spark._jsparkSession)


SOURCE = """
SELECT ai_query(
"<completions-model-endpoint>",
"Can you explain AI in ten words?"
)
SELECT ai_query(
"databricks-meta-llama-3-1-70b-instruct",
"Can you explain AI in ten words?"
)
SELECT ai_query(
"databricks-gte-large-en",
"Can you explain AI in ten words?"
)
"""
"""The three SQL statements of Databricks' page "Use foundation models", word for word."""


def test_the_statements_that_databricks_documents_run_word_for_word(spark, endpoint):
    tasks = {
        "<completions-model-endpoint>": "completions",
        "databricks-meta-llama-3-1-70b-instruct": "chat",
        "databricks-gte-large-en": "embeddings",
    }
    for name, task in tasks.items():
        bi.register_endpoint(name, base_url=endpoint.base_url, model=name, task=task)
    statements = [f"SELECT{part}" for part in SOURCE.split("SELECT")[1:]]
    text, chat, vector = [spark.sql(statement) for statement in statements]
    assert [df.schema[0].dataType.simpleString() for df in (text, chat, vector)] == ["string", "string", "array<float>"]
    assert text.first()[0] == chat.first()[0] == "echo: Can you explain AI in ten words?"
    assert len(vector.first()[0]) == 16
    assert [body["model"] for body in endpoint.bodies()] == list(tasks)


def test_parameters_of_a_map_and_of_json_text_arrive_as_numbers(spark, endpoint):
    given = "map('max_tokens', 5, 'temperature', 0.5, 'seed', 7)"
    spark.sql(f"SELECT ai_query('echo', 'x', modelParameters => {given})").collect()
    sent = endpoint._ask("bodies")[-1]
    assert '"max_tokens":5,' in sent
    assert '"seed":7,' in sent
    assert '"temperature":0.5' in sent
    nested = (
        "named_struct('thinking', named_struct('type', 'enabled', 'budget_tokens', 1024), 'logit_bias', map('5', -1),"
        " 'extra', array(map(50256, map(DATE'2026-01-31', 1))))"
    )
    spark.sql(f"SELECT ai_query('echo', 'x', modelParameters => {nested})").collect()
    body = endpoint.bodies()[-1]
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert body["logit_bias"] == {"5": -1}
    assert body["extra"] == [{"50256": {"2026-01-31": 1}}]
    spark.sql("""SELECT ai_query('echo', 'x', modelParameters => '{"stop": ["a"], "top_p": 1}')""").collect()
    assert (endpoint.bodies()[-1]["stop"], endpoint.bodies()[-1]["top_p"]) == (["a"], 1)


def test_a_misspelt_parameter_is_sent_with_a_warning(spark, endpoint, caplog):
    spark.sql("SELECT ai_query('echo', 'x', modelParameters => named_struct('max_token', 5))").collect()
    assert endpoint.bodies()[-1]["max_token"] == 5
    assert "'max_token' is sent as it is; did you mean 'max_tokens'?" in caplog.text
