"""Custody: where a CA key lives, behind one small interface."""

from enum import Enum
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

KEY_TYPES = ("p256", "p384", "rsa2048", "rsa3072", "rsa4096", "ed25519", "mldsa44", "mldsa65", "mldsa87")
DEFAULT_KEY_TYPE = "p384"


class CustodyError(Exception):
    """The key cannot be used; the text says what to change."""


class Pace(Enum):
    """How long a signature takes."""

    QUICK = "less than handing it to another thread"
    SLOW = "long, and it keeps a core busy"
    ELSEWHERE = "nobody knows: it is made outside of this process"


class Custody(Protocol):
    """A CA key that signs and is never seen.

    Attributes:
        pace: how long a signature takes, and what it keeps busy.
    """

    pace: Pace

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
