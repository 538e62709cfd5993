"""The files that `vmi-agent keys block` takes: a certificate, a CSR, a public key, or a list of hashes.

A file may hold a key in an encoding that no CSR may have: an EC key with explicit parameters, an RSA key bound to PSS
or without NULL parameters. What is blocked is the encoding that the key policy accepts, or the block would have no
effect.
"""

import errno
import re
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from runtime.errors import ConfigError
from vmi_agent.cli.hexadecimal import digits_of
from vmi_agent.ledger.key_forms import listed_form

# About 250,000 hashes, one a line.
MAX_FILE_OCTETS = 16 << 20
_PEM = re.compile(rb"^-----BEGIN ([A-Z0-9 ]+)-----", re.MULTILINE)
_HASH = re.compile(r"[0-9a-f]{64}")


def hashes_in(path: Path) -> list[bytes]:
    """Return the hash under which the block list has the key that a file holds, or each hash that it lists.

    A list has one hash a line in hexadecimal; empty lines and those that begin with # are skipped.

    Raises:
        ConfigError: the file is not there or cannot be read, is none of these, or a line of the list is not a hash.
    """
    content = _content_of(path)
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
    return [listed_form(_key_info(path, content, labels[0] if labels else None))]


def _content_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_OCTETS + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            fault = "is neither a file nor a hash of 64 hexadecimal digits"
        else:
            fault = f"cannot be read: {error.strerror}"
        raise ConfigError(f"{path} {fault}. Nothing was blocked.") from error


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
    """Return the SubjectPublicKeyInfo, as a CSR may have it, of what is in PEM with this label or in DER."""
    try:
        holder = _loaded(content, label)
        if holder is None:
            fault = "is not a certificate, a CSR, a public key or a list of hashes"
            raise ConfigError(f"{path} {fault}. Nothing was blocked.")
        key = holder.public_key() if isinstance(holder, x509.Certificate | x509.CertificateSigningRequest) else holder
        # The load has undone explicit parameters, compressed points and what binds RSA to PSS.
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as error:
        fault = "holds a key of a kind, or in an encoding, that this agent cannot read and signs no CSR with"
        advice = "Another encoding: openssl pkey -pubin -in KEY -pubout -ec_param_enc named_curve"
        raise ConfigError(f"{path} {fault}. {advice}. Nothing was blocked.") from error


def _loaded(
    content: bytes, label: bytes | None
) -> x509.Certificate | x509.CertificateSigningRequest | PublicKeyTypes | None:
    with suppress(ValueError, x509.InvalidVersion):
        match label:
            case b"CERTIFICATE" | b"TRUSTED CERTIFICATE" | b"X509 CERTIFICATE":
                return x509.load_pem_x509_certificate(content)
            case b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST":
                return x509.load_pem_x509_csr(content)
            case b"PUBLIC KEY" | b"RSA PUBLIC KEY":
                return load_pem_public_key(content)
    if label is None:
        for load in (x509.load_der_x509_certificate, x509.load_der_x509_csr, load_der_public_key):
            with suppress(ValueError, x509.InvalidVersion):
                return load(content)
    return None
