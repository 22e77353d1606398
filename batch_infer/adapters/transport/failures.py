"""Owns the words and the class of every way in which an HTTP exchange fails. Does not detect failures.

Both transports classify what their library raises as one of the kinds below, so that a user reads the same message and
the engine sees the same class whatever the library. When it cannot be known whether the request reached the endpoint,
the kind is an `Ambiguous` one.

On workers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple
from urllib.parse import urlsplit

from batch_infer.contract.errors import Ambiguous, EndpointError, JobRejected, Transient

MAX_DETAIL_CHARS = 200
_BILLED = "The endpoint may have billed this request."


class Kind(NamedTuple):
    """One way to fail."""

    error: type[EndpointError]
    what: str
    then: str


KINDS: dict[str, Kind] = {
    "connect": Kind(
        Transient, "could not connect", "Check that the endpoint is up and that this machine can reach it."
    ),
    "dns": Kind(Transient, "the host name could not be resolved", "Check its spelling and this machine's DNS."),
    "connect_timeout": Kind(
        Transient, "could not connect in time", "Check firewalls and proxies, or raise the connect timeout."
    ),
    "pool_timeout": Kind(
        Transient, "no connection became free in time", "Lower the concurrency, or allow more connections."
    ),
    "send_failed": Kind(
        Transient,
        "the connection broke before the whole request was sent",
        "Check whether the endpoint or a proxy refuses requests of this size.",
    ),
    "timeout": Kind(
        Ambiguous,
        "no complete reply arrived in time",
        f"{_BILLED} Raise the request timeout, or lower the concurrency, if replies take this long.",
    ),
    "reset": Kind(
        Ambiguous, "the connection was closed before a whole reply arrived", f"{_BILLED} See the endpoint's log."
    ),
    "truncated": Kind(Ambiguous, "the reply broke off in the middle", f"{_BILLED} See the endpoint's log."),
    "corrupt_reply": Kind(
        Ambiguous, "the reply is not valid HTTP", f"{_BILLED} Check that the URL is the endpoint's, scheme and port."
    ),
    "reply_too_large": Kind(
        Ambiguous, "the reply is too large to be one", f"{_BILLED} Check that the URL is the endpoint's."
    ),
    "tls": Kind(
        JobRejected,
        "TLS verification failed",
        "Check the certificate, its host name and its dates; name a CA file if the CA is your own.",
    ),
    "invalid_url": Kind(JobRejected, "the URL is not valid", "Give an absolute http or https URL with a host."),
    "invalid_header": Kind(
        JobRejected, "a request header is not valid HTTP", "Check the API key and headers for line breaks."
    ),
}


def failure(kind: str, target: str, detail: str = "") -> EndpointError:
    """The error for `kind`, ready to raise.

    Args:
        kind: A key of `KINDS`.
        target: The endpoint as users know it: host and port.
        detail: The library's own words. Left out when they hold a URL, whose query could hold a key, and when they are
            about a URL or a header, which libraries like to quote.
    """
    error, what, then = KINDS[kind]
    quotes = kind.startswith("invalid_") or "://" in detail
    detail = "" if quotes else " ".join(detail.split())[:MAX_DETAIL_CHARS]
    return error(f"{target}: {what}{f' ({detail})' if detail else ''}. {then}", kind=kind)


@functools.lru_cache(maxsize=256)
def target_of(url: str) -> str:
    """Host and port of `url`, the only part of it that errors show.

    Raises:
        JobRejected: it is not an absolute http or https URL with a host (`kind` `invalid_url`).
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        parts, port = urlsplit(""), None
    if port is None or not parts.hostname or parts.scheme not in ("http", "https") or not url.isprintable():
        raise failure("invalid_url", parts.hostname or "the endpoint")
    return f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}"
