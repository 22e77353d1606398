"""Owns the record of llama.cpp's server. Source: its README, "OpenAI-compatible API Endpoints" and error types.

On driver and workers.
"""

from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import RowRejected, Throttled

LLAMACPP = Provider(
    name="llamacpp",
    title="llama.cpp's server",
    base_url="http://localhost:8080/v1",
    environment=Environment(key="LLAMA_API_KEY", base_url="LLAMACPP_BASE_URL", is_key_optional=True),
    limit_headers=(),
    errors=ErrorRules(
        codes={
            "exceed_context_size_error": Verdict(RowRejected, "context_length", "row"),
            "unavailable_error": Verdict(Throttled, "overloaded", "endpoint"),  # the model is loading
        }
    ),
)
