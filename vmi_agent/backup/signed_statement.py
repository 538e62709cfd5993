"""What the CA states about itself, signed with its key: the manifest of a backup, a list of revocations.

A statement is a text of three lines: its kind, its content as JSON, and the signature in base64 or the word `unsigned`.
The signature is over the first two lines with their line feeds, with the algorithm that the key signs certificates
with, so that `openssl dgst -verify` reads it. The first octet of every kind is a letter: what a CA signs as a
certificate, CRL or OCSP response is DER and begins with 0x30 (SEQUENCE), so no statement can ever be taken for one of
those, nor one of those for a statement.

Every generation's certificates and cross-certificates are in it, that of the signer first, so that a reader who trusts
an older root finds the way from it to the signer.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from vmi_agent.ca import authority
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Authority
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.keys import CustodyError
from vmi_agent.keys.algorithms import parameters_of
from vmi_agent.keys.open import Access

BACKUP = "vmi-agent backup manifest 1"
REVOCATIONS = "vmi-agent revocations 1"
MAX_CERTIFICATES = 64

_UNSIGNED = "unsigned"
_DOES_NOT_VERIFY = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm)


class StatementRefused(Exception):
    """The octets are no statement of this kind, or its signature does not verify; the text says which."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was read.

    Attributes:
        fields: its content.
        certificates: that of the signer first; empty where it is not signed.
    """

    fields: Mapping[str, Any]
    certificates: Sequence[x509.Certificate]

    def is_signed_under(self, trusted: Sequence[x509.Certificate]) -> bool:
        """Return whether certificates of CAs lead from a trusted one to the signer.

        They lead from a root to those that came after it, never back: whoever stole the key of an earlier generation
        has the certificate that a newer root signed for it. Validity periods are not looked at: a CA that has ended is
        restored as well, and a clock may be wrong.
        """
        pool = [each for each in self.certificates if _is_ca(each)]
        if not pool or pool[0] is not self.certificates[0]:
            return False  # the holder of a leaf, or of the OCSP responder's key, states nothing for the CA
        reached, waiting = list(trusted), list(trusted)
        while waiting:
            issuer = waiting.pop()
            if _is_same_ca(pool[0], issuer):
                return True
            # Beginning with what is trusted, so that what others signed neither leads anywhere nor dates anything.
            below = [each for each in pool if _is_issued_by(each, issuer) and not _is_for_older_root(each, issuer)]
            new = [each for each in below if each not in reached]
            reached += new
            waiting += new
        return False


def open_signer(state_dir: Path, access: Access) -> Authority:
    """Return the newest generation that has a lasting key; under an offline root, that is the issuing CA's.

    Raises:
        CustodyError: there is none, or its key cannot be opened.
    """
    generation = signing_generation(state_dir)
    if generation is None:
        raise CustodyError(f"{state_dir} holds no CA with a lasting key")
    return authority.load(state_dir, generation, access)


def signing_generation(state_dir: Path) -> int | None:
    """Return the newest generation that has a lasting key; None where there is none."""
    for generation in reversed(ca_store.generations(state_dir)):
        if not ca_store.is_ephemeral(ca_store.directory_of(state_dir, generation)):
            return generation
    return None


def make(kind: str, fields: Mapping[str, Any], state_dir: Path, signer: Authority | None) -> bytes:
    """Return a statement.

    Args:
        kind: one of those above.
        fields: values that JSON has.
        state_dir: where the CA is.
        signer: from `open_signer`; None leaves the statement unsigned.

    Raises:
        CustodyError: the key cannot sign now.
    """
    certificates = [] if signer is None else _certificates_of(state_dir, signer)
    content = {**fields, "certificates": [each.public_bytes(_PEM).decode() for each in certificates]}
    signed = f"{kind}\n{json.dumps(content, separators=(',', ':'))}\n".encode()
    signature = _UNSIGNED if signer is None else base64.b64encode(signer.custody.sign(signed)).decode()
    return signed + f"{signature}\n".encode()


def read(kind: str, octets: bytes) -> Statement:
    """Read a statement; a signature is verified with the certificate of the signer that it names.

    Whether that signer is to be trusted, `Statement.is_signed_under` tells.

    Raises:
        StatementRefused: as its docstring says.
    """
    lines = octets.split(b"\n")
    if lines[0] != kind.encode() or len(lines) != 4 or lines[3]:
        raise StatementRefused(f"it is no {kind!r}")
    try:
        fields = json.loads(lines[1])
        pems = fields.pop("certificates")
        if len(pems) > MAX_CERTIFICATES:
            raise ValueError("too many certificates")
        certificates = [x509.load_pem_x509_certificate(each.encode()) for each in pems]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StatementRefused("its content cannot be read") from error
    if lines[2] == _UNSIGNED.encode() and not certificates:
        return Statement(fields, ())
    try:
        signature = base64.b64decode(lines[2], validate=True)
        public_key: Any = certificates[0].public_key()  # of a kind whose `verify` takes these parameters
        public_key.verify(signature, lines[0] + b"\n" + lines[1] + b"\n", *parameters_of(public_key))
    except (*_DOES_NOT_VERIFY, IndexError, binascii.Error, CustodyError) as error:
        raise StatementRefused("its signature does not verify: it was changed") from error
    return Statement(fields, certificates)


_PEM = serialization.Encoding.PEM


def _certificates_of(state_dir: Path, signer: Authority) -> list[x509.Certificate]:
    found = list(signer.certificates)
    for generation in reversed(ca_store.generations(state_dir)):
        directory = ca_store.directory_of(state_dir, generation)
        found += authority.certificates_of(state_dir, generation)
        for name in (ca_store.NEW_WITH_OLD_FILE, ca_store.OLD_WITH_NEW_FILE):
            found += ca_store.read_certificates(directory / name) if (directory / name).exists() else []
    return list(dict.fromkeys(found))[:MAX_CERTIFICATES]


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return constraints.ca and usage.key_cert_sign


def _is_same_ca(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Return whether two certificates, such as a root and a cross-certificate for it, have one subject and key."""
    return one.subject == other.subject and one.public_key() == other.public_key()


def _is_for_older_root(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether a root that the agent made signed this for the root before it, when it was made itself.

    A rotation dates the new root and what that signs for the old one alike; what the old root signs for the new one is
    later than the old root. Certificates that others made have serial numbers of another length.
    """
    is_ours = certificate.serial_number.bit_length() in range(8 * SERIAL_OCTETS - 7, 8 * SERIAL_OCTETS)
    return is_ours and certificate.not_valid_before_utc <= issuer.not_valid_before_utc


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except _DOES_NOT_VERIFY:
        return False
    return True
