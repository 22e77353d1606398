"""The forms of a row's request: which text is messages, what is sent untouched, and what has the same key."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.content import canonical_messages, messages_in, read_content

MESSAGES = '[ {"role":"user","content":"hi"},\n {"content": [{"type":"text","text":"x","n":1.50}], "role":"assistant"}]'
SIGNED = '{"role":"assistant", "content":[{"type":"reasoning","signature":"EqoB\\u002b/==","text":"…"}],"n":1e2}'


def test_a_prompt_is_a_prompt():
    for text in ("hi", "", "[1, 2]", "[INFO] started", '["a"]', "[]", '[{"a": 1}]', '{"role":"user"}', "[" * 90_000):
        assert read_content(text, "chat")[:2] == (text, text)
    assert read_content('[{"role":"user"}, {"a":1}]', "chat").sent == '[{"role":"user"}, {"a":1}]'
    assert read_content(" " + MESSAGES, "chat").sent == " " + MESSAGES


def test_a_json_array_of_messages_is_messages_and_is_sent_as_it_is_written():
    content = read_content(MESSAGES, "chat")
    assert content.sent == MESSAGES.encode()
    assert content.hashed == canonical_messages(json.loads(MESSAGES))


@pytest.mark.parametrize("task", ["completions", "embeddings"])
def test_where_there_are_no_chats_it_is_text(task):
    assert read_content(MESSAGES, task).sent == MESSAGES


def test_the_same_messages_in_every_form_have_the_same_hash():
    rows = [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": None, "name": None}]
    plain = [{"role": "user", "content": "hi"}, {"content": None, "role": "assistant"}]
    forms = [rows, json.dumps(plain), json.dumps(plain, indent=2), [json.dumps(message) for message in plain]]
    assert len({read_content(form, "chat").hashed for form in forms}) == 1
    assert json.loads(read_content(rows, "chat").sent) == plain


def test_messages_as_json_in_an_array_are_spliced_byte_for_byte():
    user = '{"role":"user","content":"hi"}'
    content = read_content([user, SIGNED, user], "chat")
    assert content.sent == f"[{user},{SIGNED},{user}]".encode()
    assert content.problem == ""


def test_a_null_among_messages_makes_a_null_request():
    assert read_content([SIGNED, None], "chat") is None
    assert read_content([None], "chat") is None
    assert read_content(None, "chat") is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "empty array"),
        (["hi"], "element 0 is not a message as JSON"),
        ([SIGNED, '{"content":"x"}'], "element 1 is not a message"),
        ([SIGNED, '{"role":"user"},{"role":"user"}'], "is not a message"),
        ([SIGNED + "]", "[" + SIGNED], "is not a message"),
    ],
    ids=str,
)
def test_what_is_no_message_is_that_rows_problem(value, words):
    assert words in read_content(value, "chat").problem


def test_blocks_lose_the_fields_that_only_others_have():
    rows = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what?", "image_url": None},
                {"type": "image_url", "text": None, "image_url": {"url": "data:…", "detail": None}},
            ],
        }
    ]
    assert json.loads(read_content(rows, "chat").sent) == [
        {
            "role": "user",
            "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:…"}}],
        }
    ]


def test_inputs_of_a_custom_model_are_sent_as_they_are_written():
    content = read_content('{"b": 1.50, "a": null}', "custom")
    assert content.sent == b'{"b": 1.50, "a": null}'
    assert content.hashed == read_content('{"a":null,"b":1.5}', "custom").hashed
    assert content.hashed != read_content('{"b": 1.5}', "custom").hashed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=3), st.booleans())
def test_any_messages_are_sent_byte_for_byte_in_both_forms_of_text(others, ascii_only):
    messages = [{**message, "role": "user"} for message in others]
    texts = [json.dumps(message, ensure_ascii=ascii_only) for message in messages]
    whole = json.dumps(messages, ensure_ascii=ascii_only)
    try:
        whole.encode()
    except UnicodeEncodeError:
        return
    assert messages_in(whole) is not None
    assert read_content(whole, "chat").sent == whole.encode()
    assert read_content(texts, "chat").sent == f"[{','.join(texts)}]".encode()
    assert read_content(texts, "chat").hashed == read_content(whole, "chat").hashed
