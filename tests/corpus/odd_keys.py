"""CSRs with keys that are weak, odd, of a kind that is not accepted, or good. Each is signed where that is possible."""

from itertools import islice

import gmpy2
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, x25519
from csr_parts import (
    NULL,
    P256,
    Key,
    bits,
    csr,
    ec_key,
    ed25519_key,
    info_of,
    integer,
    key_info,
    mldsa_key,
    octets,
    oid,
    request_info,
    sequence,
    signed,
)
from rsa_numbers import (
    RSA_ENCRYPTION,
    good_primes,
    prime,
    roca_primes,
    rsa_info,
    rsa_key,
    sparse_prime,
    with_beginning,
    xz_beginning,
)

from runtime.asn1 import der

EC_PUBLIC_KEY, P256_CURVE = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7"


def files() -> dict[str, bytes]:
    """Return the CSRs by file name, without its suffix."""
    keys = _rsa_keys() | _ec_keys() | _ed25519_keys() | _mldsa_keys()
    return {name: csr(key) for name, key in keys.items()} | _unsigned()


def _rsa_keys() -> dict[str, Key]:
    p, q = good_primes()
    small = prime("1016", 1016)
    private_exponent = prime("small d", 256)
    big_exponent = pow(private_exponent, -1, (p - 1) * (q - 1))
    bias = bytes.fromhex("fefdfbf7efdfbf7f") * 15
    return {
        "good-rsa-2048": rsa_key(p, q),
        "good-rsa-3072": rsa_key(*good_primes(3072)),
        "good-rsa-8192": rsa_key(*good_primes(8192)),
        "good-rsa-2048-exponent-31-bits": rsa_key(p, q, exponent=2**31 - 1),
        "rsa-exponent-32-bits": rsa_key(p, q, exponent=2**31 + 11),
        "rsa-exponent-64-bits": rsa_key(p, q, exponent=2**64 - 59),
        "rsa-512": rsa_key(*good_primes(512)),
        "rsa-1024": rsa_key(*good_primes(1024)),
        "rsa-2047": rsa_key(p, prime("1023", 1023)),
        "rsa-exponent-1": rsa_key(p, q, exponent=1),
        "rsa-exponent-3": rsa_key(*_primes_for(3), exponent=3),
        "rsa-exponent-17": rsa_key(*_primes_for(17), exponent=17),
        "rsa-exponent-35": rsa_key(*_primes_for(35), exponent=35),
        "rsa-exponent-even": rsa_key(p, q, exponent=65538),
        "rsa-exponent-zero": rsa_key(p, q, exponent=0),
        "rsa-exponent-65-bits": rsa_key(p, q, exponent=2**64 + 13),
        "rsa-private-exponent-small": rsa_key(p, q, exponent=big_exponent, private_exponent=private_exponent),
        "rsa-roca": rsa_key(*islice(roca_primes(), 2)),
        "rsa-primes-close": rsa_key(p, int(gmpy2.next_prime(p + 2**500))),
        "rsa-primes-next": rsa_key(p, int(gmpy2.next_prime(p))),
        "rsa-square": rsa_key(p, p, private_exponent=pow(65537, -1, p * (p - 1))),
        "rsa-factor-3": rsa_key(3, prime("2047", 2047)),
        "rsa-factor-65537": rsa_key(65537, prime("2032", 2032)),
        "rsa-factors-small-many": rsa_key(257, 263, 269, 271, 277, small, prime("992", 992)),
        "rsa-8192-factor-3": rsa_key(3, prime("8190", 8190)),
        "rsa-even": rsa_key(2, prime("2047", 2047)),
        "rsa-modulus-octets-repeat": rsa_key(*with_beginning(b"\xc5" + b"\xa7" * 16, "repeat")),
        "rsa-modulus-biased": rsa_key(*with_beginning(bias, "bias")),
        "rsa-modulus-sparse": rsa_key(sparse_prime("sparse p"), sparse_prime("sparse q")),
        "rsa-modulus-xz-backdoor": rsa_key(*with_beginning(xz_beginning(), "xz")),
    }


def _primes_for(exponent: int) -> tuple[int, int]:
    """Return primes p with p - 1 prime to the exponent, so that it has an inverse."""
    found: list[int] = []
    start = prime(f"for {exponent}", 1024)
    while len(found) < 2:
        start = int(gmpy2.next_prime(start))
        if gmpy2.gcd(start - 1, exponent) == 1:
            found.append(start)
            start += 2**1000
    return found[0], found[1]


def _ec_keys() -> dict[str, Key]:
    p256 = ec.derive_private_key(int.from_bytes(octets("secp256r1", 31)), ec.SECP256R1()).public_key()
    numbers = p256.public_numbers()
    x, y = numbers.x.to_bytes(32), numbers.y.to_bytes(32)

    def saying(point: bytes, *parameters: bytes) -> Key:
        info = key_info(EC_PUBLIC_KEY, *(parameters or (oid(P256_CURVE),)), key=point)
        return Key(info, P256.algorithm, P256.sign)

    uncompressed = b"\4" + x + y
    return {
        "good-p256": P256,
        "good-p384": ec_key(ec.SECP384R1()),
        "good-p521": ec_key(ec.SECP521R1()),
        "ec-point-compressed": saying(bytes((2 + numbers.y % 2,)) + x),
        "ec-p192": ec_key(ec.SECP192R1()),
        "ec-p224": ec_key(ec.SECP224R1()),
        "ec-secp256k1": ec_key(ec.SECP256K1()),
        "ec-brainpool-p256": ec_key(ec.BrainpoolP256R1()),
        "ec-curve-unknown": saying(uncompressed, oid("1.2.3.4")),
        "ec-parameters-missing": saying(uncompressed, b""),
        "ec-parameters-null": saying(uncompressed, NULL),
        "ec-parameters-explicit": saying(uncompressed, _explicit_p256()),
        "ec-parameters-twice": saying(uncompressed, oid(P256_CURVE), NULL),
        "ec-parameters-long-tag": saying(uncompressed, b"\x1f\x81\x01\0"),
        "ec-point-hybrid": saying(bytes((6 + numbers.y % 2,)) + x + y),
        "ec-point-infinity": saying(b"\0"),
        "ec-point-empty": saying(b""),
        "ec-point-off-curve": saying(b"\4" + x + (numbers.y ^ 1).to_bytes(32)),
        "ec-point-zero": saying(b"\4" + bytes(64)),
        "ec-point-beyond-field": saying(b"\4" + (2**256 - 1).to_bytes(32) + y),
        "ec-point-short": saying(uncompressed[:-1]),
        "ec-point-long": saying(uncompressed + b"\0"),
        "ec-point-of-p384": saying(ec_key(ec.SECP384R1()).info[-97:]),
        "ec-point-compressed-off-curve": saying(b"\2" + _no_x()),
    }


def _no_x() -> bytes:
    """Return an x that no point of P-256 has."""
    field = 2**256 - 2**224 + 2**192 + 2**96 - 1
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    x = next(x for x in range(1, 99) if pow(x**3 - 3 * x + b, (field - 1) // 2, field) != 1)
    return x.to_bytes(32)


def _explicit_p256() -> bytes:
    """Return P-256 as SpecifiedECDomain (SEC 1, C.2)."""
    field = 2**256 - 2**224 + 2**192 + 2**96 - 1
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    generator = ec.derive_private_key(1, ec.SECP256R1()).public_key().public_numbers()
    base = b"\4" + generator.x.to_bytes(32) + generator.y.to_bytes(32)
    curve = sequence(*(der.wrap(der.OCTET_STRING, each.to_bytes(32)) for each in (field - 3, b)))
    prime_field = sequence(oid("1.2.840.10045.1.1"), integer(field))
    return sequence(integer(1), prime_field, curve, der.wrap(der.OCTET_STRING, base), integer(order), integer(1))


def _ed25519_keys() -> dict[str, Key]:
    good = ed25519_key()
    base_point = bytes.fromhex("58") + b"\x66" * 31

    def saying(point: bytes, *parameters: bytes) -> Key:
        # R the base point and S = 1: valid for every message under the neutral element.
        info = key_info("1.3.101.112", *parameters, key=point)
        return Key(info, good.algorithm, lambda _: base_point + (1).to_bytes(32, "little"))

    order_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
    return {
        "good-ed25519": good,
        "ed25519-neutral-element": saying((1).to_bytes(32, "little")),
        "ed25519-order-2": saying((2**255 - 20).to_bytes(32, "little")),
        "ed25519-order-4": saying(bytes(32)),
        "ed25519-order-8": saying(order_8),
        "ed25519-not-canonical": saying((2**255 - 18).to_bytes(32, "little")),
        "ed25519-off-curve": saying((2).to_bytes(32, "little")),
        "ed25519-short": saying(good.info[-31:]),
        "ed25519-parameters-null": Key(key_info("1.3.101.112", NULL, key=good.info[-32:]), good.algorithm, good.sign),
    }


def _mldsa_keys() -> dict[str, Key]:
    good = {number: mldsa_key(number) for number in (44, 65, 87)}
    key44 = good[44].info[-1312:]

    def saying(arc: int, key: bytes, *parameters: bytes) -> Key:
        return Key(key_info(f"2.16.840.1.101.3.4.3.{arc}", *parameters, key=key), good[44].algorithm, good[44].sign)

    return {
        **{f"good-mldsa{number}": key for number, key in good.items()},
        "mldsa44-parameters-null": saying(17, key44, NULL),
        "mldsa44-short": saying(17, key44[:-1]),
        "mldsa44-for-everybody": saying(17, key44[:32] + bytes(1280)),
        "mldsa65-of-44s-size": saying(18, key44),
        "mldsa44-prehash": saying(32, key44),  # HashML-DSA-44 with SHA-512
        "slhdsa-128s": saying(20, key44[:32]),
    }


def _unsigned() -> dict[str, bytes]:
    """Return CSRs whose key cannot sign them, or signs in a way not worth the trouble: signed with the P-256 key."""
    p, q = good_primes()
    modulus = p * q
    x25519_key = x25519.X25519PrivateKey.from_private_bytes(octets("x25519", 32)).public_key()
    ed448_key = ed448.Ed448PrivateKey.from_private_bytes(octets("ed448", 57)).public_key()
    negative = sequence(der.wrap(der.INTEGER, modulus.to_bytes(256)), integer(65537))
    padded = sequence(der.wrap(der.INTEGER, b"\0\0" + modulus.to_bytes(256)), integer(65537))
    infos = {
        "rsa-8193": rsa_info(1 << 8192 | 1),
        "rsa-16384": rsa_info(int.from_bytes(octets("16384", 2048)) | 1 << 16383 | 1),
        "rsa-120000": rsa_info(int.from_bytes(octets("120000", 15000)) | 1 << 119999 | 1),
        "rsa-zero": rsa_info(0),
        "rsa-negative": key_info(RSA_ENCRYPTION, NULL, key=negative),
        "rsa-modulus-padded": key_info(RSA_ENCRYPTION, NULL, key=padded),
        "rsa-three-numbers": key_info(RSA_ENCRYPTION, NULL, key=sequence(integer(modulus), integer(65537), integer(1))),
        "rsa-trailing-octet": key_info(RSA_ENCRYPTION, NULL, key=sequence(integer(modulus), integer(65537)) + b"\0"),
        "rsa-no-numbers": key_info(RSA_ENCRYPTION, NULL, key=b"\x30\0"),
        "rsa-parameters-missing": rsa_info(modulus, 65537, b""),
        "rsa-parameters-odd": rsa_info(modulus, 65537, b"\x04\x02\x05\0"),
        "rsa-parameters-null-not-empty": rsa_info(modulus, 65537, b"\x05\x01\0"),
        "rsa-pss-key": rsa_info(modulus, 65537, b"", algorithm="1.2.840.113549.1.1.10"),
        "rsa-oaep-key": rsa_info(modulus, 65537, b"", algorithm="1.2.840.113549.1.1.7"),
        "key-dsa": info_of(_dsa_key()),
        "key-x25519": info_of(x25519_key),
        "key-ed448": info_of(ed448_key),
        "key-kind-unknown": key_info("1.2.3.4", key=b"hello"),
        "key-mlkem768": key_info("2.16.840.1.101.3.4.4.2", key=octets("ML-KEM", 1184)),
        "key-bits-missing": sequence(sequence(oid(RSA_ENCRYPTION), NULL), bits(b"")),
        "key-unused-bits": P256.info[:25] + b"\1" + P256.info[26:-1] + b"\0",
        "key-bit-string-empty": sequence(sequence(oid(RSA_ENCRYPTION), NULL), b"\x03\0"),
    }
    return {name: signed(request_info(info), P256) for name, info in infos.items()}


def _dsa_key() -> dsa.DSAPublicKey:
    """Return a DSA key. Its group is made small at random and then of full size, which nobody checks here."""
    q = prime("DSA q", 256)
    p = prime("DSA p", 2048)
    return dsa.DSAPublicNumbers(4, dsa.DSAParameterNumbers(p, q, 2)).public_key()
