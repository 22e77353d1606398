"""Owns the fault endpoint's replies in forms other than OpenAI's: Anthropic's messages, custom models' predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from batch_infer.testing.replies import count_tokens, instance_of

SIGNATURE = "EqoBCkgIARABGAIiQA=="
"""Signature of every thinking block."""


def messages_reply(request: Mapping[str, Any], prompt_tokens: int, text: str, number: int) -> dict[str, Any]:
    """A message of Claude: thinking where the request enables it, a tool call where it demands one, text otherwise.

    With a JSON schema in `output_config` the text becomes the smallest instance of it.
    """
    form = (request.get("output_config") or {}).get("format")
    if isinstance(form, dict):
        text = json.dumps(instance_of(form.get("schema") or {}, text))
    content: list[dict[str, Any]] = []
    if (request.get("thinking") or {}).get("type") == "enabled":
        content.append({"type": "thinking", "thinking": "Let me think.", "signature": SIGNATURE})
    tool = _demanded(request.get("tools"), request.get("tool_choice"))
    if tool is None:
        content.append({"type": "text", "text": text})
    else:
        arguments = instance_of(tool.get("input_schema") or {}, text)
        content.append({"type": "tool_use", "id": f"toolu_{number}", "name": tool.get("name"), "input": arguments})
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request.get("model"),
        "content": content,
        "stop_reason": "end_turn" if tool is None else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": prompt_tokens, "output_tokens": count_tokens(text)},
    }


def _demanded(tools: Any, choice: Any) -> dict[str, Any] | None:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not tools or kind not in ("any", "tool"):
        return None
    named: dict[str, Any] = next((tool for tool in tools if tool.get("name") == choice.get("name")), tools[0])
    return named


def predictions_reply(request: Mapping[str, Any], text: str | None) -> dict[str, Any]:
    """A prediction for each record: `{"echo": record}`, or `text` read as JSON where a rule gives one."""
    records: Sequence[Any] = request["dataframe_records"]
    return {"predictions": [{"echo": record} if text is None else json.loads(text) for record in records]}
