"""The CA's own certificates: its self-signed root, the cross-certificates between two roots (RFC 4210, 4.4), its OCSP
responder's, and the CSR of an issuing CA.
"""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from runtime.asn1 import der
from runtime.clock import BACK_DATE
from vmi_agent.certificate import (
    Issuer,
    assemble,
    certificate_tbs,
    extension,
    key_identifier,
    new_serial,
    object_identifier,
)
from vmi_agent.keys import Custody
from vmi_agent.keys.algorithms import signature_algorithm

ROOT_VALIDITY = timedelta(days=20 * 365)
_VERSION_1, _SET, _CONTEXT_0 = bytes.fromhex("020100"), 0x31, 0xA0
# Room for one issuing CA, or a cross-certificate, between root and leaf.
_ROOT_PATH_LENGTH = 1

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")  # RFC 2985, 5.4.2

_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def root_name(generation: int, custody: Custody) -> x509.Name:
    """Return a name that differs from every other root's, so that a trust store with several finds the right one."""
    identifier = key_identifier(public_key_info(custody))
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "VMI Certificate Exchange"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"VMI Root CA {generation} {identifier.hex()[:8]}"),
        ]
    )


def ocsp_responder_name(generation: int) -> x509.Name:
    """Return the name of the OCSP responder's delegates of a generation."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"VMI OCSP responder {generation}")])


def self_signed_root(custody: Custody, generation: int, now: datetime) -> x509.Certificate:
    """Return a new root for a key.

    Args:
        generation: stands in its name.
        now: aware UTC time.

    Raises:
        CustodyError: the key cannot sign.
    """
    key_info = public_key_info(custody)
    name = root_name(generation, custody).public_bytes()
    not_before = now.replace(microsecond=0) - BACK_DATE
    itself = Issuer(
        name=name,
        signature_algorithm=signature_algorithm(custody.public_key),
        key_identifier=key_identifier(key_info),
        not_after=not_before + ROOT_VALIDITY,
    )
    return _ca_certificate(itself, custody, not_before, itself.not_after, name, key_info, _ROOT_PATH_LENGTH)


def cross_certificate(subject: x509.Certificate, issuer: Issuer, custody: Custody, now: datetime) -> x509.Certificate:
    """Return a certificate for another root's name and key, so that who trusts this issuer trusts that root as well.

    Args:
        subject: the other root.
        issuer, custody: the root that signs.
        now: aware UTC time.

    Raises:
        CustodyError: the key cannot sign.
    """
    key_info = subject.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    not_before = max(now.replace(microsecond=0) - BACK_DATE, subject.not_valid_before_utc)
    not_after = min(issuer.not_after, subject.not_valid_after_utc)
    return _ca_certificate(issuer, custody, not_before, not_after, subject.subject.public_bytes(), key_info, 0)


def issuing_ca_request(custody: Custody, name: x509.Name) -> x509.CertificateSigningRequest:
    """Return a CSR (RFC 2986) for an issuing CA, asking for what it needs.

    Raises:
        CustodyError: the key cannot sign.
    """
    wishes = der.wrap(
        der.SEQUENCE,
        extension(x509.BasicConstraints(ca=True, path_length=0), critical=True),
        extension(_USAGE, critical=True),
    )
    attribute = der.wrap(der.SEQUENCE, object_identifier(_EXTENSION_REQUEST), der.wrap(_SET, wishes))
    info = der.wrap(
        der.SEQUENCE,
        _VERSION_1,
        name.public_bytes(),
        public_key_info(custody),
        der.wrap(_CONTEXT_0, attribute),
    )
    signature = der.wrap(der.BIT_STRING, b"\0", custody.sign(info))
    request = der.wrap(der.SEQUENCE, info, signature_algorithm(custody.public_key), signature)
    return x509.load_der_x509_csr(request)


def public_key_info(custody: Custody) -> bytes:
    """Return the SubjectPublicKeyInfo of a key in custody."""
    return custody.public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _ca_certificate(
    issuer: Issuer,
    custody: Custody,
    not_before: datetime,
    not_after: datetime,
    subject: bytes,
    key_info: bytes,
    path_length: int,
) -> x509.Certificate:
    extensions = (
        extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True),
        extension(_USAGE, critical=True),
    )
    tbs = certificate_tbs(issuer, new_serial(), not_before, not_after, subject, key_info, extensions)
    return x509.load_der_x509_certificate(assemble(tbs, custody.sign(tbs)))
