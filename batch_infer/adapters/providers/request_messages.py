"""Owns a chat's messages on the wire: prompt or messages, images, further turns. The same for every chat protocol.

Messages that came as JSON are passed on byte for byte, except the one that images are added to.

On workers.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from batch_infer.contract.request import Request

_encode = msgspec.json.Encoder().encode
_raw_items = msgspec.json.Decoder(list[msgspec.Raw])
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def messages_of(request: Request) -> list[dict[str, Any]]:
    """The whole conversation as decoded messages, for protocols that write them in another form."""
    return list(msgspec.json.decode(messages_json(request)))


def messages_json(request: Request) -> bytes:
    """The whole conversation as a JSON array in OpenAI's form."""
    content = request.content
    asked = content if isinstance(content, bytes) else _encode([{"role": "user", "content": content}])
    if not request.files and not request.turns:
        return asked
    messages: list[Any] = _raw_items.decode(asked)
    if request.files:
        _add_images(messages, request.files)
    for said, told in request.turns:
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": told}]
    return _encode(messages)


def _add_images(messages: list[Any], files: Sequence[bytes]) -> None:
    """Adds images to the last message of the user, or as one more message where there is none."""
    images = [{"type": "image_url", "image_url": {"url": _data_url(file)}} for file in files]
    for i in reversed(range(len(messages))):
        message = _raw_members.decode(messages[i])
        if msgspec.json.decode(message.get("role", b"null")) == "user":
            written = bytes(message.get("content", b"null"))
            is_blocks = written.lstrip().startswith(b"[")
            blocks: list[Any] = _raw_items.decode(written) if is_blocks else [_text_block(written)]
            messages[i] = {**message, "content": [*blocks, *images]}
            return
    messages.append({"role": "user", "content": images})


def _text_block(written: bytes) -> dict[str, Any]:
    return {"type": "text", "text": msgspec.json.decode(written) or ""}


_IMAGE_KINDS = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))


def _data_url(file: bytes) -> str:
    kind = next((name for magic, name in _IMAGE_KINDS if file.startswith(magic)), None)
    if kind is None and file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        kind = "image/webp"
    return f"data:{kind or 'application/octet-stream'};base64,{base64.b64encode(file).decode()}"
