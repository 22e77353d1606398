"""Owns what both transports read from their surroundings: proxies of the environment and the custom CA file.

On workers.
"""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import NamedTuple

from batch_infer.contract.errors import ConfigError

LOOPBACK = "localhost,127.0.0.1,::1"

KEEP_ALIVE_S = 4.0
"""Seconds for which an idle connection is kept. Below uvicorn's 5 s (also vLLM's), the shortest that is common, so that
requests are not sent into a connection that the server is just closing: such a request counts as possibly billed."""

TCP_KEEP_ALIVE_S = 60.0
"""Seconds between probes on a silent connection. A reply may take minutes, and load balancers forget a connection that
is silent for as little as 240 s (Azure), 350 s (AWS)."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Proxies(NamedTuple):
    """Proxy URLs by scheme of the endpoint, and the hosts that go without (comma-separated)."""

    http: str | None = None
    https: str | None = None
    bypass: str = ""

    def route(self, scheme: str, host: str) -> str | None:
        """The proxy for an endpoint, or `None` for a direct connection."""
        proxy = self.https if scheme == "https" else self.http
        if proxy is None or urllib.request.proxy_bypass_environment(host, {"no": self.bypass}):  # type: ignore[attr-defined]
            return None
        return proxy


def proxies(proxy: str | None) -> Proxies:
    """What a transport's `proxy` argument means.

    Args:
        proxy: A URL for everything but the loopback interface; `""` for no proxy; `None` for what the environment says
            (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    """
    if proxy is not None:
        return Proxies(proxy or None, proxy or None, LOOPBACK)
    found = urllib.request.getproxies_environment()
    every = found.get("all")
    bypass = ",".join(filter(None, [found.get("no"), LOOPBACK]))
    return Proxies(found.get("http", every), found.get("https", every), bypass)


def ca_certificates(ca_file: str) -> list[bytes]:
    """The certificates in a PEM file.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    try:
        found = _CERTIFICATE.findall(Path(ca_file).read_bytes())
    except OSError as error:
        raise ConfigError(f"The CA file {ca_file!r} cannot be read: {error.strerror}.") from None
    if not found:
        raise ConfigError(
            f"The CA file {ca_file!r} holds no certificate. It must be PEM: '-----BEGIN CERTIFICATE-----'."
        )
    return found
