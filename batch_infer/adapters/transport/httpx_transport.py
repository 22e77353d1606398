"""Owns `HttpxTransport`: any `httpx.AsyncBaseTransport`, driven at the transport level.

Going through `httpx.AsyncClient` would cost twice the CPU, so what the client does is done here as far as it is wanted:
decompression and the deadline; no redirects, no cookies, no retries.

On workers.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from batch_infer.adapters.transport import MAX_REPLY_BYTES, HttpReply
from batch_infer.adapters.transport.failures import failure, target_of
from batch_infer.adapters.transport.httpx_errors import classify
from batch_infer.adapters.transport.network import KEEP_ALIVE_S, ca_certificates, proxies
from batch_infer.contract.errors import ConfigError, EndpointError

T = TypeVar("T")

GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
MAX_HEADER_BYTES = 65536
"""One header's value, at most; aiohttp's own 8,190 is less than some gateways send."""
MIN_HEADERS = {"accept-encoding": "gzip", "user-agent": "batch-infer"}


class HttpxTransport:
    """A `Transport` on httpx. Belongs to the event loop in which it is first used.

    Args:
        transport: What carries the requests: a user's own (mutual TLS, Unix sockets, tests), which then also decides
            on CAs, proxies and the number of connections. `None` is aiohttp, through `httpx-aiohttp`, when that is
            installed; else httpx's own.
        connect_timeout_s: Seconds to connect, TLS handshake included. pyreqwest's transport for httpx does not
            understand it: set it on its client.
        max_connections: Connections at most; further requests wait, within their timeout. `None` means no limit.
        ca_file: A PEM file with certificates to trust besides certifi's.
        proxy: See `network.proxies`.
        max_reply_bytes: The largest reply that is accepted, counted after decompression.

    Raises:
        ConfigError: the CA file or the proxy's URL is unusable.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        connect_timeout_s: float,
        max_connections: int | None = None,
        ca_file: str | None = None,
        proxy: str | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        if transport is not None and (max_connections, ca_file, proxy) != (None, None, None):
            raise ConfigError("A transport of your own decides on connections, CAs and proxies: configure them there.")
        self._given = transport
        self._max_connections = max_connections
        self._max_reply_bytes = max_reply_bytes
        self._proxies = proxies(proxy)
        self._inner: dict[str | None, httpx.AsyncBaseTransport] = {}
        self._urls: dict[str, tuple[httpx.URL, httpx.AsyncBaseTransport]] = {}
        self._timeouts = {"connect": connect_timeout_s, "pool": None, "read": None, "write": None}
        # pyreqwest's transport adds all of these up to a timeout of the whole exchange, which is the one that it needs:
        # without it, a request that is given up here goes on in the background.
        self._adds_up_timeouts = type(transport).__module__.startswith("pyreqwest.")
        self._last_headers: tuple[Mapping[str, str] | None, httpx.Headers] = None, httpx.Headers()
        self._tls = _tls_context(ca_file) if transport is None else True
        try:
            for url in filter(None, (self._proxies.http, self._proxies.https)):
                httpx.Proxy(url)
        except (httpx.InvalidURL, ValueError):
            raise ConfigError("The proxy's URL is not valid. It must look like 'http://host:port'.") from None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float | None) -> HttpReply:
        """Sends one POST and reads the whole reply; see `Transport.post`."""
        target = target_of(url)
        try:
            parsed, inner = self._urls.get(url) or self._route(url)
            timeouts = {"read": timeout_s} if self._adds_up_timeouts else self._timeouts
            merged = self._last_headers[1] if headers == self._last_headers[0] else self._merge(headers)
            request = httpx.Request("POST", parsed, headers=merged, content=body, extensions={"timeout": timeouts})
        except (httpx.InvalidURL, UnicodeError) as error:
            kind, detail = "invalid_header" if isinstance(error, UnicodeError) else "invalid_url", ""
        else:
            try:
                return await _within(self._exchange(inner, request, target), timeout_s)
            except TimeoutError:
                kind, detail = "timeout", f"{timeout_s:g} s" if timeout_s is not None else ""
            except ValueError:  # both libraries refuse a header in this way; its text may repeat the header
                kind, detail = "invalid_header", ""
            except Exception as error:
                known = classify(error)
                if known is None:
                    raise
                kind = known
                seconds = self._timeouts["connect"] if kind == "connect_timeout" else None
                detail = str(error) or type(error).__name__ if seconds is None else f"{seconds:g} s"
        # Outside the except blocks: the library's exception, which holds the request, must not travel as the context.
        raise failure(kind, target, detail)

    async def _exchange(self, inner: httpx.AsyncBaseTransport, request: httpx.Request, target: str) -> HttpReply:
        response = await inner.handle_async_request(request)
        try:
            headers: dict[str, str] = {}
            for name, value in response.headers.raw:
                headers.setdefault(name.decode("ascii", "replace").lower(), value.decode("latin-1"))
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > self._max_reply_bytes:
                raise self._too_large(target)
            encoding = headers.get("content-encoding", "identity").strip().lower()
            return HttpReply(response.status_code, headers, await self._read(response.stream, encoding, target))
        finally:
            await response.aclose()

    async def _read(self, stream: Any, encoding: str, target: str) -> bytes:
        chunks: AsyncIterable[bytes] = stream
        limit = self._max_reply_bytes
        body = []
        size = 0
        inflate = zlib.decompressobj(GZIP_OR_ZLIB) if encoding in ("gzip", "x-gzip", "deflate") else None
        if inflate is None and encoding not in ("identity", ""):
            raise failure("corrupt_reply", target, "a content encoding that was not asked for")
        async for chunk in chunks:
            if inflate is not None:
                try:
                    chunk = inflate.decompress(chunk, limit - size + 1)  # noqa: PLW2901
                except zlib.error as error:
                    raise failure("corrupt_reply", target, str(error)) from None
            size += len(chunk)
            if size > limit:
                raise self._too_large(target)
            body.append(chunk)
        if inflate is not None and not inflate.eof and size:
            raise failure("truncated", target, "the compressed data is incomplete")
        return body[0] if len(body) == 1 else b"".join(body)

    def _too_large(self, target: str) -> EndpointError:
        return failure("reply_too_large", target, f"more than {self._max_reply_bytes:,} bytes")

    def _merge(self, headers: Mapping[str, str]) -> httpx.Headers:
        """The request's headers and our own defaults; kept, since a job's requests have the same ones."""
        merged = httpx.Headers({**MIN_HEADERS, **{name.lower(): value for name, value in headers.items()}})
        self._last_headers = dict(headers), merged
        return merged

    def _route(self, url: str) -> tuple[httpx.URL, httpx.AsyncBaseTransport]:
        parsed = httpx.URL(url)
        if self._given is not None:
            inner = self._given
        else:
            parts = urlsplit(url)
            proxy = self._proxies.route(parts.scheme, parts.hostname or "")
            inner = self._inner.get(proxy) or self._open(proxy)
            self._inner[proxy] = inner
        self._urls[url] = parsed, inner
        return parsed, inner

    def _open(self, proxy: str | None) -> httpx.AsyncBaseTransport:
        try:
            import aiohttp  # noqa: PLC0415 - optional
            from httpx_aiohttp import AiohttpTransport  # noqa: PLC0415 - optional
        except ImportError:
            limits = httpx.Limits(
                max_connections=self._max_connections, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_S
            )
            return httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits, retries=0, proxy=proxy)

        def session() -> aiohttp.ClientSession:
            # Its own session would keep cookies and hold 100 connections at most.
            connector = aiohttp.TCPConnector(
                ssl=self._tls, limit=self._max_connections or 0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=60
            )
            return aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), max_field_size=MAX_HEADER_BYTES
            )

        via = None if proxy is None else httpx.Proxy(proxy)
        transport: httpx.AsyncBaseTransport = AiohttpTransport(
            verify=self._tls, trust_env=False, proxy=via, client=session
        )
        return transport

    async def close(self) -> None:
        """Closes idle connections. Idempotent; a transport that was given is closed too."""
        inner = [*self._inner.values(), *filter(None, [self._given])]
        self._inner.clear()
        self._urls.clear()
        for transport in inner:
            await transport.aclose()


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cadata=b"\n".join(ca_certificates(ca_file)).decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"The CA file {ca_file!r} holds an unreadable certificate.") from None
    return context


async def _within(exchange: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
    async with asyncio.timeout(timeout_s):
        return await exchange
