"""Owns vLLM's record. It queues without bound, and sends no 429.

Source: its documentation, "OpenAI-Compatible Server".

On driver and workers.
"""

from batch_infer.adapters.providers.record import Environment, Provider

VLLM = Provider(
    name="vllm",
    title="vLLM",
    base_url="http://localhost:8000/v1",
    environment=Environment(key="VLLM_API_KEY", base_url="VLLM_BASE_URL", is_key_optional=True),
    limit_headers=(),
    model_list="/models",
)
