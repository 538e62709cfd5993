"""What CSRs are made of, well-formed or not: every part can be replaced by other octets, and the whole is then signed.

Keys come from a label, so that each run makes the same ones.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from runtime.asn1 import der

NULL = b"\x05\0"
SET, BOOLEAN, CONTEXT_0 = 0x31, 0x01, 0xA0
UTF8, PRINTABLE, TELETEX, IA5, UNIVERSAL, BMP = 0x0C, 0x13, 0x14, 0x16, 0x1C, 0x1E
CN, COUNTRY, ORGANISATION, UNIT = "2.5.4.3", "2.5.4.6", "2.5.4.10", "2.5.4.11"
EMAIL = "1.2.840.113549.1.9.1"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
ECDSA_SHA256 = "1.2.840.10045.4.3.2"


@dataclass(frozen=True, slots=True)
class Key:
    """A key that CSRs are signed with.

    Attributes:
        info: its SubjectPublicKeyInfo.
        algorithm: the AlgorithmIdentifier of its signatures.
        sign: returns a signature.
    """

    info: bytes
    algorithm: bytes
    sign: Callable[[bytes], bytes]


def octets(label: str, count: int) -> bytes:
    """Return that many octets, the same ones for the same label."""
    return hashlib.shake_256(label.encode()).digest(count)


def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    encoded = b""
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | number & 0x7F)
        encoded += bytes(reversed(groups))
    return der.wrap(der.OBJECT_IDENTIFIER, encoded)


def integer(value: int) -> bytes:
    """Return an INTEGER that is not negative."""
    return der.wrap(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def sequence(*parts: bytes) -> bytes:
    """Return a SEQUENCE."""
    return der.wrap(der.SEQUENCE, *parts)


def bits(contents: bytes) -> bytes:
    """Return a BIT STRING of whole octets."""
    return der.wrap(der.BIT_STRING, b"\0", contents)


def key_info(algorithm: str, *parameters: bytes, key: bytes) -> bytes:
    """Return a SubjectPublicKeyInfo."""
    return sequence(sequence(oid(algorithm), *parameters), bits(key))


def attribute(kind: str, tag: int, value: bytes) -> bytes:
    """Return an AttributeTypeAndValue of a name."""
    return sequence(oid(kind), der.wrap(tag, value))


def name(*attributes: bytes) -> bytes:
    """Return a Name with one attribute in each of its sets."""
    return sequence(*(der.wrap(SET, each) for each in attributes))


PLAIN_NAME = name(attribute(COUNTRY, PRINTABLE, b"US"), attribute(CN, UTF8, b"hmc1.example.com"))


def extension(kind: str, value: bytes, *critical: bytes) -> bytes:
    """Return an Extension; `critical` is a whole BOOLEAN."""
    return sequence(oid(kind), *critical, der.wrap(der.OCTET_STRING, value))


def extension_request(*extensions: bytes, kind: str = EXTENSION_REQUEST) -> bytes:
    """Return the attribute that asks for extensions."""
    return sequence(oid(kind), der.wrap(SET, sequence(*extensions)))


def request_info(
    key: bytes, *attributes: bytes, subject: bytes = PLAIN_NAME, version: bytes = b"\x02\x01\0", rest: bytes = b""
) -> bytes:
    """Return a CertificationRequestInfo, its attributes in the order of DER."""
    return sequence(version, subject, key, der.wrap(CONTEXT_0, *sorted(attributes)), rest)


def signed(info: bytes, key: Key, algorithm: bytes | None = None) -> bytes:
    """Return the CSR that a CertificationRequestInfo and the key's signature over it make."""
    return sequence(info, algorithm or key.algorithm, bits(key.sign(info)))


def csr(key: Key, *attributes: bytes, subject: bytes = PLAIN_NAME, version: bytes = b"\x02\x01\0") -> bytes:
    """Return a CSR."""
    return signed(request_info(key.info, *attributes, subject=subject, version=version), key)


def info_of(public: PublicKeyTypes) -> bytes:
    """Return a key's SubjectPublicKeyInfo."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def ec_key(curve: ec.EllipticCurve, info: bytes | None = None) -> Key:
    """Return the EC key of a curve; `info` is what it says of itself instead of the truth."""
    secret = int.from_bytes(octets(curve.name, curve.key_size // 8 - 1))
    key = ec.derive_private_key(secret, curve)
    with_hash = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    return Key(info or info_of(key.public_key()), sequence(oid(ECDSA_SHA256)), lambda data: key.sign(data, with_hash))


def ed25519_key() -> Key:
    """Return the Ed25519 key."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(octets("ed25519", 32))
    return Key(info_of(key.public_key()), sequence(oid("1.3.101.112")), key.sign)


def mldsa_key(parameter_set: int) -> Key:
    """Return the ML-DSA key of a parameter set: 44, 65 or 87. Its signatures differ from run to run."""
    seed = octets(f"ML-DSA-{parameter_set}", 32)
    key: mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
    match parameter_set:
        case 44:
            key, arc = mldsa.MLDSA44PrivateKey.from_seed_bytes(seed), 17
        case 65:
            key, arc = mldsa.MLDSA65PrivateKey.from_seed_bytes(seed), 18
        case _:
            key, arc = mldsa.MLDSA87PrivateKey.from_seed_bytes(seed), 19
    return Key(info_of(key.public_key()), sequence(oid(f"2.16.840.1.101.3.4.3.{arc}")), key.sign)


P256 = ec_key(ec.SECP256R1())
