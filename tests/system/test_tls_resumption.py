"""TLS sessions that are resumed: saved work for clients that come back, and never an older judgement."""

import ssl
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from bmc_proxy.config import HttpsConfig
from bmc_proxy.https import FILE_NAME, https_context
from runtime.clock import utc_now
from runtime.self_signed import self_signed
from runtime.tls import TlsContext

PLAIN = HttpsConfig(None, None, None, "cn")
READ_AT_ONCE = 65_536
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


def client_context(version: ssl.TLSVersion, identity: Path | None = None) -> ssl.SSLContext:
    """Return a client of this version, with a certificate to show if there is to be one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    if identity is not None:
        context.load_cert_chain(identity)
    return context


def visit(
    server_side: TlsContext, client_side: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, SSL.Connection]:
    """Connect in memory, read one word from the server, and return both ends."""
    server = server_side.serverConnectionForTLS(None)  # type: ignore[arg-type]  # it needs no transport
    server.set_app_data(server_side)  # where Twisted puts its transport
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, session=session)
    is_up = has_spoken = False
    while True:
        with suppress(ssl.SSLWantReadError):
            if is_up:
                assert client.read(9) == b"word"
                return client, server
            client.do_handshake()
            is_up = True
        if data := to_server.read():
            server.bio_write(data)
        with suppress(SSL.WantReadError):
            server.do_handshake()
            if not has_spoken:
                server.send(b"word")
                has_spoken = True
        with suppress(SSL.WantReadError):
            to_client.write(server.bio_read(READ_AT_ONCE))


@VERSIONS
def test_client_that_comes_back_resumes(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """By its ticket, in both versions, and again after that."""
    server, client = https_context(tmp_path, PLAIN), client_context(version)
    first, _ = visit(server, client)
    assert not first.session_reused
    second, _ = visit(server, client, first.session)
    assert second.session_reused
    third, _ = visit(server, client, second.session)
    assert third.session_reused


@VERSIONS
def test_ticket_of_an_older_context_is_none(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """After a reload, which may have brought another certificate or CA, whoever comes back starts anew."""
    server, client = https_context(tmp_path, PLAIN), client_context(version)
    first, _ = visit(server, client)
    server.take(https_context(tmp_path, PLAIN))
    again, _ = visit(server, client, first.session)
    assert not again.session_reused


@VERSIONS
def test_client_certificate_is_judged_with_every_connection(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Where clients may show certificates nothing is resumed: each connection shows its own, and it is judged then."""
    identity = tmp_path / "client.pem"
    identity.write_bytes(self_signed("root", [], ExtendedKeyUsageOID.CLIENT_AUTH, timedelta(days=1), utc_now()))
    server = https_context(tmp_path, HttpsConfig(None, None, identity, "cn"))
    client = client_context(version, identity)
    first, at_server = visit(server, client)
    assert at_server.get_peer_certificate() is not None

    again, at_server = visit(server, client, first.session)
    assert not again.session_reused
    assert at_server.get_peer_certificate() is not None
    another = tmp_path / "another.pem"
    another.write_bytes(self_signed("other", [], ExtendedKeyUsageOID.CLIENT_AUTH, timedelta(days=1), utc_now()))
    server.take(https_context(tmp_path, HttpsConfig(None, None, another, "cn")))
    with pytest.raises(SSL.Error):
        visit(server, client, first.session)


@VERSIONS
def test_ticket_from_before_a_client_ca_is_none(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Who connected while nobody was asked for a certificate is asked once there is a CA."""
    server, client = https_context(tmp_path, PLAIN), client_context(version)
    first, _ = visit(server, client)
    server.take(https_context(tmp_path, HttpsConfig(None, None, tmp_path / FILE_NAME, "cn")))
    again, _ = visit(server, client, first.session)
    assert not again.session_reused
