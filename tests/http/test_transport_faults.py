"""What becomes of each fault on the wire, through every transport: the class decides what it costs to try again."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from batch_infer.contract.errors import Ambiguous
from batch_infer.testing import BODY_FAULTS, WIRE_FAULTS, FaultEndpoint, Rule

CAP = 1 << 20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FaultEndpoint]:
    """Commits the fault that the prompt names."""
    rules = [Rule(regex=f"^{fault}$", fault=fault, size_bytes=200 * CAP) for fault in sorted(BODY_FAULTS | WIRE_FAULTS)]
    rules.append(Rule("status 500", status=500))
    rules.append(Rule("cookie", headers={"set-cookie": "id=1; Path=/"}))
    rules.append(Rule("repeated", headers={"X-Limit": "first", "x-limit": "second"}))
    with FaultEndpoint(rules=rules) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def _fresh(endpoint: FaultEndpoint) -> None:
    endpoint.wait_until("in_flight", at_most=0)
    endpoint.reset()


@pytest.fixture
def url(endpoint: FaultEndpoint) -> str:
    return f"{endpoint.base_url}/chat/completions"


@pytest.mark.parametrize("fault", ["reset_before_reply", "close_before_reply"])
def test_a_connection_lost_after_the_request_was_sent_is_ambiguous(http: Any, url: str, fault: str) -> None:
    error = http.failure(url, fault)
    assert isinstance(error, Ambiguous)
    assert error.kind == "reset"


def test_a_reset_in_mid_body_is_ambiguous(http: Any, url: str) -> None:
    error = http.failure(url, "reset_mid_body")
    assert isinstance(error, Ambiguous)
    assert error.kind in ("reset", "truncated")  # aiohttp and pyreqwest's layer for httpx do not tell which


def test_a_body_that_ends_early_is_truncated(http: Any, url: str) -> None:
    error = http.failure(url, "close_mid_body")
    assert isinstance(error, Ambiguous)
    assert error.kind == "truncated"


@pytest.mark.parametrize("fault", ["stall", "stall_mid_body", "slowloris"])
def test_the_timeout_covers_the_whole_exchange(http: Any, url: str, fault: str) -> None:
    before = time.monotonic()
    error = http.failure(url, fault, timeout_s=0.3)
    assert isinstance(error, Ambiguous)
    assert error.kind == "timeout"
    assert 0.2 < time.monotonic() - before < 3


@pytest.mark.parametrize("fault", ["gzip_bomb", "huge_body", "huge_chunked"])
def test_a_reply_above_the_cap_is_cut_off(shipped: Any, url: str, fault: str) -> None:
    error = shipped.failure(url, fault, max_reply_bytes=CAP)
    assert isinstance(error, Ambiguous)
    assert error.kind == "reply_too_large"
    assert "1,048,576" in error.message


def test_a_reply_below_the_cap_arrives_whole(shipped: Any) -> None:
    text = "word " * 60_000
    with FaultEndpoint(rules=[Rule(text=text)]) as endpoint:
        reply = shipped.ask(f"{endpoint.base_url}/chat/completions", max_reply_bytes=CAP)
    assert msgspec.json.decode(reply.body)["choices"][0]["message"]["content"] == text


def test_gzip_is_decompressed(http: Any, url: str) -> None:
    reply = http.ask(url, "gzip")
    assert msgspec.json.decode(reply.body)["choices"][0]["message"]["content"] == "echo: gzip"


def test_a_redirect_is_returned_and_not_followed(http: Any, url: str, endpoint: FaultEndpoint) -> None:
    reply = http.ask(url, "redirect")
    assert reply.status == 307
    assert reply.headers["location"] == "/v1/redirected"
    assert endpoint.stats()["paths"] == {"/v1/chat/completions": 1}


def test_cookies_are_not_kept(http: Any, url: str, endpoint: FaultEndpoint) -> None:

    async def main() -> None:
        transport = http.make()
        for _ in range(2):
            reply = await transport.post(url, http.headers, http.body("cookie"), timeout_s=5)
            assert reply.headers["set-cookie"].startswith("id=1")
        await transport.close()

    asyncio.run(main())
    assert endpoint.stats()["requests"] == 2
    assert "cookie" not in endpoint.stats()["header_names"]


def test_an_error_status_is_a_reply_and_is_sent_once(http: Any, url: str, endpoint: FaultEndpoint) -> None:
    reply = http.ask(url, "status 500")
    assert reply.status == 500
    assert b"Scripted 500" in reply.body
    assert endpoint.stats()["requests"] == 1


@pytest.mark.parametrize("fault", ["html_200", "empty_body", "invalid_utf8", "lone_surrogate", "wrong_content_type"])
def test_the_body_is_passed_on_as_it_is(http: Any, url: str, fault: str) -> None:
    reply = http.ask(url, fault)
    assert reply.status == 200
    assert isinstance(reply.body, bytes)
    if fault == "invalid_utf8":
        assert b"echo:\xff\xfe" in reply.body


def test_header_names_are_lower_case_and_the_first_of_a_repeated_one_counts(http: Any, url: str) -> None:
    reply = http.ask(url, "repeated")
    assert reply.headers["x-limit"] == "first"
    assert reply.headers.get("retry-after") is None


@pytest.mark.parametrize("fault", ["reset_before_reply", "close_mid_body", "stall"])
def test_an_error_names_the_endpoint_and_no_secret(http: Any, endpoint: FaultEndpoint, fault: str) -> None:
    url = f"{endpoint.base_url}/chat/completions?api-key={http.key}"
    error = http.failure(url, fault, timeout_s=0.2)
    host_and_port = endpoint.base_url.split("/")[2]
    assert error.message.startswith(f"{host_and_port}: ")
    assert http.key not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None  # the library's exception holds the URL
    assert pickle.loads(pickle.dumps(error)).kind == error.kind
