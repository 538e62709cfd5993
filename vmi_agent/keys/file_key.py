"""Custody in a file: PKCS#8 in PEM, mode 0600, readable by its owner alone."""

import base64
import re
import textwrap
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificateIssuerPublicKeyTypes,
)

from runtime.files import FileRefused, read_secret, replace_file
from runtime.hints import command, given
from vmi_agent.keys import CustodyError
from vmi_agent.keys.algorithms import pace_of, parameters_of
from vmi_agent.keys.pkcs8 import encrypt


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
        self.pace = pace_of(self._public_key)
        self._parameters = parameters_of(self._public_key)
        self._sign: Any = key.sign  # which takes these, whatever its kind

    @property
    def private_key(self) -> CertificateIssuerPrivateKeyTypes:
        """The key itself, for storing it."""
        return self._key

    @property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key's public half."""
        return self._public_key

    def sign(self, tbs: bytes) -> bytes:
        """Return the signature over `tbs`, as it stands in a certificate's signatureValue."""
        signature: bytes = self._sign(tbs, *self._parameters)
        return signature

    def close(self) -> None:
        """Nothing to let go of."""


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


def store(key: CertificateIssuerPrivateKeyTypes, path: Path, passphrase: bytes | None) -> None:
    """Write the key to a file that nobody else could ever open, durably: it is there whole or not at all.

    Args:
        passphrase: encrypts it; None leaves it in the clear.
    """
    replace_file(path, to_pem(key, passphrase))


def to_pem(key: CertificateIssuerPrivateKeyTypes, passphrase: bytes | None) -> bytes:
    """Return the key as PKCS#8 in PEM, encrypted where there is a passphrase."""
    clear, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    if passphrase is None:
        return key.private_bytes(serialization.Encoding.PEM, pkcs8, clear)
    encrypted = encrypt(key.private_bytes(serialization.Encoding.DER, pkcs8, clear), passphrase)
    lines = textwrap.wrap(base64.b64encode(encrypted).decode(), 64)
    return "\n".join(
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    ).encode()


def load(path: Path, passphrase: bytes | None) -> FileCustody:
    """Read a key that `store` wrote.

    Raises:
        CustodyError: the file is missing, not a private key, or open to other users; or the passphrase is not right.
    """
    try:
        pem = read_secret(path)
    except OSError as error:
        raise CustodyError(f"CA key {path}: {error.strerror}") from error
    except FileRefused as error:
        raise CustodyError(f"CA key {error}") from error
    return parse(pem, passphrase, f"CA key {path}")


def parse(pem: bytes, passphrase: bytes | None, what: str, option: str = "--key-passphrase-file") -> FileCustody:
    """Return the private key that a PEM text holds.

    Args:
        what: names it in an error.
        option: that its passphrase comes by.

    Raises:
        CustodyError: it is none, or the passphrase is not right.
    """
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError as error:  # cryptography's word for a passphrase that is missing, or one too many
        if passphrase is None:
            raise CustodyError(f"{what} is encrypted. Give its passphrase: {option} FILE") from error
        passphrase_file = given("vmi-agent", "--key-passphrase-file", "FILE")
        encrypt = command("vmi-agent", f"ca encrypt --new-passphrase-file {passphrase_file}")
        raise CustodyError(
            f"{what} is not encrypted, and a passphrase was given: leave {option} away, or encrypt the CA's keys:"
            f" `{encrypt}`"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"BEGIN ENCRYPTED PRIVATE KEY" in pem and passphrase is not None:
            raise CustodyError(f"{what} is encrypted with another passphrase than the one given") from error
        raise CustodyError(f"{what} is not a private key in PEM (PKCS#8)") from error
    return FileCustody(key)  # type: ignore[arg-type]  # a kind that cannot sign is refused there


def reencrypt(pem: bytes, old: bytes | None, new: bytes | None, what: str) -> bytes:
    """Return a PEM text with its private key encrypted anew, and whatever else it holds as it was.

    Args:
        old, new: passphrases; None for none. A key that the new one opens stays as it is: a change that was cut short
            is finished by doing it again.
        what: names it in an error.

    Raises:
        CustodyError: as for `parse`.
    """
    try:
        parse(pem, new, what)
    except CustodyError:
        key = parse(pem, old, what).private_key
    else:
        return pem
    end = re.search(rb"-----END [A-Z ]*PRIVATE KEY-----\r?\n?", pem)
    assert end is not None  # the key was read
    return to_pem(key, new) + pem[end.end() :]
