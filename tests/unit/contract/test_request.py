"""The request key: as its documentation says, everywhere the same, and different whenever the reply can differ."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.request import CallIdentity, Request

ENDPOINT = ("openai", "https://api.example.com/v1", "m")
PARAMETERS = {"temperature": 0.0, "max_tokens": 20}
FORMAT = {"type": "json_object"}


def call(**changed):
    parts = {"endpoint": ENDPOINT, "task": "chat", "parameters": PARAMETERS, "response_format": FORMAT}
    return CallIdentity(**{**parts, **changed})


def documented_key(shared, content, files, sample):
    """The construction in the module's docstring, with the standard library alone."""

    def digest(data):
        return hashlib.blake2b(data, digest_size=16).digest()

    parts = [
        b"batch_infer/1",
        json.dumps(shared, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
        b"p" + content.encode() if isinstance(content, str) else b"m" + content,
        *(b"f" + digest(file) for file in files),
        f"s{sample}".encode(),
    ]
    return digest(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hex()


@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.binary(),
    st.lists(st.binary(), max_size=3),
    st.integers(0, 2**63 - 1),
)
def test_the_key_is_the_documented_construction(content, files, sample):
    expected = documented_key([list(ENDPOINT), "chat", PARAMETERS, FORMAT], content, files, sample)
    assert call().key(content, files, sample) == expected


def test_the_key_is_the_same_in_another_process():
    program = (
        "from batch_infer.contract.request import CallIdentity\n"
        f"print(CallIdentity(endpoint={ENDPOINT!r}, task='chat', parameters={PARAMETERS!r},"
        f" response_format={FORMAT!r}).key('grüß dich', [b'x'], 7))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert done.stdout.strip() == call().key("grüß dich", [b"x"], 7)


def test_everything_that_decides_the_reply_changes_the_key():
    keys = [
        call().key("a"),
        call().key("b"),
        call().key(b"a"),
        call().key("a", sample=1),
        call().key("a", [b"x"]),
        call().key("a", [b"y"]),
        call().key("a", [b"x", b"y"]),
        call().key("a", [b"y", b"x"]),
        call().key("a", [b"xy"]),
        call(endpoint=("openai", ENDPOINT[1], "n")).key("a"),
        call(endpoint=("openai", "https://other.example.com", "m")).key("a"),
        call(endpoint=("local", ENDPOINT[1], "m")).key("a"),
        call(task="completions").key("a"),
        call(parameters={}).key("a"),
        call(parameters={**PARAMETERS, "temperature": 0.5}).key("a"),
        call(parameters={**PARAMETERS, "seed": 1}).key("a"),
        call(response_format=None).key("a"),
        call(response_format={"type": "text"}).key("a"),
    ]
    assert len(set(keys)) == len(keys)


def test_the_order_of_parameters_and_of_a_messages_fields_does_not_change_the_key():
    turned = dict(reversed(PARAMETERS.items()))
    assert call(parameters=turned).key("a") == call().key("a")
    first = canonical_messages([{"role": "user", "content": "hello"}])
    assert first == canonical_messages([{"content": "hello", "role": "user"}])


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "another"},
        {"api_key": "env:OTHER"},
        {"requests_per_minute": 5},
        {"tokens_per_minute": 5},
        {"max_concurrency": 1},
        {"timeout_s": 1},
        {"max_attempts": 1},
        {"usd_per_million_prompt_tokens": 1},
        {"transport": "httpx"},
        {"inputs_per_request": 1},
    ],
    ids=str,
)
def test_nothing_else_changes_the_key(changed):
    def key(fields):
        name = fields.pop("name", "mine")
        endpoint = build_endpoint(name, {"base_url": ENDPOINT[1], "model": "m", "api_key": "env:KEY", **fields})
        return call(endpoint=endpoint.identity).key("a")

    assert key(dict(changed)) == key({}) == call().key("a")


def test_a_messages_null_fields_are_left_out_but_its_content():
    messages = [{"role": "assistant", "content": None, "name": None}, {"role": "user", "content": "x", "name": "ann"}]
    assert json.loads(canonical_messages(messages)) == [
        {"role": "assistant", "content": None},
        {"role": "user", "content": "x", "name": "ann"},
    ]


def test_a_requests_size_is_its_content_and_files():
    assert Request(key="k", content="abc", files=(b"12345", b"6")).size_bytes == 9
