"""Owns the account of a ledger: what was answered, what is in doubt, what it cost, what is damaged. Changes nothing.

On driver and workers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from batch_infer.adapters.ledger.catalog import current_logs, scan_of
from batch_infer.adapters.ledger.files import Files
from batch_infer.adapters.ledger.records import Heading, Intent, decode_heading, same_run
from batch_infer.contract.reply import Usage
from batch_infer.contract.request import KEY_BYTES

RANGES = 16
"""Parts of the key space that are added up one after the other, to bound the memory of sorting."""

_Keys = npt.NDArray[np.bytes_]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The account of a ledger, at one moment."""

    answered: int
    """Distinct keys with a reply."""
    failed: int
    """Distinct keys with failures only."""
    outcomes: int
    """Recorded outcomes, failures included."""
    failures: int
    """Of these, failures."""
    intents: int
    """Intents, one for each key of each request that was about to be sent."""
    in_doubt: int
    """Distinct keys that were about to be sent and have no outcome: they may have been billed. `in_doubt_keys`."""
    asked_again: int
    """Distinct keys with an outcome, and with more intents than the attempts that their outcomes account for: an
    earlier request for them was cut off, and may have been billed as well. `asked_again_keys`."""
    billed_again: int
    """Distinct keys with more than one billed outcome, not counting those that `fresh` asked for on purpose."""
    fresh: int
    """Outcomes that `fresh` asked for."""
    usage: Usage
    """Of all outcomes."""
    cost_usd: float | None
    """Of all outcomes whose price was known; `None` when it was for none."""
    unpriced: int
    """Replies whose price was not known."""
    torn_tails: int
    """Logs that end in an unfinished record: a writer was killed in mid-write, or is writing now."""
    corrupt_records: int
    """Damaged records, skipped."""
    logs: int
    size_bytes: int
    _in_doubt: _Keys = field(repr=False)
    _asked_again: _Keys = field(repr=False)
    _billed_again: _Keys = field(repr=False)

    def in_doubt_keys(self) -> Iterator[str]:
        """See `in_doubt`."""
        return _hex(self._in_doubt)

    def asked_again_keys(self) -> Iterator[str]:
        """See `asked_again`."""
        return _hex(self._asked_again)

    def billed_again_keys(self) -> Iterator[str]:
        """See `billed_again`."""
        return _hex(self._billed_again)


class _Sums:
    """What one pass over the logs adds up. Keys are gathered as bytes, 16 each."""

    def __init__(self, run: str | None) -> None:
        self._run = run
        self.intents = bytearray()
        self.by_run = bytearray()  # keys that the run which is asked about has sent
        self.outcomes = bytearray()
        self.attempts = array("I")
        self.flags = bytearray()  # 1: a reply · 2: billed, and not on purpose
        self.tokens: dict[str, int | None] = dict.fromkeys(Usage.__struct_fields__)
        self.cost_usd: float | None = None
        self.unpriced = 0
        self.fresh = 0

    def add(self, payload: bytes) -> bool:
        """Counts one record; whether it was one."""
        try:
            record = decode_heading(payload)
        except msgspec.MsgspecError:
            return False
        if isinstance(record, Intent):
            keys = bytes.fromhex("".join(record.keys))
            self.intents += keys
            if self._run is not None and same_run(self._run, record.run):
                self.by_run += keys
        elif isinstance(record, Heading):
            self._add_outcome(record)
        return True

    def _add_outcome(self, record: Heading) -> None:
        usage = record.usage
        self.outcomes += bytes.fromhex(record.key)
        self.attempts.append(record.attempts)
        billed = not record.failed or bool(usage.total_tokens)
        self.flags.append((not record.failed) | 2 * (billed and not record.fresh))
        self.fresh += record.fresh
        for name, sum_ in self.tokens.items():
            value = getattr(usage, name)
            if value is not None:
                self.tokens[name] = value + (sum_ or 0)
        if record.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + record.cost_usd
        else:
            self.unpriced += not record.failed


def audit(files: Files, run: str | None = None) -> Audit:
    """Reads every record of every log and adds them up.

    Contract: about 5 s a million records, and some 50 bytes of memory a record. Beside live writers it is a
    snapshot: what they have in flight is in doubt.

    Args:
        files: The ledger.
        run: `in_doubt` and `asked_again` count only keys that this run, or one that it continues, has sent. An
            earlier run's request for such a key counts: it is why the key was sent again.
    """
    logs, _ = current_logs(files)
    sums = _Sums(run)
    torn = corrupt = 0
    for log in logs.values():
        try:
            scan = scan_of(files, log)
        except FileNotFoundError:
            continue
        for _, _, payload in scan:
            corrupt += not sums.add(payload)
        torn += scan.torn
        corrupt += scan.corrupt
    account = _account(
        sums, torn_tails=torn, corrupt_records=corrupt, logs=len(logs), size=sum(log.size for log in logs.values())
    )
    return account if run is None else _of_keys(account, np.frombuffer(sums.by_run, dtype=f"S{KEY_BYTES}"))


def _of_keys(account: Audit, keys: _Keys) -> Audit:
    """The same account, in which no other keys are in doubt or asked again."""
    in_doubt = np.intersect1d(account._in_doubt, keys)  # noqa: SLF001
    asked_again = np.intersect1d(account._asked_again, keys)  # noqa: SLF001
    return replace(
        account,
        in_doubt=len(in_doubt),
        asked_again=len(asked_again),
        _in_doubt=in_doubt,
        _asked_again=asked_again,
    )


def _account(sums: _Sums, *, torn_tails: int, corrupt_records: int, logs: int, size: int) -> Audit:
    sent = np.frombuffer(sums.intents, dtype=f"S{KEY_BYTES}")
    ended = np.frombuffer(sums.outcomes, dtype=f"S{KEY_BYTES}")
    flags = np.frombuffer(sums.flags, dtype=np.uint8)
    attempts = np.frombuffer(sums.attempts, dtype=np.uint32)
    sent_first, ended_first = _first_bytes(sums.intents), _first_bytes(sums.outcomes)
    tallies = []
    for start in range(0, 256, 256 // RANGES):  # keys are digests: each range holds as many
        stop = start + 256 // RANGES
        some = (ended_first >= start) & (ended_first < stop)
        tallies.append(
            _tally(sent[(sent_first >= start) & (sent_first < stop)], ended[some], flags[some], attempts[some])
        )
    return Audit(
        answered=sum(tally.answered for tally in tallies),
        failed=sum(tally.failed for tally in tallies),
        outcomes=len(ended),
        failures=int(np.count_nonzero((flags & 1) == 0)),
        intents=len(sent),
        in_doubt=sum(len(tally.in_doubt) for tally in tallies),
        asked_again=sum(len(tally.asked_again) for tally in tallies),
        billed_again=sum(len(tally.billed_again) for tally in tallies),
        fresh=sums.fresh,
        usage=Usage(**sums.tokens),
        cost_usd=sums.cost_usd,
        unpriced=sums.unpriced,
        torn_tails=torn_tails,
        corrupt_records=corrupt_records,
        logs=logs,
        size_bytes=size,
        _in_doubt=np.concatenate([tally.in_doubt for tally in tallies]),
        _asked_again=np.concatenate([tally.asked_again for tally in tallies]),
        _billed_again=np.concatenate([tally.billed_again for tally in tallies]),
    )


class _Tally(NamedTuple):
    """The account of one range of keys."""

    answered: int
    failed: int
    in_doubt: _Keys
    asked_again: _Keys
    billed_again: _Keys


def _tally(sent: _Keys, ended: _Keys, flags: Any, attempts: Any) -> _Tally:
    keys, places = np.unique(np.concatenate([sent, ended]), return_inverse=True)
    count = len(keys)
    sent_at, ended_at = places[: len(sent)], places[len(sent) :]
    intents = np.bincount(sent_at, minlength=count)
    outcomes = np.bincount(ended_at, minlength=count)
    accounted = np.bincount(ended_at, weights=attempts, minlength=count)
    replies = np.bincount(ended_at[(flags & 1) > 0], minlength=count)
    billed = np.bincount(ended_at[(flags & 2) > 0], minlength=count)
    return _Tally(
        answered=int(np.count_nonzero(replies)),
        failed=int(np.count_nonzero((outcomes > 0) & (replies == 0))),
        in_doubt=keys[(intents > 0) & (outcomes == 0)],
        asked_again=keys[(outcomes > 0) & (intents > accounted)],
        billed_again=keys[billed > 1],
    )


def _first_bytes(keys: bytearray) -> Any:
    return np.frombuffer(keys, dtype=np.uint8)[::KEY_BYTES]


def _hex(keys: Any) -> Iterator[str]:
    data = keys.tobytes()
    for start in range(0, len(data), KEY_BYTES):
        yield data[start : start + KEY_BYTES].hex()
