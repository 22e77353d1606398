"""A chat's messages on the wire: prompts, messages as they were written, images, further turns."""

import json

from batch_infer.adapters.providers.request_messages import messages_json, messages_of
from batch_infer.contract.request import Request

PNG = b"\x89PNG\r\n\x1a\n00"
SIGNED = '{"role": "assistant", "content": [{"signature": "Eq\\u002b/=="}], "n": 1.50}'


def ask(content, **fields):
    return Request(key="k", content=content, **fields)


def test_a_prompt_is_one_message():
    assert messages_of(ask("grüß dich")) == [{"role": "user", "content": "grüß dich"}]


def test_messages_are_passed_on_byte_for_byte():
    written = f'[ {SIGNED},  {{"content":"x","role":"user"}} ]'.encode()
    assert messages_json(ask(written)) == written


def test_turns_follow_and_leave_what_was_written_untouched():
    request = ask(f"[{SIGNED}]".encode(), turns=(("wrong", "mend it"), ("still wrong", "mend that")))
    assert messages_json(request).startswith(f"[{SIGNED},".encode())
    assert messages_of(request)[1:] == [
        {"role": "assistant", "content": "wrong"},
        {"role": "user", "content": "mend it"},
        {"role": "assistant", "content": "still wrong"},
        {"role": "user", "content": "mend that"},
    ]
    assert messages_of(ask("q", turns=(("a", "b"),)))[0] == {"role": "user", "content": "q"}


def test_images_join_the_users_last_message_and_leave_the_others_untouched():
    asked = '{"name": "ann", "role": "user", "content": [{"type": "text", "text": "what?", "x": 1.0}]}'
    written = messages_json(ask(f"[{SIGNED}, {asked}, {SIGNED}]".encode(), files=(PNG,), turns=(("a", "b"),)))
    assert written.count(SIGNED.encode()) == 2
    assert b'{"type": "text", "text": "what?", "x": 1.0}' in written
    messages = json.loads(written)
    assert [block["type"] for block in messages[1]["content"]] == ["text", "image_url"]
    assert messages[1]["name"] == "ann"
    assert messages[1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_images_beside_text_and_beside_no_message_of_the_user():
    assert messages_of(ask("what?", files=(PNG,)))[0]["content"][0] == {"type": "text", "text": "what?"}
    alone = messages_of(ask(f"[{SIGNED}]".encode(), files=(PNG, PNG)))
    assert [block["type"] for block in alone[1]["content"]] == ["image_url", "image_url"]
    empty = messages_of(ask(b'[{"role":"user","content":null}]', files=(PNG,)))
    assert empty[0]["content"][0] == {"type": "text", "text": ""}
