"""The files that `vmi-agent keys block` takes: a certificate, a CSR, a public key, or a list of hashes."""

import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key, load_pem_public_key

from runtime.asn1 import der
from runtime.errors import ConfigError
from vmi_agent.cli.hexadecimal import digits_of

# About 250,000 hashes, one a line.
MAX_FILE_OCTETS = 16 << 20
_PEM = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----", re.MULTILINE)
_HASH = re.compile(r"[0-9a-f]{64}")


def hashes_in(path: Path) -> list[bytes]:
    """Return the SHA-256 of the SubjectPublicKeyInfo that a file holds, or each one that it lists.

    A list has one hash a line in hexadecimal; empty lines and those that begin with # are skipped.

    Raises:
        ConfigError: the file is none of these, or a line of the list is not a hash.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_FILE_OCTETS + 1)
    if len(content) > MAX_FILE_OCTETS:
        raise ConfigError(f"{path} is larger than {MAX_FILE_OCTETS} octets: split it. Nothing was blocked.")
    labels = _PEM.findall(content)
    if any(b"PRIVATE KEY" in label for label in labels):
        make = "openssl pkey -pubout -in KEY -out PUBLIC"
        raise ConfigError(f"{path} holds a private key. Give its public key: {make}. Nothing was blocked.")
    if len(labels) > 1:
        raise ConfigError(f"{path} holds {len(labels)} objects: give a file for each. Nothing was blocked.")
    if not labels and content.isascii():
        return _listed(path, content.decode("ascii"))
    return [sha256(_key_info(path, content, labels[0] if labels else None)).digest()]


def _listed(path: Path, text: str) -> list[bytes]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        digits = digits_of(line)
        if not _HASH.fullmatch(digits):
            raise ConfigError(f"{path}, line {number}, is not a SHA-256 in 64 hexadecimal digits. Nothing was blocked.")
        found.append(bytes.fromhex(digits))
    if not found:
        raise ConfigError(f"{path} holds no key and no hash. Nothing was blocked.")
    return found


def _key_info(path: Path, content: bytes, label: bytes | None) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate, CSR or public key, in PEM with this label or in DER."""
    with suppress(ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        match label:
            case b"CERTIFICATE" | b"TRUSTED CERTIFICATE" | b"X509 CERTIFICATE":
                return _of_certificate(x509.load_pem_x509_certificate(content))
            case b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST":
                return _of_csr(x509.load_pem_x509_csr(content))
            case b"PUBLIC KEY" | b"RSA PUBLIC KEY":
                key = load_pem_public_key(content)
                return key.public_bytes(Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if label is None:
        with suppress(ValueError, x509.InvalidVersion):
            return _of_certificate(x509.load_der_x509_certificate(content))
        with suppress(ValueError, x509.InvalidVersion):
            return _of_csr(x509.load_der_x509_csr(content))
        with suppress(ValueError, UnsupportedAlgorithm):
            load_der_public_key(content)
            return content
    raise ConfigError(f"{path} is not a certificate, a CSR, a public key or a list of hashes. Nothing was blocked.")


def _of_certificate(certificate: x509.Certificate) -> bytes:
    return der.leaf_subject_and_key(certificate.public_bytes(Encoding.DER))[1]


def _of_csr(csr: x509.CertificateSigningRequest) -> bytes:
    return der.csr_subject_and_key(csr.public_bytes(Encoding.DER))[1]
