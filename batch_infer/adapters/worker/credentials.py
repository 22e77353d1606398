"""Owns what a worker authenticates with: an endpoint's references resolved, here or by the driver, to a key or tokens.

Does not resolve a reference itself: `adapters.credentials.secrets` does.

On workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from batch_infer.adapters.coordinator.client import DriverError
from batch_infer.adapters.credentials.bearer import BearerTransport, Token, TokenSource
from batch_infer.adapters.credentials.oauth import client_credentials
from batch_infer.adapters.credentials.secrets import Secret, resolve
from batch_infer.adapters.credentials.signing import SigningTransport
from batch_infer.adapters.providers.invocations import workspace_url
from batch_infer.adapters.transport import Transport
from batch_infer.adapters.worker.process import WorkerProcess
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import JobRejected
from batch_infer.contract.secret import SHORT_LIVED, SecretReference, is_reference

SHORT_LIVED_S = 900.0
"""Seconds after which a short-lived secret is asked for again; also after a refusal. Libraries hand out the same one
until it expires, and do not say when."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What requests carry: a key that the wire format puts into its header, or tokens that change; or nothing."""

    api_key: str | None = field(default=None, repr=False)
    tokens: TokenSource | None = None
    signs: bool = False
    """Whether `tokens` are AWS credentials, which sign requests, and not bearer tokens."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`Endpoint.headers`, their references resolved."""
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`Endpoint.query`, likewise."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What must not appear in a message."""

    def over(self, transport: Transport) -> Transport:
        """The transport, with tokens or signatures where there are any."""
        if self.tokens is None:
            return transport
        return SigningTransport(transport, self.tokens) if self.signs else BearerTransport(transport, self.tokens)


def open_credentials(
    endpoint: Endpoint, process: WorkerProcess, ask: Callable[[SecretReference], str | None]
) -> Credentials:
    """An endpoint's credentials, for one task. Blocks while references are resolved; fetches no token yet.

    Args:
        endpoint: Whose.
        process: Keeps tokens for all tasks.
        ask: Gives a secret that this process cannot resolve: the task's link to the driver.

    Raises:
        JobRejected: a reference leads to nothing.
        DriverError: the driver does not answer, or refuses.
    """

    def secret(name: str, reference: SecretReference) -> str:
        value = resolve(reference)
        if value is None:
            value = ask(reference)
        if value is None:
            raise JobRejected(
                f"endpoint {endpoint.name!r}: its {name} {str(reference)!r} leads to nothing, neither on the worker "
                "nor on the driver. Set it on the driver before running the query.",
                kind="authentication",
            )
        return value

    given: dict[str, dict[str, str]] = {}
    resolved: list[str] = []
    for name, pairs in (("headers", endpoint.headers), ("query", endpoint.query)):
        given[name] = {}
        for key, value in pairs:
            if is_reference(value):
                given[name][key] = secret(f"{name}[{key!r}]", SecretReference.parse(value))
                resolved.append(given[name][key])
            else:
                given[name][key] = value
    authenticated = _authenticated(endpoint, process, secret)
    if authenticated.api_key is not None:
        resolved.append(authenticated.api_key)
    return replace(authenticated, headers=given["headers"], query=given["query"], secrets=tuple(resolved))


def _authenticated(
    endpoint: Endpoint, process: WorkerProcess, secret: Callable[[str, SecretReference], str]
) -> Credentials:
    """What an endpoint's own fields for authentication lead to."""
    if endpoint.client_id is not None and endpoint.client_secret is not None:
        workspace = workspace_url(endpoint.base_url)
        client_id = secret("client_id", SecretReference.parse(endpoint.client_id))
        client_secret = secret("client_secret", SecretReference.parse(endpoint.client_secret))
        fetch = client_credentials(
            repr(endpoint.name), process.transport(endpoint), workspace, client_id, client_secret
        )
        # The secret is part of the identity: one that was replaced must not go on under its old token.
        return Credentials(tokens=process.tokens((workspace, client_id, Secret(client_secret)), fetch))
    if endpoint.api_key is None:
        return Credentials()
    reference = SecretReference.parse(endpoint.api_key)
    if reference.scheme not in SHORT_LIVED:
        return Credentials(api_key=secret("api_key", reference))
    # Made anew for each task, because only this call's id may ask the driver.
    tokens = TokenSource(_asked_again(lambda: secret("api_key", reference), repr(endpoint.name)))
    return Credentials(tokens=tokens, signs=reference.scheme == "aws")


def _asked_again(ask: Callable[[], str], where: str) -> Callable[[], Awaitable[Token]]:
    async def fetch() -> Token:
        try:
            return Token(await asyncio.to_thread(ask), SHORT_LIVED_S)
        except DriverError as error:
            raise JobRejected(f"endpoint {where}: {error}", kind="unreachable") from None

    return fetch
