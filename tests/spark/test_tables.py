"""Parquet tables: whole or not there, once for each transaction, refused before anything is paid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F  # noqa: N812

from batch_infer.contract.errors import ConfigError, SinkError
from batch_infer.spark.tables import Transaction, Written, check_target, write_table
from batch_infer.spark.tables import parquet as parquet_tables
from tests.support.paths import ROOT

pytestmark = pytest.mark.spark

ONE = Transaction("job", 1)
TWO = Transaction("job", 2)
DIES_IN_A_STEP = textwrap.dedent("""
    import os, signal, sys
    from pyspark.sql import SparkSession
    from batch_infer.spark.tables import Transaction, write_table

    path, mode, deadly = sys.argv[1:]
    spark = (
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.driver.extraJavaOptions", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        .getOrCreate()
    )

    def on_step(step):
        if step == deadly:
            os.killpg(0, signal.SIGKILL)  # the JVM too

    df = spark.range(100, 140, 1, 4)
    write_table(df, path, format="parquet", mode=mode, transaction=Transaction("job", 2), on_step=on_step)
""")


def dies(path, mode, step):
    """Runs a driver that SIGKILLs itself and its JVM in a step of writing ids 100 to 139 as transaction TWO."""
    ended = subprocess.run(
        [sys.executable, "-c", DIES_IN_A_STEP, str(path), mode, step],
        start_new_session=True,
        capture_output=True,
        timeout=100,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]


def ids(path):
    """What independent readers see; they agree."""
    seen = sorted(pd.read_parquet(path)["id"].tolist())
    assert sorted(ds.dataset(path, format="parquet").to_table()["id"].to_pylist()) == seen
    return seen


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def leftovers(path):
    return [name for name in names_in(path.parent) if name != path.name]


def write(df, path, mode, transaction=None, **more):
    return write_table(df, str(path), format="parquet", mode=mode, transaction=transaction, **more)


def check(spark, path, mode, schema, **more):
    return check_target(spark, str(path), format="parquet", mode=mode, schema=schema, **more)


def test_a_new_table_is_read_by_others_and_leaves_nothing_beside_it(spark, tmp_path):
    written = write(spark.range(10), tmp_path / "t", "error")
    assert written == Written(10, f"file:{tmp_path}/t", None)
    assert ids(tmp_path / "t") == list(range(10))
    assert (tmp_path / "t" / "_SUCCESS").exists()
    assert leftovers(tmp_path / "t") == []


def test_a_table_without_rows_keeps_its_schema(spark, tmp_path):
    assert write(spark.range(0), tmp_path / "t", "error").rows == 0
    assert ids(tmp_path / "t") == []


def test_embeddings_and_all_null_metadata_keep_their_types(spark, tmp_path):
    df = spark.range(3).select(
        "id",
        F.expr("CAST(array(0.5, 0.25) AS ARRAY<FLOAT>)").alias("embedding"),
        F.expr("CAST(NULL AS STRUCT<kind: STRING, status: INT>)").alias("error"),
        F.expr("named_struct('total_tokens', CAST(NULL AS BIGINT))").alias("usage"),
    )
    write(df, tmp_path / "t", "error")
    types = {field.name: str(field.type) for field in ds.dataset(tmp_path / "t", format="parquet").schema}
    assert types["embedding"] in ("list<element: float>", "list<element: float not null>")
    assert types["error"] == "struct<kind: string, status: int32>"
    assert types["usage"] == "struct<total_tokens: int64>"
    assert (
        spark.read.parquet(str(tmp_path / "t")).schema["error"].dataType.simpleString()
        == "struct<kind:string,status:int>"
    )


def test_error_refuses_an_existing_table_before_and_leaves_it_alone(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error")
    with pytest.raises(ConfigError, match=r"there is a table at .*mode is 'error'.*'overwrite' or 'append'"):
        check(spark, tmp_path / "t", "error", spark.range(1).schema)
    with pytest.raises(ConfigError):
        write(spark.range(7), tmp_path / "t", "error")
    assert ids(tmp_path / "t") == list(range(5))


def test_error_refuses_a_table_that_appeared_while_it_wrote(spark, tmp_path):
    def someone_else(step):
        if step == "staged":
            spark.range(3).write.parquet(str(tmp_path / "t"))

    with pytest.raises(SinkError, match="another run wrote"):
        write(spark.range(7), tmp_path / "t", "error", ONE, on_step=someone_else)
    assert ids(tmp_path / "t") == [0, 1, 2]


@pytest.mark.parametrize("mode", ["error", "overwrite", "append"])
def test_a_repeated_transaction_changes_nothing(spark, tmp_path, mode):
    first = write(spark.range(5), tmp_path / "t", mode, ONE)
    files = names_in(tmp_path / "t")
    assert check(spark, tmp_path / "t", mode, spark.range(1).schema, transaction=ONE) == first
    assert write(spark.range(5), tmp_path / "t", mode, ONE) == first
    assert names_in(tmp_path / "t") == files


def test_overwrite_replaces_rows_and_schema_even_of_the_table_it_reads(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error", ONE)
    df = spark.read.parquet(str(tmp_path / "t")).select((F.col("id") + 10).alias("id"), F.lit("x").alias("more"))
    assert write(df, tmp_path / "t", "overwrite", TWO).rows == 5
    assert ids(tmp_path / "t") == [10, 11, 12, 13, 14]
    assert leftovers(tmp_path / "t") == []


def test_overwrite_puts_the_old_table_back_when_the_new_one_cannot_take_its_place(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error", ONE)

    def lose_the_new_one(step):
        if step == "set_aside":
            assert not (tmp_path / "t").exists()
            staging = next(tmp_path.glob(".t.*.tmp"))
            staging.rename(tmp_path / "lost")

    with pytest.raises(SinkError, match="could not rename"):
        write(spark.range(7), tmp_path / "t", "overwrite", TWO, on_step=lose_the_new_one)
    assert ids(tmp_path / "t") == list(range(5))


def test_append_adds_rows_once_for_each_transaction(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "append", ONE)
    assert write(spark.range(5, 8), tmp_path / "t", "append", TWO).rows == 3
    assert write(spark.range(5, 8), tmp_path / "t", "append", TWO).rows == 3
    write(spark.range(5), tmp_path / "t", "append", ONE)
    assert ids(tmp_path / "t") == list(range(8))
    assert leftovers(tmp_path / "t") == []


def test_append_without_a_transaction_adds_each_time(spark, tmp_path):
    for _ in range(2):
        write(spark.range(2), tmp_path / "t", "append")
    assert ids(tmp_path / "t") == [0, 0, 1, 1]


def test_append_keeps_to_the_partitions_of_the_table(spark, tmp_path):
    df = spark.range(4).withColumn("day", F.concat(F.lit("0"), F.col("id") % 2))
    write(df, tmp_path / "t", "error", ONE, partition_by=["day"])
    write(df.withColumn("id", F.col("id") + 4), tmp_path / "t", "append", TWO)
    assert {path.parent.name for path in (tmp_path / "t").rglob("*.parquet")} == {"day=00", "day=01"}
    assert spark.read.parquet(str(tmp_path / "t")).count() == 8
    with pytest.raises(ConfigError, match=r"partition_by is id, but the table at .* is partitioned by day"):
        check(spark, tmp_path / "t", "append", df.schema, partition_by=["id"])


def test_append_refuses_other_columns_before(spark, tmp_path):
    write(spark.range(4), tmp_path / "t", "error")
    with pytest.raises(ConfigError, match="id is STRING here and BIGINT there; more INT is not in the table"):
        check(spark, tmp_path / "t", "append", spark.sql("SELECT '' AS id, 1 AS more").schema)


def test_a_folder_of_other_things_is_not_overwritten(spark, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.docx").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds 'thesis\.docx', which is no part of a Parquet table"):
        write(spark.range(4), tmp_path / "home", "overwrite")
    assert (tmp_path / "home" / "thesis.docx").read_text() == "precious"


def test_a_delta_table_is_not_overwritten_with_parquet(spark, tmp_path):
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a Delta table"):
        check(spark, tmp_path / "t", "overwrite", spark.range(1).schema)


def test_a_file_in_the_place_of_the_table_is_refused(spark, tmp_path):
    (tmp_path / "t").write_text("")
    with pytest.raises(ConfigError, match="is a file, and a table is a folder"):
        check(spark, tmp_path / "t", "overwrite", spark.range(1).schema)


def test_a_place_that_cannot_be_written_is_refused_before(spark, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"could not make the folder .*file/below"):
        check(spark, tmp_path / "file" / "below" / "t", "error", spark.range(1).schema)


def test_a_path_that_no_file_system_serves_is_refused_before(spark):
    with pytest.raises(ConfigError, match=r"'s4://bucket/t' cannot be used: .*scheme"):
        check(spark, "s4://bucket/t", "error", spark.range(1).schema)


def test_a_check_leaves_nothing_behind(spark, tmp_path):
    assert check(spark, tmp_path / "t", "error", spark.range(1).schema) is None
    assert names_in(tmp_path) == []


def test_delta_without_its_jar_is_refused_with_the_lines_that_add_it(spark, tmp_path):
    if "DeltaSparkSessionExtension" in spark.conf.get("spark.sql.extensions", ""):
        pytest.skip("this session has Delta")
    with pytest.raises(ConfigError, match="this Spark session has no Delta jar") as refused:
        check_target(spark, str(tmp_path / "t"), format="delta", mode="error", schema=spark.range(1).schema)
    minor = ".".join(spark.version.split(".")[:2])
    if minor.startswith("4"):
        assert f"--packages io.delta:delta-spark_{minor}_2.13:" in str(refused.value)
    assert "--conf spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension" in str(refused.value)
    assert ".config(" in str(refused.value)


def test_where_renames_are_copies_success_is_written_last(spark, tmp_path, monkeypatch):
    monkeypatch.setattr("batch_infer.spark.tables.filesystem.ATOMIC_SCHEMES", frozenset())
    seen = []
    write(
        spark.range(3),
        tmp_path / "t",
        "error",
        ONE,
        on_step=lambda step: seen.append((step, (tmp_path / "t" / "_SUCCESS").exists())),
    )
    assert seen == [("staged", False), ("committed", False)]
    assert (tmp_path / "t" / "_SUCCESS").exists()


def test_a_driver_killed_before_the_rename_leaves_no_table_and_the_rerun_writes_it_once(spark, tmp_path):
    dies(tmp_path / "t", "error", "staged")
    assert not (tmp_path / "t").exists()
    assert write(spark.range(100, 140), tmp_path / "t", "error", TWO).rows == 40
    assert ids(tmp_path / "t") == list(range(100, 140))
    assert leftovers(tmp_path / "t") == []


def test_a_driver_killed_between_the_two_renames_is_healed_by_the_next_run(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error", ONE)
    dies(tmp_path / "t", "overwrite", "set_aside")
    assert not (tmp_path / "t").exists()
    with pytest.raises(ConfigError, match="there is a table"):
        check(spark, tmp_path / "t", "error", spark.range(1).schema)
    assert ids(tmp_path / "t") == list(range(5))
    write(spark.range(100, 140), tmp_path / "t", "overwrite", TWO)
    assert ids(tmp_path / "t") == list(range(100, 140))
    assert leftovers(tmp_path / "t") == []


def test_a_driver_killed_while_it_appended_is_finished_by_the_rerun_without_a_row_twice(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error", ONE)
    dies(tmp_path / "t", "append", "moved")
    assert len(ids(tmp_path / "t")) == 15, "one of four files has been moved in"
    assert write(spark.range(100, 140), tmp_path / "t", "append", TWO).rows == 40
    assert ids(tmp_path / "t") == [*range(5), *range(100, 140)]
    assert leftovers(tmp_path / "t") == []
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "t").glob("*.parquet")) == 45


def test_an_append_whose_staged_files_are_gone_says_so(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error", ONE)

    def lose_the_rest(step):
        if step == "journalled":
            next(tmp_path.glob(".t.*.tmp")).rename(tmp_path / "lost")

    with pytest.raises(SinkError, match=r"was cut short, and part-.* is neither in it nor in"):
        write(spark.range(9), tmp_path / "t", "append", TWO, on_step=lose_the_rest)


def test_every_step_of_an_append_is_told(spark, tmp_path):
    steps = []
    write(spark.range(5), tmp_path / "t", "error", ONE)
    write(spark.range(5, 9, 1, 2), tmp_path / "t", "append", TWO, on_step=steps.append)
    assert steps == ["staged", "journalled", "moved", "moved"]
    assert parquet_tables.SUCCESS in names_in(tmp_path / "t")


def test_a_write_that_fails_leaves_nothing_behind(spark, tmp_path):
    failing = spark.range(5).select(F.expr("IF(id = 4, raise_error('no'), id)").alias("id"))
    with pytest.raises(Exception, match="no"):
        write(failing, tmp_path / "t", "error", ONE)
    assert names_in(tmp_path) == []
