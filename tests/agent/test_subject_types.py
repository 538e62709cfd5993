"""Each attribute of a subject in each string type, at its bounds: what is issued, and that its readers read it."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.agents import Alone, Time, always, issuing, request
from support.csrs import make_csr, resign
from support.judges import certtool, go, openssl
from support.lint import findings

from runtime.asn1 import der
from runtime.clock import utc_now
from vmi_agent.certificate import object_identifier
from vmi_agent.errors import Refused

UTF8, NUMERIC, PRINTABLE, TELETEX, IA5, VISIBLE, UNIVERSAL, BMP = 0x0C, 0x12, 0x13, 0x14, 0x16, 0x1A, 0x1C, 0x1E
SET = 0x31
CODECS = {UTF8: "utf-8", UNIVERSAL: "utf-32-be", BMP: "utf-16-be"}
STRINGS = (UTF8, NUMERIC, PRINTABLE, TELETEX, IA5, VISIBLE, UNIVERSAL, BMP)
DIRECTORY = {UTF8, PRINTABLE, TELETEX, BMP}
# Type -> its string types and upper bound by RFC 5280, A.1, or else X.520 and RFC 4519; 0 where there is no bound here.
ATTRIBUTES: dict[str, tuple[set[int], int]] = {
    "2.5.4.3": (DIRECTORY, 64),  # common name
    "2.5.4.4": (DIRECTORY, 0),  # surname
    "2.5.4.5": ({PRINTABLE}, 64),  # serial number
    "2.5.4.7": (DIRECTORY, 128),  # locality
    "2.5.4.8": (DIRECTORY, 128),  # state or province
    "2.5.4.9": (DIRECTORY, 128),  # street
    "2.5.4.10": (DIRECTORY, 64),  # organization
    "2.5.4.11": (DIRECTORY, 64),  # organizational unit
    "2.5.4.12": (DIRECTORY, 64),  # title
    "2.5.4.15": (DIRECTORY, 128),  # business category
    "2.5.4.17": (DIRECTORY, 40),  # postal code
    "2.5.4.20": ({PRINTABLE}, 32),  # telephone number
    "2.5.4.41": (DIRECTORY, 0),  # name
    "2.5.4.42": (DIRECTORY, 0),  # given name
    "2.5.4.43": (DIRECTORY, 0),  # initials
    "2.5.4.44": (DIRECTORY, 0),  # generation qualifier
    "2.5.4.46": ({PRINTABLE}, 0),  # DN qualifier
    "2.5.4.65": (DIRECTORY, 128),  # pseudonym
    "2.5.4.97": (DIRECTORY, 256),  # organization identifier
    "0.9.2342.19200300.100.1.1": (DIRECTORY, 256),  # user id
    "1.2.840.113549.1.9.2": (DIRECTORY | {IA5}, 255),  # unstructured name
    "1.2.3.4": (DIRECTORY, 0),  # unknown
}
SHORT, LONG = "1", 1000


def subject_csr(dotted: str, tag: int, text: str) -> bytes:
    """Return a CSR whose subject is one attribute."""
    value = der.wrap(tag, text.encode(CODECS.get(tag, "ascii")))
    attribute = der.wrap(der.SEQUENCE, object_identifier(x509.ObjectIdentifier(dotted)), value)
    return resign(make_csr(), subject=der.wrap(der.SEQUENCE, der.wrap(SET, attribute)))


def chain_of(opened: Alone, csr: bytes) -> tuple[bytes, ...] | None:
    """Return what a CSR is issued, or None where it is refused by policy."""
    try:
        return opened.issue(request(csr), always).chain
    except Refused as refused:
        assert refused.code.name == "CSR_POLICY"
        return None


@pytest.mark.parametrize("dotted", ATTRIBUTES)
def test_attribute_has_its_types_and_its_bound(dotted: str, tmp_path: Path) -> None:
    """An attribute is issued in its own string types only, and no longer than its upper bound."""
    tags, most = ATTRIBUTES[dotted]
    with issuing(tmp_path, Time()) as (opened, _):
        issued = {tag for tag in STRINGS if chain_of(opened, subject_csr(dotted, tag, SHORT)) is not None}
        longest = {tag for tag in tags if chain_of(opened, subject_csr(dotted, tag, "a" * (most or LONG))) is not None}
        longer = {tag for tag in tags if chain_of(opened, subject_csr(dotted, tag, "a" * (most + 1))) is not None}

    assert issued == tags
    assert longest == tags
    assert longer == (set() if most else tags)


def test_readers_read_every_attribute(tmp_path: Path) -> None:
    """pkilint finds nothing in a leaf for any of them, in any of its types, and openssl, GnuTLS and Go verify it."""
    time = Time()
    time.now = utc_now()  # by which the readers judge
    files = {}
    with issuing(tmp_path / "agent", time) as (opened, authority):
        for dotted, (tags, most) in ATTRIBUTES.items():
            for tag in tags:
                chain = chain_of(opened, subject_csr(dotted, tag, "a" * (most or LONG)))
                assert chain is not None
                assert findings(chain[0]) == []
                files[f"{dotted}-{tag}"] = "".join(map(pem, chain))
        root = tmp_path / "root.pem"
        root.write_text(pem(authority.chain[-1]))

    assert go(tmp_path, files) == dict.fromkeys(files, "ok")
    paths = [str(tmp_path / name) for name in files]
    verified = openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(root), *paths)
    assert verified.splitlines() == [f"{path}: OK" for path in paths]
    assert all(certtool("--verify", "--load-ca-certificate", str(root), stdin=text) for text in files.values())


def pem(certificate: bytes) -> str:
    """Return a certificate in PEM."""
    return x509.load_der_x509_certificate(certificate).public_bytes(serialization.Encoding.PEM).decode()
