"""Requests signed with AWS credentials: what is signed, and what follows a refusal."""

import asyncio
import json

import pytest

from batch_infer.adapters.credentials.bearer import Token, TokenSource
from batch_infer.adapters.credentials.secrets import resolve
from batch_infer.adapters.credentials.signing import Keys, SigningTransport, region_of
from batch_infer.adapters.transport import HttpReply
from batch_infer.contract.errors import JobRejected
from batch_infer.contract.secret import SecretReference

URL = "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1/chat/completions"


class Recording:
    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.sent = []

    async def post(self, url, headers, body, *, timeout_s):
        self.sent.append(dict(headers))
        return HttpReply(self.statuses.pop(0), {}, b"{}")


def keys_of(*names):
    left = list(names)

    async def fetch():
        name = left.pop(0)
        return Token(json.dumps({"access_key": name, "secret_key": "s", "token": "session"}))

    return TokenSource(fetch)


def post(transport):
    headers = {"content-type": "application/json"}
    return asyncio.run(transport.post(URL, headers, b'{"model":"m"}', timeout_s=5))


def test_a_request_carries_a_signature_for_its_region_and_the_session_token():
    inner = Recording(200)
    post(SigningTransport(inner, keys_of("AKID")))
    (sent,) = inner.sent
    assert sent["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
    assert "/us-west-2/bedrock/aws4_request" in sent["authorization"]
    assert sent["x-amz-security-token"] == "session"
    assert "x-amz-date" in sent


def test_a_refusal_is_followed_by_one_request_with_fresh_credentials():
    inner = Recording(403, 200)
    assert post(SigningTransport(inner, keys_of("OLD", "NEW"))).status == 200
    assert ["OLD" in sent["authorization"] for sent in inner.sent] == [True, False]


def test_the_same_credentials_are_not_tried_twice():
    inner = Recording(403)
    assert post(SigningTransport(inner, keys_of("OLD", "OLD"))).status == 403


def test_credentials_print_nothing():
    assert "s3cret" not in repr(Keys("a", "s3cret"))


def test_an_address_without_a_region_is_refused():
    assert region_of("https://vpce-1.bedrock-runtime.eu-central-1.vpce.amazonaws.com/x") == "eu-central-1"
    with pytest.raises(JobRejected, match="no AWS region"):
        region_of("https://gateway.example.com/v1")


def test_credentials_come_from_the_aws_chain(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    found = json.loads(resolve(SecretReference.parse("aws:default")))
    assert found == {"access_key": "AKIDEXAMPLE", "secret_key": "s3cret", "token": None}
