"""Owns the choice of the HTTP library. Imports a library only when it is chosen."""

from __future__ import annotations

import importlib.util

from batch_infer.adapters.transport import Transport
from batch_infer.contract.errors import ConfigError

NAMES = ("pyreqwest", "httpx")


def default_transport() -> str:
    """`pyreqwest` where it is installed; else `httpx`."""
    if importlib.util.find_spec("pyreqwest") is not None:
        return "pyreqwest"
    return "httpx"


def open_transport(
    name: str | None,
    *,
    connect_timeout_s: float,
    max_connections: int | None = None,
    ca_file: str | None = None,
    proxy: str | None = None,
) -> Transport:
    """Builds a transport. Opens no connection; belongs to the event loop in which it is first used.

    Args:
        name: `pyreqwest`, `httpx`, or `None` for `default_transport()`.
        connect_timeout_s: Seconds to connect, TLS handshake included.
        max_connections: Connections of this transport, at most. `None` means no limit.
        ca_file: A PEM file with certificates to trust besides the usual ones.
        proxy: A URL, `""` for none, `None` for what the environment says.

    Raises:
        ConfigError: the name is unknown, the library is not installed, or the CA file or proxy is unusable.
    """
    name = name or default_transport()
    if name not in NAMES:
        raise ConfigError(f"There is no transport {name!r}. Choose 'pyreqwest' or 'httpx', or leave it out.")
    try:
        if name == "pyreqwest":
            from batch_infer.adapters.transport.reqwest import ReqwestTransport  # noqa: PLC0415 - optional

            return ReqwestTransport(
                connect_timeout_s=connect_timeout_s, max_connections=max_connections, ca_file=ca_file, proxy=proxy
            )
        from batch_infer.adapters.transport.httpx_transport import HttpxTransport  # noqa: PLC0415 - optional

        return HttpxTransport(
            connect_timeout_s=connect_timeout_s, max_connections=max_connections, ca_file=ca_file, proxy=proxy
        )
    except ImportError as error:
        raise ConfigError(
            f"The transport {name!r} needs the package {error.name!r}, which is not installed here. "
            f"Install it on the driver and the executors, or choose the other one."
        ) from None
