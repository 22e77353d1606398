"""Owns the `Transport` protocol: one HTTP POST, with every failure expressed in the package's own error classes.

The implementations are `reqwest` (pyreqwest, the default on Python 3.11 and later) and `httpx_transport` (any
`httpx.AsyncBaseTransport`); `choose.open_transport` picks one. Nothing else in the package imports an HTTP library for
calls to endpoints.

    choose           which library; imports it when it is chosen
    reqwest          ReqwestTransport, and what pyreqwest's exceptions mean
    httpx_transport  HttpxTransport
    httpx_errors     what the exceptions of httpx, and of the libraries under it, mean
    failures         every way to fail: error class, words, what to do next
    network          proxies, CA files, keep-alive times
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""A reply larger than this, after decompression, is refused: it is a fault, not a completion."""


class HttpReply(NamedTuple):
    """A whole HTTP response. Header names are lower case; of a repeated header the first value counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """One HTTP client, owned by one event loop. No retries, no redirects, no cookies, TLS always verified."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float | None) -> HttpReply:
        """Sends one POST and reads the whole reply.

        Args:
            url: Absolute URL.
            headers: Request headers, credentials among them; they never appear in an error.
            body: The encoded request.
            timeout_s: Seconds for the whole exchange, from connecting to the last byte; `None` means no limit.

        Raises:
            Transient: the request cannot have reached the endpoint (`kind` `connect`, `dns`, `connect_timeout`,
                `pool_timeout`, `send_failed`).
            Ambiguous: it may have (`kind` `timeout`, `reset`, `truncated`, `corrupt_reply`, `reply_too_large`).
            JobRejected: TLS verification failed (`kind` `tls`), or the URL or a header is invalid (`kind`
                `invalid_url`, `invalid_header`).
        """
        ...

    async def close(self) -> None:
        """Closes idle connections. Idempotent."""
        ...
