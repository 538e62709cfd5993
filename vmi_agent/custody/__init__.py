"""Custody: where a CA key lives, behind one small interface."""

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

KEY_TYPES = ("p256", "p384", "rsa2048", "rsa3072", "rsa4096", "ed25519", "mldsa44", "mldsa65", "mldsa87")
DEFAULT_KEY_TYPE = "p384"


class CustodyError(Exception):
    """The key cannot be used; the text says what to change."""


class Custody(Protocol):
    """A CA key that signs and is never seen.

    Attributes:
        is_elsewhere: signing waits for something outside of this process.
    """

    is_elsewhere: bool

    @property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key's public half."""

    def sign(self, tbs: bytes) -> bytes:
        """Return the signature over `tbs`, as a certificate's signatureValue has it, with the algorithm that
        `algorithms.signature_algorithm` gives for the key. Any thread may call this.

        Raises:
            CustodyError: the key cannot be reached now; nothing was signed.
        """

    def close(self) -> None:
        """Let go of what reaches the key. Nothing is signed any more."""
