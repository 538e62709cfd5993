"""What the corpus is issued, as its readers judge it: pkilint, openssl, GnuTLS and Go, all of one mind."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.agents import Time, always, issuing, request
from support.corpus_table import EXPECTED
from support.judges import certtool, go, openssl
from support.lint import findings

CSRS = Path(__file__).parents[1] / "corpus" / "csrs"
ISSUED = sorted(name for name, expected in EXPECTED.items() if expected == "issued")
# The openssl and the GnuTLS of Debian 12 do not know ML-DSA.
READABLE = [name for name in ISSUED if "mldsa" not in name]
# File -> the one thing that lint may find in what it is issued. RFC 1034, 3.5, RFC 5321, 4.1.2 and RFC 4519, 2.4 have
# host names of one label, and consoles have them; lint wants names of the public DNS, with two letters behind a dot.
NAMES = "certificate.tbsCertificate.extensions.3.extnValue.subjectAltName.0"
FOUND = {
    "good-names-one-label": [f"{NAMES}.dNSName: pkix.invalid_domain_name_syntax"],
    "good-names-last-label-one-letter": [f"{NAMES}.dNSName: pkix.invalid_domain_name_syntax"],
    "good-names-email-one-label": [f"{NAMES}.rfc822Name: pkix.invalid_email_address_syntax"],
    "good-subject-domain-component-one": [
        "certificate.tbsCertificate.subject: pkix.name_domain_components_invalid_domain_name"
    ],
}


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with what each CSR of the corpus is issued, leaf and root, as NAME.pem, and the root."""
    directory = tmp_path_factory.mktemp("chains")
    time = Time()
    time.now = datetime.now(UTC)  # by which the readers judge
    with issuing(tmp_path_factory.mktemp("corpus"), time) as (opened, authority):
        for name in ISSUED:
            csr = (CSRS / f"{name}.der").read_bytes()
            chain = map(x509.load_der_x509_certificate, opened.issue(request(csr), always).chain)
            (directory / f"{name}.pem").write_bytes(b"".join(map(pem, chain)))
        (directory / "root.pem").write_bytes(pem(authority.root))
    return directory


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_issued_is_lint_clean(chains: Path) -> None:
    """pkilint has no warning or worse, with argued exceptions, for anything that the corpus is issued."""
    found = {
        name: findings(x509.load_pem_x509_certificates((chains / f"{name}.pem").read_bytes())[0]) for name in ISSUED
    }

    assert {name: codes for name, codes in found.items() if codes} == FOUND


def test_issued_verifies_with_openssl(chains: Path) -> None:
    """Openssl verifies every leaf strictly, as a TLS client's."""
    command = ["verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslclient", "-CAfile", str(chains / "root.pem")]

    lines = openssl(*command, *(str(chains / f"{name}.pem") for name in READABLE)).splitlines()

    assert lines == [f"{chains / name}.pem: OK" for name in READABLE]


def test_issued_verifies_with_gnutls(chains: Path) -> None:
    """GnuTLS accepts every leaf for a TLS client under the root."""
    trusted = ["--verify", "--load-ca-certificate", str(chains / "root.pem"), "--verify-purpose", "1.3.6.1.5.5.7.3.2"]

    accepted = [name for name in READABLE if certtool(*trusted, stdin=(chains / f"{name}.pem").read_text())]

    assert accepted == READABLE


def test_issued_verifies_with_go(chains: Path, tmp_path: Path) -> None:
    """Go accepts every chain for a TLS client."""
    found = go(tmp_path, {name: (chains / f"{name}.pem").read_text() for name in ISSUED})

    assert found == dict.fromkeys(ISSUED, "ok")
