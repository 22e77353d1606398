"""`ai_query` for any Spark: batch inference against model endpoints, concurrent and rate-limited.

    import batch_infer as bi

    bi.register(spark)                                   # ai_query in SQL
    df.withColumn("reply", bi.ai_query("local/chat", "prompt"))   # … and as a Column
    bi.run(df, endpoint="local/chat", prompt="…{body}", output="out")   # … and as a job

Names that speak Spark load on first use, so that importing this package needs no Spark.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from batch_infer.adapters.providers.registry import register_endpoint
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import (
    Ambiguous,
    BatchInferError,
    ConfigError,
    EndpointError,
    JobRejected,
    RowRejected,
    SinkError,
    Throttled,
    Transient,
    WrongReply,
)
from batch_infer.contract.json_schema import schema_to_ddl

if TYPE_CHECKING:
    from batch_infer.spark.inference_table import inference_table
    from batch_infer.spark.job.summary import RunSummary
    from batch_infer.spark.vectors import is_normalized
    from batch_infer.surface.api import ai_query, register, run

__version__ = "0.1.0"

__all__ = [
    "Ambiguous",
    "BatchInferError",
    "ConfigError",
    "Endpoint",
    "EndpointError",
    "JobRejected",
    "RowRejected",
    "RunSummary",
    "SinkError",
    "Throttled",
    "Transient",
    "WrongReply",
    "ai_query",
    "inference_table",
    "is_normalized",
    "register",
    "register_endpoint",
    "run",
    "schema_to_ddl",
]

_IN_SPARK = {
    "inference_table": "batch_infer.spark.inference_table",
    "ai_query": "batch_infer.surface.api",
    "is_normalized": "batch_infer.spark.vectors",
    "register": "batch_infer.surface.api",
    "run": "batch_infer.surface.api",
    "RunSummary": "batch_infer.spark.job.summary",
}


def __getattr__(name: str) -> Any:
    module = _IN_SPARK.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "pyspark":
            raise
        raise ConfigError(
            f"batch_infer.{name} needs Spark, which is not installed here. Run pip install 'batch-infer[spark]', or "
            "run on a cluster that brings its own."
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
