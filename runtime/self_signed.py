"""Self-signed certificates for TLS: what a side shows where nobody gave it a certificate, and what the channel pins."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.clock import BACK_DATE

# What fits into a common name (RFC 5280, upper bounds); the whole name stands in the SAN.
_COMMON_NAME_LIMIT = 64


def self_signed(
    name: str, hosts: Sequence[str], usage: x509.ObjectIdentifier, validity: timedelta, now: datetime
) -> bytes:
    """Return a new P-256 key and a certificate for it, both in PEM, key first.

    Args:
        name: its common name.
        hosts: host names and addresses for its SAN.
        usage: its one extended key usage.
        now: aware UTC time.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_COMMON_NAME_LIMIT])])
    not_before = now.replace(microsecond=0) - BACK_DATE
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    key_usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
    certificate = builder.sign(key, hashes.SHA256())
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pkcs8 + certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
