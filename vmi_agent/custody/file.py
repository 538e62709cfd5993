"""Custody in a file: PKCS#8 in PEM, mode 0600, readable by its owner alone."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificateIssuerPublicKeyTypes,
)

from runtime.files import FileRefused, read_secret
from vmi_agent.custody import CustodyError
from vmi_agent.custody.algorithms import hash_of

_HASHES_ITSELF = (ed25519.Ed25519PrivateKey, mldsa.MLDSA44PrivateKey, mldsa.MLDSA65PrivateKey, mldsa.MLDSA87PrivateKey)


class FileCustody:
    """A private key held in this process's memory.

    Args:
        key: of one of `KEY_TYPES`.

    Raises:
        CustodyError: it is of another kind.
    """

    def __init__(self, key: CertificateIssuerPrivateKeyTypes) -> None:
        self._key = key
        self._public_key = key.public_key()
        self._hash = hash_of(self._public_key)

    @property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key's public half."""
        return self._public_key

    def sign(self, tbs: bytes) -> bytes:
        """Return the signature over `tbs`, as it stands in a certificate's signatureValue."""
        key, hash_algorithm = self._key, self._hash
        if hash_algorithm is None:
            assert isinstance(key, _HASHES_ITSELF)  # no other kind has no hash
            return key.sign(tbs)
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(tbs, padding.PKCS1v15(), hash_algorithm)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # the one kind that is left
        return key.sign(tbs, ec.ECDSA(hash_algorithm))


def make_key(key_type: str) -> CertificateIssuerPrivateKeyTypes:
    """Return a new private key of one of `KEY_TYPES`."""
    match key_type:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "rsa2048" | "rsa3072" | "rsa4096":
            return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type.removeprefix("rsa")))
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "mldsa44":
            return mldsa.MLDSA44PrivateKey.generate()
        case "mldsa65":
            return mldsa.MLDSA65PrivateKey.generate()
        case "mldsa87":
            return mldsa.MLDSA87PrivateKey.generate()
    raise ValueError(f"unknown key type {key_type!r}")


def store(key: CertificateIssuerPrivateKeyTypes, path: Path) -> None:
    """Write the key to a new file that nobody else could ever open, and make it durable."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> FileCustody:
    """Read a key that `store` wrote.

    Raises:
        CustodyError: the file is missing, not a private key, or open to other users.
    """
    try:
        pem = read_secret(path)
    except OSError as error:
        raise CustodyError(f"CA key {path}: {error.strerror}") from error
    except FileRefused as error:
        raise CustodyError(f"CA key {error}") from error
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CustodyError(f"CA key {path} is not an unencrypted PKCS#8 private key in PEM") from error
    return FileCustody(key)  # type: ignore[arg-type]  # sign() refuses what cannot sign
