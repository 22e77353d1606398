"""Protocols and providers: one module a provider exports one `Provider` record, and this is the list of them.

    record             what differs from one provider to the next
    registry           where endpoints come from
    wire               the protocol of writing and reading bodies; *_wire: its implementations, pure functions of bytes
    assistant_message, request_messages, embeddings, reading, usage, limit_headers, google_codes, invocations
                       what several of them share

On driver (checks, registration) and workers (bodies).
"""

from batch_infer.adapters.providers.anthropic import ANTHROPIC
from batch_infer.adapters.providers.azure import AZURE
from batch_infer.adapters.providers.bedrock import BEDROCK
from batch_infer.adapters.providers.databricks import DATABRICKS
from batch_infer.adapters.providers.deepseek import DEEPSEEK
from batch_infer.adapters.providers.fireworks import FIREWORKS
from batch_infer.adapters.providers.gemini import GEMINI
from batch_infer.adapters.providers.groq import GROQ
from batch_infer.adapters.providers.llamacpp import LLAMACPP
from batch_infer.adapters.providers.local import LOCAL
from batch_infer.adapters.providers.mistral import MISTRAL
from batch_infer.adapters.providers.ollama import OLLAMA
from batch_infer.adapters.providers.openai import OPENAI
from batch_infer.adapters.providers.openrouter import OPENROUTER
from batch_infer.adapters.providers.record import Provider
from batch_infer.adapters.providers.together import TOGETHER
from batch_infer.adapters.providers.vertex import VERTEX
from batch_infer.adapters.providers.vllm import VLLM
from batch_infer.adapters.providers.xai import XAI

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        OPENAI,
        AZURE,
        DATABRICKS,
        ANTHROPIC,
        GEMINI,
        VERTEX,
        BEDROCK,
        OPENROUTER,
        GROQ,
        MISTRAL,
        DEEPSEEK,
        XAI,
        TOGETHER,
        FIREWORKS,
        OLLAMA,
        VLLM,
        LLAMACPP,
        LOCAL,
    )
}
"""Every provider, by its name."""
