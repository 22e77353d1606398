"""Owns Anthropic's record: `/v1/messages`, the key in `x-api-key`, limits and errors of its own.

Source: Claude API documentation, "Errors" and "Rate limits".

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.anthropic_request import DEFAULT_MAX_TOKENS, parameters_of
from batch_infer.adapters.providers.anthropic_wire import AnthropicWire
from batch_infer.adapters.providers.limit_headers import ANTHROPIC_LIMITS
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import JobRejected, Throttled
from batch_infer.contract.parameters import check_thinking

CHECK_KEY = "Check the key that the endpoint's api_key refers to."
CHECK_BILLING = "Check the account's billing."
NO_CREDIT = "credit balance is too low"
"""Words of the 400 in which Anthropic says that the account is empty; it has no code of its own."""


def _check_call(parameters: Mapping[str, Any], response_format: Mapping[str, Any] | None) -> None:
    parameters_of(parameters, response_format)
    if not {"max_tokens", "max_completion_tokens"} & set(parameters):
        check_thinking({**parameters, "max_tokens": DEFAULT_MAX_TOKENS})


def _judge(status: int, error: Any) -> Verdict | None:
    said = str(error.get("message", "")) if isinstance(error, Mapping) else ""
    if status == 400 and NO_CREDIT in said.lower():
        return Verdict(JobRejected, "billing", "call", CHECK_BILLING)
    return None


ANTHROPIC = Provider(
    name="anthropic",
    title="Anthropic",
    wires={"chat": AnthropicWire},
    base_url="https://api.anthropic.com",
    address="up to and without '/v1/messages'",
    environment=Environment(key="ANTHROPIC_API_KEY", base_url="ANTHROPIC_BASE_URL"),
    key_header="x-api-key",
    key_prefix="",
    limit_headers=ANTHROPIC_LIMITS,
    errors=ErrorRules(
        codes={
            "overloaded_error": Verdict(Throttled, "overloaded", "endpoint"),
            "rate_limit_error": Verdict(Throttled, "rate_limited", "endpoint"),
            "authentication_error": Verdict(JobRejected, "authentication", "call", CHECK_KEY),
            "billing_error": Verdict(JobRejected, "billing", "call", CHECK_BILLING),
        },
        judge=_judge,
    ),
    fields=frozenset({"api_version"}),
    check_call=_check_call,
)
