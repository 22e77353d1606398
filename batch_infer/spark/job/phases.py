"""Owns the three passes of a job over its rows. Does not check arguments or write the output: `spark.job.run` does.

prepare   the input, numbered, with each row's request key; kept on disk, because an input that reads a clock, a
          random number or a database would give other keys the second time
fill      of each distinct key, one row is asked, unless the ledger knows the reply; every reply is in the ledger.
          Stopped early, it leaves keys out
answered  each row with its reply from the ledger; sends nothing

Plans on the driver, evaluates on workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from batch_infer.adapters.worker.process import WorkerProcess
from batch_infer.adapters.worker.task import answer
from batch_infer.contract.errors import SinkError
from batch_infer.contract.plan import CallPlan
from batch_infer.contract.reply import Failure, Outcome
from batch_infer.contract.request import Request
from batch_infer.contract.rows import Shape
from batch_infer.engine.batches import Batch
from batch_infer.spark.arrow import column_of, requests_of, typed
from batch_infer.spark.tables.filesystem import read_parquet
from batch_infer.spark.tables.rules import quoted
from batch_infer.spark.udf import ColumnPlan, Columns, current_task, iterator_udf

KEY, ROW, REQUEST, FILES = "_bi_key", "_bi_row", "_bi_request", "_bi_files"
OUTCOME, ANSWER = "_bi_outcome", "_bi"
INTERNAL = (KEY, ROW, REQUEST, FILES)
PARTITIONS_PER_SLOT = 4
"""Parts of the distinct requests for each task slot, so that slots that are done early take further parts."""

FAILED_DDL = f"{KEY} STRING, {OUTCOME} STRING"
_FAILED = pa.schema([(KEY, pa.string()), (OUTCOME, pa.string())])
_outcome = msgspec.json.Decoder(Outcome)


def prepare(df: DataFrame, plan: ColumnPlan, request: Column, files: Column | None, sample: Column | None) -> DataFrame:
    """The input's columns, its requests and files, the row's number and its key (NULL for a NULL request)."""
    columns = [request.alias(REQUEST), *([files.alias(FILES)] if files is not None else [])]
    arguments = [F.col(REQUEST), *([F.col(FILES)] if files is not None else [])]
    with_request = df.select("*", *columns)
    if sample is not None:
        arguments.append(sample)
    keys = iterator_udf(lambda batches: _keys(plan, batches), "STRING", several=len(arguments) > 1)
    return with_request.select("*", F.monotonically_increasing_id().alias(ROW), keys(*arguments).alias(KEY))


def is_same_input(spark: SparkSession, one: str, other: str) -> bool:
    """Whether two prepared inputs hold the same rows, each as often: their count and a sum of the rows' hashes."""

    def fingerprint(path: str) -> Row | None:
        rows = read_parquet(spark, path)
        text = F.to_json(F.struct(*(F.col(quoted(name)) for name in rows.columns if name != ROW)))
        return rows.agg(F.count(F.lit(1)), F.sum(F.xxhash64(text).cast("decimal(38,0)"))).first()

    return fingerprint(one) == fingerprint(other)


def _keys(plan: ColumnPlan, columns: Columns) -> Iterator[pa.Array]:
    identity = plan.call.identity()
    for arguments in columns:
        files = arguments[1] if plan.has_files else None
        sample = arguments[-1] if plan.has_sample else None
        requests = requests_of(arguments[0], files, sample, identity)
        yield pa.array([request.key if request is not None else None for request in requests], pa.string())


def fill(prepared: DataFrame, plan: ColumnPlan) -> DataFrame:
    """Asks, once it is run, for every distinct key that the ledger does not know; gives the failures alone."""
    asked = prepared.where(F.col(KEY).isNotNull()).select(*[name for name in INTERNAL if name in prepared.columns])
    distinct = asked.repartition(PARTITIONS_PER_SLOT * plan.call.slots, KEY).dropDuplicates([KEY])
    call = plan.call
    return distinct.mapInArrow(lambda batches: _fill(call, batches), FAILED_DDL)


def _fill(call: CallPlan, record_batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    identity = call.identity()

    def batches() -> Iterator[Batch]:
        for rows in record_batches:
            files = rows.column(FILES) if FILES in rows.schema.names else None
            keys, origins = rows.column(KEY), rows.column(ROW)
            yield Batch(requests_of(rows.column(REQUEST), files, None, identity, keys=keys, origins=origins))

    for done in answer(call, current_task(), batches(), call.reader(), ordered=False):
        failed = [
            (request.key, msgspec.json.encode(_failure_of(call, request, outcome)).decode())
            for request, outcome in zip(done.requests, done.outcomes, strict=True)
            if request is not None
            and outcome is not None
            and outcome.failure is not None
            and outcome.failure.kind != "not_sent"
        ]
        if failed:
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, pa.string()) for column in zip(*failed, strict=True)], schema=_FAILED
            )


def _failure_of(call: CallPlan, request: Request, outcome: Outcome) -> Outcome:
    """A failure as it is kept: billed now, also where an earlier attempt of the task in this run has recorded it."""
    is_known = outcome.from_ledger and outcome.run != call.run
    return msgspec.structs.replace(outcome, origin=request.origin, from_ledger=is_known)


def answered(prepared: DataFrame, failures: DataFrame, plan: ColumnPlan, *, unsent: str | None = None) -> DataFrame:
    """The prepared rows with the column `ANSWER`: the row contract, NULL for a NULL request. Sends nothing.

    `unsent` says why not every request was sent; those that were not fail with it.

    Raises (when run):
        SinkError: a key is neither in the ledger nor among the failures, although all were sent.
    """
    joined = prepared.drop(REQUEST, FILES).join(failures, KEY, "left")
    udf = iterator_udf(lambda columns: _answers(plan, unsent, columns), plan.ddl, several=True)
    reply = udf.asNondeterministic()(F.col(KEY), F.col(ROW), F.col(OUTCOME))  # so that it is evaluated once
    return joined.withColumn(ANSWER, F.when(F.col(KEY).isNotNull(), reply))


def _answers(plan: ColumnPlan, unsent: str | None, columns: Columns) -> Iterator[pa.Array]:
    call = plan.call
    never_sent = None if unsent is None else Outcome(failure=Failure("not_sent", unsent, retryable=True))
    assert call.ledger is not None
    ledger, reader = WorkerProcess.current().ledger(call.ledger), call.reader()
    for keys, rows, failures in columns:
        wanted = keys.to_pylist()
        found = ledger.find([key for key in wanted if key is not None])
        outcomes: list[Outcome | None] = []
        requests: list[Request | None] = []
        for key, row, failure in zip(wanted, rows.to_pylist(), failures.to_pylist(), strict=True):
            requests.append(None if key is None else Request(key=key, content=""))
            if key is not None and key not in found and failure is None and never_sent is not None:
                outcomes.append(never_sent)
            else:
                outcomes.append(None if key is None else _outcome_of(call, key, row, found.get(key), failure))
        outcomes = typed(outcomes, requests, reader, fail_on_error=call.fail_on_error)
        yield column_of(outcomes, requests, Shape.DETAILS, reader, call.endpoint)


def _outcome_of(call: CallPlan, key: str, row: int, known: Outcome | None, failure: str | None) -> Outcome:
    """The row's outcome; of the rows that share a reply, only the one that was billed in this run says so."""
    if known is not None and not (call.fresh and failure is not None):
        is_billed = known.origin == row and known.run == call.run
        return msgspec.structs.replace(known, from_ledger=not is_billed)
    if failure is None:
        raise SinkError(
            f"request {key} has no reply in the ledger, although all have been asked for. Was the ledger changed or "
            "purged meanwhile? Run the job again with mode='resume'."
        )
    outcome = _outcome.decode(failure)
    return outcome if outcome.from_ledger or outcome.origin == row else Outcome(failure=outcome.failure)
