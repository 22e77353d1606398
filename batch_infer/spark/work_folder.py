"""Owns what an unfinished job leaves beside its output: the input as it was read, and the transaction to come.

Does not write the output.
"""

from __future__ import annotations

import time
from hashlib import blake2b

from pyspark.sql import Column, SparkSession

from batch_infer.contract.table import Transaction
from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.udf import ColumnPlan


class WorkFolder:
    """`.<name>.batch_infer-<job>-<time>.work` beside the output: exists from the job's begin to its end.

    The job is known by its output, endpoint, parameters and request expression; the time is the transaction's version,
    so that a job that is continued after a crash commits once.
    """

    def __init__(self, files: Files, folder: str, name: str, job: str) -> None:
        self._files = files
        self._folder = folder
        self._prefix = f".{name}.batch_infer-{job}-"
        self._job = job
        self._version = 0

    @classmethod
    def of(cls, spark: SparkSession, output: str, plan: ColumnPlan, request: Column) -> WorkFolder:
        """The folder of the job that asks `request` of the plan's endpoint and writes to `output`."""
        files = Files(spark, output)
        folder, _, name = files.root.rstrip("/").rpartition("/")
        said = f"{plan.call.identity().key(str(request))}|{plan.ddl}|{name}"
        return cls(files, folder, name, blake2b(said.encode(), digest_size=8).hexdigest())

    @property
    def path(self) -> str:
        """The folder."""
        return f"{self._folder}/{self._prefix}{self._version}.work"

    @property
    def input(self) -> str:
        """The numbered input with its keys, as Parquet."""
        return f"{self.path}/input"

    @property
    def failures(self) -> str:
        """What failed in this run, as Parquet."""
        return f"{self.path}/failures"

    @property
    def began_at(self) -> float:
        """When the job began, in its first run: seconds since 1970."""
        return self._version / 1000

    @property
    def transaction(self) -> Transaction:
        """The write's identity: the same for a job and its continuation."""
        return Transaction(f"batch_infer-{self._job}", self._version)

    def continue_unfinished(self) -> bool:
        """Takes up the newest unfinished run of this job whose input is complete; `False` where there is none."""
        for version in sorted(self._versions(), reverse=True):
            self._version = version
            if self._files.exists(f"{self.input}/_SUCCESS"):
                return True
        return False

    def begin(self) -> None:
        """Starts anew; what earlier runs of this job left is deleted (their replies are in the ledger)."""
        self.finish()
        self._version = int(time.time() * 1000)

    def finish(self) -> None:
        """Deletes the folders of this job."""
        for version in self._versions():
            self._version, kept = version, self._version
            self._files.delete(self.path)
            self._version = kept

    def _versions(self) -> list[int]:
        names = [entry.name for entry in self._files.list(self._folder) if entry.name.startswith(self._prefix)]
        numbers = [name.removeprefix(self._prefix).removesuffix(".work") for name in names]
        return [int(number) for number in numbers if number.isdigit()]
