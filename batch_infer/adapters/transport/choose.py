"""Owns the choice of the HTTP library, or of a user's own transport. Imports a library only when it is chosen.

On workers.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, cast

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
        name: `pyreqwest`, `httpx`, `module:factory` (see `open_own_transport`), or `None` for `default_transport()`.
        connect_timeout_s: Seconds to connect, TLS handshake included.
        max_connections: Connections of this transport, at most. `None` means no limit.
        ca_file: A PEM file with certificates to trust besides the usual ones.
        proxy: A URL, `""` for none, `None` for what the environment says.

    Raises:
        ConfigError: the name is unknown, the library is not installed, or the CA file or proxy is unusable.
    """
    name = name or default_transport()
    if ":" in name:
        return open_own_transport(
            name, connect_timeout_s=connect_timeout_s, max_connections=max_connections, ca_file=ca_file, proxy=proxy
        )
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


def open_own_transport(name: str, *, connect_timeout_s: float, **settings: Any) -> Transport:
    """A transport on what a user's factory makes: `module:factory`, called once per worker process.

    The factory is called, on the event loop that will send, with those of these keyword arguments that it takes:
    `connect_timeout_s` (seconds), `max_connections`, `ca_file` and `proxy` (each `None` where not set). It returns an
    `httpx.AsyncBaseTransport`, which then decides on connections, certificate authorities and proxies.

    Raises:
        ConfigError: the module or the factory is not there, it fails, or it returns something else.
    """
    import httpx  # noqa: PLC0415 - only where a transport of httpx's form is named

    from batch_infer.adapters.transport.httpx_transport import HttpxTransport  # noqa: PLC0415

    given = {"connect_timeout_s": connect_timeout_s, **settings}
    factory = _factory(name)
    try:
        made = factory(**_taken(factory, given))
    except Exception as error:
        raise ConfigError(f"The transport factory {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, httpx.AsyncBaseTransport):
        raise ConfigError(
            f"The transport factory {name!r} returned {type(made).__name__}; it must return an "
            "httpx.AsyncBaseTransport, such as httpx.AsyncHTTPTransport(…)."
        )
    return HttpxTransport(made, connect_timeout_s=connect_timeout_s)


def _factory(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The transport {name!r}: there is no module {error.name!r} here. It must be importable on the driver and "
            "on every worker."
        ) from None
    except AttributeError as error:
        raise ConfigError(f"The transport {name!r}: {error}.") from None
    if not callable(found):
        raise ConfigError(f"The transport {name!r} is {type(found).__name__}; it must be a function that makes one.")
    return cast("Callable[..., Any]", found)


def _taken(factory: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the factory has, or all where it takes any."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a factory in C shows no signature
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return given
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in given.items() if name in names}
