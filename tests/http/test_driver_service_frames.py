"""The sealed frames between workers and the driver's service: what opens, what does not, what the service refuses."""

import os
import pickle
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.adapters.coordinator import DriverClient, DriverService, DriverUnreachable
from batch_infer.adapters.coordinator.protocol import (
    CHALLENGE_BYTES,
    GREETING_BYTES,
    LENGTH_BYTES,
    MAGIC,
    MAX_FRAME_BYTES,
    AddressReply,
    AskAddress,
    AskSecret,
    Codec,
    Directive,
    FrameError,
    Pending,
    Refused,
    Report,
    SecretReply,
    body_length,
    fitting,
)
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import Counters, TaskId
from batch_infer.contract.secret import SecretReference

TASK = TaskId(1, 2, 3)
HEARTBEAT = Report("call-1", TASK, Counters(requests=5))
LOGGER = "batch_infer.adapters.coordinator.service"


@pytest.fixture
def codec():
    return Codec(os.urandom(32))


@pytest.fixture
def service():
    with DriverService("127.0.0.1") as running:
        running.open_call("call-1")
        yield running


class Raw:
    """A connection whose bytes the test decides."""

    def __init__(self, address):
        self.codec = Codec(address.token)
        self.socket = socket.create_connection((address.host, address.port), timeout=5)
        greeting = self.socket.recv(GREETING_BYTES, socket.MSG_WAITALL)
        assert greeting.startswith(MAGIC)
        self.challenge = greeting[len(MAGIC) :]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def reply(self, nonce):
        length = body_length(self.socket.recv(LENGTH_BYTES, socket.MSG_WAITALL))
        return self.codec.open_reply(self.socket.recv(length, socket.MSG_WAITALL), request_nonce=nonce)

    def is_closed(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


@pytest.mark.parametrize(
    "request_",
    [AskSecret("c", "env:A"), AskAddress("c", "local/chat"), HEARTBEAT, Report("c", TASK, Counters(), True, "no")],
)
def test_requests_open_where_they_belong(codec, request_):
    challenge = os.urandom(CHALLENGE_BYTES)
    frame, nonce = codec.seal_request(request_, challenge=challenge, number=7)
    assert body_length(frame[:LENGTH_BYTES]) == len(frame) - LENGTH_BYTES
    assert codec.open_request(frame[LENGTH_BYTES:], challenge=challenge, number=7) == (request_, nonce)


def test_requests_open_nowhere_else(codec):
    challenge = os.urandom(CHALLENGE_BYTES)
    frame, nonce = codec.seal_request(HEARTBEAT, challenge=challenge, number=7)
    body = frame[LENGTH_BYTES:]
    for opened in (
        lambda: codec.open_request(body, challenge=challenge, number=8),
        lambda: codec.open_request(body, challenge=os.urandom(CHALLENGE_BYTES), number=7),
        lambda: Codec(os.urandom(32)).open_request(body, challenge=challenge, number=7),
        lambda: codec.open_reply(body, request_nonce=nonce),
    ):
        with pytest.raises(FrameError, match="another token, altered, or replayed"):
            opened()


@pytest.mark.parametrize(
    "reply",
    [
        SecretReply("x"),
        SecretReply(None),
        AddressReply("http://a"),
        Pending(),
        Directive(),
        Directive("no"),
        Refused("no"),
    ],
)
def test_replies_answer_one_request_only(codec, reply):
    nonce = os.urandom(12)
    body = codec.seal_reply(reply, request_nonce=nonce)[LENGTH_BYTES:]
    assert codec.open_reply(body, request_nonce=nonce) == reply
    with pytest.raises(FrameError):
        codec.open_reply(body, request_nonce=os.urandom(12))
    with pytest.raises(FrameError):
        codec.open_request(body, challenge=bytes(CHALLENGE_BYTES), number=0)


def test_a_message_of_another_version_is_refused_as_such(codec):
    challenge = bytes(CHALLENGE_BYTES)
    frame, _ = codec.seal_request(Directive("not a request"), challenge=challenge, number=0)
    with pytest.raises(FrameError, match="not a message of this version"):
        codec.open_request(frame[LENGTH_BYTES:], challenge=challenge, number=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_altered_frame_opens(data):
    codec, challenge = Codec(bytes(32)), bytes(CHALLENGE_BYTES)
    body = bytearray(codec.seal_request(HEARTBEAT, challenge=challenge, number=0)[0][LENGTH_BYTES:])
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    with pytest.raises(FrameError):
        codec.open_request(bytes(body), challenge=challenge, number=0)


@pytest.mark.parametrize("length", [0, 12 + 16, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(FrameError, match="impossible length"):
        body_length(struct.pack(">I", length))


def test_too_large_messages_are_not_sealed(codec):
    with pytest.raises(ValueError, match="does not fit"):
        codec.seal_reply(SecretReply("x" * MAX_FRAME_BYTES), request_nonce=bytes(12))


def test_texts_are_made_to_fit():
    assert len(fitting("x" * 10**6)) == 4000
    assert fitting("broken \ud83d reply") == "broken ? reply"


def test_what_is_printed_holds_no_secret():
    address = ServiceAddress("driver", 7077, b"T" * 32)
    assert repr(address) == "ServiceAddress(host='driver', port=7077)"
    assert pickle.loads(pickle.dumps(address)) == address
    assert "hidden" not in repr(SecretReply("hidden"))
    assert "hidden" not in str(list(SecretReply("hidden").__rich_repr__()))


def test_a_replayed_frame_is_refused_on_its_connection_and_on_another(service):
    with Raw(service.address) as raw:
        frame, nonce = raw.codec.seal_request(HEARTBEAT, challenge=raw.challenge, number=0)
        raw.send(frame)
        assert raw.reply(nonce) == Directive()
        raw.send(frame)
        assert raw.is_closed()
    with Raw(service.address) as raw:
        raw.send(frame)
        assert raw.is_closed()
    assert service.refused_frames == 2


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", MAX_FRAME_BYTES + 1),
        b"GET / HTTP/1.1\r\nHost: driver\r\n\r\n",
        struct.pack(">I", 40) + b"HIDDEN" * 6 + b"EnD!",
        struct.pack(">I", 3) + b"abc",
    ],
    ids=["oversized", "http", "garbage", "tiny"],
)
def test_frames_that_are_not_ours_close_the_connection_and_are_logged_without_content(service, caplog, data):
    with Raw(service.address) as raw:
        raw.send(data)
        assert raw.is_closed()
    assert service.refused_frames == 1
    assert len(caplog.records) == 1
    assert "refused a frame" in caplog.text
    assert "HIDDEN" not in caplog.text
    with Raw(service.address) as raw:
        frame, nonce = raw.codec.seal_request(HEARTBEAT, challenge=raw.challenge, number=0)
        raw.send(frame)
        assert raw.reply(nonce) == Directive(), "others are served as before"


def test_a_foreign_token_is_refused_and_logged_once(service, caplog, monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.coordinator.client.ASK_BACKOFF_S", 0.01)
    foreign = os.urandom(32)
    client = DriverClient(ServiceAddress(service.address.host, service.address.port, foreign))
    for _ in range(2):
        with pytest.raises(DriverUnreachable, match="Build the DataFrame again"):
            client.secret("call-1", SecretReference.parse("env:A"))
    assert client.report("call-1", TASK, Counters()) is None
    assert service.refused_frames >= 3
    said = [record for record in caplog.records if record.name == LOGGER]
    assert len(said) == 1
    assert repr(foreign)[2:-1] not in caplog.text
    assert foreign.hex() not in caplog.text


def test_a_stranger_who_says_nothing_is_sent_away(monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.coordinator.service.STRANGER_TIMEOUT_S", 0.1)
    with DriverService("127.0.0.1") as service, Raw(service.address) as silent, Raw(service.address) as halting:
        halting.send(struct.pack(">I", 100) + b"half a")
        assert silent.is_closed()
        assert halting.is_closed()


def test_a_worker_may_be_silent_between_reports(monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.coordinator.service.STRANGER_TIMEOUT_S", 0.1)
    with DriverService("127.0.0.1") as service, Raw(service.address) as raw, Raw(service.address) as stranger:
        service.open_call("call-1")
        for number in range(2):
            frame, nonce = raw.codec.seal_request(HEARTBEAT, challenge=raw.challenge, number=number)
            raw.send(frame)
            assert raw.reply(nonce) == Directive()
            assert stranger.is_closed(), "tells that the time is over"
