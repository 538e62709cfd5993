"""The hashes by which a public key is looked up in the block list.

A SubjectPublicKeyInfo that the key policy accepts has one encoding, but for EC keys: a point may be written whole or
compressed (RFC 5480, 2.2). Both are the same key, so a key that is blocked in one form is blocked in the other.
"""

from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from runtime.asn1 import der

_EC = bytes.fromhex("06072a8648ce3d0201")
_WHOLE, _COMPRESSED = (4,), (2, 3)


@lru_cache(maxsize=1024)  # asked for an intent, and a moment later for its signature
def key_forms(public_key_info: bytes) -> tuple[bytes, ...]:
    """Return the SHA-256 of a SubjectPublicKeyInfo, and that of the same EC key in its other form.

    Args:
        public_key_info: in DER; of any kind of key.
    """
    own = sha256(public_key_info).digest()
    other = _other_form(public_key_info)
    return (own,) if other is None else (own, sha256(other).digest())


def _other_form(public_key_info: bytes) -> bytes | None:
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
