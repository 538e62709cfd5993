"""RSA keys of every weakness, each with the primes that it is made of, so that its CSR can be signed."""

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from itertools import count

import gmpy2
from csr_parts import NULL, Key, bits, integer, octets, oid, sequence

from runtime.asn1 import der

RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
SHA256_WITH_RSA = "1.2.840.113549.1.1.11"
# How far from a label's number its prime is, where finding out takes many seconds.
_NEXT_PRIME = {"8190": 10690, "p of 8192": 6, "q of 8192": 3030}
_SHA256 = sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)


@cache
def prime(label: str, size: int) -> int:
    """Return a prime of that many bits, its two highest set, so that two of them make a product of twice the bits."""
    start = int.from_bytes(octets(label, size // 8 + 1)) % (1 << size) | 3 << (size - 2)
    return start + _NEXT_PRIME[label] if label in _NEXT_PRIME else int(gmpy2.next_prime(start))


def rsa_key(*primes: int, exponent: int = 65537, private_exponent: int | None = None) -> Key:
    """Return the RSA key with these primes.

    Args:
        primes: may be few or many.
        exponent: public. One that has no inverse makes signatures that do not verify.
        private_exponent: given where the public one was computed from it.
    """
    modulus = math.prod(primes)
    order = math.lcm(*(each - 1 for each in primes))
    if private_exponent is None and math.gcd(exponent, order) == 1:
        private_exponent = pow(exponent, -1, order)

    def sign(data: bytes) -> bytes:
        return pkcs1_signature(data, modulus, private_exponent or 1)

    return Key(rsa_info(modulus, exponent), sequence(oid(SHA256_WITH_RSA), NULL), sign)


def rsa_info(modulus: int, exponent: int = 65537, *parameters: bytes, algorithm: str = RSA_ENCRYPTION) -> bytes:
    """Return the SubjectPublicKeyInfo of an RSA key, with NULL parameters where none are given."""
    key = sequence(integer(modulus), integer(exponent))
    return sequence(sequence(oid(algorithm), *(parameters or (NULL,))), bits(key))


def pkcs1_signature(data: bytes, modulus: int, private_exponent: int, digest_info: bytes | None = None) -> bytes:
    """Return an RSASSA-PKCS1-v1_5 signature (RFC 8017, 8.2.1), with SHA-256 unless a DigestInfo says otherwise."""
    size = (modulus.bit_length() + 7) // 8
    digest_info = digest_info or sequence(_SHA256, der.wrap(der.OCTET_STRING, hashlib.sha256(data).digest()))
    padded = b"\0\1" + b"\xff" * (size - 3 - len(digest_info)) + b"\0" + digest_info
    return int(gmpy2.powmod(int.from_bytes(padded), private_exponent, modulus)).to_bytes(size)


def good_primes(modulus_bits: int = 2048) -> tuple[int, int]:
    """Return the primes of a sound key."""
    return prime(f"p of {modulus_bits}", modulus_bits // 2), prime(f"q of {modulus_bits}", modulus_bits // 2)


def roca_primes() -> Iterator[int]:
    """Yield primes of the form that gave ROCA its name: k·M + (65537^a mod M).

    M is the product of the first 126 primes.
    """
    product, last = 1, 1
    for _ in range(126):
        last = int(gmpy2.next_prime(last))
        product *= last
    for number in count():
        power = pow(65537, int.from_bytes(octets(f"ROCA a {number}", 30)), product)
        start = (3 << 1022) // product + int.from_bytes(octets(f"ROCA k {number}", 4))
        candidate = start * product + power
        if gmpy2.is_prime(candidate):
            yield candidate


def with_beginning(beginning: bytes, label: str) -> tuple[int, int]:
    """Return the primes of a 2048-bit modulus that begins with these octets, at most 120 of them."""
    wanted = int.from_bytes(beginning + octets(label, 256 - len(beginning)))
    first = prime(label, 1024)
    return first, int(gmpy2.next_prime(wanted // first))


def xz_beginning() -> bytes:
    """Return the beginning of a modulus that the xz backdoor would take for a command, without the sign octet."""
    first, second = b"\0\xc1\xc2\xc3", b"\xc4\xc5\xc6\xc7"
    command = -int.from_bytes(first, "little") * int.from_bytes(second, "little") % 2**64
    return (first + second + command.to_bytes(8, "little"))[1:]


def sparse_prime(label: str) -> int:
    """Return a prime of 1024 bits of which each word of 32 bits uses the lowest seven only, but for the top one."""
    for number in count():
        words = octets(f"{label} {number}", 31)
        candidate = 0xC0000001 << 992 | 1
        for position, word in enumerate(words):
            candidate |= (word & 0x7F) << 32 * position
        if gmpy2.is_prime(candidate):
            return candidate
    raise AssertionError  # count() does not end
