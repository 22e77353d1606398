"""Owns what an assistant message says: its text, its reasoning and its tool calls, in the forms that servers use. Pure.

Reasoning comes as content blocks (`reasoning` with a `summary`, or `thinking`), as a field beside the content
(`reasoning_content`, `reasoning`), or as a `<think>` block at the beginning of the text.

On workers.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from batch_infer.contract.reply import ToolCall

_encode = msgspec.json.Encoder().encode
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_OPEN_THINK = re.compile(r"\s*<think>")


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class Message(msgspec.Struct):
    """An assistant message as OpenAI-compatible servers write it."""

    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    refusal: str | None = None

    def said(self, finish_reason: str | None) -> tuple[str | None, str | None]:
        """Its text and its reasoning; a reasoning that the token limit cut off leaves no text."""
        text = _text_of(self.content)
        reasoning = next(
            (field for field in (self.reasoning_content, self.reasoning) if isinstance(field, str) and field), None
        )
        reasoning = reasoning or _reasoning_of(self.content)
        if text is None:
            return None, reasoning
        thought = _THINK.match(text)
        if thought is not None:
            return text[thought.end() :], reasoning or thought.group(1).strip() or None
        cut = _OPEN_THINK.match(text) if finish_reason == "length" else None
        if cut is not None:
            return None, reasoning or text[cut.end() :].strip()
        return text, reasoning

    def calls(self) -> tuple[ToolCall, ...]:
        """The function calls that it asks for, those of the older `function_call` included."""
        calls = [_call(call.id, call.function) for call in self.tool_calls or ()]
        if self.function_call is not None and not calls:
            calls.append(_call(None, self.function_call))
        return tuple(calls)


def _text_of(content: str | list[Any] | None) -> str | None:
    if not isinstance(content, list):
        return content
    texts = [
        block["text"]
        for block in content
        if isinstance(block, dict) and isinstance(block.get("text"), str) and block.get("type") != "reasoning"
    ]
    return "".join(texts) if texts else None


def _reasoning_of(content: str | list[Any] | None) -> str | None:
    if not isinstance(content, list):
        return None
    parts: list[str] = []
    for block in content:
        if not isinstance(block, dict) or block.get("type") not in ("reasoning", "thinking"):
            continue
        told: Any = block.get("summary") if block.get("type") == "reasoning" else block.get("thinking")
        if isinstance(told, str):
            parts.append(told)
        elif isinstance(told, list):
            parts += [part["text"] for part in told if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(parts) if parts else None


def _call(call_id: str | None, function: _Function | None) -> ToolCall:
    function = function or _Function()
    arguments = function.arguments
    if arguments is not None and not isinstance(arguments, str):
        arguments = _encode(arguments).decode()
    return ToolCall(call_id, function.name, arguments)
