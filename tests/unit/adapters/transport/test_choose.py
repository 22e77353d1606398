"""Which HTTP library is chosen, and what both read from their surroundings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from batch_infer.adapters.transport import HttpReply, network
from batch_infer.adapters.transport.choose import default_transport, open_transport
from batch_infer.adapters.transport.httpx_transport import HttpxTransport
from batch_infer.contract.errors import ConfigError, EndpointError
from batch_infer.testing import FakeTransport, json_reply
from tests.support.paths import ROOT

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return


def test_the_default_is_pyreqwest() -> None:
    assert default_transport() == "pyreqwest"


def test_httpx_can_be_chosen_by_name() -> None:
    assert isinstance(open_transport("httpx", connect_timeout_s=1), HttpxTransport)


def test_an_unknown_name_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="'curl'"):
        open_transport("curl", connect_timeout_s=1)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyreqwest", None)
    monkeypatch.delitem(sys.modules, "batch_infer.adapters.transport.reqwest", raising=False)
    with pytest.raises(ConfigError, match="pyreqwest"):
        open_transport("pyreqwest", connect_timeout_s=1)


def test_only_the_library_that_is_chosen_is_imported() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from batch_infer.adapters.transport.choose import default_transport, open_transport\n"
        "assert not {'httpx', 'aiohttp', 'pyreqwest'} & set(sys.modules)\n"
        "open_transport(None, connect_timeout_s=1)\n"
        "assert default_transport() == 'httpx' or not {'httpx', 'aiohttp'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["pyreqwest", "httpx"])
def test_an_invalid_proxy_is_a_configuration_error(name: str) -> None:
    if name == "pyreqwest":
        pytest.importorskip("pyreqwest")
    with pytest.raises(ConfigError, match="proxy"):
        open_transport(name, connect_timeout_s=1, proxy="gopher::/x")


def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "internal.example.com")
    routes = network.proxies(None)
    assert routes.route("https", "api.example.com") == "http://proxy:3128"
    assert routes.route("http", "api.example.com") is None
    assert routes.route("https", "llm.internal.example.com") is None


def test_all_proxy_stands_in_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    assert network.proxies(None).route("http", "api.example.com") == "http://proxy:3128"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_loopback_interface_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert network.proxies(None).route("http", host) is None
    assert network.proxies("http://other:1").route("http", host) is None


def test_an_empty_proxy_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert network.proxies("").route("http", "api.example.com") is None


def test_a_transport_of_the_users_own_carries_the_requests() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, str(request.url), request.headers["accept-encoding"], request.content))
        return httpx.Response(200, headers={"X-Request-ID": "r1"}, content=b"{}")

    async def main() -> HttpReply:
        transport = HttpxTransport(httpx.MockTransport(answer), connect_timeout_s=1)
        reply = await transport.post("http://h/v1", {"Authorization": "Bearer k"}, b"body", timeout_s=1)
        await transport.close()
        return reply

    reply = asyncio.run(main())
    assert reply == HttpReply(200, {"x-request-id": "r1", "content-length": "2"}, b"{}")
    assert seen == [("POST", "http://h/v1", "gzip", b"body")]


def test_a_transport_of_the_users_own_leaves_no_other_setting_to_be_ignored() -> None:
    inner = httpx.MockTransport(lambda _: httpx.Response(200))
    for setting in ({"max_connections": 3}, {"ca_file": "/x"}, {"proxy": "http://p"}):
        with pytest.raises(ConfigError, match="of your own"):
            HttpxTransport(inner, connect_timeout_s=1, **setting)


def test_a_fake_transport_plays_its_script_and_records() -> None:
    async def main() -> None:
        fault = EndpointError("broken", kind="reset")
        fake = FakeTransport(
            [json_reply({"a": 1}, 429, {"retry-after": "1"}), fault, lambda request: json_reply(request.url)]
        )
        assert (await fake.post("http://h/1", {}, b"{}", timeout_s=1)).headers["retry-after"] == "1"
        with pytest.raises(EndpointError, match="broken"):
            await fake.post("http://h/2", {}, b"{}", timeout_s=1)
        assert (await fake.post("http://h/3", {}, b"{}", timeout_s=1)).body == b'"http://h/3"'
        body = b'{"messages":[{"role":"user","content":"hi there"}]}'
        reply = await fake.post("http://h/v1/chat/completions", {"authorization": "k"}, body, timeout_s=None)
        assert b"echo: hi there" in reply.body  # the script is over
        assert [request.url[-1] for request in fake.requests] == ["1", "2", "3", "s"]
        assert "authorization" not in repr(fake.requests[-1])
        await fake.close()
        assert fake.closed

    asyncio.run(main())


def test_a_fake_transport_counts_what_is_in_flight() -> None:
    async def main() -> int:
        release = asyncio.Event()

        async def answer(_: object) -> HttpReply:
            await release.wait()
            return json_reply({})

        fake = FakeTransport(answer)
        posts = [asyncio.create_task(fake.post("http://h", {}, b"{}", timeout_s=1)) for _ in range(3)]
        await asyncio.sleep(0)
        assert fake.in_flight == 3
        release.set()
        await asyncio.gather(*posts)
        assert fake.in_flight == 0
        return fake.peak_in_flight

    assert asyncio.run(main()) == 3
