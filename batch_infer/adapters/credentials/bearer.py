"""Owns short-lived bearer tokens: fetched when first needed, kept in this process, renewed in time and after a 401.

Does not know what a token is fetched with: `adapters.credentials.oauth` does.

On workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from batch_infer.adapters.transport import HttpReply, Transport
from batch_infer.contract.errors import Ambiguous, EndpointError, Throttled, Transient

RENEW_BEFORE_S = 300.0
"""A token is renewed so many seconds before it expires: a request may be on its way for as long."""
MAX_SHARE_BEFORE = 0.5
"""… but never before half of its life is over."""

_log = logging.getLogger(__name__)


class Token(NamedTuple):
    """A bearer token. `lifetime_s` is counted from when it was fetched; `None`: unknown, it is kept until refused."""

    value: str
    lifetime_s: float | None = None

    def __repr__(self) -> str:
        return f"Token(redacted, lifetime_s={self.lifetime_s})"


class TokenSource:
    """One client's token, shared by all requests of a process. All methods run on one event loop.

    Contract: however many requests need a token, one fetch is under way at a time. While an old token is still good, a
    renewal that fails is only logged, and is tried again with the next request.

    Args:
        fetch: Gets a new token; raises an `EndpointError` where it cannot.
        clock: Seconds from any origin.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Token]], clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._value: str | None = None
        self._renew_at = 0.0
        self._expires_at = 0.0

    async def token(self) -> str:
        """A token that is good now.

        Raises:
            EndpointError: as `fetch` does.
        """
        if self._value is not None and self._clock() < self._renew_at:
            return self._value
        async with self._lock:
            now = self._clock()
            if self._value is not None and now < self._renew_at:
                return self._value
            try:
                return await self._renew()
            except (Transient, Throttled, Ambiguous) as error:
                if self._value is None or now >= self._expires_at:
                    raise
                _log.warning("A token could not be renewed and is used until it expires: %s", error)
                return self._value

    async def after_refusal(self, refused: str) -> str:
        """A token in place of one that the endpoint refused; another request may have renewed it already."""
        async with self._lock:
            if self._value is not None and self._value != refused:
                return self._value
            self._value = None
            return await self._renew()

    async def _renew(self) -> str:
        token = await self._fetch()
        now = self._clock()
        life = float("inf") if token.lifetime_s is None else token.lifetime_s
        self._value = token.value
        self._expires_at = now + life
        self._renew_at = now + max(life - RENEW_BEFORE_S, life * MAX_SHARE_BEFORE)
        return token.value


class BearerTransport:
    """A `Transport` that adds a token to each request, and repeats one that was refused (401) with a new token, once.

    A 401 is not billed, so the repetition counts as the same attempt. The token is taken out of what comes back.
    """

    def __init__(self, inner: Transport, tokens: TokenSource) -> None:
        self._inner = inner
        self._tokens = tokens

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float | None) -> HttpReply:
        """See `Transport.post`.

        Raises:
            EndpointError: as `Transport.post`, or no token could be had.
        """
        token = await self._tokens.token()
        reply = await self._send(token, url, headers, body, timeout_s)
        if reply.status != 401:
            return reply
        try:
            renewed = await self._tokens.after_refusal(token)
        except EndpointError as error:
            error.message = f"{error.message} (The endpoint had refused the earlier token.)"
            error.args = (error.message,)
            raise
        return await self._send(renewed, url, headers, body, timeout_s)

    async def _send(
        self, token: str, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> HttpReply:
        sent = {**headers, "authorization": f"Bearer {token}"}
        reply = await self._inner.post(url, sent, body, timeout_s=timeout_s)
        return reply._replace(body=reply.body.replace(token.encode(), b"[redacted]"))

    async def close(self) -> None:
        """Closes the transport below."""
        await self._inner.close()
