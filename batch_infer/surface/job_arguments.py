"""Owns the command line of `jobs/ai_query.py`: options to the arguments of `batch_infer.run`. Runs nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError
from batch_infer.engine.early_stop import DEFAULT_STOP_AFTER_FAILURES


def parse_job(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the job, checked as far as they can be without Spark."""
    parser = argparse.ArgumentParser(
        prog="spark-submit jobs/ai_query.py",
        description="Ask a model endpoint once for each row of a table, and write the rows with their replies.",
    )
    source = parser.add_argument_group("input")
    source.add_argument("--input", required=True, help="path of the table to read")
    source.add_argument("--input-format", default="parquet", help="parquet, json, csv, delta, … (default: parquet)")
    source.add_argument(
        "--input-option", action="append", default=[], metavar="NAME=VALUE", help="option of the reader"
    )
    source.add_argument("--limit", type=int, help="read only so many rows")
    request = parser.add_argument_group("request")
    request.add_argument("--endpoint", help="a registered name, 'provider/model', 'local/chat' or 'local/embed'")
    asked = request.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", help="template over columns: 'Summarise in one sentence: {body}'")
    asked.add_argument("--request-column", help="column of prompts or messages, instead of a template")
    request.add_argument("--model-parameters", help='JSON object: \'{"max_tokens": 64, "temperature": 0}\'')
    request.add_argument("--response-format", help="JSON, or a type such as 'STRUCT<…>'")
    request.add_argument("--return-type", help="type of the result, such as 'STRUCT<label: STRING>'")
    request.add_argument("--files-column", help="column of images (BINARY or ARRAY<BINARY>)")
    request.add_argument("--sample-column", help="BIGINT column that tells equal prompts apart")
    sink = parser.add_argument_group("output")
    sink.add_argument("--output", required=True, help="path of the table to write")
    sink.add_argument("--format", default="parquet", choices=["parquet", "delta"])
    sink.add_argument("--mode", default="error", choices=["error", "overwrite", "append", "merge", "resume"])
    sink.add_argument("--merge-key", action="append", default=[], metavar="COLUMN", help="for --mode merge; repeatable")
    sink.add_argument("--result-column", default="result", help="name of the result's column")
    sink.add_argument("--details", action=argparse.BooleanOptionalAction, default=True, help="usage, cost, error, …")
    parser.add_argument("--ledger", help="where replies are kept (default: <output>.ledger)")
    parser.add_argument("--fresh", action="store_true", help="ask again although the ledger knows the reply")
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again for all that failed before, not only what may succeed"
    )
    parser.add_argument("--fail-on-error", action="store_true", help="end the job at the first row that fails")
    parser.add_argument(
        "--max-error-ratio",
        type=float,
        default=1.0,
        metavar="RATIO",
        help="send nothing further once more than this part of the requests has failed (default: 1, never)",
    )
    parser.add_argument(
        "--stop-after-failures",
        type=int,
        default=DEFAULT_STOP_AFTER_FAILURES,
        metavar="N",
        help="send nothing further when N requests failed in one way before any was answered; 0: never (default: "
        f"{DEFAULT_STOP_AFTER_FAILURES})",
    )
    parser.add_argument("--no-progress", action="store_true")
    return parser.parse_args(arguments)


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `batch_infer.run`.

    Raises:
        ConfigError: `--model-parameters` is not a JSON object.
    """
    return {
        "endpoint": options.endpoint,
        "prompt": options.prompt,
        "request": options.request_column,
        "model_parameters": _json_object("--model-parameters", options.model_parameters),
        "response_format": options.response_format,
        "return_type": options.return_type,
        "files": options.files_column,
        "sample": options.sample_column,
        "output": options.output,
        "format": options.format,
        "mode": options.mode,
        "merge_key": options.merge_key,
        "result_column": options.result_column,
        "details": options.details,
        "ledger": options.ledger,
        "fresh": options.fresh,
        "retry_failed": options.retry_failed,
        "fail_on_error": options.fail_on_error,
        "max_error_ratio": options.max_error_ratio,
        "stop_after_failures": options.stop_after_failures or None,
        "progress": not options.no_progress,
    }


def reader_options(options: argparse.Namespace) -> dict[str, str]:
    """The reader's options.

    Raises:
        ConfigError: one is not NAME=VALUE.
    """
    pairs = [option.partition("=") for option in options.input_option]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"--input-option {bad[0]!r}: write NAME=VALUE, such as header=true.")
    return {name: value for name, _, value in pairs}


def _json_object(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{option}: {text!r} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f'{option}: {text!r} is not a JSON object, such as {{"max_tokens": 64}}.')
    return value
