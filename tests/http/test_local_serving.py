"""The embedded models on real servers. Answers are weak: nothing is asserted about their content."""

import asyncio
import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.adapters.local.server import LocalServers
from batch_infer.adapters.local.truncate import fit, server_tokenizer
from batch_infer.adapters.transport import HttpReply
from batch_infer.contract.errors import ConfigError
from tests.support.paths import ROOT

pytestmark = pytest.mark.local_model


@pytest.fixture(scope="module")
def servers():
    servers = LocalServers()
    yield servers
    servers.stop()


@pytest.fixture
def client():
    with httpx.Client(timeout=120, trust_env=False) as client:
        yield client


def chat(client, url, content, **parameters):
    reply = client.post(
        f"{url}/chat/completions",
        json={"messages": [{"role": "user", "content": content}], "max_tokens": 10, "temperature": 0, **parameters},
    )
    assert reply.status_code == 200, reply.text
    return reply.json()


def embed(client, url, inputs):
    reply = client.post(f"{url}/embeddings", json={"input": inputs})
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [item["index"] for item in data] == list(range(len(inputs)))
    return [item["embedding"] for item in data], reply.json()["usage"]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def dead(pid, timeout_s=30.0):
    """Waits until a process that need not be ours has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


class Transport:
    def __init__(self, client):
        self.client = client

    async def post(self, url, headers, body, *, timeout_s):
        reply = self.client.post(url, headers=headers, content=body, timeout=timeout_s)
        return HttpReply(reply.status_code, reply.headers, reply.content)

    async def close(self):
        pass


def test_chat_answers_two_requests_at_once_and_names_its_model(servers, client):
    url = servers.url("chat")
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda name: chat(client, url, f"Say hello to {name}."), ["Ann", "Bob"]))
    for reply in replies:
        assert reply["choices"][0]["message"]["content"]
        assert 1 <= reply["usage"]["completion_tokens"] <= 10
        assert reply["model"] == LOCAL_MODELS["chat"].model_id


def test_chat_keeps_to_a_json_schema(servers, client):
    schema = {"type": "json_schema", "json_schema": {"name": "mood", "schema": {"enum": ["good", "bad"]}}}
    reply = chat(client, servers.url("chat"), "Is a sunny day good or bad?", response_format=schema)
    assert reply["choices"][0]["message"]["content"] in ('"good"', '"bad"')


def test_each_slot_of_chat_has_the_whole_context(servers, client):
    models = client.get(f"{servers.url('chat')}/models").json()
    assert models["data"][0]["meta"]["n_ctx"] == LOCAL_MODELS["chat"].context_tokens


def test_embeddings_are_normalised_and_equal_texts_are_equal(servers, client):
    (a, b, c, d), usage = embed(client, servers.url("embed"), ["a cat", "a kitten", "tax law", "a cat"])
    assert {len(vector) for vector in (a, b, c, d)} == {LOCAL_MODELS["embed"].dimensions}
    for vector in (a, b, c, d):
        assert dot(vector, vector) == pytest.approx(1, abs=1e-5)
    assert a == pytest.approx(d, abs=1e-6)
    assert dot(a, b) > dot(a, c) + 0.3
    assert usage["prompt_tokens"] == 16


def test_an_empty_text_has_an_embedding(servers, client):
    (vector,), _ = embed(client, servers.url("embed"), [""])
    assert dot(vector, vector) == pytest.approx(1, abs=1e-5)


def test_texts_and_token_ids_mix_in_one_request(servers, client):
    url = servers.url("embed")
    ids = asyncio.run(server_tokenizer(url, Transport(client))("hello world"))
    (as_text, as_ids, _), _ = embed(client, url, ["hello world", ids, "something else"])
    assert as_ids == pytest.approx(as_text, abs=1e-6)


def test_a_text_that_is_too_long_is_embedded_by_its_beginning(servers, client):
    url = servers.url("embed")
    tokenize = server_tokenizer(url, Transport(client))
    texts = ["short", "rain falls " * 5000, "雨" * 2000, "rain falls " * 255]
    inputs = asyncio.run(fit(texts, tokenize))
    assert [type(item) for item in inputs] == [str, list, list, str]
    (_, long, _, exact), usage = embed(client, url, inputs)
    assert usage["prompt_tokens"] == 3 + 512 * 3
    assert long == pytest.approx(exact, abs=1e-6)


def test_no_text_has_more_tokens_than_decomposed_characters(servers, client):
    tokenize = server_tokenizer(servers.url("embed"), Transport(client))
    seeded = random.Random(5)
    ranges = [(0x20, 0x7F), (0xA0, 0x24F), (0x370, 0x3FF), (0x1F00, 0x1FFF), (0x3040, 0x30FF), (0x4E00, 0x4FFF)]
    ranges += [(0xAC00, 0xD7A3), (0x2580, 0x25FF), (0x1F300, 0x1F6FF), (0x900, 0x97F), (0x1D15E, 0x1D1C0)]
    for _ in range(20):
        for first, last in ranges:
            text = "".join(chr(seeded.randint(first, last)) for _ in range(30))
            assert len(asyncio.run(tokenize(text))) <= len(unicodedata.normalize("NFD", text)) + 2, ascii(text)


def test_a_killed_server_is_started_again_on_its_port(servers, client):
    url, pid = servers.url("embed"), servers.pid("embed")
    os.kill(pid, signal.SIGKILL)
    assert dead(pid)
    assert servers.url("embed") == url
    assert servers.pid("embed") != pid
    embed(client, url, ["still here"])


def test_a_damaged_model_is_reported_with_what_the_server_said(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF but not really")
    servers = LocalServers(weights=lambda model: damaged)
    with pytest.raises(ConfigError, match=r"(?s)did not start.*exit code 1.*fail"):
        servers.url("chat")


PARENT = """
import os, signal, sys
from batch_infer.adapters.local.server import LocalServers
servers = LocalServers()
print(servers.url("embed"), servers.pid("embed"), flush=True)
if sys.argv[1:] == ["fork"] and os.fork() == 0:
    signal.pause()
sys.stdin.read()
"""


@pytest.fixture
def parent(request):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, *getattr(request, "param", ())],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    url, pid = process.stdout.readline().split()
    yield process, url, int(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("parent", [(), ("fork",)], ids=["alone", "with a fork that holds its pipes"], indirect=True)
def test_the_server_dies_with_a_parent_that_is_killed(parent):
    process, _, pid = parent
    process.kill()
    process.wait()
    assert dead(pid)


def test_the_server_dies_with_a_parent_that_exits(parent):
    process, _, pid = parent
    process.stdin.close()
    assert process.wait(30) == 0
    assert dead(pid)


def test_the_server_leaves_ctrl_c_to_its_parent_and_obeys_sigterm(parent, client):
    _, url, pid = parent
    os.kill(pid, signal.SIGINT)
    embed(client, url, ["still here"])
    os.kill(pid, signal.SIGTERM)
    assert dead(pid)


def test_the_server_dies_with_its_parent_while_a_reply_is_being_written(client):
    servers = LocalServers()
    url, pid = servers.url("chat"), servers.pid("chat")
    body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4000, "stream": True, "ignore_eos": True}
    with client.stream("POST", f"{url}/chat/completions", json=body) as reply:
        next(reply.iter_lines())
        servers.stop()
        assert dead(pid, timeout_s=5)
