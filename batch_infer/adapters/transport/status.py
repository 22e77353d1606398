"""Owns the classification of HTTP responses that are not replies: status, headers and error body → class, kind, scope.

A provider's own codes (`ErrorRules`, from its record) come first, then what the status means everywhere. Pure; on
workers.

Source: the providers' documented error codes (OpenAI, Anthropic, Azure, Databricks, Gemini), and RFC 9110.

On workers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    Scope,
    Throttled,
    Transient,
)

BILLING_CODES = re.compile(
    r"insufficient_quota|credit_balance|spend_limit|usage_limit_exceeded|billing|enforced_spend_limit|quota_per_day"
    r"|PerDay",
    re.IGNORECASE,
)
"""Words in a 429 for which waiting does not help."""
CONTEXT_CODES = re.compile(
    r"context_length|context length|exceed_context_size|maximum context|prompt is too long|too many tokens",
    re.IGNORECASE,
)
"""Words in a refusal of a prompt that is too long for the model."""
FILTER_CODES = re.compile(r"content_filter|content_policy|ResponsibleAI|content management policy", re.IGNORECASE)
"""Words in a refusal by a content filter."""
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

CODE_HEADER = "x-amzn-errortype"
"""Header in which AWS names an error's code: `ThrottlingException:http://…`."""

SCOPES_BY_STATUS: Mapping[int, Scope] = {502: "endpoint", 503: "endpoint", 504: "endpoint", 529: "endpoint"}
"""Statuses that speak of the endpoint as a whole, whatever the class of their error."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one machine-readable code means."""

    error: type[EndpointError]
    kind: str
    scope: Scope | None = None
    """`None`: the error class's own."""
    next_step: str = ""
    """A sentence for the user."""


@dataclass(frozen=True, slots=True)
class ErrorRules:
    """How one provider says what is wrong. Codes are looked up as they are written."""

    codes: Mapping[str, Verdict] = field(default_factory=dict)
    """By an error's `code`, `type`, `error_code`, `status` or `reason`, or the code header's value."""
    statuses: Mapping[int, Verdict] = field(default_factory=dict)
    """By an HTTP status that means something else here than everywhere."""
    judge: Callable[[int, Any], Verdict | None] | None = None
    """A rule over the status and the error object, where a code alone does not tell; asked first."""

    def verdict(self, status: int, error: Any, named: str | None = None) -> Verdict | None:
        """What the provider's own record says of an error; `None`: nothing."""
        if self.judge is not None:
            found = self.judge(status, error)
            if found is not None:
                return found
        given = [str(error[name]) for name in CODE_NAMES if error.get(name)] if isinstance(error, Mapping) else []
        for code in [*([named] if named else []), *given]:
            if code in self.codes:
                return self.codes[code]
        return self.statuses.get(status)


CODE_NAMES = ("code", "type", "error_code", "status", "reason")
"""Members of an error object that hold a code."""
NO_RULES = ErrorRules()


def error_of(
    where: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    now: datetime | None = None,
    *,
    rules: ErrorRules = NO_RULES,
    url: str | None = None,
) -> EndpointError:
    """The error that a response other than 2xx stands for.

    Args:
        where: The endpoint's name, for the message.
        status: HTTP status.
        headers: Lower-case names.
        body: The response's body; only its error message, shortened, reaches the user.
        now: The time against which a `Retry-After` date is read.
        rules: The provider's own codes.
        url: What was asked, for refusals of an address.
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
    named = headers.get(CODE_HEADER, "").partition(":")[0]
    verdict = rules.verdict(status, said_object, named)
    if verdict is not None:
        return _judged(where, verdict, f"HTTP {status}{said}", retry_after_s(headers, now), details)

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
        asked = f" from {url}" if url is not None and kind == "not_found" else ""
        return JobRejected(f"endpoint {where}: HTTP {status}{asked}{ended} {next_step}", kind=kind, **details)
    may_pass = status in TRANSIENT or status >= 500
    if should_retry != "false" and (may_pass or should_retry == "true"):
        details["scope"] = SCOPES_BY_STATUS.get(status)
        wait = retry_after_s(headers, now)
        return Transient(f"endpoint {where}: HTTP {status}{said}", kind="server_error", retry_after_s=wait, **details)
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


def _judged(where: str, verdict: Verdict, said: str, wait_s: float | None, details: Mapping[str, Any]) -> EndpointError:
    """The error that a provider's own code stands for."""
    ended = said if not verdict.next_step else said.rstrip(".") + ". " + verdict.next_step
    wait = wait_s if verdict.error in (Throttled, Transient) else None
    return verdict.error(
        f"endpoint {where}: {ended}", kind=verdict.kind, scope=verdict.scope, retry_after_s=wait, **details
    )


def error_in_reply(where: str, error: Any, rules: ErrorRules = NO_RULES) -> EndpointError:
    """An error object inside a 200: its own code decides, as a status would."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 600:
        return error_of(where, code, {}, msgspec.json.encode({"error": error}), rules=rules)
    _, text = _error_text(error)
    verdict = rules.verdict(200, error)
    if verdict is not None:
        return _judged(where, verdict, f"HTTP 200 with an error inside: {text}", None, {"status": 200})
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
