"""Revocation through both processes: CRLs and OCSP by HTTP as openssl judges them, and a TLS server that obeys."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.csrs import openssl_csr
from support.judges import openssl, split_chain
from support.needs import need
from support.processes import SIGN_CSR, Process, port_of, post, run, start_agent, start_proxy
from support.revoking import serial_of

PUBLISH_AT = "http://bmc.example.com/pki"
PUBLISH = ("--publish-at", PUBLISH_AT)


@dataclass
class Site:
    """An agent and a proxy, and where openssl finds what it needs.

    Attributes:
        directory: a temporary one.
        processes: end with it.
        url: the proxy's.
    """

    directory: Path
    processes: ExitStack
    agent: Process
    proxy: Process
    agent_port: int
    url: str

    @property
    def state(self) -> str:
        """The agent's state directory."""
        return str(self.directory / "agent")

    def restart_agent(self) -> None:
        """Stop the agent and start it anew at the same port."""
        assert self.agent.stop() == 0
        self.agent = self.processes.enter_context(start_agent(self.directory / "agent", self.agent_port, *PUBLISH))
        self.agent.wait_for("ready")

    def sign(self, name: str) -> "Leaf":
        """Have a certificate issued through the proxy."""
        own = self.directory / name
        own.mkdir()
        csr = openssl_csr(own, subject=f"/CN={name}")
        answer = post(self.url + SIGN_CSR, json.dumps({"CsrString": csr.read_text()}))
        assert answer.status == 200, answer.body
        leaf, root = split_chain(answer.json["data"][0])
        (own / "leaf.pem").write_text(leaf)
        (own / "root.pem").write_text(root)
        return Leaf(own, x509.load_pem_x509_certificate(leaf.encode()))

    def command(self, *words: str) -> None:
        """Run a command of the agent's beside it."""
        done = run("vmi-agent", *words, "--state-dir", self.state)
        assert done.returncode == 0, done.stderr

    def revoke(self, leaf: "Leaf", reason: str) -> None:
        """Revoke a certificate; return when the proxy was told, which is without anybody asking."""
        self.command("certs", "revoke", serial_of(leaf.certificate).hex(), "--reason", reason)
        self.proxy.wait_for("agent has news")

    def fetch(self, path: str, *options: str) -> bytes:
        """GET something with curl."""
        command = [need("curl"), "--silent", "--show-error", "--fail", *options, self.url + path]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def crl(self, generation: int) -> tuple[str, x509.CertificateRevocationList]:
        """Fetch a CRL by HTTP; return the path of its PEM and what is in it."""
        parsed = x509.load_der_x509_crl(self.fetch(f"/pki/{generation}.crl"))
        path = self.directory / f"{generation}.crl.pem"
        path.write_bytes(parsed.public_bytes(Encoding.PEM))
        return str(path), parsed


@dataclass
class Leaf:
    """A certificate, its root and its key, in a directory of their own."""

    directory: Path
    certificate: x509.Certificate

    def path(self, name: str) -> str:
        """Return where `leaf.pem`, `root.pem` or `p256.key` is."""
        return str(self.directory / name)


@contextmanager
def running_site(directory: Path) -> Iterator[Site]:
    """Run both, with leaves that name where CRLs and OCSP are."""
    with ExitStack() as processes:
        agent = processes.enter_context(start_agent(directory / "agent", 0, *PUBLISH))
        port = port_of(agent.wait_for("ready")["listen"][0])
        proxy = processes.enter_context(start_proxy(directory / "proxy", [f"tcp:127.0.0.1:{port}"]))
        url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}"
        proxy.wait_for("agent connected")
        yield Site(directory, processes, agent, proxy, port, url)


def verdict_by_crl(site: Site, leaf: Leaf, generation: int) -> str:
    """Have openssl check CRL and certificate: "OK" or its words."""
    path, _ = site.crl(generation)
    openssl("crl", "-in", path, "-noout", "-CAfile", leaf.path("root.pem"))
    command = [need("openssl"), "verify", "-x509_strict", "-crl_check", "-CAfile", leaf.path("root.pem")]
    command += ["-CRLfile", path, leaf.path("leaf.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "OK"
    found = re.search(r"error \d+ at 0 depth lookup: (.+)", done.stdout + done.stderr)
    assert found is not None, done.stdout + done.stderr
    return found[1]


def verdict_by_ocsp(site: Site, leaf: Leaf, nonce: str = "-nonce") -> str:
    """Have openssl ask by POST, and curl the same by GET; both say "good" or "revoked", and openssl verifies both."""
    root, path, request = leaf.path("root.pem"), leaf.path("leaf.pem"), leaf.directory / "request.der"
    about = ["ocsp", "-issuer", root, "-cert", path]
    posted = openssl(*about, nonce, "-url", f"{site.url}/pki/ocsp", "-CAfile", root)
    openssl(*about, "-no_nonce", "-reqout", str(request))
    in_path = quote(base64.b64encode(request.read_bytes()).decode(), safe="")
    response = leaf.directory / "response.der"
    response.write_bytes(site.fetch(f"/pki/ocsp/{in_path}"))
    got = openssl(*about, "-no_nonce", "-respin", str(response), "-CAfile", root)
    first, second = (text.splitlines()[0].removeprefix(f"{path}: ") for text in (posted, got))
    assert first == second
    return first


def test_revocation_rotation_and_restart(tmp_path: Path) -> None:
    """CRL and OCSP say the same before and after a revocation, a rotation and a restart, and always verify."""
    with running_site(tmp_path) as site:
        leaf, other = site.sign("hmc1"), site.sign("hmc2")
        points = leaf.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert points[0].full_name == [x509.UniformResourceIdentifier(f"{PUBLISH_AT}/1.crl")]

        assert verdicts(site, leaf, 1) == ("OK", "good")
        before = site.crl(1)[1]
        site.revoke(leaf, "keyCompromise")
        assert verdicts(site, leaf, 1) == ("certificate revoked", "revoked")
        assert verdicts(site, other, 1) == ("OK", "good")
        after = site.crl(1)[1]
        assert number_of(after) > number_of(before)

        site.command("ca", "rotate")
        site.proxy.wait_for("agent has news", root_generation=2)
        second = site.sign("hmc3")
        assert verdicts(site, second, 2) == ("OK", "good")
        site.revoke(second, "superseded")
        site.revoke(other, "certificateHold")
        expected = [("certificate revoked", "revoked")] * 3
        assert [verdicts(site, each, at) for each, at in ((leaf, 1), (other, 1), (second, 2))] == expected

        last = [number_of(site.crl(generation)[1]) for generation in (1, 2)]
        site.restart_agent()
        site.proxy.wait_for("agent connected")
        assert [verdicts(site, each, at) for each, at in ((leaf, 1), (other, 1), (second, 2))] == expected
        assert all(number_of(site.crl(at + 1)[1]) > number for at, number in enumerate(last))
        site.command("certs", "release", serial_of(other.certificate).hex())
        site.proxy.wait_for("agent has news")
        assert verdicts(site, other, 1) == ("OK", "good")
        site.command("audit", "verify")


def verdicts(site: Site, leaf: Leaf, generation: int) -> tuple[str, str]:
    """Return both: by CRL and by OCSP."""
    return verdict_by_crl(site, leaf, generation), verdict_by_ocsp(site, leaf)


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Return a CRL's number."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


@contextmanager
def tls_server(leaf: Leaf, crl: str) -> Iterator[int]:
    """Run openssl's TLS server, which lets in only whom the CRL does not list; yield its port."""
    own = openssl_csr(leaf.directory, "p384", subject="/CN=localhost", extra=["-x509"])
    command = [need("openssl"), "s_server", "-accept", "127.0.0.1:0", "-www", "-cert", str(own)]
    command += ["-key", str(own.with_suffix(".key")), "-CAfile", leaf.path("root.pem")]
    command += ["-CRL", crl, "-crl_check", "-Verify", "1", "-verify_return_error"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line.decode())
            if line.startswith(b"ACCEPT"):
                break
        assert lines, "s_server said nothing"
        assert lines[-1].startswith("ACCEPT"), lines
        yield port_of(lines[-1].strip())
    finally:
        server.kill()
        server.communicate()


def is_let_in(leaf: Leaf, port: int) -> bool:
    """Have curl ask the TLS server for its page with the leaf."""
    command = [need("curl"), "--silent", "--insecure", "--max-time", "30", f"https://127.0.0.1:{port}/"]
    command += ["--cert", leaf.path("leaf.pem"), "--key", leaf.path("p256.key")]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0 and b"Verify return code: 0 (ok)" in done.stdout


def test_tls_server_with_the_crl(tmp_path: Path) -> None:
    """With the CRL from before it lets the leaf in, with the one from after it does not, and a neighbour it does."""
    with running_site(tmp_path) as site:
        leaf, neighbour = site.sign("hmc1"), site.sign("hmc2")
        with tls_server(leaf, site.crl(1)[0]) as port:
            assert is_let_in(leaf, port)
        site.revoke(leaf, "keyCompromise")
        with tls_server(leaf, site.crl(1)[0]) as port:
            assert not is_let_in(leaf, port)
            assert is_let_in(neighbour, port)
