"""Certificates, octet by octet (RFC 5280, 4.1).

The to-be-signed certificate is laid out by hand for two reasons: subject and public key go in exactly as they stand in
the CSR, whatever string types and point formats it uses, and the TBS exists, and can be recorded, before any key is
used. What comes out is read back and judged by others: `issuing` checks it with the cryptography package, the tests
with openssl.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cryptography import x509

from runtime.asn1 import der

SERIAL_OCTETS = 17
KEY_IDENTIFIER_OCTETS = 20
_VERSION_3 = bytes.fromhex("a003020102")
_TRUE = bytes.fromhex("0101ff")
_UTC_TIME, _GENERALIZED_TIME, _CONTEXT_3 = 0x17, 0x18, 0xA3


@dataclass(frozen=True, slots=True)
class Issuer:
    """What of the issuing CA goes into every certificate that it issues.

    Attributes:
        name: its subject as a DER Name.
        signature_algorithm: the DER AlgorithmIdentifier of what its key signs with.
        key_identifier: its subject key identifier.
        not_after: where its own validity ends; no certificate of its own ends later.
        pointers: whole extensions, in DER, that say where its CRL, OCSP responder and certificate are.
        authority_key_identifier: `key_identifier` as an extension, in DER.
    """

    name: bytes
    signature_algorithm: bytes
    key_identifier: bytes
    not_after: datetime
    pointers: tuple[bytes, ...] = ()
    authority_key_identifier: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        identifier = extension(x509.AuthorityKeyIdentifier(self.key_identifier, None, None))
        object.__setattr__(self, "authority_key_identifier", identifier)


def new_serial() -> bytes:
    """Return a serial number of 17 octets, at least 128 of its bits random, the first octet 0x01 … 0x7f (positive)."""
    return bytes((1 + secrets.randbelow(0x7F),)) + secrets.token_bytes(SERIAL_OCTETS - 1)


def certificate_tbs(
    issuer: Issuer,
    serial: bytes,
    not_before: datetime,
    not_after: datetime,
    subject: bytes,
    public_key_info: bytes,
    extensions: Sequence[bytes],
) -> bytes:
    """Return the DER of a TBSCertificate, version 3.

    Args:
        serial: from `new_serial`.
        not_before, not_after: aware UTC times, whole seconds.
        subject, public_key_info: a DER Name and a SubjectPublicKeyInfo, which go in as they are.
        extensions: whole ones, from `extension`; the two key identifiers are added to them.
    """
    identifiers = (_SUBJECT_KEY_IDENTIFIER + key_identifier(public_key_info), issuer.authority_key_identifier)
    return der.wrap(
        der.SEQUENCE,
        _VERSION_3,
        der.wrap(der.INTEGER, serial),
        issuer.signature_algorithm,
        issuer.name,
        der.wrap(der.SEQUENCE, time(not_before), time(not_after)),
        subject,
        public_key_info,
        der.wrap(_CONTEXT_3, der.wrap(der.SEQUENCE, *extensions, *identifiers)),
    )


def assemble(tbs: bytes, signature: bytes) -> bytes:
    """Return the certificate that a TBS and the signature over it make.

    The outer signatureAlgorithm is the one inside the TBS, as RFC 5280, 4.1.1.2 demands.
    """
    signature_algorithm = der.children(tbs)[2]
    return der.wrap(der.SEQUENCE, tbs, signature_algorithm, der.wrap(der.BIT_STRING, b"\0", signature))


def key_identifier(public_key_info: bytes) -> bytes:
    """Return the 20-octet key identifier of a SubjectPublicKeyInfo: method 1 of RFC 7093, over SHA-256."""
    bit_string = der.children(public_key_info)[1]
    _, start, end = der.read(bit_string)
    return hashlib.sha256(bit_string[start + 1 : end]).digest()[:KEY_IDENTIFIER_OCTETS]


@lru_cache(maxsize=8)  # many leaves begin, and end, in the same second
def time(moment: datetime) -> bytes:
    """Return a Time (RFC 5280, 4.1.2.5): UTCTime through 2049, GeneralizedTime from 2050."""
    if moment.year < 2050:
        return der.wrap(_UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der.wrap(_GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def extension(value: x509.ExtensionType, critical: bool = False) -> bytes:
    """Return one Extension (RFC 5280, 4.1)."""
    return encode_extension(value.oid, value.public_bytes(), critical)


def encode_extension(oid: x509.ObjectIdentifier, value: bytes, critical: bool = False) -> bytes:
    """Return one Extension with a value that is DER already."""
    # DER leaves out a `critical` that is FALSE.
    return der.wrap(der.SEQUENCE, object_identifier(oid), _TRUE if critical else b"", der.wrap(der.OCTET_STRING, value))


def object_identifier(oid: x509.ObjectIdentifier) -> bytes:
    """Return an OBJECT IDENTIFIER (X.690, 8.19)."""
    first, second, *others = (int(arc) for arc in oid.dotted_string.split("."))
    octets = b""
    for arc in (40 * first + second, *others):
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(arc & 0x7F | 0x80)
        octets += bytes(reversed(digits))
    return der.wrap(der.OBJECT_IDENTIFIER, octets)


# The extension up to the identifier itself, whose size is always the same.
_SUBJECT_KEY_IDENTIFIER = extension(x509.SubjectKeyIdentifier(bytes(KEY_IDENTIFIER_OCTETS)))[:-KEY_IDENTIFIER_OCTETS]
