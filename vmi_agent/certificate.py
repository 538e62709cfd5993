"""The leaf, octet by octet (RFC 5280, 4.1).

The to-be-signed certificate is laid out by hand for two reasons: subject and public key go in exactly as they stand in
the CSR, whatever string types and point formats it uses, and the TBS exists, and can be recorded, before any key is
used. What comes out is read back and judged by others: `issuing` checks it with the cryptography package, the tests
with openssl.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocol import der
from vmi_agent.profile import Approved

SERIAL_OCTETS = 17
_VERSION_3 = bytes.fromhex("a003020102")
_TRUE = bytes.fromhex("0101ff")
_UTC_TIME, _GENERALIZED_TIME, _CONTEXT_3 = 0x17, 0x18, 0xA3


@dataclass(frozen=True, slots=True)
class Issuer:
    """What of the issuing CA goes into every leaf.

    Attributes:
        name: its subject as a DER Name.
        signature_algorithm: the DER AlgorithmIdentifier of what its key signs with.
        key_identifier: its subject key identifier.
        not_after: where its own validity ends; no leaf's ends later.
    """

    name: bytes
    signature_algorithm: bytes
    key_identifier: bytes
    not_after: datetime


def new_serial() -> bytes:
    """Return a serial number of 17 octets, at least 128 of its bits random, the first octet 0x01 … 0x7f (positive)."""
    return bytes((1 + secrets.randbelow(0x7F),)) + secrets.token_bytes(SERIAL_OCTETS - 1)


def leaf_tbs(approved: Approved, issuer: Issuer, serial: bytes, not_before: datetime, not_after: datetime) -> bytes:
    """Return the DER of the leaf's TBSCertificate.

    Args:
        serial: from `new_serial`.
        not_before, not_after: aware UTC times, whole seconds.
    """
    extensions = [
        _BASIC_CONSTRAINTS,
        _KEY_USAGE[approved.key_encipherment],
        _EXTENDED_KEY_USAGE,
        _extension(x509.SubjectKeyIdentifier(key_identifier(approved.csr.public_key_info))),
        _extension(x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None)),
    ]
    if approved.subject_alt_name is not None:
        extensions.append(_encode_extension(x509.SubjectAlternativeName.oid, approved.subject_alt_name))
    return der.wrap(
        der.SEQUENCE,
        _VERSION_3,
        der.wrap(der.INTEGER, serial),
        issuer.signature_algorithm,
        issuer.name,
        der.wrap(der.SEQUENCE, _time(not_before), _time(not_after)),
        approved.csr.subject,
        approved.csr.public_key_info,
        der.wrap(_CONTEXT_3, der.wrap(der.SEQUENCE, *extensions)),
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
    return hashlib.sha256(bit_string[start + 1 : end]).digest()[:20]


def _time(moment: datetime) -> bytes:
    # RFC 5280, 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050.
    if moment.year < 2050:
        return der.wrap(_UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der.wrap(_GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def _extension(value: x509.ExtensionType, critical: bool = False) -> bytes:
    return _encode_extension(value.oid, value.public_bytes(), critical)


def _encode_extension(oid: x509.ObjectIdentifier, value: bytes, critical: bool = False) -> bytes:
    """Return one Extension (RFC 5280, 4.1). DER leaves out a `critical` that is FALSE."""
    arc = oid.dotted_string.removeprefix("2.5.29.")  # id-ce: all that a leaf carries lies under it
    identifier = der.wrap(der.OBJECT_IDENTIFIER, b"\x55\x1d" + bytes((int(arc),)))
    return der.wrap(der.SEQUENCE, identifier, _TRUE if critical else b"", der.wrap(der.OCTET_STRING, value))


def _key_usage(key_encipherment: bool) -> bytes:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=key_encipherment,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return _extension(usage, critical=True)


# The same in every leaf, so encoded once.
_BASIC_CONSTRAINTS = _extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
_KEY_USAGE = {wanted: _key_usage(wanted) for wanted in (False, True)}
_EXTENDED_KEY_USAGE = _extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
