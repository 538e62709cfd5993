"""What the tests of the CA's life share: its steps, and judges of what each of them made."""

import stat
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from support.agents import Agent, Time, always, open_agent, request
from support.csrs import make_csr
from support.needs import need
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Authority
from vmi_agent.cli.groups import noting
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.schema import reading

NO_ACCESS = Access()


class RealTime(Time):
    """The time of day: GnuTLS verifies for no other."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)


now = RealTime()


def rotate(state_dir: Path, key_type: str | None = None, access: Access = NO_ACCESS) -> x509.Certificate:
    """Rotate as the command does; return the new root."""
    return ca_lifecycle.rotate(state_dir, key_type, access, now(), noting(state_dir))


def issue(state_dir: Path, access: Access = NO_ACCESS, *, key: str = "p256") -> list[x509.Certificate]:
    """Have an agent that is opened for it issue one certificate; return the chain."""
    with open_agent(state_dir, now, access=access) as agent:
        issued = agent.issuing.issue(request(make_csr(key=key)), always)
    return [x509.load_der_x509_certificate(each) for each in issued.chain]


def stored(state_dir: Path, generation: int, name: str) -> x509.Certificate:
    """Return the first certificate in one of a generation's files."""
    return ca_store.read_certificates(ca_store.directory_of(state_dir, generation) / name)[0]


def delegate_of(agent: Agent, authority: Authority) -> x509.Certificate:
    """Return the certificate of a generation's OCSP responder, which is made where it is missing."""
    request = ocsp.OCSPRequestBuilder().add_certificate(authority.certificate, authority.certificate, hashes.SHA256())
    answer = ocsp.load_der_ocsp_response(
        agent.responder.answer(request.build().public_bytes(serialization.Encoding.DER)).der
    )
    return answer.certificates[0]


def audit_events(state_dir: Path) -> list[str]:
    """Return the names of the audit's events, after verifying it."""
    with reading(state_dir) as connection:
        verify(connection)
        return [row[0] for row in connection.exec_driver_sql("SELECT event FROM audit ORDER BY id")]


def assert_private(state_dir: Path) -> None:
    """Look at the permissions of every file and directory: nobody else has any."""
    open_to_others = {
        str(path.relative_to(state_dir)): oct(stat.S_IMODE(path.lstat().st_mode))
        for path in [state_dir, *state_dir.rglob("*")]
        if stat.S_IMODE(path.lstat().st_mode) != (0o700 if path.is_dir() else 0o600)
    }
    assert open_to_others == {}


def pem(*certificates: x509.Certificate) -> str:
    """Return certificates in PEM."""
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def verifies(
    directory: Path, chain: Sequence[x509.Certificate], root: x509.Certificate, *, gnutls: bool = True
) -> dict[str, bool]:
    """Return what each verifier says of a chain, leaf first, under a root that is not part of it."""
    leaf, between, trusted, whole = (directory / f"{name}.pem" for name in ("leaf", "between", "trusted", "whole"))
    leaf.write_text(pem(chain[0]))
    between.write_text(pem(*chain[1:]))
    trusted.write_text(pem(root))
    whole.write_text(pem(*chain))
    openssl = [need("openssl"), "verify", "-x509_strict", "-check_ss_sig", "-CAfile", str(trusted)]
    openssl += ["-untrusted", str(between)] if chain[1:] else []
    commands = {"openssl": [*openssl, str(leaf)]}
    if gnutls:
        program = need("certtool")
        commands["gnutls"] = [program, "--verify", "--load-ca-certificate", str(trusted), "--infile", str(whole)]
    return {
        name: subprocess.run(command, capture_output=True, check=False).returncode == 0
        for name, command in commands.items()
    }


def assert_directly_issued(chain: Sequence[x509.Certificate]) -> None:
    """Have the cryptography package verify a chain, link by link; it knows ML-DSA."""
    for certificate, issuer in pairwise(chain):
        certificate.verify_directly_issued_by(issuer)
