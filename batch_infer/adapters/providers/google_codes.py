"""Owns what Google's error statuses mean, for Gemini and Vertex AI. Pure data.

Source: google.rpc.Code, and the Gemini API's troubleshooting page.

On driver and workers.
"""

from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import JobRejected, Transient

CHECK_KEY = "Check the key that the endpoint's api_key refers to."

GOOGLE_ERRORS = ErrorRules(
    codes={
        "API_KEY_INVALID": Verdict(JobRejected, "authentication", "call", CHECK_KEY),
        "UNAUTHENTICATED": Verdict(JobRejected, "authentication", "call", CHECK_KEY),
        "UNAVAILABLE": Verdict(Transient, "server_error", "endpoint"),
    },
    judge=lambda status, error: (
        Verdict(JobRejected, "authentication", "call", CHECK_KEY) if _names_key(error) and status == 400 else None
    ),
)


def _names_key(error: object) -> bool:
    """Whether the details of a 400 say that the key, and not the request, is invalid."""
    details = error.get("details") if isinstance(error, dict) else None
    return any(
        isinstance(detail, dict) and detail.get("reason") == "API_KEY_INVALID"
        for detail in (details if isinstance(details, list) else ())
    )
