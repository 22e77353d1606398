"""Owns the meaning of the exceptions that reach `HttpxTransport`. Does not build errors: that is `failures`.

httpx's own classes are the rule. Where a library under it raised, its exception says more, and is looked at first:
`httpx-aiohttp` turns every connection error, a reset in mid-reply among them, into `httpx.ConnectTimeout`, and
pyreqwest's compatibility layer turns it into `httpx.ConnectError`. Taken at their word, both would have a request
counted as never sent that may have been billed.

On workers.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import httpx

KIND_BY_CLASS: dict[type[BaseException], str] = {
    httpx.HTTPError: "reset",
    httpx.RequestError: "reset",
    httpx.TransportError: "reset",
    httpx.TimeoutException: "timeout",
    httpx.ConnectTimeout: "connect_timeout",
    httpx.ReadTimeout: "timeout",
    httpx.WriteTimeout: "timeout",
    httpx.PoolTimeout: "pool_timeout",
    httpx.NetworkError: "reset",
    httpx.ConnectError: "connect",
    httpx.ReadError: "reset",
    httpx.WriteError: "reset",
    httpx.CloseError: "reset",
    httpx.ProxyError: "connect",
    httpx.UnsupportedProtocol: "invalid_url",
    httpx.ProtocolError: "corrupt_reply",
    httpx.LocalProtocolError: "invalid_header",
    httpx.RemoteProtocolError: "corrupt_reply",
    httpx.DecodingError: "corrupt_reply",
    httpx.TooManyRedirects: "corrupt_reply",
    httpx.HTTPStatusError: "corrupt_reply",
    httpx.InvalidURL: "invalid_url",
    httpx.CookieConflict: "corrupt_reply",
    httpx.StreamError: "reset",
    httpx.StreamClosed: "reset",
    httpx.StreamConsumed: "reset",
    httpx.ResponseNotRead: "reset",
    httpx.RequestNotRead: "reset",
    OSError: "reset",
}
"""The kind (of `failures.KINDS`) of each of httpx's exceptions. A test checks that none is missing."""

REMOTE_PROTOCOL_ERRORS = (("without sending a response", "reset"), ("without sending complete message", "truncated"))
"""httpx has one class for both of these and for garbage; only its words tell them apart."""

KIND_BY_AIOHTTP_NAME: dict[str, str] = {
    "ClientError": "reset",
    "ClientConnectionError": "reset",
    "ClientConnectionResetError": "reset",
    "ClientOSError": "reset",
    "ServerConnectionError": "reset",
    "ServerDisconnectedError": "reset",
    "ClientPayloadError": "truncated",
    "UploadAbortedError": "reset",
    "HttpProcessingError": "corrupt_reply",
    "ServerTimeoutError": "timeout",
    "SocketTimeoutError": "timeout",
    "ConnectionTimeoutError": "connect_timeout",
    "ClientConnectorError": "connect",
    "ClientConnectorDNSError": "dns",
    "ClientProxyConnectionError": "connect",
    "ClientHttpProxyError": "connect",
    "UnixClientConnectorError": "connect",
    "ClientSSLError": "tls",
    "ClientConnectorSSLError": "tls",
    "ClientConnectorCertificateError": "tls",
    "ServerFingerprintMismatch": "tls",
    "ClientResponseError": "corrupt_reply",
    "ContentTypeError": "corrupt_reply",
    "WSServerHandshakeError": "corrupt_reply",
    "WSMessageTypeError": "corrupt_reply",
    "TooManyRedirects": "corrupt_reply",
    "InvalidURL": "invalid_url",
    "InvalidUrlClientError": "invalid_url",
    "InvalidUrlRedirectClientError": "invalid_url",
    "NonHttpUrlClientError": "invalid_url",
    "NonHttpUrlRedirectClientError": "invalid_url",
    "RedirectClientError": "invalid_url",
}
"""The same for aiohttp, by name: which of them exist depends on its version. A test checks that none is missing."""

KIND_BY_SOCKET_ERROR: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "tls"),
    (ssl.SSLEOFError, "connect"),
    (ssl.SSLZeroReturnError, "connect"),
    (ssl.SSLError, "tls"),
    (socket.gaierror, "dns"),
)
"""Kinds of failure by the socket's error, most specific first."""


def classify(error: BaseException) -> str | None:
    """The kind (of `failures.KINDS`) of an exception that a transport raised; `None` for a defect in the transport."""
    chain = list(_chain(error))
    kind = next(filter(None, map(_by_library, chain)), None) or _by_class(error)
    if kind in ("connect", "tls"):
        for link in chain:
            for cls, refined in KIND_BY_SOCKET_ERROR:
                if isinstance(link, cls):
                    return refined
    if isinstance(error, httpx.RemoteProtocolError):
        return next((refined for words, refined in REMOTE_PROTOCOL_ERRORS if words in str(error)), kind)
    return kind


def _by_library(error: BaseException) -> str | None:
    """What the library under httpx means by its exception, when it is one."""
    library = type(error).__module__.partition(".")[0]
    if library == "pyreqwest":
        from batch_infer.adapters.transport import reqwest  # noqa: PLC0415 - optional

        return reqwest.classify(error)
    if library == "aiohttp":
        return next(filter(None, (KIND_BY_AIOHTTP_NAME.get(cls.__name__) for cls in type(error).__mro__)), None)
    return None


def _by_class(error: BaseException) -> str | None:
    return next(filter(None, map(KIND_BY_CLASS.get, type(error).__mro__)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
