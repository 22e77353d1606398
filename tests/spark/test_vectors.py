"""`is_normalized`: the strict bound, and what has no length one."""

import math

import pytest

import batch_infer as bi

HALF = math.sqrt(0.5)


@pytest.mark.parametrize("element", ["FLOAT", "DOUBLE"])
def test_vectors_of_length_one_are_normalized(spark, element):
    rows = [
        (0, [1.0], True),
        (1, [HALF, -HALF], True),
        (2, [0.0, 1.0005], True),
        (3, [1.002], False),
        (4, [0.5, 0.5], False),
        (5, [0.0, 0.0], False),
        (6, [], False),
        (7, None, None),
        (8, [1.0, None], False),
        (9, [float("nan")], False),
        (10, [float("inf")], False),
        (11, [3e30, 1.0], False),
    ]
    df = spark.createDataFrame(rows, f"id INT, v ARRAY<{element}>, expected BOOLEAN")
    found = df.select("id", "expected", bi.is_normalized("v").alias("r"))
    assert found.schema["r"].dataType.simpleString() == "boolean"
    assert {row.id: row.r for row in found.collect()} == {row[0]: row[2] for row in rows}


def test_the_tolerance_is_a_strict_bound(spark):
    df = spark.createDataFrame([([1.25],), ([0.75],), ([0.0],)], "v ARRAY<DOUBLE>")

    def of(tol):
        return [row.r for row in df.select(bi.is_normalized(df.v, tol=tol).alias("r")).collect()]

    assert of(0.25) == [False, False, False]
    assert of(0.26) == [True, True, False]
    assert of(2) == [True, True, False]  # a zero vector has no direction, whatever the tolerance
    for tol in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            bi.is_normalized("v", tol=tol)


def test_no_python_runs_in_it(spark, endpoint):
    vectors = spark.sql("SELECT ai_query('vectors', 'x') v").localCheckpoint()
    checked = vectors.select(bi.is_normalized("v").alias("r"))
    assert checked.first().r is True
    assert "Python" not in checked._jdf.queryExecution().executedPlan().toString()


def test_in_sql(spark, endpoint, no_ledger):
    calls = "is_normalized(ai_query('vectors', 'x')) a, is_normalized(array(1.25D), 0.25) b, is_normalized(NULL) c"
    assert tuple(spark.sql(f"SELECT {calls}").first()) == (True, False, None)
    assert endpoint.stats()["requests"] == 1
    spark.sql("SELECT id, array(id * 0.5D, 0D) v FROM range(4)").createOrReplaceTempView("some_vectors")
    kept = spark.sql("SELECT id FROM some_vectors WHERE is_normalized(v) OR is_normalized(v, 0.6)").collect()
    assert [row.id for row in kept] == [1, 2, 3]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("is_normalized(array('a'))", "the vector is an ARRAY<FLOAT> or ARRAY<DOUBLE>; got ARRAY<STRING>"),
        ("is_normalized(array(1D), -1)", "a number above 0; got -1"),
        ("is_normalized(array(1D), id)", "'tol' must be a constant"),
        ("is_normalized()", "the argument 'vector' is missing"),
    ],
)
def test_wrong_arguments_are_refused_in_sql(spark, call, words):
    with pytest.raises(Exception) as refused:
        spark.sql(f"SELECT {call} FROM range(1)")
    assert words in str(refused.value)
