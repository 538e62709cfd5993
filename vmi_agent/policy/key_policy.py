"""Which public keys are certified.

Judged before the CSR's signature is verified: a key of absurd size must not cost a verification. The kind is told by
the octets of the AlgorithmIdentifier, in the one form that its RFC demands, and size and form by the octets of the key,
before any library looks at it.
"""

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm

from protocol.errors import ErrorCode
from runtime.asn1 import der
from vmi_agent.errors import Refused
from vmi_agent.policy import ed25519, weak_rsa
from vmi_agent.policy.csr import Csr
from vmi_agent.policy.key_kinds import AcceptedKey
from vmi_agent.policy.verdict_cache import Verdicts

LEAST_RSA_BITS = 2048
MOST_RSA_BITS = 8192
LEAST_RSA_EXPONENT = 65537
# Go verifies no signature with a larger one, and OpenSSL none with 65 bits once the modulus has more than 3072.
MOST_RSA_EXPONENT = 2**31 - 1

# About 400 octets each.
MOST_VERDICTS = 4096

_EC = bytes.fromhex("06072a8648ce3d0201")
_RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d010101")
_ED25519 = bytes.fromhex("06032b6570")

# AlgorithmIdentifier -> kind. RFC 3279, 2.3.1: NULL parameters for RSA, not bound to PSS; RFC 5480, 2.1.1: EC by named
# curve, never by explicit parameters; RFC 8410, 3 and RFC 9881, 2: Ed25519 and ML-DSA without parameters.
_KINDS = {
    der.wrap(der.SEQUENCE, _RSA_ENCRYPTION, b"\x05\0"): "rsa",
    der.wrap(der.SEQUENCE, _EC, bytes.fromhex("06082a8648ce3d030107")): "p256",
    der.wrap(der.SEQUENCE, _EC, bytes.fromhex("06052b81040022")): "p384",
    der.wrap(der.SEQUENCE, _EC, bytes.fromhex("06052b81040023")): "p521",
    der.wrap(der.SEQUENCE, _ED25519): "ed25519",
    der.wrap(der.SEQUENCE, bytes.fromhex("0609608648016503040311")): "mldsa44",
    der.wrap(der.SEQUENCE, bytes.fromhex("0609608648016503040312")): "mldsa65",
    der.wrap(der.SEQUENCE, bytes.fromhex("0609608648016503040313")): "mldsa87",
}
_FIELD_BITS = {"p256": 256, "p384": 384, "p521": 521}
_ED25519_OCTETS = 32
# FIPS 204, table 2: a seed of 32 octets, then t1.
_MLDSA_OCTETS = {"mldsa44": 1312, "mldsa65": 1952, "mldsa87": 2592}
_MLDSA_SEED_OCTETS = 32

_ACCEPTED = (
    f"Use RSA ({LEAST_RSA_BITS} to {MOST_RSA_BITS} bits), EC P-256, P-384 or P-521, Ed25519, or ML-DSA-44, -65 or -87."
)

_verdicts: Verdicts[AcceptedKey | str] = Verdicts(MOST_VERDICTS)


def check(csr: Csr) -> AcceptedKey:
    """Judge the CSR's public key. Safe for use by threads; a key that was judged lately costs a hash.

    Raises:
        Refused: CSR_WEAK_KEY, saying what is wrong with the key and what to use.
    """
    sha256 = hashlib.sha256(csr.public_key_info).digest()
    verdict = _verdicts.get(sha256)
    if verdict is None:
        verdict = _judge(csr)
        _verdicts.put(sha256, verdict)
    if isinstance(verdict, str):
        raise Refused(ErrorCode.CSR_WEAK_KEY, verdict)
    return verdict


def _judge(csr: Csr) -> AcceptedKey | str:
    try:
        algorithm, bit_string = der.children(csr.public_key_info)
        identifier = der.children(algorithm)[0]
        _, start, end = der.read(bit_string)
    except (ValueError, IndexError):
        return f"The CSR's public key cannot be read. {_ACCEPTED}"
    if bit_string[start:][:1] != b"\0":
        return f"The CSR's public key is not made of whole octets. {_ACCEPTED}"
    octets = bit_string[start + 1 : end]
    kind = _KINDS.get(algorithm)
    match kind:
        case "rsa":
            verdict = _judge_rsa(octets)
        case "p256" | "p384" | "p521":
            verdict = _judge_point(kind, octets)
        case "ed25519":
            verdict = _judge_ed25519(octets)
        case "mldsa44" | "mldsa65" | "mldsa87":
            verdict = _judge_mldsa(kind, octets)
        case _:
            return _judge_stranger(identifier)
    if isinstance(verdict, AcceptedKey):
        try:
            csr.request.public_key()  # which knows, among others, what lies on a curve
        except (UnsupportedAlgorithm, ValueError):
            return f"The CSR's public key is invalid, such as a point that is not on its curve. {_ACCEPTED}"
    return verdict


def _judge_stranger(identifier: bytes) -> str:
    """Say what is wrong with a key whose AlgorithmIdentifier, which begins with this, is not one of ours."""
    if identifier == _EC:
        return "The EC key is not on an accepted curve, or does not name its curve. Use P-256, P-384 or P-521, by name."
    if any(identifier in der.children(known) for known in _KINDS):
        return "The CSR's public key has parameters that do not belong there. Send it as openssl req writes it."
    return f"The CSR's public key is of a kind that is not accepted. {_ACCEPTED}"


def _judge_rsa(octets: bytes) -> AcceptedKey | str:
    try:
        modulus, exponent = map(_natural, der.children(octets))
    except ValueError:
        return f"The RSA key cannot be read: it is not two natural numbers in DER. {_ACCEPTED}"
    bits = modulus.bit_length()
    if not LEAST_RSA_BITS <= bits <= MOST_RSA_BITS:
        return f"The RSA key has {bits} bits. Use {LEAST_RSA_BITS} to {MOST_RSA_BITS}."
    if exponent % 2 == 0 or not LEAST_RSA_EXPONENT <= exponent <= MOST_RSA_EXPONENT:
        return "The RSA key's public exponent is even or out of range. Use 65537."
    fault = weak_rsa.weakness(modulus, exponent)
    if fault is not None:
        return f"The RSA key {fault}. Make a new key, with other software."
    return AcceptedKey("rsa", bits)


def _natural(element: bytes) -> int:
    tag, start, end = der.read(element)
    contents = element[start:end]
    # X.690, 8.3.2: the first nine bits are not all alike; a first bit of 1 makes the number negative.
    padded = len(contents) > 1 and contents[0] == 0 and contents[1] < 0x80
    if tag != der.INTEGER or not contents or contents[0] >= 0x80 or padded:
        raise der.DerError("not a natural number")
    return int.from_bytes(contents)


def _judge_point(kind: str, octets: bytes) -> AcceptedKey | str:
    """Judge the form of a point: everybody must read the uncompressed one (RFC 5480, 2.2), and Go reads no other."""
    bits = _FIELD_BITS[kind]
    size = (bits + 7) // 8
    if (octets[:1], len(octets)) != (b"\x04", 1 + 2 * size):
        return "The EC key is no point in uncompressed form, which every reader has. Send it as openssl req writes it."
    return AcceptedKey(kind, bits)


def _judge_ed25519(octets: bytes) -> AcceptedKey | str:
    if len(octets) != _ED25519_OCTETS or not ed25519.is_sound(octets):
        return "The Ed25519 key is not a point on the curve, or one that everybody can sign for. Make a new key."
    return AcceptedKey("ed25519", 8 * len(octets))


def _judge_mldsa(kind: str, octets: bytes) -> AcceptedKey | str:
    if len(octets) != _MLDSA_OCTETS[kind]:
        return "The ML-DSA key has not the size that its parameter set gives. Make a new key."
    if not any(octets[_MLDSA_SEED_OCTETS:]):
        # With t1 = 0 the challenge drops out of the verification (FIPS 204, algorithm 8, line 9).
        return "The ML-DSA key is one that everybody can sign for. Make a new key."
    return AcceptedKey(kind, 8 * len(octets))
