"""HTTPS on the real process: a scanner's verdict, certificates exchanged while it runs, connections at once."""

import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import LogWatch
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.csrs import openssl_csr
from support.needs import need_scanner
from support.processes import IBM_ROOT, SecurePair, basic, curl, port_of, running_secure_pair, start_agent

from bmc_proxy.config import HttpsConfig
from bmc_proxy.https import https_context, names_of_this_host
from runtime.files import FileRefused
from runtime.reload import Reloadable
from runtime.tls import TlsContext

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair with an account of each role."""
    with running_secure_pair(tmp_path_factory.mktemp("https")) as running:
        yield running


def certificate_at(pair: SecurePair) -> x509.Certificate:
    """Return the certificate that a new connection is shown."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port_of(pair.url))).encode())


def test_scanner_finds_no_old_version_no_weak_cipher_no_renegotiation(pair: SecurePair, tmp_path: Path) -> None:
    """sslyze: TLS 1.2 and 1.3 alone, authenticated ciphers with forward secrecy alone, none of the known attacks."""
    report = tmp_path / "report.json"
    command = [need_scanner(), "--json_out", str(report), f"127.0.0.1:{port_of(pair.url)}"]
    # Its status tells of Mozilla's profile as well, which a self-signed certificate cannot meet.
    subprocess.run(command, check=False, capture_output=True)
    [server] = json.loads(report.read_text())["server_scan_results"]
    found = {name: scan["result"] for name, scan in server["scan_result"].items() if scan["status"] == "COMPLETED"}

    for version in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert not found[f"{version}_cipher_suites"]["accepted_cipher_suites"]
    accepted = {
        version: {each["cipher_suite"]["name"] for each in found[f"{version}_cipher_suites"]["accepted_cipher_suites"]}
        for version in ("tls_1_2", "tls_1_3")
    }
    assert accepted == {
        "tls_1_2": {
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        },
        "tls_1_3": {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"},
    }
    assert found["session_renegotiation"]["client_renegotiations_success_count"] == 0
    assert not found["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert not found["tls_compression"]["supports_compression"]
    assert not found["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not found["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert found["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    assert found["tls_fallback_scsv"]["supports_fallback_scsv"]


def test_own_certificate_has_this_hosts_names(pair: SecurePair) -> None:
    """The certificate that is made on the first start names the host and its addresses, for a year, and is kept."""
    certificate = certificate_at(pair)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]

    assert set(found) == set(names_of_this_host()) >= {socket.gethostname(), "localhost", "127.0.0.1"}
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=365)
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    own = pair.proxy_state / "https.pem"
    assert own.stat().st_mode & 0o777 == 0o600
    assert x509.load_pem_x509_certificate(own.read_bytes()) == certificate


def test_alpn_is_http_1_1(pair: SecurePair) -> None:
    """Who offers HTTP/2 and HTTP/1.1 gets the latter; who offers neither is refused."""
    context = ssl.create_default_context(cafile=str(pair.proxy_state / "https.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=PATIENCE_S) as stream,
        context.wrap_socket(stream, server_hostname="127.0.0.1") as tls,
    ):
        assert tls.selected_alpn_protocol() == "http/1.1"
    assert curl(pair.url + "/redfish/v1/", *pair.trust, "--http2").status == 200


def test_certificate_is_exchanged_without_dropping_connections(tmp_path: Path) -> None:
    """SIGHUP takes the new files for new connections, and open ones go on; a broken file changes nothing."""
    first = openssl_csr(tmp_path, "p256", subject="/CN=first", extra=["-x509"]).rename(tmp_path / "first.pem")
    key = tmp_path / "p256.key"
    key.rename(tmp_path / "first.key")
    current, current_key = tmp_path / "https.pem", tmp_path / "https.key"
    put(first, tmp_path / "first.key", current, current_key)
    options = ["--https-certificate", str(current), "--https-key", str(current_key)]
    with running_secure_pair(tmp_path, *options) as pair, open_connection(pair) as tls:
        assert name_of(certificate_at(pair)) == "first"

        current.write_text("broken")
        pair.proxy.send_signal(signal.SIGHUP)
        assert str(current) in pair.proxy.wait_for("certificate not reloaded, the old one stays")["reason"]
        assert name_of(certificate_at(pair)) == "first"

        second = openssl_csr(tmp_path, "rsa2048", subject="/CN=second", extra=["-x509"])
        put(second, second.with_suffix(".key"), current, current_key)
        pair.proxy.send_signal(signal.SIGHUP)
        pair.proxy.wait_for("reloaded", what="https")
        assert name_of(certificate_at(pair)) == "second"
        tls.sendall(b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n")
        assert tls.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert pair.proxy.stop() == 0


def put(certificate: Path, key: Path, at: Path, key_at: Path) -> None:
    """Put a certificate and its key where the proxy reads them."""
    at.write_bytes(certificate.read_bytes())
    key_at.touch(mode=0o600)
    key_at.write_bytes(key.read_bytes())


def name_of(certificate: x509.Certificate) -> str:
    """Return a certificate's common name."""
    return certificate.subject.rfc4514_string().removeprefix("CN=")


def open_connection(pair: SecurePair) -> ssl.SSLSocket:
    """Return a connection that is open, and was used once."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=PATIENCE_S))
    tls.sendall(b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n")
    assert tls.recv(10_000).startswith(b"HTTP/1.1 200 ")
    return tls


def test_own_certificate_is_renewed_before_it_ends(tmp_path: Path) -> None:
    """A start in the last 30 days of the certificate that the proxy made makes the next one; before, it is kept."""
    for days, is_kept in ((29, False), (31, True)):
        directory = tmp_path / str(days)
        (directory / "proxy").mkdir(parents=True, mode=0o700)
        made = openssl_csr(directory, "p256", subject="/CN=old", extra=["-x509", "-days", str(days)])
        own = directory / "proxy" / "https.pem"
        own.touch(mode=0o600)
        own.write_text(made.with_suffix(".key").read_text() + made.read_text())
        with running_secure_pair(directory) as pair:
            found = certificate_at(pair)
        assert (name_of(found) == "old") is is_kept
        assert (found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=300)) is not is_kept


@pytest.mark.parametrize(
    ("write", "told"),
    [
        ("certificate alone", "TLS key"),
        ("key that others can read", "chmod 600"),
        ("another's key", "belongs to the key"),
        ("nothing", "TLS key"),
    ],
)
def test_certificate_that_cannot_be_used(tmp_path: Path, write: str, told: str) -> None:
    """The proxy does not start with a certificate or key that it cannot use, and says what to do."""
    certificate = openssl_csr(tmp_path, "p256", subject="/CN=x", extra=["-x509"])
    key = certificate.with_suffix(".key")
    if write == "certificate alone":
        key = certificate
        key.chmod(0o600)
    elif write == "key that others can read":
        key.chmod(0o644)
    elif write == "another's key":
        key = openssl_csr(tmp_path, "p384").with_suffix(".key")
    else:
        key = tmp_path / "missing"
    options = ["--https-certificate", str(certificate), "--https-key", str(key)]
    with pytest.raises(AssertionError, match=told), running_secure_pair(tmp_path, *options):
        pass


@pytest.mark.parametrize("listener", ["https", "http"])
def test_connections_are_limited_in_all_and_for_each_source(tmp_path: Path, listener: str) -> None:
    """With room for four, one address has two; another one still gets in, and a connection that ends makes room."""

    def connect(source: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(source, 0))

    with running_secure_pair(tmp_path, "--max-connections", "4") as pair:
        url = (pair.url if listener == "https" else pair.plain_url) + "/redfish/v1/"
        port = port_of(url.removesuffix("/redfish/v1/"))
        held = [connect("127.0.0.1") for _ in range(2)]
        with connect("127.0.0.1") as third:
            assert third.recv(1) == b""
        assert curl(url, *pair.trust, "--interface", "127.0.0.2").status == 200
        held.pop().close()
        pair.proxy.wait_for("connection refused")
        assert retried(lambda: curl(url, *pair.trust).status) == 200
        held.pop().close()


def test_strangers_in_the_middle_of_a_request_make_room(tmp_path: Path) -> None:
    """Two addresses that hold all places with half a request each do not shut a third one out."""
    with running_secure_pair(tmp_path, "--max-connections", "4") as pair, ExitStack() as stack:
        for number in range(4):
            address = ("127.0.0.1", port_of(pair.plain_url))
            held = socket.create_connection(address, PATIENCE_S, source_address=(f"127.0.0.{60 + number % 2}", 0))
            stack.enter_context(held).sendall(b"POST /login HTTP/1.1\r\nHost: bmc\r\nContent-Length: 100\r\n\r\n")

        assert curl(pair.plain_url + IBM_ROOT, *basic()).status == 200


def retried(ask: object) -> object:
    """Return what a callable returns once it does not fail; the proxy learns of a closed connection a moment later."""
    for _ in range(100):
        try:
            return ask()  # type: ignore[operator]
        except AssertionError:
            continue
    raise AssertionError("never")


def test_https_is_there_without_being_asked_for(tmp_path: Path) -> None:
    """Without any listener given the proxy listens with TLS, on every address; with --http alone it does not."""
    from bmc_proxy.config import DEFAULT_HTTPS, Config

    def https_of(https: str | None, http: str | None) -> str | None:
        rest = (False, None, None, None, "cn", "accounts", "bmc-proxy", 1800, 512, 1000, 256, 30)
        return Config(tmp_path, ("unix:a",), (), https, http, *rest).https_at

    assert https_of(None, None) == DEFAULT_HTTPS == "tcp:8443"
    assert https_of(None, "tcp:80") is None
    assert https_of("tcp:1", "tcp:80") == https_of("tcp:1", None) == "tcp:1"


def test_root_over_https(pair: SecurePair) -> None:
    """The root goes over HTTPS as over HTTP, to an Administrator."""
    assert pair.curl(IBM_ROOT, *basic()).json.keys() == {"Certificate"}


def test_channel_without_credentials(tmp_path: Path) -> None:
    """`tls:` without channel.pem ends with what to do, on either side."""
    with start_agent(tmp_path, 0, "--listen", "tls:0:interface=127.0.0.1") as agent:
        assert "vmi-agent channel init" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1


@pytest.mark.parametrize("error", [FileRefused("broken"), ValueError("odd"), RuntimeError("odder")])
def test_reload_of_whatever_is_broken(tmp_path: Path, log_watch: LogWatch, error: Exception) -> None:
    """However a certificate cannot be read, the old one stays, and a good one is taken the next time."""
    config = HttpsConfig(None, None, None, "cn")
    first = https_context(tmp_path, config)
    (tmp_path / "https.pem").unlink()
    second = https_context(tmp_path, config)
    results: list[TlsContext | Exception] = [first, error, second]

    def load() -> TlsContext:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    log_watch.expect_error("certificate not reloaded, the old one stays")
    reloadable = Reloadable("https", load)
    before = reloadable.context.context
    reloadable.reload()
    assert reloadable.context.context is before
    reloadable.reload()
    assert reloadable.context.context is second.context is not before
