"""Owns the fault endpoint's OAuth: which tokens it has issued to its client, and how long they are good. Pure."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs, unquote

TOKEN_PATH = "/oidc/v1/token"  # noqa: S105 - a path


class IssuedTokens:
    """Tokens of the one client that the endpoint knows.

    Args:
        client: Its id and secret, `id:secret`.
        lifetime_s: What `expires_in` says.
        uses: Requests that a token is good for; `None`: any number.
    """

    def __init__(self, client: str, lifetime_s: float, uses: int | None) -> None:
        self._client = client
        self._lifetime_s = lifetime_s
        self._uses = uses
        self._left: dict[str, float] = {}

    def issue(self, authorization: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a token request."""
        scheme, _, credentials = authorization.partition(" ")
        try:
            pair = base64.b64decode(credentials).decode() if scheme.lower() == "basic" else ""
        except ValueError:
            pair = ""
        if ":".join(map(unquote, pair.split(":", 1))) != self._client:
            return 401, {"error": "invalid_client", "error_description": "Client authentication failed"}
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        if form.get("grant_type") != "client_credentials" or form.get("scope") != "all-apis":
            return 400, {"error": "invalid_request", "error_description": "grant_type or scope"}
        token = f"issued-token-{len(self._left) + 1}"
        self._left[token] = float("inf") if self._uses is None else self._uses
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self._lifetime_s, "scope": "all-apis"}

    def accepts(self, token: str | None) -> bool:
        """Whether a request with this token passes; uses it up by one."""
        left = self._left.get(token or "", 0)
        if left <= 0:
            return False
        self._left[token or ""] = left - 1
        return True
