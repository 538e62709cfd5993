"""The kinds of public key that a CSR may hold, by the names that profiles call them."""

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

KEY_KINDS = ("rsa", "p256", "p384", "p521", "ed25519", "mldsa44", "mldsa65", "mldsa87")

_MLDSA = {mldsa.MLDSA44PublicKey: "mldsa44", mldsa.MLDSA65PublicKey: "mldsa65", mldsa.MLDSA87PublicKey: "mldsa87"}
_CURVES = {"secp256r1": "p256", "secp384r1": "p384", "secp521r1": "p521"}

# Which usages a certificate of a key kind may state: RSA by RFC 3279, 2.3.1, curves by RFC 5480, 3, Ed25519 by RFC
# 8410, 5, ML-DSA by RFC 9881, 5; less those that are for certification authorities.
_SIGNING = ("digitalSignature", "nonRepudiation")
USAGES_OF: dict[str, tuple[str, ...]] = dict.fromkeys(KEY_KINDS, _SIGNING)
USAGES_OF["rsa"] = (*_SIGNING, "keyEncipherment")
USAGES_OF |= dict.fromkeys(_CURVES.values(), (*_SIGNING, "keyAgreement"))


def kind_of(key: CertificatePublicKeyTypes) -> tuple[str, int]:
    """Return which of KEY_KINDS a public key is, "" for none of them, and its size in bits (RSA and curves; else 0)."""
    match key:
        case rsa.RSAPublicKey():
            return "rsa", key.key_size
        case ec.EllipticCurvePublicKey():
            return _CURVES.get(key.curve.name, ""), key.key_size
        case ed25519.Ed25519PublicKey():
            return "ed25519", 0
    return next((kind for each, kind in _MLDSA.items() if isinstance(key, each)), ""), 0
