"""Owns did-you-mean for models: a server of one's own is asked which it has, before a call is planned. On the driver.

Only providers whose record names a `model_list` are asked, and an answer is kept for a minute. Where the list cannot be
had (no answer, a key that only workers know), nothing is said: the call itself will tell.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from batch_infer.adapters.credentials.secrets import resolve
from batch_infer.adapters.providers import PROVIDERS
from batch_infer.adapters.transport.listing import get_json
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.misspelt import did_you_mean
from batch_infer.contract.secret import SecretReference

KEPT_S = 60.0
"""Seconds that a server's list is believed."""
SHOWN = 12
"""Models that a message names, at most."""

_lists: dict[str, tuple[float, list[str]]] = {}
_lock = threading.Lock()


def check_model(endpoint: Endpoint) -> None:
    """Refuses a model that the endpoint's server does not have.

    Raises:
        ConfigError: names the nearest model, and those that there are.
    """
    provider = PROVIDERS[endpoint.provider]
    if provider.model_list is None:
        return
    names = _names(endpoint, endpoint.base_url.rstrip("/") + provider.model_list)
    if not names or endpoint.model in names or f"{endpoint.model}:latest" in names:
        return
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    raise ConfigError(
        f"endpoint {endpoint.name!r}: the server at {endpoint.base_url} has no model {endpoint.model!r}."
        f"{did_you_mean(endpoint.model, names)} It has: {shown}."
    )


def _names(endpoint: Endpoint, url: str) -> list[str]:
    with _lock:
        known = _lists.get(url)
    if known is not None and time.monotonic() - known[0] < KEPT_S:
        return known[1]
    key = None if endpoint.api_key is None else resolve(SecretReference.parse(endpoint.api_key))
    names = _read(get_json(url, PROVIDERS[endpoint.provider].credentials(key) if key else {}))
    with _lock:
        _lists[url] = (time.monotonic(), names)
    return names


def _read(document: Any) -> list[str]:
    """The names in OpenAI's form of a list: `{"data": [{"id": …}]}`."""
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        return []
    return [str(model["id"]) for model in data if isinstance(model, dict) and model.get("id")]


def forget() -> None:
    """Asks every server again at its next plan; for tests."""
    with _lock:
        _lists.clear()
