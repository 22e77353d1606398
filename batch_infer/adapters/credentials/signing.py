"""Owns requests signed with AWS credentials (SigV4), by botocore. Does not keep credentials: `bearer.TokenSource` does.

On workers. A signature holds the time, so each attempt is signed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from batch_infer.adapters.credentials.bearer import TokenSource
from batch_infer.adapters.transport import HttpReply, Transport
from batch_infer.contract.errors import JobRejected

SERVICE = "bedrock"
"""Name that Bedrock's runtime endpoints expect in a signature's scope."""


class Keys(msgspec.Struct, frozen=True):
    """One set of AWS credentials, as the secret behind an `aws:` reference holds them, in JSON."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Keys(redacted)"


class SigningTransport:
    """A `Transport` that signs each request, and repeats one that was refused (403) with fresh credentials, once.

    Args:
        inner: Sends.
        keys: Gives the credentials as JSON; renewed in time.
        region: The endpoint's; `None` reads it from the host's name.
    """

    def __init__(self, inner: Transport, keys: TokenSource, region: str | None = None) -> None:
        self._inner = inner
        self._keys = keys
        self._region = region

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float | None) -> HttpReply:
        """See `Transport.post`.

        Raises:
            EndpointError: as `Transport.post`, or no credentials could be had.
        """
        text = await self._keys.token()
        reply = await self._inner.post(url, self._signed(text, url, headers, body), body, timeout_s=timeout_s)
        if reply.status != 403:
            return reply
        renewed = await self._keys.after_refusal(text)
        if renewed == text:
            return reply
        return await self._inner.post(url, self._signed(renewed, url, headers, body), body, timeout_s=timeout_s)

    async def close(self) -> None:
        """Closes the transport below."""
        await self._inner.close()

    def _signed(self, text: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        from botocore.auth import SigV4Auth  # noqa: PLC0415 - an extra, needed by few
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        keys = msgspec.json.decode(text, type=Keys)
        request = AWSRequest(method="POST", url=url, headers=dict(headers), data=body)
        credentials = Credentials(keys.access_key, keys.secret_key, keys.token)
        SigV4Auth(credentials, SERVICE, self._region or region_of(url)).add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}


def region_of(url: str) -> str:
    """The AWS region in an address such as `bedrock-runtime.us-east-1.amazonaws.com`.

    Raises:
        JobRejected: it names none.
    """
    parts = (urlsplit(url).hostname or "").split(".")
    for part in parts:
        if part.count("-") >= 2 and part[-1:].isdigit():
            return part
    raise JobRejected(
        f"the address {url} names no AWS region, which a signature needs. Use an address such as "
        "'https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1', or a Bedrock API key.",
        kind="config",
    )
