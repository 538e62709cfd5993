"""The kinds of public key that a CSR may hold, by the names that profiles call them."""

from dataclasses import dataclass

KEY_KINDS = ("rsa", "p256", "p384", "p521", "ed25519", "mldsa44", "mldsa65", "mldsa87")

# Which usages a certificate of a key kind may state: RSA by RFC 3279, 2.3.1, curves by RFC 5480, 3, Ed25519 by RFC
# 8410, 5, ML-DSA by RFC 9881, 5; less those that are for certification authorities.
_SIGNING = ("digitalSignature", "nonRepudiation")
USAGES_OF: dict[str, tuple[str, ...]] = dict.fromkeys(KEY_KINDS, _SIGNING)
USAGES_OF["rsa"] = (*_SIGNING, "keyEncipherment")
USAGES_OF |= dict.fromkeys(("p256", "p384", "p521"), (*_SIGNING, "keyAgreement"))


@dataclass(frozen=True, slots=True)
class AcceptedKey:
    """What a CSR's key is, once it is accepted.

    Attributes:
        kind: one of KEY_KINDS.
        bits: of the modulus (RSA), the field (EC: 256, 384 or 521), or the encoded public key (Ed25519: 256; ML-DSA).
    """

    kind: str
    bits: int
