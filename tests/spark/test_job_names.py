"""Paths and column names as people have them: brackets, braces, percent signs, spaces, dots, backticks."""

from __future__ import annotations

import pytest

import batch_infer as bi
from batch_infer.adapters.ledger import Ledger
from batch_infer.spark.tables.filesystem import read_parquet

pytestmark = pytest.mark.spark


@pytest.fixture
def df(spark):
    return spark.range(0, 3, 1, 1).selectExpr("id", "concat('p ', id) body")


@pytest.mark.parametrize("name", ["a [b]", "x{1,2} y", "50%41 %20", "deep: down/st*r? [{/out [1-3]", "back\\slash"])
def test_a_path_is_a_name_and_no_pattern(spark, endpoint, df, tmp_path, name):
    out = tmp_path / name
    given = {"endpoint": "echo", "request": "body", "output": str(out), "progress": False}
    first = bi.run(df, **given)
    assert (first.succeeded, first.ledger) == (3, f"{out}.ledger")
    again = bi.run(df.union(df), **given, mode="append")
    assert (again.rows, again.asked, endpoint.stats()["requests"]) == (6, 0, 3)
    assert bi.run(df, **given, mode="overwrite").asked == 0
    assert [row.result for row in read_parquet(spark, str(out)).orderBy("id").collect()] == [
        "echo: p 0", "echo: p 1", "echo: p 2"
    ]  # fmt: skip
    assert bi.inference_table(spark, first.ledger).count() == 3
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([out.name, f"{out.name}.ledger"])


@pytest.mark.parametrize("name", ["l [a]", "l{1,2}", "l%41", "l:x y"])
def test_a_ledgers_path_is_a_name_too(spark, endpoint, df, tmp_path, name):
    ledger = str(tmp_path / name)
    given = {"endpoint": "echo", "request": "body", "output": str(tmp_path / "out"), "progress": False}
    assert bi.run(df, **given, ledger=ledger).asked == 3
    assert bi.inference_table(spark, ledger).count() == Ledger.open(ledger).audit().answered == 3
    spark.conf.set("spark.batch_infer.ledger", ledger)
    try:
        df.select(bi.ai_query("echo", "body")).collect()
    finally:
        spark.conf.unset("spark.batch_infer.ledger")
    assert endpoint.stats()["requests"] == 3


def test_a_colon_in_the_outputs_own_name_is_refused_before_any_call(spark, endpoint, df, tmp_path):
    with pytest.raises(bi.ConfigError, match="name 'a:b' holds a colon"):
        bi.run(df, endpoint="echo", request="body", output=str(tmp_path / "a:b"), progress=False)
    assert endpoint.stats()["requests"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.b", "a`b", "a b.c`d", "`a`", "ä-1"])
@pytest.mark.parametrize("form", ["prompt", "request"])
def test_any_column_name_can_be_asked_and_is_kept(spark, endpoint, tmp_path, name, form):
    df = spark.createDataFrame([(1, "x"), (2, None)], ["id", name])
    asked = {"prompt": "{" + name + "}"} if form == "prompt" else {"request": name}
    given = {"endpoint": "echo", "output": str(tmp_path / "out"), "progress": False, **asked}
    bi.run(df, **given)
    bi.run(df, **given, mode="append")
    table = spark.read.parquet(str(tmp_path / "out"))
    assert table.columns[:3] == ["id", name, "result"]
    assert sorted((row[0], row[1], row[2]) for row in table.collect())[:2] == [(1, "x", "echo: x")] * 2


def test_samples_and_files_may_have_dots_in_their_names(spark, endpoint, tmp_path):
    df = spark.createDataFrame([("x", 1, b"\x89PNG\r\n"), ("x", 2, None)], "body STRING, `s.s` INT, `f.f` BINARY")
    given = {"endpoint": "echo", "request": "body", "output": str(tmp_path / "out"), "progress": False}
    assert bi.run(df, **given, sample="s.s", files="f.f").asked == 2


def test_a_field_of_a_struct_is_still_a_path(spark, endpoint, tmp_path):
    df = spark.sql("SELECT named_struct('city', 'Oslo') address, 'x' `address.zip`")
    given = {"endpoint": "echo", "output": str(tmp_path / "out"), "progress": False}
    bi.run(df, prompt="{address.city} {address.zip}", **given)
    assert spark.read.parquet(str(tmp_path / "out")).first().result == "echo: Oslo x"


def test_columns_that_differ_in_case_alone_are_refused_before_any_call(spark, endpoint, tmp_path):
    df = spark.createDataFrame([(1, "x")], "body INT, Body STRING")
    with pytest.raises(bi.ConfigError, match="two columns named 'body' and 'Body'"):
        bi.run(df, endpoint="echo", request="Body", output=str(tmp_path / "o"), progress=False)
    assert endpoint.stats()["requests"] == 0
