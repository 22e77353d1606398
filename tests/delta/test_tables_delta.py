"""Delta tables: one commit for each transaction, as an independent reader (delta-rs) sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from pyspark.sql import functions as F  # noqa: N812

from batch_infer.contract.errors import ConfigError, SinkError
from batch_infer.spark.tables import Transaction, Written, check_target, write_table
from batch_infer.spark.tables.delta import check_session
from tests.support.paths import ROOT

pytestmark = [pytest.mark.spark, pytest.mark.delta]

ONE = Transaction("job", 1)
TWO = Transaction("job", 2)
DIES_BEFORE_THE_COMMIT = textwrap.dedent("""
    import os, signal, sys
    from pyspark.java_gateway import ensure_callback_server_started
    from pyspark.sql import SparkSession
    from batch_infer.spark.tables.delta_rules import DELTA_CATALOG, DELTA_EXTENSION
    from batch_infer.spark.tables import Transaction, write_table

    path, mode, jars = sys.argv[1:]
    spark = (
        SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        .config("spark.databricks.delta.snapshotPartitions", "2").config("spark.driver.memory", "1g")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.extraJavaOptions", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        .config("spark.jars", jars).config("spark.sql.extensions", DELTA_EXTENSION)
        .config("spark.sql.catalog.spark_catalog", DELTA_CATALOG).getOrCreate()
    )

    class Observer:
        '''Delta tells it how a transaction goes: the data is written when beginDoCommit is called, and no commit is.'''
        def beginDoCommit(self):
            os.killpg(0, signal.SIGKILL)  # the JVM too
        def startingTransaction(self, start):
            return start.apply()
        def preparingCommit(self, prepare):
            return prepare.apply()
        def createChild(self):
            return self
        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            return lambda *ignored: None
        class Java:
            implements = ["org.apache.spark.sql.delta.TransactionExecutionObserver"]

    ensure_callback_server_started(spark.sparkContext._gateway)
    observer = Observer()
    spark._jvm.org.apache.spark.sql.delta.TransactionExecutionObserver.setObserver(observer)
    df = spark.range(100, 140, 1, 4)
    key = ["id"] if mode == "merge" else []
    write_table(df, path, format="delta", mode=mode, merge_key=key, transaction=Transaction("job", 2))
""")


def dies_before_the_commit(path, mode, jars):
    """Runs a driver that SIGKILLs itself and its JVM between data and commit of ids 100 to 139 as transaction TWO."""
    ended = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_THE_COMMIT, str(path), mode, jars],
        start_new_session=True,
        capture_output=True,
        timeout=150,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-3000:]


def write(df, path, mode, transaction=None, **more):
    return write_table(df, str(path), format="delta", mode=mode, transaction=transaction, **more)


def check(spark, path, mode, schema, **more):
    return check_target(spark, str(path), format="delta", mode=mode, schema=schema, **more)


def rows_of(path):
    table = pa.table(DeltaTable(str(path)).to_pyarrow_table())
    return sorted(table.to_pylist(), key=lambda row: (row["id"] is not None, row["id"]))


def ids(path):
    return [row["id"] for row in rows_of(path)]


def operations(path):
    return [commit["operation"] for commit in reversed(DeltaTable(str(path)).history())]


def data_files(path):
    return sorted(file.name for file in path.glob("*.parquet"))


def test_a_new_table_is_read_by_others_and_leaves_nothing_beside_it(spark, tmp_path):
    df = spark.range(3).select(
        "id",
        F.expr("CAST(array(0.5, 0.25) AS ARRAY<FLOAT>)").alias("embedding"),
        F.expr("CAST(NULL AS STRUCT<kind: STRING, status: INT>)").alias("error"),
        F.expr("named_struct('total_tokens', CAST(NULL AS BIGINT))").alias("usage"),
    )
    assert write(df, tmp_path / "t", "error") == Written(3, f"file:{tmp_path}/t", 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]
    assert rows_of(tmp_path / "t")[0] == {
        "id": 0,
        "embedding": [0.5, 0.25],
        "error": None,
        "usage": {"total_tokens": None},
    }
    fields = {field.name: field.type for field in DeltaTable(str(tmp_path / "t")).schema().fields}
    assert fields["embedding"].element_type.type == "float"
    assert [(field.name, field.type.type) for field in fields["error"].fields] == [
        ("kind", "string"),
        ("status", "integer"),
    ]


@pytest.mark.parametrize("mode", ["error", "overwrite", "append"])
def test_a_repeated_transaction_is_one_commit(spark, tmp_path, mode):
    first = write(spark.range(5), tmp_path / "t", mode, ONE)
    files = data_files(tmp_path / "t")
    assert check(spark, tmp_path / "t", mode, spark.range(1).schema, transaction=ONE) == first
    assert write(spark.range(5), tmp_path / "t", mode, ONE) == first == Written(5, f"file:{tmp_path}/t", 0)
    assert operations(tmp_path / "t") == ["WRITE"]
    assert data_files(tmp_path / "t") == files


def test_delta_itself_leaves_out_a_transaction_that_is_not_above_the_last_one(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "append", TWO)
    with pytest.raises(SinkError, match=r"nothing was written .*Count the version up"):
        write(spark.range(5), tmp_path / "t", "append", ONE)
    assert operations(tmp_path / "t") == ["WRITE"]


def test_append_adds_and_overwrite_replaces_rows_and_schema(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "append", ONE)
    assert write(spark.range(5, 8), tmp_path / "t", "append", TWO).version == 1
    assert ids(tmp_path / "t") == list(range(8))
    df = spark.read.format("delta").load(str(tmp_path / "t")).where("id > 5").withColumn("more", F.lit("x"))
    assert write(df, tmp_path / "t", "overwrite", Transaction("job", 3)) == Written(2, f"file:{tmp_path}/t", 2)
    assert rows_of(tmp_path / "t") == [{"id": 6, "more": "x"}, {"id": 7, "more": "x"}]


def test_error_refuses_an_existing_table_before(spark, tmp_path):
    write(spark.range(5), tmp_path / "t", "error", ONE)
    with pytest.raises(ConfigError, match=r"there is a table at .*'overwrite' or 'append'"):
        check(spark, tmp_path / "t", "error", spark.range(1).schema, transaction=TWO)


def test_merge_updates_equal_keys_inserts_others_and_keeps_columns_it_has_not(spark, tmp_path):
    write(
        spark.sql("SELECT id, 'old' AS reply, 'gold' AS label FROM VALUES 1L, 2L, NULL AS t(id)"),
        tmp_path / "t",
        "error",
    )
    df = spark.sql("SELECT id, 'new' AS reply FROM VALUES 2L, 3L, NULL AS t(id)")
    for _ in range(2):
        written = write(df, tmp_path / "t", "merge", TWO, merge_key=["id"])
        assert written == Written(3, f"file:{tmp_path}/t", 1)
    assert rows_of(tmp_path / "t") == [
        {"id": None, "reply": "new", "label": "gold"},
        {"id": 1, "reply": "old", "label": "gold"},
        {"id": 2, "reply": "new", "label": "gold"},
        {"id": 3, "reply": "new", "label": None},
    ]
    assert operations(tmp_path / "t") == ["WRITE", "MERGE"]


def test_merge_leaves_no_setting_and_no_view_in_the_session(spark, tmp_path):
    write(spark.range(3), tmp_path / "t", "error", ONE)
    write(spark.range(5), tmp_path / "t", "merge", TWO, merge_key=["id"])
    assert spark.conf.get("spark.databricks.delta.write.txnAppId", None) is None
    assert spark.conf.get("spark.databricks.delta.commitInfo.userMetadata", None) is None
    assert spark.catalog.listTables() == []


def test_merge_makes_the_table_where_there_is_none(spark, tmp_path):
    assert write(spark.range(3), tmp_path / "t", "merge", ONE, merge_key=["id"]).version == 0
    assert ids(tmp_path / "t") == [0, 1, 2]


def test_merge_refuses_rows_of_one_key_and_changes_nothing(spark, tmp_path):
    write(spark.range(3), tmp_path / "t", "error", ONE)
    df = spark.sql("SELECT id FROM VALUES 7L, 8L, 7L AS t(id)")
    with pytest.raises(SinkError, match=r"merge_key id is not unique in the output.*id=7\. Drop duplicates"):
        write(df, tmp_path / "t", "merge", TWO, merge_key=["id"])
    assert operations(tmp_path / "t") == ["WRITE"]


def test_a_schema_that_does_not_fit_is_refused_before_with_a_statement_that_works(spark, tmp_path):
    write(spark.range(3), tmp_path / "t", "error", ONE)
    with pytest.raises(ConfigError, match="id is STRING here and BIGINT there"):
        check(spark, tmp_path / "t", "append", spark.sql("SELECT '' AS id").schema)
    wider = spark.sql("SELECT 1L AS id, named_struct('total_tokens', 1L) AS usage")
    with pytest.raises(ConfigError, match=r"usage .* is not in the table") as refused:
        check(spark, tmp_path / "t", "append", wider.schema)
    spark.sql(str(refused.value).partition("Add them first: ")[2])
    write(wider, tmp_path / "t", "append", TWO)
    assert {"id": 1, "usage": {"total_tokens": 1}} in rows_of(tmp_path / "t")


def test_partitions_are_kept_and_others_refused(spark, tmp_path):
    df = spark.range(4).withColumn("day", F.col("id") % 2)
    write(df, tmp_path / "t", "error", ONE, partition_by=["day"])
    write(df, tmp_path / "t", "append", TWO)
    assert DeltaTable(str(tmp_path / "t")).metadata().partition_columns == ["day"]
    with pytest.raises(ConfigError, match="is partitioned by day"):
        check(spark, tmp_path / "t", "append", df.schema, partition_by=["id"])


@pytest.mark.parametrize("mode", ["error", "overwrite", "append"])
def test_files_that_are_no_delta_table_are_left_alone(spark, tmp_path, mode):
    spark.range(3).write.parquet(str(tmp_path / "t"))
    with pytest.raises(ConfigError, match="but no Delta table"):
        write(spark.range(3), tmp_path / "t", mode, ONE)
    assert spark.read.parquet(str(tmp_path / "t")).count() == 3


def test_a_write_that_fails_leaves_nothing_behind(spark, tmp_path):
    failing = spark.range(5).select(F.expr("IF(id = 4, raise_error('no'), id)").alias("id"))
    with pytest.raises(Exception, match="no"):
        write(failing, tmp_path / "t", "error", ONE)
    assert list(tmp_path.iterdir()) == []


def test_files_of_anothers_first_write_are_only_overwritten(spark, tmp_path):
    spark.range(3).write.option("mapreduce.fileoutputcommitter.marksuccessfuljobs", "false").parquet(
        str(tmp_path / "t")
    )
    (tmp_path / f".t.batch_infer-{ONE.commit_id}.new").write_text("")
    with pytest.raises(ConfigError, match=r"another run's first write.*mode='overwrite'"):
        check(spark, tmp_path / "t", "error", spark.range(1).schema, transaction=TWO)
    write(spark.range(5), tmp_path / "t", "overwrite", TWO)
    assert ids(tmp_path / "t") == list(range(5))
    assert len(data_files(tmp_path / "t")) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]


def test_a_session_without_the_settings_is_told_which_to_add(spark):
    bare = SimpleNamespace(conf=SimpleNamespace(get=lambda _, default: default), _jvm=spark._jvm, version=spark.version)
    with pytest.raises(
        ConfigError, match=r"does not name DeltaSparkSessionExtension, and .* is not DeltaCatalog"
    ) as refused:
        check_session(bare)
    assert "no Delta jar" not in str(refused.value)


@pytest.mark.parametrize("mode", ["error", "merge"])
def test_a_driver_killed_between_data_and_commit_is_made_good_by_one_commit(spark, tmp_path, delta_jars, mode):
    before = []
    if mode == "merge":
        write(spark.range(5), tmp_path / "t", "error", ONE)
        before = data_files(tmp_path / "t")
    dies_before_the_commit(tmp_path / "t", mode, delta_jars)
    assert len(data_files(tmp_path / "t")) > len(before), "the data was written"
    if mode == "merge":
        assert ids(tmp_path / "t") == list(range(5))
    else:
        with pytest.raises(TableNotFoundError):
            DeltaTable(str(tmp_path / "t"))

    key = ["id"] if mode == "merge" else []
    for _ in range(2):
        assert write(spark.range(100, 140), tmp_path / "t", mode, TWO, merge_key=key).rows == 40
    assert ids(tmp_path / "t") == [*range(5 if before else 0), *range(100, 140)]
    assert operations(tmp_path / "t") == (["WRITE", "MERGE"] if before else ["WRITE"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]
