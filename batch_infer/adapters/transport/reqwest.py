"""Owns `ReqwestTransport`: pyreqwest, called directly. Does not retry, follow redirects or keep cookies.

Which requests count as sent: pyreqwest names everything that fails before the response's headers `ConnectError` or
`ConnectTimeoutError`, even a reset long after the request was sent, so the class alone says too little. The causes do
say it: hyper speaks of `client error (Connect)` only while it has no connection. Anything else counts as sent, unless
hyper says that it could not write the whole body.

A pooled connection that the server has closed: when hyper sees the close first, it opens another connection, and
nothing is raised. When the close crosses the request on the wire, hyper reports a reset like any other; the request was
then most likely not read, but that cannot be known, so it is `Ambiguous`. `KEEP_ALIVE_S` makes it rare.

On workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pyreqwest import exceptions as px
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from batch_infer.adapters.transport import MAX_REPLY_BYTES, HttpReply
from batch_infer.adapters.transport.failures import failure, target_of
from batch_infer.adapters.transport.network import KEEP_ALIVE_S, TCP_KEEP_ALIVE_S, ca_certificates, proxies
from batch_infer.contract.errors import ConfigError, EndpointError

KIND_BY_CLASS: dict[type[px.PyreqwestError], str] = {
    px.PyreqwestError: "reset",
    px.DetailedPyreqwestError: "reset",
    px.RequestError: "reset",
    px.TransportError: "reset",
    px.NetworkError: "reset",
    px.ConnectError: "reset",
    px.ReadError: "reset",
    px.WriteError: "reset",
    px.RequestTimeoutError: "timeout",
    px.ConnectTimeoutError: "timeout",
    px.ReadTimeoutError: "timeout",
    px.WriteTimeoutError: "timeout",
    px.PoolTimeoutError: "pool_timeout",
    px.DecodeError: "corrupt_reply",
    px.BodyDecodeError: "corrupt_reply",
    px.JSONDecodeError: "corrupt_reply",
    px.StatusError: "corrupt_reply",
    px.RedirectError: "corrupt_reply",
    px.BuilderError: "invalid_url",
    px.ClientClosedError: "reset",
    px.RequestPanicError: "reset",
}
"""The kind (of `failures.KINDS`) of an exception whose causes say nothing more. A test checks that none is missing."""

CONNECTING = "client error (Connect)"

KIND_BY_CAUSE: tuple[tuple[str, str, bool], ...] = (
    ("dns error", "dns", True),
    ("invalid peer certificate", "tls", True),
    ("received corrupt message", "tls", True),
    ("received fatal alert", "tls", True),
    ("peer is incompatible", "tls", True),
    ("peer misbehaved", "tls", True),
    ("deadline has elapsed", "connect_timeout", True),
    ("timed out", "connect_timeout", True),
    (CONNECTING, "connect", True),
    ("received fatal alert: CertificateRequired", "tls", False),
    ("error writing a body to connection", "send_failed", False),
    ("end of file before message length reached", "truncated", False),
    ("unexpected EOF", "truncated", False),
    ("unexpected end of file", "truncated", False),
)
"""Kinds of failure by a part of a cause's text, and whether it counts only while connecting. First match wins. Source:
the messages of reqwest 0.12/0.13, hyper 1 and rustls 0.23, each provoked in `tests/http`. A text that changes there
makes a failure `Ambiguous` that could have been `Transient`, never the other way round."""


class ReqwestTransport:
    """A `Transport` on pyreqwest. Belongs to the event loop in which it is first used.

    To be built after a fork: pyreqwest works in a thread of its own, one for the process, which a fork does not copy.

    Replies are read as a stream and cut off at `max_reply_bytes`, counted after decompression: a gzip bomb or an
    endless body costs that much memory and no more. A `Content-Length` below it is trusted, which is the common path.

    A cancelled `post` returns at once, but pyreqwest lets the exchange go on in the background until it ends or times
    out: the endpoint serves it, and may bill it. So give every request a timeout.

    Args:
        connect_timeout_s: Seconds to connect, TLS handshake included.
        max_connections: Requests sent at once, at most; the others wait, within their timeout. `None` means no limit.
        ca_file: A PEM file with certificates to trust besides the system's.
        proxy: See `network.proxies`.
        max_reply_bytes: The largest reply that is accepted.

    Raises:
        ConfigError: the CA file or the proxy's URL is unusable.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        max_connections: int | None = None,
        ca_file: str | None = None,
        proxy: str | None = None,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        builder = (
            ClientBuilder()
            .user_agent("batch-infer")
            .connect_timeout(timedelta(seconds=connect_timeout_s))
            .max_connections(max_connections)
            .follow_redirects(False)
            .default_cookie_store(False)
            .referer(False)
            .gzip(True)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .tcp_nodelay(True)
            .tcp_keepalive(timedelta(seconds=TCP_KEEP_ALIVE_S))
            .pool_idle_timeout(timedelta(seconds=KEEP_ALIVE_S))
            .no_proxy()
        )
        try:
            for certificate in ca_certificates(ca_file) if ca_file is not None else ():
                builder = builder.add_root_certificate_pem(certificate)
            self._client: Client = _with_proxies(builder, proxy).build()
        except (px.PyreqwestError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            detail = _detail(error)
            why = "" if "://" in detail else f" ({detail})"  # a proxy's URL may hold a password
            message = f"The HTTP client cannot be built{why}. Check the CA file and the proxy's URL."
        else:
            self._connect_timeout_s = connect_timeout_s
            self._max_reply_bytes = max_reply_bytes
            return
        raise ConfigError(message)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float | None) -> HttpReply:
        """Sends one POST and reads the whole reply; see `Transport.post`.

        The reply's headers are pyreqwest's own multi-map: a `Mapping` that answers with the first value of a name.
        """
        target = target_of(url)
        try:
            builder = self._client.post(url).headers(headers).body_bytes(body)
            if timeout_s is not None:
                builder = builder.timeout(timedelta(seconds=timeout_s))
            request = builder.build_streamed()
        except ValueError as error:  # its text may repeat a header, so it is not passed on
            kind, detail = "invalid_header" if "header" in str(error).lower() else "invalid_url", ""
        else:
            try:
                return await self._exchange(request, target)
            except px.PyreqwestError as error:
                kind = classify(error)
                seconds = {"timeout": timeout_s, "connect_timeout": self._connect_timeout_s}.get(kind)
                detail = _detail(error) if seconds is None else f"{seconds:g} s"
        # Outside the except blocks: the library's exception, which holds the URL, must not travel as the context.
        raise failure(kind, target, detail)

    async def _exchange(self, request: StreamRequest, target: str) -> HttpReply:
        async with request as response:
            length = response.get_header("content-length")
            if length is None:
                body = await self._read_capped(response, target)
            elif int(length) > self._max_reply_bytes:
                raise self._too_large(target)
            else:
                body = (await response.bytes()).to_bytes()
            return HttpReply(response.status, response.headers, body)

    async def _read_capped(self, response: Response, target: str) -> bytes:
        reader = response.body_reader
        chunks = []
        size = 0
        while (chunk := await reader.read_chunk()) is not None:
            size += len(chunk)
            if size > self._max_reply_bytes:
                raise self._too_large(target)
            chunks.append(chunk)
        return b"".join(chunks)

    def _too_large(self, target: str) -> EndpointError:
        return failure("reply_too_large", target, f"more than {self._max_reply_bytes:,} bytes")

    async def close(self) -> None:
        """Closes idle connections. Idempotent."""
        await self._client.close()


def classify(error: BaseException) -> str:
    """The kind (of `failures.KINDS`) of an exception that pyreqwest raised."""
    causes = _causes(error)
    connecting = CONNECTING in causes
    for text, kind, only_connecting in KIND_BY_CAUSE:
        if (connecting or not only_connecting) and any(text in cause for cause in causes):
            return kind
    return next((KIND_BY_CLASS[cls] for cls in type(error).__mro__ if cls in KIND_BY_CLASS), "reset")


def _causes(error: BaseException) -> list[str]:
    details = getattr(error, "details", None) or {}
    return [cause["message"] for cause in details.get("causes") or ()]


def _detail(error: BaseException) -> str:
    """The innermost cause: the operating system's or the TLS library's own words."""
    causes = _causes(error)
    return causes[-1] if causes else type(error).__name__


def _with_proxies(builder: ClientBuilder, proxy: str | None) -> ClientBuilder:
    routes = proxies(proxy)
    if routes.http is not None:
        builder = builder.proxy(ProxyBuilder.http(routes.http).no_proxy(routes.bypass))
    if routes.https is not None:
        builder = builder.proxy(ProxyBuilder.https(routes.https).no_proxy(routes.bypass))
    return builder
