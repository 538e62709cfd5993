"""The servers that are compared, each with a new CA and everything that its operator would have it do.

All of them speak TLS with a P-256 certificate, on loopback, and log to where nobody reads.
"""

import json
import secrets
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from measure import CaKey, new_key
from unread import Unread

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

# isort: split
from support.processes import SIGN_CSR, add_account, port_of, run

START_S = 60.0
NO_LIMIT = "1000000"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs.

    Attributes:
        body: what stands in a request's body before the CSR, between it and a one-time token, and behind that.
        processes: pids by name.
        recorded: how many certificates its ledger holds; None where it has no ledger.
        status: of an answer with a certificate.
        session_token: of a login; empty where there is none.
        one_time_tokens: a file with one for each CSR of the pool.
    """

    name: str
    url: str
    path: str
    body: tuple[str, str, str]
    processes: dict[str, int]
    recorded: Callable[[], int] | None
    status: int = 200
    session_token: str = ""
    one_time_tokens: Path | None = None


@contextmanager
def ours(directory: Path, kind: str, name: str = "ours") -> Iterator[Peer]:
    """Run agent and proxy: HTTPS, a session, ledger and audit durable, channel over a unix socket."""
    agent_dir, proxy_dir, password = directory / "agent", directory / "proxy", secrets.token_urlsafe(16)
    add_account(proxy_dir, "hmc", "Administrator", password)
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 octets at most
        channel = f"unix:{short}/agent"
        agent_command = ("vmi-agent", "serve", "--state-dir", str(agent_dir), "--listen", channel, "--key-type", kind)
        with Unread(directory / "agent.log", *agent_command) as agent:
            agent.wait_for("ready")
            agent.leave_alone()
            proxy_command = ("bmc-proxy", "serve", "--state-dir", str(proxy_dir), "--agent", channel)
            limits = ("--https", "tcp:0:interface=127.0.0.1", "--requests-per-s", NO_LIMIT)
            with Unread(directory / "proxy.log", *proxy_command, *limits) as proxy:
                port = port_of(proxy.wait_for("ready")["https"])
                proxy.wait_for("agent connected")
                proxy.leave_alone()
                url = f"https://127.0.0.1:{port}"
                yield Peer(
                    name,
                    url,
                    SIGN_CSR,
                    ('{"data":[', "", "]}"),
                    {"agent": agent.pid, "proxy": proxy.pid},
                    lambda: _recorded_by_us(agent_dir),
                    session_token=_log_in(port, password),
                )


def _recorded_by_us(state_dir: Path) -> int:
    """Count the certificates, with the audit verified."""
    verified = run("vmi-agent", "audit", "verify", "--state-dir", str(state_dir))
    assert verified.returncode == 0, verified.stderr
    return len(run("vmi-agent", "certs", "list", "--state-dir", str(state_dir)).stdout.splitlines())


def _log_in(port: int, password: str) -> str:
    body = json.dumps({"UserName": "hmc", "Password": password})
    head = f"POST /redfish/v1/SessionService/Sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with connected(port) as connection, connection.makefile("rb") as answer:
        connection.sendall((head + body).encode())
        headers = answer.read().partition(b"\r\n\r\n")[0].decode().split("\r\n")
    tokens = [line.partition(":")[2].strip() for line in headers if line.lower().startswith("x-auth-token:")]
    assert tokens, f"no login: {headers[0]}"
    return tokens[0]


@contextmanager
def connected(port: int) -> Iterator[ssl.SSLSocket]:
    """Connect with TLS to whoever listens on a port of loopback."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=START_S) as plain,
        context.wrap_socket(plain) as connection,
    ):
        yield connection


@contextmanager
def cfssl(directory: Path, kind: str) -> Iterator[Peer]:
    """Run cfssl, which keeps nothing of what it signs."""
    with _cfssl(directory, kind, []) as (port, pid):
        yield _cfssl_peer("cfssl", port, pid, None)


@contextmanager
def cfssl_with_ledger(directory: Path, kind: str) -> Iterator[Peer]:
    """Run cfssl with its ledger in SQLite."""
    database = directory / "certificates.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(_CFSSL_TABLES)
    settings = directory / "db.json"
    settings.write_text(json.dumps({"driver": "sqlite3", "data_source": str(database)}))

    def recorded() -> int:
        with closing(sqlite3.connect(database)) as connection:
            count: int = connection.execute("SELECT count(*) FROM certificates").fetchone()[0]
        return count

    with _cfssl(directory, kind, ["-db-config", str(settings)]) as (port, pid):
        yield _cfssl_peer("cfssl with ledger", port, pid, recorded)


def _cfssl_peer(name: str, port: int, pid: int, recorded: Callable[[], int] | None) -> Peer:
    body = ('{"certificate_request":', "", "}")
    return Peer(name, f"https://127.0.0.1:{port}", "/api/v1/cfssl/sign", body, {"cfssl": pid}, recorded)


# As cfssl's own migrations make them (certdb/sqlite).
_CFSSL_TABLES = """
CREATE TABLE certificates (
  serial_number blob NOT NULL, authority_key_identifier blob NOT NULL, ca_label blob, status blob NOT NULL,
  reason int, expiry timestamp, revoked_at timestamp, pem blob NOT NULL,
  PRIMARY KEY (serial_number, authority_key_identifier)
);
CREATE TABLE ocsp_responses (
  serial_number blob NOT NULL, authority_key_identifier blob NOT NULL, body blob NOT NULL, expiry timestamp,
  PRIMARY KEY (serial_number, authority_key_identifier),
  FOREIGN KEY (serial_number, authority_key_identifier)
    REFERENCES certificates (serial_number, authority_key_identifier)
);
"""


@contextmanager
def _cfssl(directory: Path, kind: str, options: list[str]) -> Iterator[tuple[int, int]]:
    write_identity(directory / "ca", "Root", new_key(kind))
    write_identity(directory / "tls", "127.0.0.1", new_key("p256"))
    # What our leaves are: a client's, with the same life.
    profile = {"usages": ["digital signature", "key encipherment", "client auth"], "expiry": "8760h"}
    (directory / "config.json").write_text(json.dumps({"signing": {"default": profile}}))
    port = free_port()
    command = ["cfssl", "serve", "-address", "127.0.0.1", "-port", str(port), "-config", "config.json"]
    command += ["-ca", "ca.pem", "-ca-key", "ca.key", "-tls-cert", "tls.pem", "-tls-key", "tls.key", *options]
    with listening(command, directory, port) as pid:
        yield port, pid


def write_identity(
    path: Path, name: str, key: CaKey, issuer: tuple[x509.Certificate, CaKey] | None = None
) -> x509.Certificate:
    """Write PATH.key and PATH.pem: a CA's certificate, its own issuer where there is no other."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    path.with_suffix(".key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    path.with_suffix(".pem").write_bytes(certificate.public_bytes(encoding))
    return certificate


def free_port() -> int:
    """Return a port of loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def listening(command: list[str], directory: Path, port: int) -> Iterator[int]:
    """Run a command in a directory, once it takes TLS connections on a port; give its pid."""
    program = shutil.which(command[0])
    assert program is not None, f"{command[0]} is missing: benchmarks/install_peers"
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen([program, *command[1:]], cwd=directory, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_until_listening(process, port, directory / "log")
            yield process.pid
        finally:
            process.kill()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            with connected(port):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text()[-2000:]) from None
            time.sleep(0.05)
