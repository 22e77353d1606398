"""Failures before the request is sent: DNS, TCP, TLS, and arguments that cannot be sent at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batch_infer.contract.errors import Ambiguous, ConfigError, JobRejected, Transient
from batch_infer.testing import FaultEndpoint


def test_a_refused_connection_is_transient(http: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can take the port
        port = unused.getsockname()[1]
        error = http.failure(f"http://127.0.0.1:{port}/v1?key={http.key}")
    assert isinstance(error, Transient)
    assert error.kind == "connect"
    assert error.message.startswith(f"127.0.0.1:{port}: could not connect")
    assert http.key not in error.message


def test_an_unknown_host_is_transient(http: Any) -> None:
    error = http.failure("http://no-such-host.invalid/v1")
    assert isinstance(error, Transient)
    assert error.kind == "dns"
    assert error.message.startswith("no-such-host.invalid:80: ")


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose queue of connections is full, so that the next one gets no answer at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            waiting.append(client)
        yield listener.getsockname()[1]
        for client in waiting:
            client.close()


def test_a_connect_timeout_is_transient(http: Any) -> None:
    with full_backlog() as port:
        error = http.failure(f"http://127.0.0.1:{port}/v1", connect_timeout_s=0.2)
    assert isinstance(error, Transient)
    assert error.kind == "connect_timeout"


@contextmanager
def hangs_up_at_once() -> Iterator[int]:
    """A port that accepts and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_handshake_that_breaks_off_is_transient(http: Any) -> None:
    with hangs_up_at_once() as port:
        error = http.failure(f"https://127.0.0.1:{port}/v1")
    assert isinstance(error, Transient)
    assert error.kind == "connect"


def test_https_to_a_plain_port_stops_the_job(http: Any, tell: Any) -> None:
    endpoint = tell()
    error = http.failure(endpoint.base_url.replace("http:", "https:"))
    assert isinstance(error, JobRejected)
    assert error.kind == "tls"


class Certificate:
    """A certificate of a CA of its own, as files."""

    def __init__(self, folder: Path, host: str, days: tuple[int, int]) -> None:
        now = dt.datetime.now(dt.UTC)
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        ca = (
            x509.CertificateBuilder()
            .subject_name(ca_name)
            .issuer_name(ca_name)
            .public_key(ca_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9))
            .not_valid_after(now + dt.timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        key = ec.generate_private_key(ec.SECP256R1())
        name: x509.GeneralName = x509.DNSName(host)
        if host[0].isdigit():
            name = x509.IPAddress(ipaddress.ip_address(host))
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.ca_file = str(folder / "ca.pem")
        self.cert_file = str(folder / "cert.pem")
        self.key_file = str(folder / "key.pem")
        Path(self.ca_file).write_bytes(ca.public_bytes(pem))
        Path(self.cert_file).write_bytes(leaf.public_bytes(pem))
        Path(self.key_file).write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def endpoint(self) -> FaultEndpoint:
        return FaultEndpoint(tls_cert=self.cert_file, tls_key=self.key_file)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("good"), "127.0.0.1", (-1, 1))


@pytest.fixture(scope="module")
def good_endpoint(good: Certificate) -> Iterator[FaultEndpoint]:
    with good.endpoint() as endpoint:
        yield endpoint


def test_a_custom_ca_is_trusted(http: Any, good: Certificate, good_endpoint: FaultEndpoint) -> None:
    reply = http.ask(f"{good_endpoint.base_url}/chat/completions", ca_file=good.ca_file)
    assert reply.status == 200


def test_every_certificate_of_the_ca_file_is_trusted(
    shipped: Any, good: Certificate, good_endpoint: FaultEndpoint, tmp_path: Path
) -> None:
    other = Certificate(tmp_path, "127.0.0.1", (-1, 1))
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("# two\n" + Path(other.ca_file).read_text() + Path(good.ca_file).read_text())
    assert shipped.ask(f"{good_endpoint.base_url}/chat/completions", ca_file=str(bundle)).status == 200


def test_an_unknown_ca_stops_the_job(http: Any, good_endpoint: FaultEndpoint) -> None:
    error = http.failure(f"{good_endpoint.base_url}/chat/completions?key={http.key}")
    assert isinstance(error, JobRejected)
    assert error.kind == "tls"
    assert "name a CA file" in error.message
    assert http.key not in error.message
    assert good_endpoint.stats()["paths"].get(f"/v1/chat/completions?key={http.key}") is None


@pytest.mark.parametrize(
    ("host", "days"), [("127.0.0.1", (-3, -2)), ("example.org", (-1, 1))], ids=["expired", "wrong host"]
)
def test_a_bad_certificate_stops_the_job(http: Any, tmp_path: Path, host: str, days: tuple[int, int]) -> None:
    certificate = Certificate(tmp_path, host, days)
    with certificate.endpoint() as endpoint:
        error = http.failure(f"{endpoint.base_url}/chat/completions", ca_file=certificate.ca_file)
        assert endpoint.stats()["requests"] == 0
    assert isinstance(error, JobRejected)
    assert error.kind == "tls"


def test_http_to_a_tls_port_fails(http: Any, good_endpoint: FaultEndpoint) -> None:
    error = http.failure(good_endpoint.base_url.replace("https:", "http:"))
    assert isinstance(error, Ambiguous)


@pytest.mark.parametrize(
    "content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_an_unusable_ca_file_is_a_configuration_error(shipped: Any, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="CA file"):
        shipped.make(ca_file=str(path))


@pytest.mark.parametrize("url", ["", "no url", "ftp://host/x", "http:///x", "http://127.0.0.1:99999/x", "/v1"])
def test_an_invalid_url_stops_the_job(http: Any, url: str) -> None:
    error = http.failure(url)
    assert isinstance(error, JobRejected)
    assert error.kind == "invalid_url"


def test_a_key_with_a_line_break_stops_the_job_and_is_not_shown(http: Any, tell: Any) -> None:
    endpoint = tell()

    async def main() -> None:
        transport = http.make()
        try:
            headers = {"authorization": f"Bearer {http.key}\n"}
            await transport.post(f"{endpoint.base_url}/chat/completions", headers, http.body("x"), timeout_s=5)
        finally:
            await transport.close()

    with pytest.raises(JobRejected) as raised:
        asyncio.run(main())
    assert raised.value.kind == "invalid_header"
    assert http.key not in str(raised.value)
    assert raised.value.__context__ is None
    assert endpoint.stats()["requests"] == 0
