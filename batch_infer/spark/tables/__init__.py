"""Tables that can be trusted after a crash: Parquet by one rename, Delta by one commit."""

from batch_infer.spark.tables.delta import check_merge_key
from batch_infer.spark.tables.rules import Transaction, Written
from batch_infer.spark.tables.write import TableExistsError, check_target, write_table

__all__ = ["TableExistsError", "Transaction", "Written", "check_merge_key", "check_target", "write_table"]
