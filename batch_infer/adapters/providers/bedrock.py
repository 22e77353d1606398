"""Owns Amazon Bedrock's record: its OpenAI-compatible route, with an API key or requests signed by SigV4.

Source: "Invoke a model with the OpenAI Chat Completions API" and "Common errors", Amazon Bedrock user guide.

On driver and workers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import Ambiguous, ConfigError, JobRejected, RowRejected, Throttled, Transient

KEY = "AWS_BEARER_TOKEN_BEDROCK"
SIGNED = "aws:default"
"""Reference of an endpoint whose requests are signed with AWS' own credentials."""


def address(region: str) -> str:
    """The `base_url` of a region."""
    return f"https://bedrock-runtime.{region}.amazonaws.com/openai/v1"


def _from_environment(model: str) -> Mapping[str, Any]:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    base_url = os.environ.get("AWS_BEDROCK_BASE_URL")
    if not region and not base_url:
        raise ConfigError(f"endpoint 'bedrock/{model}': set AWS_REGION to the region, such as 'us-east-1'.")
    key = f"env:{KEY}" if os.environ.get(KEY) else SIGNED
    return {"base_url": base_url or address(str(region)), "model": model, "api_key": key}


def _check_ready(endpoint: Endpoint) -> None:
    if (endpoint.api_key or "").startswith("aws:") and importlib.util.find_spec("botocore") is None:
        raise ConfigError(
            f"endpoint {endpoint.name!r}: its key {endpoint.api_key!r} needs botocore, which signs requests. "
            f"Run pip install 'batch-infer[bedrock]', or set {KEY} and api_key='env:{KEY}'."
        )


BEDROCK = Provider(
    name="bedrock",
    title="Amazon Bedrock",
    wires={"chat": OpenAIWire},
    address=f"the region's, such as '{address('us-east-1')}'",
    environment=Environment(key=KEY, base_url="AWS_BEDROCK_BASE_URL", others=("AWS_REGION", "AWS_DEFAULT_REGION")),
    limit_headers=(),
    errors=ErrorRules(
        codes={
            "ThrottlingException": Verdict(Throttled, "rate_limited", "endpoint"),
            "ModelNotReadyException": Verdict(Throttled, "overloaded", "endpoint"),
            "ServiceUnavailableException": Verdict(Throttled, "overloaded", "endpoint"),
            "InternalServerException": Verdict(Transient, "server_error", "row"),
            "ModelTimeoutException": Verdict(Ambiguous, "timeout", "row"),
            "ModelErrorException": Verdict(Transient, "server_error", "row"),
            "ValidationException": Verdict(RowRejected, "bad_request", "row"),
            "ServiceQuotaExceededException": Verdict(JobRejected, "quota", "call", "Raise the account's quota."),
            "AccessDeniedException": Verdict(
                JobRejected, "permission", "call", "Check that the account may use this model in this region."
            ),
            "ExpiredTokenException": Verdict(JobRejected, "authentication", "call", "Renew the AWS credentials."),
            "UnrecognizedClientException": Verdict(JobRejected, "authentication", "call", "Check the credentials."),
            "ResourceNotFoundException": Verdict(JobRejected, "not_found", "call", "Check the model and the region."),
        }
    ),
    fields_from_environment=_from_environment,
    check_ready=_check_ready,
)
