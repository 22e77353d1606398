"""Every way to fail has a class and words; no exception of a library is missing from its table."""

from __future__ import annotations

import inspect
import pickle
import socket
import ssl

import httpx
import pytest

from batch_infer.adapters.transport import failures, httpx_errors
from batch_infer.contract.errors import Ambiguous, EndpointError, JobRejected, Transient

KEY = "sk-very-secret"


def exceptions_of(module: object, base: type[BaseException]) -> set[type[BaseException]]:
    return {value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, base)}


def test_every_exception_of_pyreqwest_has_a_kind() -> None:
    pytest.importorskip("pyreqwest")
    from pyreqwest import exceptions

    from batch_infer.adapters.transport import reqwest

    missing = exceptions_of(exceptions, exceptions.PyreqwestError) - set(reqwest.KIND_BY_CLASS)
    assert not missing
    kinds = {*reqwest.KIND_BY_CLASS.values(), *(kind for _, kind, _ in reqwest.KIND_BY_CAUSE)}
    assert kinds <= set(failures.KINDS)


def test_every_exception_of_httpx_has_a_kind() -> None:
    assert not exceptions_of(httpx, Exception) - set(httpx_errors.KIND_BY_CLASS)
    assert set(httpx_errors.KIND_BY_CLASS.values()) <= set(failures.KINDS)


def test_every_exception_of_aiohttp_has_a_kind() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    names = {cls.__name__ for cls in exceptions_of(aiohttp.client_exceptions, aiohttp.ClientError)}
    assert not names - set(httpx_errors.KIND_BY_AIOHTTP_NAME)
    assert set(httpx_errors.KIND_BY_AIOHTTP_NAME.values()) <= set(failures.KINDS)


@pytest.mark.parametrize("kind", failures.KINDS)
def test_a_failure_says_where_what_why_and_what_next(kind: str) -> None:
    error = failures.failure(kind, "api.example.com:443", "os error 111")
    assert isinstance(error, EndpointError)
    assert error.message.startswith(f"api.example.com:443: {failures.KINDS[kind].what}")
    assert error.message.endswith(failures.KINDS[kind].then)
    assert error.kind == kind
    assert error.status is None
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.message, copy.kind) == (type(error), error.message, kind)


def test_only_failures_before_the_request_was_sent_are_transient() -> None:
    transient = {kind for kind, (error, _, _) in failures.KINDS.items() if error is Transient}
    assert transient == {"connect", "dns", "connect_timeout", "pool_timeout", "send_failed"}
    ambiguous = {kind for kind, (error, _, _) in failures.KINDS.items() if error is Ambiguous}
    assert ambiguous == {"timeout", "reset", "truncated", "corrupt_reply", "reply_too_large"}
    assert {error for error, _, _ in failures.KINDS.values()} == {Transient, Ambiguous, JobRejected}


def test_a_detail_with_a_url_or_about_a_header_is_left_out() -> None:
    assert KEY not in failures.failure("reset", "h:1", f"for url (http://h:1/x?key={KEY})").message
    assert KEY not in failures.failure("invalid_header", "h:1", f"Illegal header value 'Bearer {KEY}'").message
    assert len(failures.failure("reset", "h:1", "x" * 10_000).message) < 500


def test_the_target_is_host_and_port_alone() -> None:
    assert failures.target_of(f"https://user:{KEY}@api.example.com/v1?key={KEY}") == "api.example.com:443"
    assert failures.target_of("http://[::1]:8000/v1") == "[::1]:8000"


def test_an_unknown_cause_counts_as_sent() -> None:
    """A later version of hyper may word it differently: that must not make a request that was billed look unsent."""
    px = pytest.importorskip("pyreqwest.exceptions")
    from batch_infer.adapters.transport.reqwest import classify

    for error_class in (px.ConnectError, px.ConnectTimeoutError, px.RequestError, px.WriteError):
        kind = classify(error_class("connection error", {"causes": [{"message": "something new"}]}))
        assert failures.KINDS[kind].error is Ambiguous


def reqwest_kind(*causes: str) -> str:
    px = pytest.importorskip("pyreqwest.exceptions")
    from batch_infer.adapters.transport.reqwest import classify

    return classify(px.ConnectError("connection error", {"causes": [{"message": cause} for cause in causes]}))


def test_a_tls_alert_while_connecting_stops_the_job() -> None:
    assert reqwest_kind("client error (Connect)", "received fatal alert: HandshakeFailure") == "tls"
    assert reqwest_kind("client error (Connect)", "peer is incompatible: no cipher suites") == "tls"


def test_a_missing_client_certificate_stops_the_job_although_it_shows_late() -> None:
    assert reqwest_kind("client error (SendRequest)", "received fatal alert: CertificateRequired") == "tls"
    assert reqwest_kind("client error (SendRequest)", "received fatal alert: InternalError") == "reset"


def with_cause(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def test_what_httpx_aiohttp_calls_a_connect_timeout_is_judged_by_its_cause() -> None:
    aiohttp = pytest.importorskip("aiohttp")
    wrapped = with_cause(httpx.ConnectTimeout("Server disconnected"), aiohttp.ServerDisconnectedError())
    assert httpx_errors.classify(wrapped) == "reset"
    wrapped = with_cause(httpx.ConnectTimeout("timeout"), aiohttp.ConnectionTimeoutError())
    assert httpx_errors.classify(wrapped) == "connect_timeout"
    assert httpx_errors.classify(httpx.ConnectTimeout("from another transport")) == "connect_timeout"


def test_what_pyreqwest_calls_a_connect_error_is_judged_by_its_causes() -> None:
    px = pytest.importorskip("pyreqwest.exceptions")
    cause = px.ConnectError("connection error", {"causes": [{"message": "client error (SendRequest)"}]})
    assert httpx_errors.classify(with_cause(httpx.ConnectError("connection error"), cause)) == "reset"


def test_a_failed_connect_is_told_apart_by_what_the_socket_said() -> None:
    def kind(cause: BaseException) -> str | None:
        return httpx_errors.classify(with_cause(httpx.ConnectError("failed"), cause))

    assert kind(ConnectionRefusedError()) == "connect"
    assert kind(socket.gaierror(-2, "Name or service not known")) == "dns"
    assert kind(ssl.SSLCertVerificationError("expired")) == "tls"
    assert kind(ssl.SSLEOFError("EOF")) == "connect"
    assert kind(ssl.SSLError("WRONG_VERSION_NUMBER")) == "tls"


def test_a_defect_in_a_transport_is_no_failure_of_the_endpoint() -> None:
    assert httpx_errors.classify(AttributeError("no such thing")) is None
