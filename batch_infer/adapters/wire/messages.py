"""Owns how a row's request becomes chat messages: the prompt, its messages, its images. Pure; OpenAI's form."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from batch_infer.contract.request import Request

_IMAGE_KINDS = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


def messages_of(request: Request) -> list[Any]:
    """The messages of a chat request. A prompt is one message of the user; images join the user's last message."""
    content = request.content
    messages: list[Any] = (
        msgspec.json.decode(content) if isinstance(content, bytes) else [{"role": "user", "content": content}]
    )
    return _with_files(messages, request.files) if request.files else messages


def _with_files(messages: list[Any], files: Sequence[bytes]) -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": data_url(file)}} for file in files]
    asking = [i for i, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user"]
    if not asking:
        return [*messages, {"role": "user", "content": images}]
    message = messages[asking[-1]]
    content = message.get("content")
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    messages[asking[-1]] = {**message, "content": [*blocks, *images]}
    return messages


def data_url(file: bytes) -> str:
    """A file as a `data:` URL; its kind is told by its first bytes."""
    kind = next((name for magic, name in _IMAGE_KINDS if file.startswith(magic)), None)
    if kind is None and file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        kind = "image/webp"
    return f"data:{kind or 'application/octet-stream'};base64,{base64.b64encode(file).decode()}"
