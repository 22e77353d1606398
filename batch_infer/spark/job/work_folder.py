"""Owns what an unfinished job leaves beside its output: the input as it was read, and the transaction to come.

Does not write the output.

On the driver.
"""

from __future__ import annotations

import re
import time
from hashlib import blake2b
from uuid import uuid4

from pyspark.sql import Column, SparkSession

from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.tables.rules import Transaction
from batch_infer.spark.udf import ColumnPlan

ADDING = ("append", "merge")
"""Modes under which runs of the same job may follow, or stand beside, each other."""


class WorkFolder:
    """`.<name>.batch_infer-<job>-<time>-<mode>.work` beside the output: exists from the job's begin to its end.

    The job is known by its output, endpoint, parameters and request expression; the time is the transaction's version,
    so that a job that is continued after a crash commits once.
    """

    def __init__(self, files: Files, folder: str, name: str, job: str) -> None:
        self._files = files
        self._folder = folder
        self._name = name
        self._job = job
        self._version = 0
        self._execution = uuid4().hex[:8]
        self.mode = ""
        """The job's mode, also of one that is continued."""

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
        return f"{self._folder}/{self._prefix}{self._version}-{self.mode}.work"

    @property
    def input(self) -> str:
        """The numbered input with its keys, as Parquet."""
        return f"{self.path}/input"

    @property
    def failures(self) -> str:
        """What failed in this run, as Parquet."""
        return f"{self.path}/failures"

    @property
    def job(self) -> str:
        """Names the job."""
        return self._job

    @property
    def run(self) -> str:
        """Names this run in the ledger: the same, up to a dot, for a run and its continuation."""
        return f"{self.transaction.commit_id}.{self._execution}"

    @property
    def transaction(self) -> Transaction:
        """The write's identity: the same for a job and its continuation."""
        return Transaction(f"batch_infer-{self._job}", self._version)

    def begin(self, mode: str) -> None:
        """Starts a run of its own."""
        self._version, self.mode = int(time.time() * 1000), mode

    def unfinished(self, mode: str | None = None) -> WorkFolder | None:
        """The newest run of this job (of that mode) that was broken off after its input was complete."""
        for version, its_mode in sorted(self._others(), reverse=True):
            other = WorkFolder(self._files, self._folder, self._name, self._job)
            other._version, other.mode = version, its_mode
            if mode in (None, its_mode) and self._files.exists(f"{other.input}/_SUCCESS"):
                return other
        return None

    def finish(self, *, is_whole: bool = True) -> None:
        """Deletes the folder; and, of a job that replaced the whole output, what its earlier runs left.

        Where the table is not whole, because the run was stopped early, the folder is kept, for `resume` to write the
        table again; a merge can simply be repeated.
        """
        if is_whole or self.mode in ADDING:
            self._files.delete(self.path)
        else:
            kept = WorkFolder(self._files, self._folder, self._name, self._job)
            kept.begin("overwrite")
            self._files.rename(self.path, kept.path)
        if self.mode not in ADDING:
            for version, mode in self._others():
                if version < self._version and mode not in ADDING:
                    self._files.delete(f"{self._folder}/{self._prefix}{version}-{mode}.work")

    @property
    def _prefix(self) -> str:
        return f".{self._name}.batch_infer-{self._job}-"

    def _others(self) -> list[tuple[int, str]]:
        pattern = re.compile(re.escape(self._prefix) + r"(\d+)-(\w+)\.work")
        found = [pattern.fullmatch(entry.name) for entry in self._files.list(self._folder)]
        runs = [(int(match.group(1)), match.group(2)) for match in found if match]
        return [(version, mode) for version, mode in runs if version != self._version]
