"""`module:factory`: how a user's own transport is made, and what is said when it cannot be."""

import functools
import sys
import types

import httpx
import pytest

from batch_infer.adapters.transport.choose import open_transport
from batch_infer.adapters.transport.httpx_transport import HttpxTransport
from batch_infer.contract.errors import ConfigError


class Nothing(httpx.AsyncBaseTransport):
    pass


@pytest.fixture
def factories(monkeypatch):
    module = types.ModuleType("users_own")
    monkeypatch.setitem(sys.modules, "users_own", module)
    return module


def test_a_factory_is_given_the_arguments_that_it_takes(factories):
    calls = []

    def some(connect_timeout_s, ca_file=None):
        calls.append((connect_timeout_s, ca_file))
        return Nothing()

    def none():
        return Nothing()

    factories.some, factories.none = some, none
    factories.every = lambda **given: calls.append(sorted(given)) or Nothing()
    for name in ("some", "none", "every"):
        made = open_transport(f"users_own:{name}", connect_timeout_s=3, ca_file="/etc/ca.pem")
        assert isinstance(made, HttpxTransport)
    assert calls == [(3, "/etc/ca.pem"), ["ca_file", "connect_timeout_s", "max_connections", "proxy"]]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:make", "no module 'no_such_module'"),
        ("users_own:missing", "missing"),
        ("users_own:number", "must be a function"),
        ("users_own:fails", "RuntimeError: no certificate"),
        ("users_own:text", "returned str"),
    ],
)
def test_a_factory_that_cannot_be_used_is_a_configuration_error(factories, name, told):
    def fails():
        raise RuntimeError("no certificate")

    factories.number, factories.fails, factories.text = 5, fails, functools.partial(str, "x")
    with pytest.raises(ConfigError, match=told):
        open_transport(name, connect_timeout_s=3)
