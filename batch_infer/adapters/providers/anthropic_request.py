"""Owns how OpenAI-style messages and parameters are written for Anthropic's `/v1/messages`. Pure.

Whatever is in Anthropic's own form already (content blocks, tools, parameters) passes as it is, so that an assistant
message from an earlier reply, signatures included, can be sent back.

On workers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from batch_infer.contract.errors import ConfigError

DEFAULT_MAX_TOKENS = 1024
"""Anthropic requires `max_tokens`; this is sent where the parameters name none."""
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII)


def parameters_of(parameters: Mapping[str, Any], response_format: Mapping[str, Any] | None) -> dict[str, Any]:
    """The members of a request beside its messages.

    `max_completion_tokens`, `stop`, `tools`, `tool_choice`, `parallel_tool_calls`, `user` and the response format are
    converted from OpenAI's form; other names pass as they are.

    Raises:
        ConfigError: `n` above 1, or a response format that Anthropic does not have.
    """
    given = dict(parameters)
    if (given.pop("n", None) or 1) > 1:
        raise ConfigError("modelParameters: Anthropic gives one reply a request, so 'n' can only be 1.")
    limit = given.pop("max_completion_tokens", None)
    sent: dict[str, Any] = {"max_tokens": given.pop("max_tokens", None) or limit or DEFAULT_MAX_TOKENS}
    stop = given.pop("stop", None)
    if stop is not None:
        sent["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    user = given.pop("user", None)
    if user is not None:
        sent["metadata"] = {"user_id": user}
    if given.get("tools") is not None:
        sent["tools"] = [_tool(tool) for tool in given.pop("tools")]
    choice = _tool_choice(given.pop("tool_choice", None))
    if given.pop("parallel_tool_calls", None) is False:
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        sent["tool_choice"] = choice
    output_format = _output_format(response_format)
    if output_format is not None:
        given["output_config"] = {**(given.get("output_config") or {}), "format": output_format}
    return {**sent, **given}


def _tool(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        return tool
    converted = {"name": function.get("name")}
    if function.get("description") is not None:
        converted["description"] = function["description"]
    converted["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict") is not None:
        converted["strict"] = function["strict"]
    return converted


def _tool_choice(choice: Any) -> dict[str, Any] | None:
    if isinstance(choice, str):
        return {"type": {"required": "any"}.get(choice, choice)}
    if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        return {"type": "tool", "name": choice["function"].get("name")}
    return None if choice is None else dict(choice)


def _output_format(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    kind = response_format.get("type") if response_format is not None else None
    if kind is None or kind == "text":
        return None
    if kind == "json_schema":
        assert response_format is not None
        return {"type": "json_schema", "schema": response_format["json_schema"]["schema"]}
    raise ConfigError(f"responseFormat: Anthropic has no {kind!r}. Give a json_schema, or a type such as 'STRUCT<…>'.")


def conversation_of(messages: list[Any]) -> tuple[Any, list[Any]]:
    """The `system` text (or blocks; `None`: none) and the messages.

    Results of tools that follow one another are one message, as Anthropic wants them.
    """
    system: list[Any] = []
    turns: list[Any] = []
    results: list[Any] | None = None
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in ("system", "developer"):
            system.append(message.get("content"))
            continue
        if role == "tool":
            if results is None:
                results = []
                turns.append({"role": "user", "content": results})
            results.append(
                {
                    "type": "tool_result",
                    "tool_use_id": message.get("tool_call_id"),
                    "content": _content(message.get("content")),
                }
            )
            continue
        results = None
        turns.append(_assistant(message) if role == "assistant" else _turn(message))
    return _system(system), turns


def _system(contents: list[Any]) -> Any:
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents) or None
    blocks: list[Any] = []
    for content in contents:
        blocks += content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    return blocks


def _turn(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {"role": message.get("role"), "content": _content(message.get("content"))}


def _assistant(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return {"role": "assistant", "content": _content(message.get("content"))}
    content = _content(message.get("content"))
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    return {"role": "assistant", "content": [*blocks, *map(_tool_use, calls)]}


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            arguments = {"arguments": arguments}  # what the model wrote, although it is no JSON
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments or {}}


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content if content is not None else ""
    return [_block(block) for block in content]


def _block(block: Any) -> Any:
    if not isinstance(block, Mapping) or block.get("type") != "image_url":
        return block
    image = block.get("image_url")
    url = image.get("url", "") if isinstance(image, Mapping) else str(image)
    data = _DATA_URL.match(url)
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    source = {"type": "base64", "media_type": data.group(1), "data": url[data.end() :]}
    return {"type": "image", "source": source}
