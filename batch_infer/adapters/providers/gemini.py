"""Owns Gemini's record: Google's API for developers, by its OpenAI-compatible route.

Source: "OpenAI compatibility", Gemini API documentation. What a 429 means stands in its details:
`transport.google_errors`.

On driver and workers.
"""

from batch_infer.adapters.providers.google_codes import GOOGLE_ERRORS
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider

GEMINI = Provider(
    name="gemini",
    title="Google Gemini",
    wires=dict.fromkeys(("chat", "embeddings"), OpenAIWire),
    base_url="https://generativelanguage.googleapis.com/v1beta/openai",
    environment=Environment(key="GEMINI_API_KEY"),
    limit_headers=(),
    errors=GOOGLE_ERRORS,
)
