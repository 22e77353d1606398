"""How connections are used: kept alive, shared out, given up."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batch_infer.contract.errors import Ambiguous, EndpointError, Transient
from batch_infer.testing import Rule

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def test_a_connection_is_used_again(http: Any, tell: Any) -> None:
    endpoint = tell()

    async def main() -> None:
        transport = http.make()
        for i in range(5):
            reply = await transport.post(
                f"{endpoint.base_url}/chat/completions", http.headers, http.body(str(i)), timeout_s=5
            )
            assert reply.status == 200
        await transport.close()

    asyncio.run(main())
    assert endpoint.stats()["connections"] == 1


def test_a_connection_that_the_server_closed_while_idle_costs_nothing(http: Any, tell: Any) -> None:
    endpoint = tell(idle_close_s=0.02)

    async def main() -> None:
        transport = http.make()
        for i in range(3):
            reply = await transport.post(
                f"{endpoint.base_url}/chat/completions", http.headers, http.body(str(i)), timeout_s=5
            )
            assert reply.status == 200
            await asyncio.to_thread(endpoint.wait_until, "open_connections", at_most=0)
            # The close is on its way; the loop sees it in this turn or the next.
            await asyncio.sleep(0.05)
        await transport.close()

    asyncio.run(main())
    assert endpoint.stats()["requests"] == 3
    assert endpoint.stats()["connections"] == 3


def read_request(connection: socket.socket) -> None:
    """Reads a request with the body `{}`, whole: closing a socket with unread bytes would reset the connection."""
    received = b""
    while not received.endswith(b"{}"):
        received += connection.recv(65536)


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Plays one connection after the other by hand."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_close_that_crosses_the_request_is_ambiguous(http: Any) -> None:
    """The server closes a kept connection without reading what has just been sent. The client cannot know that."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        select.select([connection], [], [], 5)

    async def main(url: str) -> EndpointError:
        transport = http.make()
        assert (await transport.post(url, http.headers, b"{}", timeout_s=5)).status == 200
        with pytest.raises(EndpointError) as raised:
            await transport.post(url, http.headers, b"{}", timeout_s=5)
        await transport.close()
        return raised.value

    with raw_server(serve) as url:
        error = asyncio.run(main(url))
    assert isinstance(error, Ambiguous)
    assert error.kind == "reset"


def test_a_server_that_refuses_in_mid_upload_is_never_taken_for_one_that_was_not_reached(http: Any) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def main(url: str) -> EndpointError:
        transport = http.make()
        with pytest.raises(EndpointError) as raised:
            await transport.post(url, http.headers, b" " * 20_000_000, timeout_s=5)
        await transport.close()
        return raised.value

    with raw_server(serve) as url:
        error = asyncio.run(main(url))
    assert isinstance(error, Ambiguous) or (isinstance(error, Transient) and error.kind == "send_failed")
    assert error.kind in ("reset", "send_failed")


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", {"corrupt_reply"}),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc", {"corrupt_reply", "truncated"}),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n", {"truncated"}),
        (
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nabcde",
            {"corrupt_reply", "truncated"},
        ),
    ],
    ids=["not HTTP", "bad chunk", "chunks cut short", "bad gzip"],
)
def test_bytes_that_are_no_reply_are_ambiguous(http: Any, reply: bytes, kinds: set[str]) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(reply)

    async def main(url: str) -> EndpointError:
        transport = http.make()
        with pytest.raises(EndpointError) as raised:
            await transport.post(url, http.headers, b"{}", timeout_s=5)
        await transport.close()
        return raised.value

    with raw_server(serve) as url:
        error = asyncio.run(main(url))
    assert isinstance(error, Ambiguous)
    assert error.kind in kinds


def test_many_requests_are_in_flight_at_once(shipped: Any, tell: Any) -> None:
    endpoint = tell(rules=[Rule(hold=True)])

    async def main() -> None:
        transport = shipped.make()
        url = f"{endpoint.base_url}/chat/completions"
        tasks = [
            asyncio.create_task(transport.post(url, shipped.headers, shipped.body(str(i)), timeout_s=10))
            for i in range(150)
        ]
        await asyncio.to_thread(endpoint.wait_until, "in_flight", at_least=150)
        endpoint.release()
        assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
        await transport.close()

    asyncio.run(main())


def test_max_connections_holds_and_waiting_counts_against_the_timeout(shipped: Any, tell: Any) -> None:
    endpoint = tell(rules=[Rule(hold=True)])

    async def main() -> list[object]:
        transport = shipped.make(max_connections=2)
        url = f"{endpoint.base_url}/chat/completions"
        posts = [transport.post(url, shipped.headers, shipped.body(str(i)), timeout_s=0.4) for i in range(4)]
        outcomes = await asyncio.gather(*posts, return_exceptions=True)
        await transport.close()
        return outcomes

    outcomes = asyncio.run(main())
    assert endpoint.stats()["peak_in_flight"] == 2
    assert all(isinstance(outcome, EndpointError) for outcome in outcomes)


def test_a_cancelled_request_returns_at_once_and_is_given_up(http: Any, tell: Any) -> None:
    """pyreqwest lets the exchange go on in the background until its timeout; the others close the connection."""
    endpoint = tell(rules=[Rule(fault="stall")])

    async def main() -> None:
        transport = http.make()
        post = transport.post(f"{endpoint.base_url}/chat/completions", http.headers, http.body("x"), timeout_s=1)
        task = asyncio.create_task(post)
        await asyncio.to_thread(endpoint.wait_until, "in_flight", at_least=1)
        task.cancel()
        before = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - before < 0.5
        await asyncio.to_thread(endpoint.wait_until, "in_flight", at_most=0)
        await transport.close()

    asyncio.run(main())
    assert endpoint.stats()["abandoned"] == 1


def test_closing_twice_does_no_harm(shipped: Any, tell: Any) -> None:
    endpoint = tell()

    async def main() -> None:
        transport = shipped.make()
        await transport.post(f"{endpoint.base_url}/chat/completions", shipped.headers, shipped.body("x"), timeout_s=5)
        await transport.close()
        await transport.close()

    asyncio.run(main())


def test_requests_go_through_the_proxy_that_is_given_but_not_to_loopback(shipped: Any, tell: Any) -> None:
    endpoint = tell()
    proxy = endpoint.base_url.removesuffix("/v1")

    async def main() -> None:
        transport = shipped.make(proxy=proxy)
        for host in ("api.example.invalid", "127.0.0.1:1"):
            try:
                await transport.post(
                    f"http://{host}/v1/chat/completions", shipped.headers, shipped.body(host), timeout_s=5
                )
            except Transient:
                assert host == "127.0.0.1:1"
        await transport.close()

    asyncio.run(main())
    assert endpoint.stats()["paths"] == {"http://api.example.invalid/v1/chat/completions": 1}
