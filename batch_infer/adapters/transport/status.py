"""Owns the classification of HTTP responses that are not replies: status, headers and error body → one error class.

Source: the providers' documented error codes (OpenAI, Anthropic, Azure, Databricks, Gemini), as tabled below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from batch_infer.adapters.transport.google_errors import read_exhausted
from batch_infer.contract.errors import (
    PROMPT_EXCERPT_CHARS,
    Ambiguous,
    EndpointError,
    JobRejected,
    RowRejected,
    Throttled,
    Transient,
)

BILLING_CODES = re.compile(
    r"insufficient_quota|credit_balance|spend_limit|usage_limit_exceeded|billing|enforced_spend_limit|quota_per_day"
    r"|PerDay",
    re.IGNORECASE,
)
CREDIT_WORDS = re.compile(r"credit balance is too low", re.IGNORECASE)
"""Anthropic says so in a 400."""
CONTEXT_CODES = re.compile(
    r"context_length|context length|exceed_context_size|maximum context|prompt is too long|too many tokens",
    re.IGNORECASE,
)
FILTER_CODES = re.compile(r"content_filter|content_policy|ResponsibleAI|content management policy", re.IGNORECASE)
TRANSIENT = frozenset({408, 409, 425, 500, 502, 504})
THROTTLE = frozenset({429, 503, 529})
MAX_RETRY_AFTER_S = 3600.0
"""An endpoint that asks for a longer wait is out of quota: the job stops instead."""

_KEYLIKE = re.compile(
    r"\b(?:sk|pk|rk|key)[-_][\w*.-]{6,}|\b(?:dapi|AIza|gsk_|hf_|xai-)[\w*.-]{8,}"
    r"|\b[Bb]earer +[\w*.~+/=-]{4,}|\beyJ[\w.-]{8,}"
)

REFUSED = {
    401: ("authentication", "Check the key that the endpoint's api_key refers to."),
    402: ("billing", "Check the account's billing."),
    403: ("permission", "The key is known but not allowed to use this endpoint or model; check its permissions."),
    404: ("not_found", "Check the endpoint's base_url and model."),
    405: ("not_found", "Check the endpoint's base_url."),
}
"""No row can succeed: what it is called, and what to do next."""

IN_REPLY = {"overloaded_error": 529, "rate_limit_error": 429, "billing_error": 402, "authentication_error": 401}
"""Anthropic's error types that may come inside a 200, and the status that each stands for."""


def error_of(
    where: str, status: int, headers: Mapping[str, str], body: bytes, now: datetime | None = None
) -> EndpointError:
    """The error that a response other than 2xx stands for.

    Args:
        where: The endpoint's name, for the message.
        status: HTTP status.
        headers: Lower-case names.
        body: The response's body; only its error message, shortened, reaches the user.
        now: The time against which a `Retry-After` date is read.
    """
    said_object = _error_object(body)
    code, text = _error_text(said_object)
    said = f": {text}" if text else ""
    ended = said.rstrip(".") + "."
    details: dict[str, Any] = {
        "status": status,
        "request_id": headers.get("x-request-id") or headers.get("request-id"),
    }
    searched = f"{code} {text}"
    should_retry = headers.get("x-should-retry")

    if status in THROTTLE:
        wait = retry_after_s(headers, now)
        exhausted = read_exhausted(said_object)
        if exhausted is not None:
            searched = "quota_per_day" if exhausted.for_today else ""
            wait = exhausted.retry_after_s if wait is None else wait
        return _throttle(where, said, searched, should_retry=should_retry, wait_s=wait, details=details)
    if 300 <= status < 400:
        return JobRejected(
            f"endpoint {where}: it redirects (HTTP {status}), and redirects are not followed, because they would carry "
            "the key elsewhere. Set base_url to the final address.",
            kind="redirect",
            **details,
        )
    if status in REFUSED:
        kind, next_step = REFUSED[status]
        return JobRejected(f"endpoint {where}: HTTP {status}{ended} {next_step}", kind=kind, **details)
    may_pass = status in TRANSIENT or status >= 500
    if should_retry != "false" and (may_pass or should_retry == "true"):
        wait = retry_after_s(headers, now)
        return Transient(f"endpoint {where}: HTTP {status}{said}", kind="server_error", retry_after_s=wait, **details)
    if CREDIT_WORDS.search(text):
        return JobRejected(f"endpoint {where}: HTTP {status}{ended} {REFUSED[402][1]}", kind="billing", **details)
    kind = "server_error" if may_pass else "bad_request"
    if CONTEXT_CODES.search(searched):
        kind = "context_length"
    elif FILTER_CODES.search(searched):
        kind = "content_filter"
    elif status == 413:
        kind = "too_large"
    return RowRejected(f"endpoint {where}: HTTP {status}{said}", kind=kind, **details)


def _throttle(
    where: str, said: str, searched: str, *, should_retry: str | None, wait_s: float | None, details: dict[str, Any]
) -> EndpointError:
    """A 429, 503 or 529: to be waited out, unless the endpoint says that waiting will not help."""
    status, ended = details["status"], said.rstrip(".") + "."
    if status == 429 and BILLING_CODES.search(searched):
        return JobRejected(
            f"endpoint {where}: the account's quota or credit is used up (HTTP 429){ended} Check its billing.",
            kind="billing",
            **details,
        )
    if should_retry == "false" and status == 429:
        return JobRejected(
            f"endpoint {where}: it says that waiting will not help (HTTP 429, x-should-retry: false){ended} "
            "Check the account's limits.",
            kind="quota",
            **details,
        )
    if should_retry == "false":
        return RowRejected(f"endpoint {where}: HTTP {status}{said}", kind="overloaded", **details)
    if wait_s is not None and wait_s > MAX_RETRY_AFTER_S:
        return JobRejected(
            f"endpoint {where}: it asks to wait {wait_s:.0f} s (HTTP {status}), longer than a job should{ended} "
            "Run it again after that.",
            kind="quota",
            **details,
        )
    kind = "rate_limited" if status == 429 else "overloaded"
    return Throttled(f"endpoint {where}: HTTP {status}{said}", kind=kind, retry_after_s=wait_s, **details)


def error_in_reply(where: str, error: Any) -> EndpointError:
    """An error object inside a 200: its own code decides, as a status would."""
    body = msgspec.json.encode({"error": error})
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return error_of(where, code, {}, body)
    _, text = _error_text(error)
    if isinstance(error, dict) and error.get("type") in IN_REPLY:
        return error_of(where, IN_REPLY[error["type"]], {}, body)
    return Ambiguous(f"endpoint {where}: HTTP 200 with an error inside: {text}", kind="error_in_reply", status=200)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait from `retry-after-ms` or `retry-after` (seconds or an HTTP date); `None` where absent or garbage.

    A negative wait, or a date in the past, is 0.
    """
    milliseconds = _finite(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _finite(value)
    if seconds is not None:
        return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _finite(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _error_object(body: bytes) -> Any:
    """The error in a body: the object that describes it, or text."""
    try:
        value = msgspec.json.decode(body[:65536])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:1000].decode("utf-8", "replace").strip()
        return "" if text.startswith("<") else text
    if isinstance(value, list) and value:
        value = value[0]  # Google's form
    return value.get("error", value) if isinstance(value, dict) else value


def _error_text(error: Any) -> tuple[str, str]:
    """The error's code or type, and its message, from the forms that servers use; shortened and without keys."""
    if not isinstance(error, dict):
        return "", _shorten(str(error))
    code = " ".join(str(error[name]) for name in ("code", "type", "error_code", "status") if error.get(name))
    details = error.get("details")
    if isinstance(details, list):
        code += " " + msgspec.json.encode(details)[:2000].decode("utf-8", "replace")
    return code, _shorten(str(error.get("message") or error.get("error") or code))


def _shorten(text: str) -> str:
    text = _KEYLIKE.sub("[redacted]", " ".join(text.split()))
    return text if len(text) <= PROMPT_EXCERPT_CHARS else text[:PROMPT_EXCERPT_CHARS] + "…"
