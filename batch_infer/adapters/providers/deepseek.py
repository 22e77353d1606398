"""Owns DeepSeek's record. Source: its documentation, "Error Codes"; it sends no limit headers.

On driver and workers.
"""

from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider

DEEPSEEK = Provider(
    name="deepseek",
    title="DeepSeek",
    wires={"chat": OpenAIWire},
    base_url="https://api.deepseek.com/v1",
    environment=Environment(key="DEEPSEEK_API_KEY", base_url="DEEPSEEK_BASE_URL"),
    limit_headers=(),
)
