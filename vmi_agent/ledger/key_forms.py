"""The hashes by which a public key is looked up in the block list.

A SubjectPublicKeyInfo that the key policy accepts has one encoding, with two exceptions. The point of an EC key may be
written whole or compressed (RFC 5480, 2.2). And one RSA modulus makes a key with any public exponent: who knows its
primes can compute the private exponent for each. So a key that is blocked in one form is blocked in all of them.

The list keeps an RSA key as the one with the exponent 65537, which nearly all of them have anyway.
"""

from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from runtime.asn1 import der

_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_EXPONENT_65537 = bytes.fromhex("0203010001")
_EC = bytes.fromhex("06072a8648ce3d0201")
_WHOLE, _COMPRESSED = (4,), (2, 3)


@lru_cache(maxsize=1024)  # asked for an intent, and a moment later for its signature
def key_forms(public_key_info: bytes) -> tuple[bytes, ...]:
    """Return the SHA-256 of a SubjectPublicKeyInfo, and that of the other form of its key, if that has one.

    For EC it is the other form of the point; for RSA the same modulus with the exponent 65537.

    Args:
        public_key_info: in DER; of any kind of key.
    """
    own = sha256(public_key_info).digest()
    other = _other_form(public_key_info)
    return (own,) if other is None else (own, sha256(other).digest())


def listed_form(public_key_info: bytes) -> bytes:
    """Return the SHA-256 under which the block list keeps a key: for RSA the one with the exponent 65537.

    Args:
        public_key_info: in DER; of any kind of key.
    """
    return sha256(_with_usual_exponent(public_key_info) or public_key_info).digest()


def _with_usual_exponent(public_key_info: bytes) -> bytes | None:
    """Return the RSA key of this modulus with the exponent 65537; None if it is that key, or of another kind."""
    # The AlgorithmIdentifier stands behind a header of 5 octets at most; no other key ends like that behind this one.
    if _RSA not in public_key_info[: 5 + len(_RSA)] or public_key_info.endswith(_EXPONENT_65537):
        return None
    try:
        algorithm, bit_string = der.children(public_key_info)
        _, start, _ = der.read(bit_string)
        modulus, _exponent = der.children(bit_string[start + 1 :])
    except (ValueError, IndexError):
        return None
    key = der.wrap(der.SEQUENCE, modulus, _EXPONENT_65537)
    return der.wrap(der.SEQUENCE, algorithm, der.wrap(der.BIT_STRING, b"\0", key))


def _other_form(public_key_info: bytes) -> bytes | None:
    return _with_usual_exponent(public_key_info) or _other_point(public_key_info)


def _other_point(public_key_info: bytes) -> bytes | None:
    # The OID stands behind two headers, of 5 octets at most.
    if _EC not in public_key_info[:16]:
        return None
    try:
        algorithm, bit_string = der.children(public_key_info)
        _, start, _ = der.read(bit_string)
        unused_bits, point = bit_string[start : start + 1], bit_string[start + 1 :]
        if unused_bits != b"\0" or not point:
            return None
        if point[0] in _WHOLE:
            size = len(point) // 2
            other = bytes((2 + (point[-1] & 1),)) + point[1 : 1 + size]
        elif point[0] in _COMPRESSED:
            key = load_der_public_key(public_key_info)
            if not isinstance(key, ec.EllipticCurvePublicKey):
                return None
            numbers, size = key.public_numbers(), len(point) - 1
            other = bytes(_WHOLE) + numbers.x.to_bytes(size) + numbers.y.to_bytes(size)
        else:
            return None
    except (ValueError, IndexError, OverflowError, UnsupportedAlgorithm):
        return None
    return der.wrap(der.SEQUENCE, algorithm, der.wrap(der.BIT_STRING, b"\0", other))
