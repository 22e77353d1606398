"""Owns the command line of `jobs/ai_query.py`: options made of the records' fields, and `batch_infer.run`'s arguments.

Runs nothing. On the driver.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.field_texts import field_texts
from batch_infer.contract.options import CallOptions, JobOptions


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
    for title, record in (("call", CallOptions), ("job", JobOptions)):
        group, texts = parser.add_argument_group(title), field_texts(record)
        for each in fields(record):
            _add(group, each, texts.get(each.name, ""))
    parser.add_argument("--no-progress", action="store_true", help="draw no progress line")
    options = parser.parse_args(arguments)
    if options.prompt is not None and options.request is not None:
        parser.error("argument --request-column: not allowed with argument --prompt")
    if options.prompt is None and options.request is None:
        parser.error("one of the arguments --prompt --request-column is required")
    return options


def _add(group: Any, each: Field[Any], text: str) -> None:
    """One option, of a field: its kind follows from the default, or from the metadata."""
    settings = dict(each.metadata["cli"])
    flag = settings.pop("flag", "--" + each.name.replace("_", "-"))
    kind = settings.pop("kind", None)
    default = settings.pop("default", each.default)
    given: dict[str, Any] = {"dest": each.name, "default": default, "help": text.replace("%", "%%"), **settings}
    if isinstance(each.default, bool):
        given["action"] = argparse.BooleanOptionalAction
    elif kind == "list":
        given |= {"action": "append", "default": None}
    elif kind in ("number", "count"):
        given["type"] = float if kind == "number" else int
    group.add_argument(flag, **given)


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `batch_infer.run`.

    Raises:
        ConfigError: an option that is a JSON object is none.
    """
    given: dict[str, Any] = {}
    for each in (*fields(CallOptions), *fields(JobOptions)):
        value = getattr(options, each.name)
        kind = each.metadata["cli"].get("kind")
        if kind == "json":
            value = _json_object("--" + each.name.replace("_", "-"), value)
        elif kind == "list":
            value = value or ()
        elif kind == "count":
            value = value or None
        given[each.name] = value
    return {**given, "progress": not options.no_progress}


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
