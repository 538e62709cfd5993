"""Fuzz target: the DER reader beside that of the cryptography package, on certificates and CSRs.

An even first octet leaves the rest as it is; an odd one puts it, cut in two, where a CSR has its subject and key. What
the package takes for a CSR or a version 3 certificate, the reader takes apart into the same octets: the signed part
against the package's own, subject and key by what the package reads from them in another place. Only DerError leaves,
and what is taken apart is put together again without loss.
"""

import random
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["protocol"]):
    from runtime.asn1 import der
    from runtime.asn1.der import DerError

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from der_mutator import elements_of, mutate

MAX_INPUT = 17 * 1024
FRESH = 8
CORPUS = Path(__file__).parent.parent / "tests" / "corpus" / "csrs"
SEEDS = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
SEEDS += [path.read_bytes()[1:] for path in sorted((Path(__file__).parent / "corpus" / "der").iterdir())]
DONORS = elements_of(seed for seed in SEEDS if len(seed) < 700)
PLAIN = (CORPUS / "good-plain.der").read_bytes()


def csr_with(subject: bytes, key: bytes) -> bytes:
    """Return the plain CSR with another subject and key; its signature is of no interest here."""
    information, *rest = der.children(PLAIN)
    version, _, _, *attributes = der.children(information)
    return der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, version, subject, key, *attributes), *rest)


def name_of(what: x509.Certificate | x509.CertificateSigningRequest) -> x509.Name | None:
    """Return the subject, where the package reads it."""
    try:
        return what.subject
    except (ValueError, TypeError):
        return None


def key_of(what: x509.Certificate | x509.CertificateSigningRequest) -> bytes | None:
    """Return the key, where the package reads it."""
    try:
        key = what.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def parts(octets: bytes) -> list[bytes] | None:
    """Return the parts of an element, which together are the element again."""
    try:
        found = der.children(octets)
    except DerError:
        return None
    assert der.wrap(octets[0], *found) == octets
    return found


def check_certificate(octets: bytes) -> None:
    """Compare the two readers on a certificate."""
    try:
        expected = x509.load_der_x509_certificate(octets)
        is_version_3 = expected.version is x509.Version.v3
    except (ValueError, x509.InvalidVersion):
        return
    found = parts(octets)
    assert found is not None
    assert len(found) == 3
    assert found[0] == expected.tbs_certificate_bytes
    if is_version_3:  # of others the fields stand elsewhere, and none is ever looked at
        subject, key = der.leaf_subject_and_key(octets)
        same = x509.load_der_x509_csr(csr_with(subject, key))
        assert name_of(same) == name_of(expected)
        assert key_of(same) == key_of(expected)


def check_csr(octets: bytes) -> None:
    """Compare the two readers on a CSR."""
    try:
        expected = x509.load_der_x509_csr(octets)
    except (ValueError, x509.InvalidVersion):
        return
    found = parts(octets)
    assert found is not None
    assert found[0] == expected.tbs_certrequest_bytes
    assert found[2].endswith(expected.signature)
    subject, key = der.csr_subject_and_key(octets)
    again = x509.load_der_x509_csr(csr_with(subject, key))
    assert name_of(again) == name_of(expected)
    assert key_of(again) == key_of(expected)


def one_input(data: bytes) -> None:
    """Run one input."""
    octets = data[1:]
    if data[:1] and data[0] & 1:
        half = len(octets) * data[0] // 256
        octets = csr_with(octets[:half], octets[half:])
    parts(octets)
    for shape in (der.leaf_subject_and_key, der.csr_subject_and_key):
        with suppress(DerError):
            assert all(each in octets for each in shape(octets))
    check_certificate(octets)
    check_csr(octets)


def other_input(data: bytes, most: int, seed: int) -> bytes:
    """Return another input, made from this one."""
    draw = random.Random(seed)  # noqa: S311  # a fuzzer's choices are no secret
    if len(data) < 2 or draw.randrange(FRESH) == 0:
        return (b"\0" + draw.choice(SEEDS))[:most]
    if draw.randrange(FRESH) == 0:
        return bytes(atheris.Mutate(data, most))
    return data[:1] + mutate(data[1:], most - 1, seed, DONORS)


if __name__ == "__main__":
    # What the package thinks of old certificates is not the question here.
    warnings.simplefilter("ignore")
    atheris.Setup([*sys.argv, f"-max_len={MAX_INPUT}"], one_input, custom_mutator=other_input)
    atheris.Fuzz()
