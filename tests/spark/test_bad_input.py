"""What bad input gets: what is wrong and what is allowed, before any call where that is possible."""

import socket
import time

import pytest
from pyspark.errors import IllegalArgumentException

import batch_infer as bi
from batch_infer.testing import Rule

pytestmark = pytest.mark.usefixtures("no_ledger")

REFUSED = {
    "unknown endpoint": ("ai_query('ecco', body)", "no endpoint 'ecco'", "Did you mean 'echo'?", "local/chat"),
    "endpoint of the row": ("ai_query(body, body)", "'endpoint' must be a constant", "body", "one query per endpoint"),
    "endpoint of another type": ("ai_query(5, body)", "'endpoint' is a STRING"),
    "no request": ("ai_query('echo')", "'request' is missing", "ai_query(endpoint, request"),
    "nothing": ("ai_query()", "'request' is missing"),
    "no endpoint": ("ai_query(request => body)", "no endpoint is named", "spark.batch_infer.default_endpoint"),
    "unknown argument": (
        "ai_query('echo', body, failOnErr => true)",
        "no argument 'failOnErr'",
        "Did you mean 'failOnError'?",
        "modelParameters",
    ),
    "argument given twice": ("ai_query('echo', body, request => body)",),
    "too many arguments": ("ai_query('echo', body, null, null, null, null, null, false, 0, false, 1)", "at most 10"),
    "malformed type": (
        "ai_query('echo', body, returnType => 'STRUCT<a INT')",
        "returnType: 'STRUCT<a INT' is not a type",
    ),
    "type that no reply has": ("ai_query('echo', body, returnType => 'BINARY')", "cannot be read from a reply", "cast"),
    "type nested": ("ai_query('echo', body, returnType => 'STRUCT<a: ARRAY<BINARY>>')", "at a[]"),
    "type of the row": ("ai_query('echo', body, returnType => body)", "'returnType' must be a constant"),
    "type of embeddings": ("ai_query('vectors', body, returnType => 'STRING')", "ARRAY<FLOAT>"),
    "flag of another type": ("ai_query('echo', body, failOnError => 'no')", "'failOnError' is true or false", "'no'"),
    "flag of the row": ("ai_query('echo', body, details => id > 1)", "'details' must be a constant"),
    "parameters as text": ("ai_query('echo', body, modelParameters => 'max_tokens=5')", "named_struct("),
    "parameters out of range": (
        "ai_query('echo', body, modelParameters => named_struct('max_tokens', 0))",
        "'max_tokens' is a whole number of at least 1; got 0",
    ),
    "parameters of ours": (
        "ai_query('echo', body, modelParameters => named_struct('model', 'x'))",
        "'model' cannot be set",
    ),
    "parameters of the row": (
        "ai_query('echo', body, modelParameters => named_struct('max_tokens', id))",
        "'modelParameters' must be a constant",
    ),
    "streaming": (
        "ai_query('echo', body, modelParameters => named_struct('stream', true))",
        "'stream' can only be false",
    ),
    "format": ("ai_query('echo', body, responseFormat => 'xml')", "responseFormat: 'xml' is neither JSON nor a type"),
    "format bare": ("ai_query('echo', body, responseFormat => '{\"type\":\"object\"}')", "bare JSON Schema"),
    "format of embeddings": ("ai_query('vectors', body, responseFormat => 'STRUCT<a: INT>')", "only chat endpoints"),
    "in a lambda": ("transform(array(body), x -> ai_query('echo', x))", "cannot be called inside a lambda", "Explode"),
    "of lambdas that Spark cannot run": (
        "ai_query('echo', transform(array(body), x -> struct('user' role, filter(array('a'), y -> y = x)[0] content)))",
        "in which one lambda uses the variable of another",
    ),
    "in a lambda, with one inside": (
        "transform(array(body), x -> ai_query('echo', transform(array(x), y -> struct(x AS role, y AS content))))",
        "cannot be called inside a lambda",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_analysis_before_any_call(spark, endpoint, prompts, case):
    call, *words = REFUSED[case]
    with pytest.raises(Exception) as refused:
        spark.sql(f"SELECT {call} FROM prompts")
    message = str(refused.value)
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert "Py4J" not in message
    assert endpoint.stats()["requests"] == 0


def test_a_refusal_is_a_plain_illegal_argument(spark, endpoint):
    with pytest.raises(IllegalArgumentException) as refused:
        spark.sql("SELECT ai_query('ecco', 'x')")
    assert str(refused.value).startswith("there is no endpoint 'ecco'")


def test_a_bad_endpoint_in_the_settings_is_named_with_its_field(spark, endpoint):
    spark.conf.set("spark.batch_infer.endpoint.odd.base_url", "nonsense")
    try:
        with pytest.raises(IllegalArgumentException, match="endpoint 'odd', field 'base_url': 'nonsense'"):
            spark.sql("SELECT ai_query('odd', 'x')")
    finally:
        spark.conf.unset("spark.batch_infer.endpoint.odd.base_url")


def failure(spark, query):
    with pytest.raises(Exception) as failed:
        spark.sql(query).collect()
    return str(failed.value)


MANY = "(SELECT concat('p ', id) body FROM range(0, 400, 1, 2))"


@pytest.mark.parametrize("shape", ["", ", failOnError => false", ", details => true"])
def test_a_wrong_key_stops_the_job_on_the_first_refusal_without_retries(spark, start_endpoint, monkeypatch, shape):
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "wrong-key")
    endpoint = start_endpoint(
        "guarded", api_key="right-key", fields={"api_key": "env:BATCH_INFER_TEST_KEY", "max_concurrency": 8}
    )
    message = failure(spark, f"SELECT ai_query('guarded', body{shape}) r FROM {MANY}")
    assert "HTTP 401" in message
    assert "Check the key that the endpoint's api_key refers to" in message
    assert "wrong-key" not in message
    assert endpoint.stats()["requests"] <= 8
    assert max(endpoint.calls_by_prompt().values(), default=1) == 1


def test_a_key_that_stops_working_stops_the_job(spark, start_endpoint):
    endpoint = start_endpoint("revoked", unauthorized_after=50, fields={"max_concurrency": 8})
    assert "HTTP 401" in failure(spark, f"SELECT ai_query('revoked', body, failOnError => false) r FROM {MANY}")
    assert endpoint.stats()["requests"] <= 49 + 8


def test_an_unknown_model_stops_the_job(spark, start_endpoint):
    endpoint = start_endpoint("other", models=["another"], fields={"max_concurrency": 8})
    message = failure(spark, f"SELECT ai_query('other', body, failOnError => false) r FROM {MANY}")
    assert "HTTP 404" in message
    assert "base_url and model" in message
    assert endpoint.stats()["requests"] <= 8


BAD_ROW = [Rule("prompt 05", status=400, error={"message": "This row is bad."})]


def test_a_refused_row_is_its_own_error_and_its_neighbours_live(spark, start_endpoint, prompts):
    endpoint = start_endpoint("picky", rules=BAD_ROW)
    rows = spark.sql("SELECT id, ai_query('picky', body, failOnError => false) r FROM prompts").collect()
    bad = {row.id: row.r for row in rows if row.r is not None and row.r.errorMessage is not None}
    assert list(bad) == [5]
    assert bad[5].result is None
    assert "'picky'" in bad[5].errorMessage
    assert "HTTP 400: This row is bad." in bad[5].errorMessage
    assert sum(row.r is not None and row.r.result is not None for row in rows) == 17
    assert endpoint.calls_by_prompt()["prompt 05"] == 1
    details = spark.sql("SELECT ai_query('picky', body, details => true) r FROM prompts WHERE id = 5").first().r
    assert (details.error.kind, details.error.status, details.error.retryable) == ("bad_request", 400, False)
    assert details.attempts == 1


def test_a_refused_row_fails_the_job_once_and_is_named_by_its_request_key(spark, start_endpoint, prompts):
    endpoint = start_endpoint("picky", rules=BAD_ROW)
    key = spark.sql("SELECT ai_query('picky', 'prompt 05', details => true).request_key k").first().k
    endpoint.reset()
    message = failure(spark, "SELECT ai_query('picky', body) r FROM prompts")
    assert key in message
    assert "HTTP 400: This row is bad." in message
    assert endpoint.calls_by_prompt()["prompt 05"] == 1
    assert max(endpoint.calls_by_prompt().values()) == 1


def test_one_bad_text_in_a_pack_of_embeddings_is_found_and_the_others_live(spark, start_endpoint):
    endpoint = start_endpoint("packed", rules=[Rule("p 13", status=400)], fields={"task": "embeddings"})
    query = "SELECT id, ai_query('packed', concat('p ', id), failOnError => false) r FROM range(0, 32, 1, 1)"
    rows = spark.sql(query).collect()
    assert [row.id for row in rows if row.r.result is None] == [13]
    assert "HTTP 400" in rows[13].r.errorMessage
    assert endpoint.stats()["requests"] <= 1 + 2 * 5 + 1


def test_an_unreachable_host_is_a_clear_error_in_bounded_time(spark):
    with socket.socket() as listener:  # a port that was free a moment ago refuses connections
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    bi.register_endpoint("nobody", base_url=f"http://127.0.0.1:{port}/v1", model="m")
    for shape in ("", ", failOnError => false"):
        started = time.monotonic()
        message = failure(spark, f"SELECT ai_query('nobody', body{shape}) r FROM {MANY}")
        assert time.monotonic() - started < 30
        assert "refused" in message.lower()
        assert f"127.0.0.1:{port}" in message or "'nobody'" in message
        assert "nothing was ever answered" in message


def test_an_unknown_host_is_a_clear_error_in_bounded_time(spark):
    bi.register_endpoint("nowhere", base_url="https://no-such-host.invalid/v1", model="m", max_attempts=2)
    started = time.monotonic()
    message = failure(spark, "SELECT ai_query('nowhere', 'x') r")
    assert time.monotonic() - started < 30
    assert "no-such-host.invalid" in message or "'nowhere'" in message


def test_an_empty_reply_fails_the_job_by_default(spark, start_endpoint):
    start_endpoint("empty", rules=[Rule(fault="null_content")])
    assert "an empty reply" in failure(spark, "SELECT ai_query('empty', 'x') r")
