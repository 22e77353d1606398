"""A key reaches the endpoint, and nothing else: no setting, no plan, no message."""

import json

import pytest

import batch_infer as bi
from batch_infer.testing import Rule

pytestmark = pytest.mark.usefixtures("no_ledger")

KEY = "a-key-of-no-known-shape-42"


@pytest.fixture
def guarded(start_endpoint):
    return start_endpoint("guarded", api_key=KEY, fields={"api_key": "env:BATCH_INFER_TEST_KEY"})


@pytest.fixture
def with_key(monkeypatch):
    """Set on the driver only now, long after the session and its workers started."""
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", KEY)


def plans(spark, df):
    rows = [row[0] for mode in ("EXTENDED", "CODEGEN", "FORMATTED") for row in explain(spark, df, mode)]
    return "\n".join([*rows, df._jdf.queryExecution().toString(), df._jdf.queryExecution().logical().toJSON()])


def explain(spark, df, mode):
    df.createOrReplaceTempView("explained")
    return spark.sql(f"EXPLAIN {mode} SELECT * FROM explained").collect()


def test_a_variable_set_on_the_driver_after_the_start_reaches_the_workers(spark, guarded, with_key):
    df = spark.sql("SELECT ai_query('guarded', concat('p ', id)) r FROM range(0, 8, 1, 2)")
    assert sorted(row.r for row in df.collect()) == [f"echo: p {i}" for i in range(8)]
    assert guarded.stats()["authorized"] == 8


def test_a_changed_variable_is_read_anew(spark, guarded, with_key, monkeypatch):
    assert spark.sql("SELECT ai_query('guarded', 'x') r").first().r == "echo: x"
    guarded.configure(api_key="another-key-of-no-shape")
    monkeypatch.setenv("BATCH_INFER_TEST_KEY", "another-key-of-no-shape")
    assert spark.sql("SELECT ai_query('guarded', 'x') r").first().r == "echo: x"


def test_a_key_in_a_file(spark, start_endpoint, tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    start_endpoint("guarded", api_key=KEY, fields={"api_key": f"file:{path}"})
    assert spark.sql("SELECT ai_query('guarded', 'x') r").first().r == "echo: x"


def test_the_key_is_in_no_setting_and_no_plan(spark, guarded, with_key):
    df = spark.sql("SELECT ai_query('guarded', 'x', details => true) r")
    column = spark.range(1).selectExpr("'x' AS body").select(bi.ai_query("guarded", "body").alias("r"))
    row = df.first().r
    assert row.result == "echo: x"
    assert KEY not in json.dumps(row.asDict(recursive=True))
    for built in (df, column):
        assert KEY not in plans(spark, built)
    settings = [*spark.sparkContext.getConf().getAll(), *((row.key, row.value) for row in spark.sql("SET").collect())]
    assert KEY not in repr(settings)
    assert KEY not in repr(spark.sparkContext.environment)


def test_an_endpoint_that_repeats_the_key_does_not_bring_it_into_a_message(spark, start_endpoint, with_key, capfd):
    error = {"message": f"Sorry, the key {KEY} may not do this."}
    for status in (400, 403):
        start_endpoint("rude", rules=[Rule(status=status, error=error)], fields={"api_key": "env:BATCH_INFER_TEST_KEY"})
        with pytest.raises(Exception) as failed:
            spark.sql("SELECT ai_query('rude', 'x')").collect()
        assert "may not do this" in str(failed.value)
        assert KEY not in str(failed.value)
    row = spark.sql("SELECT ai_query('rude', null, failOnError => false) r").first()
    assert row.r is None
    out, err = capfd.readouterr()
    assert KEY not in out + err


def test_a_missing_variable_is_a_clear_error_before_any_call(spark, guarded, monkeypatch):
    monkeypatch.delenv("BATCH_INFER_TEST_KEY", raising=False)
    with pytest.raises(Exception) as failed:
        spark.sql("SELECT ai_query('guarded', concat('p ', id)) r FROM range(0, 8, 1, 2)").collect()
    message = str(failed.value)
    assert "'guarded'" in message
    assert "BATCH_INFER_TEST_KEY" in message
    assert "driver" in message
    assert guarded.stats()["requests"] == 0


def test_a_missing_file_is_a_clear_error_before_any_call(spark, start_endpoint, tmp_path):
    endpoint = start_endpoint("guarded", fields={"api_key": f"file:{tmp_path}/absent"})
    with pytest.raises(Exception) as failed:
        spark.sql("SELECT ai_query('guarded', 'x') r").collect()
    assert f"file:{tmp_path}/absent" in str(failed.value)
    assert endpoint.stats()["requests"] == 0


@pytest.mark.parametrize("literal", [KEY, "sk-" + "proj-" + "a1B2" * 10])
def test_a_literal_key_is_refused_in_settings_and_never_repeated(spark, endpoint, literal):
    names = {
        "spark.batch_infer.endpoint.open.base_url": endpoint.base_url,
        "spark.batch_infer.endpoint.open.model": "m",
        "spark.batch_infer.endpoint.open.api_key": literal,
    }
    for name, value in names.items():
        spark.conf.set(name, value)
    try:
        with pytest.raises(Exception) as refused:
            spark.sql("SELECT ai_query('open', 'x')")
    finally:
        for name in names:
            spark.conf.unset(name)
    assert "endpoint 'open', field 'api_key'" in str(refused.value)
    assert literal not in str(refused.value)
    assert endpoint.stats()["requests"] == 0
