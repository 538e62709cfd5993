"""CAs of client certificates, run by openssl as an operator would, and clients that show such a certificate."""

import http.client
import json
import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from support.csrs import openssl_csr
from support.judges import openssl
from support.processes import IBM_SIGN_CSR, SecurePair, basic, port_of, run

PATIENCE_S = 30.0
# What an Administrator alone may see.
ADMINISTRATORS = "/ibm/v1/Host/Certificate/root"
_CONFIG = """[ca]
default_ca = it
[it]
database = {0}/index.txt
crlnumber = {0}/crlnumber
default_md = sha256
default_crl_days = 1
crl_extensions = crl_ext
[crl_ext]
authorityKeyIdentifier = keyid
{1}
"""


@dataclass(frozen=True)
class Client:
    """A client certificate and its key, in files."""

    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """The curl options that show it."""
        return ["--cert", str(self.certificate), "--key", str(self.key)]

    @property
    def serial(self) -> str:
        """The serial number in hexadecimal, as the log has it."""
        return f"{x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number:x}"

    @contextmanager
    def connection(self, pair: SecurePair) -> Iterator[http.client.HTTPSConnection]:
        """Yield a connection that shows the certificate, and stays open from its first request on."""
        context = ssl.create_default_context(cafile=str(pair.proxy_state / "https.pem"))
        context.load_cert_chain(self.certificate, self.key)
        connection = http.client.HTTPSConnection("127.0.0.1", port_of(pair.url), timeout=PATIENCE_S, context=context)
        with closing(connection):
            yield connection


def status_on(connection: http.client.HTTPSConnection, path: str = ADMINISTRATORS) -> int:
    """Ask on a connection; return the status."""
    connection.request("GET", path)
    with closing(connection.getresponse()) as answer:
        answer.read()
        return answer.status


class ClientCa:
    """A CA for client certificates.

    Args:
        directory: is made for it.
        name: its common name.
        key_usage: of its certificate.
        key: its kind, as `openssl_csr` names it.
    """

    def __init__(
        self, directory: Path, name: str = "HMC CA", key_usage: str = "keyCertSign,cRLSign", key: str = "p256"
    ) -> None:
        directory.mkdir()
        self.directory = directory
        extensions = ["-x509", "-addext", "basicConstraints=critical,CA:TRUE"]
        extensions += ["-addext", f"keyUsage=critical,{key_usage}"]
        made = openssl_csr(directory, key, subject=f"/CN={name}", extra=extensions)
        self.certificate = made.rename(directory / "ca.pem")
        self.key = (directory / f"{key}.key").rename(directory / "ca.key")
        (directory / "index.txt").touch()
        (directory / "crlnumber").write_text("01\n")

    def client(self, user: str, *, usage: str = "clientAuth", days: int = 1) -> Client:
        """Issue a client certificate."""
        home = self.directory / f"{user}-{usage}-{days}"
        home.mkdir()
        csr = openssl_csr(home, "p256", subject=f"/CN={user}")
        (home / "ext").write_text(f"extendedKeyUsage={usage}\n")
        certificate = home / "client.pem"
        command = ["x509", "-req", "-in", str(csr), "-CA", str(self.certificate), "-CAkey", str(self.key)]
        openssl(*command, "-days", str(days), "-extfile", str(home / "ext"), "-out", str(certificate))
        return Client(certificate, csr.with_suffix(".key"))

    def revoke(self, client: Client) -> None:
        """Put a certificate on the CRLs to come."""
        self._ca("-revoke", str(client.certificate))

    def crl(self, path: Path, *, extensions: str = "", options: Sequence[str] = ()) -> Path:
        """Make a CRL in PEM.

        Args:
            path: where to.
            extensions: in openssl's words, a line each.
            options: of `openssl ca`, such as `-crl_nextupdate`.
        """
        self._ca("-gencrl", "-out", str(path), *options, extensions=extensions)
        return path

    def _ca(self, *options: str, extensions: str = "") -> None:
        config = self.directory / "ca.cnf"
        config.write_text(_CONFIG.format(self.directory, extensions))
        command = ["ca", "-config", str(config), "-cert", str(self.certificate), "-keyfile", str(self.key)]
        openssl(*command, *options)


def own_root(directory: Path) -> Path:
    """Make the CA of the agent that will run there; return its root in PEM, for --client-ca."""
    state = ["--state-dir", str(directory / "agent")]
    assert run("vmi-agent", "ca", "init", *state).returncode == 0
    root = directory / "root.pem"
    root.write_text(json.loads(run("vmi-agent", "ca", "show", *state, "--json").stdout)["certificate"])
    return root


def own_client(pair: SecurePair, user: str = "root") -> Client:
    """Have the agent issue a client certificate that names this account."""
    home = pair.directory / f"own-{len(list(pair.directory.glob('own-*')))}"
    home.mkdir()
    csr = openssl_csr(home, subject=f"/CN={user}")
    answer = pair.post(IBM_SIGN_CSR, {"CsrString": csr.read_text()}, *basic())
    assert answer.status == 200, answer.body
    certificate = home / "client.pem"
    certificate.write_text(answer.json["Certificate"])
    return Client(certificate, csr.with_suffix(".key"))


def revoke_own(pair: SecurePair, client: Client, reason: str = "superseded") -> None:
    """Revoke a certificate of the agent's with its command."""
    words = ["certs", "revoke", client.serial.zfill(34), "--reason", reason]
    done = run("vmi-agent", *words, "--state-dir", str(pair.agent_state))
    assert done.returncode == 0, done.stderr
