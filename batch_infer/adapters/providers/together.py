"""Owns Together's record. Source: its documentation, "Rate limits" (per second, in headers) and "Error codes".

On driver and workers.
"""

from batch_infer.adapters.providers.limit_headers import LimitHeader
from batch_infer.adapters.providers.record import Environment, Provider

TOGETHER = Provider(
    name="together",
    title="Together",
    base_url="https://api.together.xyz/v1",
    environment=Environment(key="TOGETHER_API_KEY", base_url="TOGETHER_BASE_URL"),
    limit_headers=(
        LimitHeader("requests", "x-ratelimit-limit", "x-ratelimit-reset", period_s=1.0),
        LimitHeader("tokens", "x-tokenlimit-limit", period_s=1.0),
    ),
)
