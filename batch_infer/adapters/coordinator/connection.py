"""Owns one connection from a worker to the driver's service: blocking socket, frames, deadlines. Does not reconnect.

On workers.
"""

from __future__ import annotations

import socket
import time

from batch_infer.adapters.coordinator import protocol
from batch_infer.adapters.coordinator.protocol import Codec, FrameError, Reply, Request
from batch_infer.contract.plan import ServiceAddress


class Connection:
    """One request at a time, from one thread at a time. After any exception it is of no more use: close it.

    Args:
        address: Where the service is.
        codec: Under the address's token.
        deadline: On `time.monotonic`'s clock: until when it must be connected and greeted.

    Raises:
        OSError: not connected in time, or broken off. (`TimeoutError` is one.)
        FrameError: something else than our service answers there.
    """

    def __init__(self, address: ServiceAddress, codec: Codec, deadline: float) -> None:
        self._codec = codec
        self._number = 0
        self._socket = socket.create_connection((address.host, address.port), timeout=_left(deadline))
        try:
            keep_alive(self._socket)
            greeting = self._read(protocol.GREETING_BYTES, deadline)
        except BaseException:
            self._socket.close()
            raise
        if not greeting.startswith(protocol.MAGIC):
            self._socket.close()
            raise FrameError("another program, or another version of this one, answers there")
        self._challenge = greeting[len(protocol.MAGIC) :]

    def exchange(self, request: Request, deadline: float) -> Reply:
        """Sends a request and waits for its reply.

        Raises:
            OSError, FrameError: as for the constructor.
        """
        frame, nonce = self._codec.seal_request(request, challenge=self._challenge, number=self._number)
        self._number += 1
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(frame)
        length = protocol.body_length(self._read(protocol.LENGTH_BYTES, deadline))
        return self._codec.open_reply(self._read(length, deadline), request_nonce=nonce)

    def close(self) -> None:
        """Gives the socket back. In a forked child this leaves the parent's connection alone."""
        self._socket.close()

    def _read(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._socket.settimeout(_left(deadline))
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionResetError("the service closed the connection")
            parts += part
        return bytes(parts)


def keep_alive(connection: socket.socket) -> None:
    """Has the system notice within about a minute that the other machine is gone, and send small frames at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no time left")
    return left
