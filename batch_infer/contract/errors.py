"""Owns the exception tree. Does not decide what is retried: that is `engine.retry`.

    BatchInferError
    ├ ConfigError (also ValueError)      on the driver, before anything is paid
    │ └ ArgumentNameError (TypeError)    a keyword argument that a function does not have
    ├ EndpointError                      status, kind, scope, request id, attempts
    │ ├ Throttled (retry_after_s)        costs time, not attempts
    │ ├ Transient                        retried, capped
    │ ├ Ambiguous                        may have been billed: a small budget of its own, counted
    │ ├ RowRejected                      that row's error: refused, content filter, malformed or empty reply
    │ │ └ WrongReply (reply, correction) a reply that is not of the form asked for; the model may be asked to mend it
    │ └ JobRejected                      stops the job at once: authentication, unknown endpoint, billing, TLS
    └ SinkError                          the output could not be written

Every class pickles, because Spark carries exceptions between processes. No message holds a key, a header, or more than
the first `PROMPT_EXCERPT_CHARS` characters of a prompt.
"""

from __future__ import annotations

from typing import Any, Literal

PROMPT_EXCERPT_CHARS = 200
"""Characters of a prompt or of an endpoint's own words that a message holds, at most."""

Scope = Literal["row", "call", "endpoint"]
"""Whose trouble a failure is: one row's, every row's of the call (a wrong key), or the endpoint's state for now."""

ROW_ERROR_KINDS = (
    "bad_request",
    "connect",
    "connect_timeout",
    "content_filter",
    "context_length",
    "corrupt_reply",
    "dns",
    "empty_reply",
    "error_in_reply",
    "malformed_reply",
    "not_sent",
    "overloaded",
    "pool_timeout",
    "rate_limited",
    "refusal",
    "reply_too_large",
    "reset",
    "send_failed",
    "server_error",
    "timeout",
    "too_large",
    "truncated",
    "type_mismatch",
)
"""The values of `error.kind` in a row."""


class BatchInferError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigError(BatchInferError, ValueError):
    """A setting, an argument or a type is wrong. Raised on the driver, before any request is sent."""


class ArgumentNameError(ConfigError, TypeError):
    """A function was called with a keyword argument that it does not have; names the nearest one."""


class EndpointError(BatchInferError):
    """An endpoint did not give a usable reply.

    Args:
        message: What happened, in words for the user.
        kind: A stable snake_case word for programs, such as `rate_limited` or `empty_reply`.
        status: The HTTP status, or `None` when no response arrived.
        request_id: The endpoint's own identifier of the request, when it sent one.
        retry_after_s: Seconds the endpoint asked to wait, or `None`.
        attempts: Requests sent for this row so far; filled in by the engine.
        usage: What the endpoint billed for the failed attempt, when it said so.
        scope: Whose trouble it is; by default the class's own.
        limits: What the failed reply's headers say of the endpoint's limits (`contract.limits.Limits`), if anything.
    """

    retryable = False
    default_scope: Scope = "row"

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        attempts: int = 1,
        usage: Any = None,
        scope: Scope | None = None,
        limits: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.attempts = attempts
        self.usage = usage
        self.scope: Scope = scope or self.default_scope
        self.limits = limits

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self._state()))

    def _state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "status": self.status,
            "request_id": self.request_id,
            "retry_after_s": self.retry_after_s,
            "attempts": self.attempts,
            "usage": self.usage,
            "scope": self.scope,
            "limits": self.limits,
        }


def _rebuild(cls: type[EndpointError], message: str, state: dict[str, Any]) -> EndpointError:
    return cls(message, **state)


class Throttled(EndpointError):
    """The endpoint asked us to slow down (429 without a billing code, 503, 529). Nothing was billed."""

    retryable = True
    default_scope = "endpoint"


class Transient(EndpointError):
    """A passing fault before the request can have been billed (connect error, 500, 502, 504, 408, 409, 425)."""

    retryable = True


class Ambiguous(EndpointError):
    """The request may have been billed although no usable reply arrived (read timeout, reset in mid-reply)."""

    retryable = True


class RowRejected(EndpointError):
    """This row's request or reply is at fault; sending it again would not help. Other rows are not affected."""


class WrongReply(RowRejected):
    """A reply came and was billed, but it is not what was asked for: no JSON, another type, not the schema's.

    Args:
        message: As for `EndpointError`.
        reply: The `contract.reply.Reply` itself, which the row's details show.
        correction: What to answer the model so that it mends its reply; `None` where asking again would not help.
        **state: As for `EndpointError`.
    """

    def __init__(self, message: str, *, reply: Any = None, correction: str | None = None, **state: Any) -> None:
        super().__init__(message, **state)
        self.reply = reply
        self.correction = correction

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "reply": self.reply, "correction": self.correction}


class JobRejected(EndpointError):
    """No row can succeed: authentication, unknown endpoint or model, billing, TLS. Stops the whole job at once."""

    default_scope = "call"


class SinkError(BatchInferError):
    """The output could not be written."""
