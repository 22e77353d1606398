"""Owns OAuth machine-to-machine: a client's id and secret to a bearer token. Does not keep tokens: `tokens` does.

Source: RFC 6749, section 4.4 (client credentials); Databricks' `/oidc/v1/token` with the scope `all-apis`.

On workers.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlencode

import msgspec

from batch_infer.adapters.credentials.bearer import Token
from batch_infer.adapters.transport import Transport
from batch_infer.adapters.transport.status import error_of
from batch_infer.contract.errors import JobRejected, RowRejected

TOKEN_PATH = "/oidc/v1/token"  # noqa: S105 - a path
SCOPE = "all-apis"
TIMEOUT_S = 30.0


class _Answer(msgspec.Struct):
    access_token: str
    expires_in: float | None = None


_answer = msgspec.json.Decoder(_Answer)


def client_credentials(
    where: str, transport: Transport, workspace: str, client_id: str, client_secret: str
) -> Callable[[], Awaitable[Token]]:
    """What fetches a token of a workspace for a client.

    Args:
        where: The endpoint's name, for messages.
        transport: Posts.
        workspace: The workspace's address.
        client_id: The service principal's application id.
        client_secret: Its OAuth secret.
    """
    url = workspace.rstrip("/") + TOKEN_PATH
    pair = f"{quote(client_id, safe='')}:{quote(client_secret, safe='')}"  # RFC 6749, section 2.3.1
    headers = {
        "authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
        "content-type": "application/x-www-form-urlencoded",
        "accept": "application/json",
    }
    body = urlencode({"grant_type": "client_credentials", "scope": SCOPE}).encode()

    async def fetch() -> Token:
        reply = await transport.post(url, headers, body, timeout_s=TIMEOUT_S)
        if not 200 <= reply.status < 300:
            said = reply.body.decode("utf-8", "replace").replace(client_secret, "[redacted]").encode()
            error = error_of(f"{where} (its OAuth token)", reply.status, reply.headers, said)
            if isinstance(error, RowRejected) or error.kind == "authentication":
                raise JobRejected(
                    f"{error.message} Check that client_id and client_secret lead to a service principal of this "
                    "workspace.",
                    kind="authentication",
                    status=reply.status,
                    request_id=error.request_id,
                )
            raise error
        try:
            answer = _answer.decode(reply.body)
        except msgspec.DecodeError:
            raise JobRejected(
                f"endpoint {where}: {url} did not answer with an OAuth token. Check that base_url is the workspace's "
                "address.",
                kind="authentication",
                status=reply.status,
            ) from None
        return Token(answer.access_token, answer.expires_in)

    return fetch
