"""Owns the `Wire` protocol: rows to an HTTP body and back, pure functions of bytes. On workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batch_infer.adapters.transport.status import ErrorRules
from batch_infer.contract.errors import EndpointError
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request


class Speaker(Protocol):
    """What a wire needs to know of the provider that it speaks to; `record.Provider` is one."""

    @property
    def errors(self) -> ErrorRules:
        """Its error codes."""
        ...

    def credentials(self, api_key: str) -> dict[str, str]:
        """The headers that carry a key."""
        ...


class Wire(Protocol):
    """How one task of one protocol is written and read. Made once per call, on the worker."""

    url: str
    """Where requests are posted."""
    headers: dict[str, str]
    """Sent with each request, credentials included."""

    def encode(self, requests: Sequence[Request]) -> bytes:
        """The body of one request for these rows (more than one only where the protocol packs)."""
        ...

    def decode(self, body: bytes, requests: Sequence[Request]) -> list[Reply | EndpointError]:
        """A result for each row, in their order.

        Raises:
            Ambiguous: the body cannot be read (`kind` `malformed_reply`); it may have been billed.
            EndpointError: the body carries an error although its status was 200.
        """
        ...
