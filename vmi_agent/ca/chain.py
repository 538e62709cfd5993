"""Whether certificates that were made elsewhere can be a CA's: its own, those above it, and the root."""

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocol.records import MAX_CHAIN_CERTIFICATES
from vmi_agent.keys import CustodyError
from vmi_agent.keys.algorithms import key_type_of

_MOST_CA_CERTIFICATES = MAX_CHAIN_CERTIFICATES - 1

# What the cryptography package raises where a certificate is not one, or of a kind that it does not know.
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def read_chain(
    chain_pem: bytes, public_key: CertificateIssuerPublicKeyTypes, now: datetime
) -> Sequence[x509.Certificate]:
    """Return the certificates of a CA that was made elsewhere, judged.

    Args:
        chain_pem: that of the key first, root last, in PEM.
        public_key: of the CA's key.
        now: aware UTC time.

    Raises:
        CustodyError: they cannot serve as a CA's; the text says why.
    """
    key_type_of(public_key)  # one that we can sign with
    try:
        certificates = x509.load_pem_x509_certificates(chain_pem)
        names = [each.subject.rfc4514_string() for each in certificates]
        is_for_key = certificates[0].public_key() == public_key
    except _UNREADABLE as error:
        raise CustodyError("the chain is not one or more certificates in PEM that can be read") from error
    if len(certificates) > _MOST_CA_CERTIFICATES:
        raise CustodyError(f"{len(certificates)} certificates, accepted 1 to {_MOST_CA_CERTIFICATES}, root last")
    if not is_for_key:
        raise CustodyError("the first certificate is not for this key. Put the CA's own first, the root last.")
    for below, (certificate, name) in enumerate(zip(certificates, names, strict=True)):
        _check_ca_certificate(certificate, name, below, now)
    issuers = [*certificates[1:], certificates[-1]]
    for certificate, name, issuer, issuer_name in zip(
        certificates, names, issuers, [*names[1:], names[-1]], strict=True
    ):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise CustodyError(
                f"{name} is not issued by {issuer_name}. Give the whole chain in order, the CA's own certificate"
                " first, the self-signed root last."
            ) from error
    return certificates


def _check_ca_certificate(certificate: x509.Certificate, name: str, below: int, now: datetime) -> None:
    """Check one certificate with so many CA certificates between it and the leaf."""
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, *_UNREADABLE) as error:
        raise CustodyError(
            f"{name}: basic constraints, key usage or subject key identifier are missing, or cannot be read"
        ) from error
    if not constraints.ca or not usage.key_cert_sign:
        raise CustodyError(f"{name} is no CA certificate: it needs CA:TRUE and keyCertSign")
    if not usage.crl_sign:
        raise CustodyError(f"{name} may not sign CRLs: it needs cRLSign")
    if constraints.path_length is not None and constraints.path_length < below:
        raise CustodyError(f"{name} allows a path of {constraints.path_length} CAs below it, here are {below}")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        since, until = certificate.not_valid_before_utc.isoformat(), certificate.not_valid_after_utc.isoformat()
        raise CustodyError(f"{name} is not valid now, but from {since} until {until}. Compare the clock.")
    if not _may_issue_clients(extensions):
        raise CustodyError(f"{name} allows no TLS clients below it: leave out its extended key usage")


def _may_issue_clients(extensions: x509.Extensions) -> bool:
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return bool({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages))
