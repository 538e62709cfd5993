"""What each kind of CA key signs with: one algorithm per kind, so that no choice is left to anybody's input.

ECDSA with P-256 takes SHA-256, P-384 takes SHA-384 (RFC 5758, 3.2); RSA is PKCS #1 v1.5 with SHA-256, from 4096 bits on
with SHA-384 (RFC 4055, 5); Ed25519 (RFC 8410) and ML-DSA (RFC 9881) hash for themselves.
"""

from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from vmi_agent.keys import CustodyError, Pace

_ALGORITHM_IDENTIFIERS = {
    "p256": bytes.fromhex("300a06082a8648ce3d040302"),
    "p384": bytes.fromhex("300a06082a8648ce3d040303"),
    "rsa2048": bytes.fromhex("300d06092a864886f70d01010b0500"),
    "rsa3072": bytes.fromhex("300d06092a864886f70d01010b0500"),
    "rsa4096": bytes.fromhex("300d06092a864886f70d01010c0500"),
    "ed25519": bytes.fromhex("300506032b6570"),
    "mldsa44": bytes.fromhex("300b0609608648016503040311"),
    "mldsa65": bytes.fromhex("300b0609608648016503040312"),
    "mldsa87": bytes.fromhex("300b0609608648016503040313"),
}


def key_type_of(public_key: PublicKeyTypes) -> str:
    """Return which of `custody.KEY_TYPES` a CA's public key is.

    Raises:
        CustodyError: it is none of them.
    """
    match public_key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return "p256"
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return "p384"
        case rsa.RSAPublicKey() if (name := f"rsa{public_key.key_size}") in _ALGORITHM_IDENTIFIERS:
            return name
        case ed25519.Ed25519PublicKey():
            return "ed25519"
        case mldsa.MLDSA44PublicKey():
            return "mldsa44"
        case mldsa.MLDSA65PublicKey():
            return "mldsa65"
        case mldsa.MLDSA87PublicKey():
            return "mldsa87"
    raise CustodyError(f"a CA key of this kind is not supported; supported: {', '.join(_ALGORITHM_IDENTIFIERS)}")


def signature_algorithm(public_key: PublicKeyTypes) -> bytes:
    """Return the DER AlgorithmIdentifier of the signatures under this key. Raises as `key_type_of` does."""
    return _ALGORITHM_IDENTIFIERS[key_type_of(public_key)]


def hash_of(public_key: PublicKeyTypes) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash that is signed; None where the algorithm hashes for itself. Raises as `key_type_of` does."""
    match key_type_of(public_key):
        case "p384" | "rsa4096":
            return hashes.SHA384()
        case "p256" | "rsa2048" | "rsa3072":
            return hashes.SHA256()
    return None


def parameters_of(public_key: PublicKeyTypes) -> tuple[Any, ...]:
    """Return what `verify`, and `sign` of the private half, take behind the data. Raises as `key_type_of` does."""
    algorithm = hash_of(public_key)
    if algorithm is None:
        return ()
    return (padding.PKCS1v15(), algorithm) if isinstance(public_key, rsa.RSAPublicKey) else (ec.ECDSA(algorithm),)


def pace_of(public_key: PublicKeyTypes) -> Pace:
    """Return how long this process takes to sign with a key and to verify what it signed. Raises as `key_type_of`."""
    return Pace.QUICK if key_type_of(public_key) in ("p256", "ed25519") else Pace.SLOW
