"""Bearer tokens: fetched once, renewed before they expire and once after a 401, never in an error."""

import asyncio
import base64
import json

import pytest

from batch_infer.adapters.credentials.bearer import BearerTransport, Token, TokenSource
from batch_infer.adapters.credentials.oauth import client_credentials
from batch_infer.adapters.transport import HttpReply
from batch_infer.contract.errors import JobRejected, Throttled, Transient
from batch_infer.testing import FakeTransport, json_reply


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Issuer:
    """Gives t1, t2, …; raises the errors it is given first."""

    def __init__(self, lifetime_s=3600.0, errors=()):
        self.lifetime_s = lifetime_s
        self.errors = list(errors)
        self.fetched = 0

    async def __call__(self):
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.fetched += 1
        return Token(f"t{self.fetched}", self.lifetime_s)


def test_many_requests_at_once_fetch_one_token():
    issuer = Issuer()
    source = TokenSource(issuer, Clock())

    async def main():
        return await asyncio.gather(*(source.token() for _ in range(20)))

    assert set(asyncio.run(main())) == {"t1"}
    assert issuer.fetched == 1


@pytest.mark.parametrize(("lifetime_s", "good_s"), [(3600, 3300), (400, 200), (10, 5)])
def test_a_token_is_renewed_before_it_expires_and_not_earlier(lifetime_s, good_s):
    clock, issuer = Clock(), Issuer(lifetime_s)
    source = TokenSource(issuer, clock)

    async def main():
        first = await source.token()
        clock.now += good_s - 1
        second = await source.token()
        clock.now += 1
        return first, second, await source.token()

    assert asyncio.run(main()) == ("t1", "t1", "t2")


def test_a_token_of_unknown_life_is_kept():
    clock = Clock()
    source = TokenSource(Issuer(None), clock)

    async def main():
        await source.token()
        clock.now += 1e9
        return await source.token()

    assert asyncio.run(main()) == "t1"


def test_a_renewal_that_fails_leaves_the_old_token_while_it_is_good(caplog):
    clock, issuer = Clock(), Issuer(3600)
    source = TokenSource(issuer, clock)

    async def main():
        await source.token()
        issuer.errors = [Transient("down", kind="server_error"), Throttled("slow", kind="rate_limited")]
        clock.now += 3400
        kept = await source.token()
        clock.now += 200
        with pytest.raises(Throttled):
            await source.token()
        return kept, await source.token()

    assert asyncio.run(main()) == ("t1", "t2")
    assert "could not be renewed" in caplog.text


def send(transport, source, *, times=1):
    async def main():
        bearer = BearerTransport(transport, source)
        return [await bearer.post("http://x/y", {"a": "b"}, b"body", timeout_s=3) for _ in range(times)]

    return asyncio.run(main())


def test_a_refused_token_is_renewed_once_and_the_request_repeated():
    transport = FakeTransport([json_reply({}, 401), json_reply({"ok": 1}), json_reply({"ok": 2})])
    replies = send(transport, TokenSource(Issuer(), Clock()), times=2)
    assert [reply.status for reply in replies] == [200, 200]
    assert [request.headers["authorization"] for request in transport.requests] == [
        "Bearer t1", "Bearer t2", "Bearer t2",
    ]  # fmt: skip
    assert {(request.url, request.body, request.headers["a"]) for request in transport.requests} == {
        ("http://x/y", b"body", "b")
    }


def test_a_second_refusal_stands():
    transport = FakeTransport([json_reply({}, 401), json_reply({}, 401)])
    assert send(transport, TokenSource(Issuer(), Clock()))[0].status == 401
    assert len(transport.requests) == 2


def test_a_token_that_another_request_renewed_is_used():
    issuer = Issuer()
    source = TokenSource(issuer, Clock())

    async def main():
        old = await source.token()
        return await asyncio.gather(*(source.after_refusal(old) for _ in range(5)))

    assert asyncio.run(main()) == ["t2"] * 5
    assert issuer.fetched == 2


def test_an_endpoint_that_repeats_the_token_does_not_bring_it_into_a_message():
    async def issue():
        return Token("a-token-of-no-known-shape")

    transport = FakeTransport([HttpReply(400, {}, b"Bad token a-token-of-no-known-shape.")])
    (reply,) = send(transport, TokenSource(issue, Clock()))
    assert reply.body == b"Bad token [redacted]."
    assert "a-token" not in repr(Token("a-token-of-no-known-shape"))


# OAuth


def fetch(*steps, workspace="https://w.example.com/"):
    transport = FakeTransport(list(steps))
    work = client_credentials("'mine'", transport, workspace, "an:id", "a secret/1")
    return transport, work


def test_a_token_request_is_rfc_6749s_with_databricks_scope():
    transport, work = fetch(json_reply({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}))
    assert asyncio.run(work()) == Token("t", 3600)
    (request,) = transport.requests
    assert request.url == "https://w.example.com/oidc/v1/token"
    assert request.body == b"grant_type=client_credentials&scope=all-apis"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    scheme, _, pair = request.headers["authorization"].partition(" ")
    assert (scheme, base64.b64decode(pair)) == ("Basic", b"an%3Aid:a%20secret%2F1")


@pytest.mark.parametrize(
    ("reply", "cls"),
    [
        (json_reply({"error": "invalid_client", "error_description": "a secret/1 is wrong"}, 401), JobRejected),
        (json_reply({"error": "invalid_request"}, 400), JobRejected),
        (json_reply({"error": "x"}, 503), Throttled),
        (json_reply({"error": "x"}, 500), Transient),
        (HttpReply(200, {}, b"<html>"), JobRejected),
        (json_reply({"token": "t"}), JobRejected),
    ],
    ids=str,
)
def test_no_token_is_an_error_of_its_class_that_names_the_endpoint(reply, cls):
    _, work = fetch(reply)
    with pytest.raises(cls) as raised:
        asyncio.run(work())
    assert "'mine'" in raised.value.message
    assert "a secret" not in str(raised.value)
    if cls is JobRejected:
        assert raised.value.kind == "authentication"


def test_a_token_request_body_holds_no_secret():
    transport, work = fetch(json_reply({"access_token": "t"}))
    asyncio.run(work())
    assert b"secret" not in transport.requests[0].body
    assert "secret" not in json.dumps(transport.requests[0].url)
