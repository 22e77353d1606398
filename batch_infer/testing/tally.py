"""Owns the fault endpoint's counts: what arrived, was answered, was billed. Pure; the clock is the caller's."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from batch_infer.testing.behaviour import Decision
from batch_infer.testing.incoming import Incoming


class Tally:
    """Counts since the start or the latest reset. `in_flight` and `open_connections` survive a reset.

    A request is in flight from its last byte until its reply is handed to the connection, queueing included. It is
    billed once a part of a 2xx reply is sent; a request whose caller went away is `abandoned`, and not billed.

    Args:
        keep_bodies: How many of the latest request bodies to keep.
        record: Whether to keep arrivals and counts by prompt.
    """

    def __init__(self, *, keep_bodies: int, record: bool) -> None:
        self._keep_bodies = keep_bodies
        self._record = record
        self.in_flight = 0
        self.open_connections = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything but what is going on now."""
        self.requests = 0
        self.rows = 0
        self.abandoned = 0
        self.connections = 0
        self.authorized = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.peak_in_flight = self.in_flight
        self.peak_served = 0
        self.first_request_at: float | None = None
        self.last_reply_at: float | None = None
        self.statuses: Counter[int] = Counter()
        self.paths: Counter[str] = Counter()
        self.header_names: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        self.arrivals = array("d")
        self.bodies: deque[bytes] = deque(maxlen=self._keep_bodies)

    def arrived(self, path: str, header_names: Iterable[str], body: bytes, now: float) -> None:
        """A request is here, whatever becomes of it."""
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        if self.first_request_at is None:
            self.first_request_at = now
        self.bodies.append(body)
        self.paths[path] += 1
        if self._record:
            _count(self.header_names, header_names)
            self.arrivals.append(now)

    def understood(self, request: Incoming) -> None:
        """The request was readable."""
        self.rows += len(request.prompts)
        if self._record:
            _count(self.calls, request.prompts)

    def replied(self, status: int, now: float) -> None:
        """A reply, or the part of it that the script wants, was handed to the connection."""
        self.in_flight -= 1
        self.statuses[status] += 1
        self.last_reply_at = now

    def bill(self, request: Incoming, decision: Decision) -> None:
        """The reply's tokens are owed."""
        self.prompt_tokens += decision.prompt_tokens
        self.completion_tokens += decision.completion_tokens
        if self._record:
            _count(self.billed, request.prompts)

    def dropped(self) -> None:
        """The request ended without a reply: its caller went away, or the script cut the connection."""
        self.in_flight -= 1

    def summary(self, *, queued: int, serving: int) -> dict[str, Any]:
        """All numbers; not the records, which can be long."""
        return {
            "requests": self.requests,
            "rows": self.rows,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "serving": serving,
            "peak_served": self.peak_served,
            "queued": queued,
            "abandoned": self.abandoned,
            "connections": self.connections,
            "open_connections": self.open_connections,
            "authorized": self.authorized,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "billed_rows": self.billed.total(),
            "first_request_at": self.first_request_at,
            "last_reply_at": self.last_reply_at,
            "status_counts": {str(status): count for status, count in sorted(self.statuses.items())},
            "paths": dict(self.paths),
            "header_names": dict(self.header_names),
        }


def _count(counter: Counter[str], names: Iterable[str]) -> None:
    """`counter.update(names)`, which is much slower for a handful of names."""
    for name in names:
        counter[name] += 1
