"""Owns the `batch-infer` command: looking after ledgers and the embedded models. Starts no Spark. On the driver."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import timedelta

import batch_infer
from batch_infer.adapters.ledger import Ledger
from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.adapters.local.weights import ensure_weights
from batch_infer.contract.errors import BatchInferError, ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 0, or 2 when it was refused."""
    parser = argparse.ArgumentParser(
        prog="batch-infer", description="Looks after ledgers and the embedded models. Jobs: jobs/ai_query.py."
    )
    parser.add_argument("--version", action="version", version=f"batch-infer {batch_infer.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    ledger = commands.add_parser("ledger", help="audit, compact or purge a ledger")
    ledger.add_argument("action", choices=["audit", "compact", "purge"])
    ledger.add_argument("path", help="the ledger, as jobs print it")
    ledger.add_argument("--older-than-days", type=float, help="purge: what was recorded longer ago")
    ledger.add_argument("--endpoint", help="purge: what was asked of this endpoint")
    ledger.add_argument("--key", action="append", help="purge: this request key; repeatable")
    commands.add_parser("fetch-models", help="fetch the embedded models' weights now, for work offline")
    options = parser.parse_args(arguments)
    try:
        if options.command == "fetch-models":
            for model in LOCAL_MODELS.values():
                print(f"{model.title}: {ensure_weights(model)}")
        else:
            print(_look_after(options))
    except BatchInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _look_after(options: argparse.Namespace) -> str:
    age = _check(options)
    ledger = Ledger.existing(options.path)
    if options.action == "compact":
        return f"{ledger.compact():,} rows added to {options.path}/table; {ledger.compact_index():,} key files"
    if options.action == "purge":
        purged = ledger.purge(older_than=age, endpoint=options.endpoint, keys=options.key)
        said = f"{purged.outcomes:,} outcomes purged, {purged.freed_bytes:,} bytes freed"
        if purged.busy:
            said += f"\n{len(purged.busy):,} logs were left as they are, because tasks write to them: purge again later"
        return said
    audit = ledger.audit()
    cost = "unknown" if audit.cost_usd is None else f"${audit.cost_usd:,.4f}"
    return (
        f"{audit.answered:,} requests answered, {audit.failed:,} failed; {cost}\n"
        f"{audit.in_doubt:,} in doubt, {audit.asked_again:,} asked again after that, "
        f"{audit.billed_again:,} billed more than once\n"
        f"{audit.logs:,} logs, {audit.size_bytes:,} bytes; {audit.torn_tails:,} torn, {audit.corrupt_records:,} corrupt"
    )


def _check(options: argparse.Namespace) -> timedelta | None:
    """The age that `purge` was given.

    Raises:
        ConfigError: an option is wrong, or of another action.
    """
    given = {"--older-than-days": options.older_than_days, "--endpoint": options.endpoint, "--key": options.key}
    if options.action != "purge" and (extra := [name for name, value in given.items() if value is not None]):
        raise ConfigError(f"{extra[0]} is for purge; {options.action} is of the whole ledger.")
    for key in options.key or ():
        if not re.fullmatch(r"[0-9a-f]{32}", key):
            raise ConfigError(f"--key {key!r}: a request key is 32 hexadecimal digits, as request_key shows them.")
    days = options.older_than_days
    if days is None:
        return None
    if not 0 <= days <= timedelta.max.days:
        raise ConfigError(f"--older-than-days {days:g}: it is a number of days, 0 or more; 0 purges all there is.")
    return timedelta(days=days)
