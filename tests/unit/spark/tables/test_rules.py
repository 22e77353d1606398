"""What is said of an output table without touching one."""

from __future__ import annotations

import pickle

import pytest

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.tables.delta_rules import delta_package, how_to_get_delta, merge_statement
from batch_infer.spark.tables.rules import Siblings, Transaction, check_fit, ddl
from batch_infer.spark.tables.sinks import SINKS, check_choice, check_schema


def how(name):
    sink = SINKS[name]
    return {"may_lack_columns": sink.may_lack_columns, "how_to_add": sink.how_to_add}


def field(name, kind):
    return {"name": name, "type": kind, "nullable": True, "metadata": {}}


def struct(**kinds):
    return {"type": "struct", "fields": [field(name, kind) for name, kind in kinds.items()]}


def array(kind, contains_null=True):
    return {"type": "array", "elementType": kind, "containsNull": contains_null}


def test_an_unknown_format_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"parquet, delta; got 'parket'. Did you mean 'parquet'\?"):
        check_choice(format="parket", mode="error", merge_key=())


def test_an_unknown_mode_is_refused_with_the_names_that_exist():
    with pytest.raises(ConfigError, match=r"error, overwrite, append, merge, resume; got 'upsert'"):
        check_choice(format="delta", mode="upsert", merge_key=())


def test_merge_needs_delta():
    with pytest.raises(ConfigError, match="format='delta'"):
        check_choice(format="parquet", mode="merge", merge_key=("id",))


def test_merge_needs_a_key_and_nothing_else_takes_one():
    with pytest.raises(ConfigError, match="needs merge_key"):
        check_choice(format="delta", mode="merge", merge_key=())
    with pytest.raises(ConfigError, match="mode is 'append'"):
        check_choice(format="delta", mode="append", merge_key=("id",))


def test_a_column_without_a_type_is_refused_wherever_it_is():
    schema = struct(id="long", meta=struct(tags=array(struct(name="void"))))
    with pytest.raises(ConfigError, match=r"meta\.tags\.name is of type VOID.*CAST\(NULL AS STRING\)"):
        check_schema(schema, format="delta")


def test_an_interval_is_refused():
    with pytest.raises(ConfigError, match="took is of type INTERVAL DAY TO SECOND"):
        check_schema(struct(took="interval day to second"), format="parquet")


def test_two_columns_that_differ_in_case_alone_are_refused():
    with pytest.raises(ConfigError, match="'reply' and 'Reply'"):
        check_schema(struct(reply="string", Reply="string"), format="parquet")


def test_a_name_that_delta_cannot_hold_is_refused_for_delta_only():
    schema = struct(id="long", meta=struct(**{"count(1)": "long"}))
    with pytest.raises(ConfigError, match=r"'\(': 'meta\.count\(1\)'"):
        check_schema(schema, format="delta")
    check_schema(schema, format="parquet")


def test_keys_and_partitions_are_columns():
    with pytest.raises(ConfigError, match="merge_key names 'key', which is not a column of the output: id, reply"):
        check_schema(struct(id="long", reply="string"), format="delta", merge_key=("key",))
    with pytest.raises(ConfigError, match="partition_by names 'day'"):
        check_schema(struct(id="long"), format="parquet", partition_by=("day",))
    with pytest.raises(ConfigError, match="every column"):
        check_schema(struct(id="long"), format="parquet", partition_by=("id",))


def test_nullability_does_not_keep_a_schema_from_fitting():
    check_fit(struct(v=array("float")), struct(v=array("float", False)), path="p", **how("parquet"))


def test_every_difference_to_the_table_is_named():
    new, old = struct(id="long", v=array("double"), Reply="string"), struct(id="long", v=array("float"), reply="string")
    with pytest.raises(
        ConfigError, match="v is ARRAY<DOUBLE> here and ARRAY<FLOAT> there; Reply is written reply there"
    ):
        check_fit(new, old, path="p", **how("parquet"))


def test_columns_that_a_delta_table_lacks_come_with_the_statement_that_adds_them():
    new = struct(id="long", usage=struct(total_tokens="long"))
    with pytest.raises(
        ConfigError, match=r"ALTER TABLE delta\.`p` ADD COLUMNS \(`usage` STRUCT<`total_tokens`: BIGINT>\)"
    ):
        check_fit(new, struct(id="long"), path="p", **how("delta"))


def test_only_delta_tables_may_have_columns_that_the_output_has_not():
    check_fit(struct(id="long"), struct(id="long", label="string"), path="p", **how("delta"))
    with pytest.raises(ConfigError, match="label STRING is missing here"):
        check_fit(struct(id="long"), struct(id="long", label="string"), path="p", **how("parquet"))


def test_partition_columns_of_parquet_are_compared_by_name_only():
    check_fit(
        struct(id="long", day="string"), struct(id="long", day="date"), path="p", **how("parquet"), untyped=["day"]
    )


def test_types_are_rendered_as_ddl():
    kind = struct(a=array("integer"), b={"type": "map", "keyType": "string", "valueType": "decimal(10,2)"})
    assert ddl(kind) == "STRUCT<`a`: ARRAY<INT>, `b`: MAP<STRING, DECIMAL(10,2)>>"


def test_a_transaction_always_has_the_same_commit_id_and_different_ones_differ():
    assert Transaction("job", 1).commit_id == Transaction("job", 1).commit_id
    ids = {Transaction(app, version).commit_id for app, version in [("job", 1), ("job", 11), ("job1", 1), ("job", 2)]}
    assert len(ids) == 4
    assert all(len(one) == 16 for one in ids)


def test_a_transaction_pickles_and_refuses_nonsense():
    assert pickle.loads(pickle.dumps(Transaction("job", 3))) == Transaction("job", 3)
    with pytest.raises(ConfigError, match="app_id is empty"):
        Transaction("", 1)
    with pytest.raises(ConfigError, match="counts from 0"):
        Transaction("job", -1)


def test_siblings_are_hidden_from_readers_of_the_folder_above_even_for_partition_like_names():
    names = Siblings.of("file:/lake/day=2026-01-01/", "0123456789abcdef")
    assert names.staging == "file:/lake/.day=2026-01-01.batch_infer-0123456789abcdef.tmp"
    assert all(path.rpartition("/")[2].startswith(".") for path in (names.staging, names.set_aside, names.creating))
    assert names.marker.startswith("_")
    assert names.journal.startswith("_")


def test_merge_updates_all_but_the_key_and_quotes_every_name():
    assert merge_statement("file:/a`b", "view", ["id"], ["id", "re`ply"]) == (
        "MERGE INTO delta.`file:/a``b` t USING `view` s ON t.`id` <=> s.`id` "
        "WHEN MATCHED THEN UPDATE SET t.`re``ply` = s.`re``ply` "
        "WHEN NOT MATCHED THEN INSERT (`id`, `re``ply`) VALUES (s.`id`, s.`re``ply`)"
    )


def test_merge_of_keys_alone_only_inserts():
    assert "MATCHED THEN UPDATE" not in merge_statement("p", "view", ["id"], ["id"])


@pytest.mark.parametrize(
    ("spark", "scala", "package"),
    [
        ("3.5.8", "2.12.18", "io.delta:delta-spark_2.12:3.3.2"),
        ("4.0.1", "2.13.16", "io.delta:delta-spark_4.0_2.13:4.4.0"),
        ("4.2.0", "2.13.18", "io.delta:delta-spark_4.2_2.13:4.4.0"),
        ("4.2.0-vendor-1", "2.13.18", "io.delta:delta-spark_4.2_2.13:4.4.0"),
    ],
)
def test_the_delta_jar_is_the_one_of_the_running_spark_and_scala(spark, scala, package):
    assert delta_package(spark, scala) == package


def test_the_message_for_a_missing_jar_has_the_lines_to_copy():
    message = how_to_get_delta("no jar", "4.2.0", "2.13.18")
    assert "--packages io.delta:delta-spark_4.2_2.13:4.4.0 " in message
    assert "--conf spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension " in message
    assert "--conf spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog " in message
    assert '.config("spark.jars.packages", "io.delta:delta-spark_4.2_2.13:4.4.0")' in message
