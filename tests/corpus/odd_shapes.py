"""CSRs whose signature or encoding is odd, and what is no CSR at all."""

import hashlib
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from csr_parts import (
    CONTEXT_0,
    NULL,
    P256,
    PLAIN_NAME,
    Key,
    bits,
    csr,
    ec_key,
    ed25519_key,
    integer,
    mldsa_key,
    octets,
    oid,
    request_info,
    sequence,
    signed,
)
from rsa_numbers import SHA256_WITH_RSA, good_primes, pkcs1_signature, rsa_key

from runtime.asn1 import der

RSA_PSS = "1.2.840.113549.1.1.10"
# Signature algorithm -> its hash's own identifier and what computes it.
OUTDATED = {
    "md5": ("1.2.840.113549.1.1.4", "1.2.840.113549.2.5"),
    "sha1": ("1.2.840.113549.1.1.5", "1.3.14.3.2.26"),
    "sha224": ("1.2.840.113549.1.1.14", "2.16.840.1.101.3.4.2.4"),
}


def files() -> dict[str, bytes]:
    """Return the CSRs by file name, without its suffix."""
    return _signatures() | _algorithms() | _outdated() | _pss() | _encodings() | _versions() | _strangers()


def _signatures() -> dict[str, bytes]:
    info = request_info(P256.info)
    algorithm = P256.algorithm
    signature = P256.sign(info)
    r, s = der.children(signature)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other_s = integer(order - int.from_bytes(s[2:]))
    rsa_info = request_info(rsa_key(*good_primes()).info)
    rsa_algorithm = rsa_key(*good_primes()).algorithm
    return {
        "good-signature-other-s": sequence(info, algorithm, bits(sequence(r, other_s))),
        "signature-bit-flipped": sequence(info, algorithm, bits(signature[:-1] + bytes((signature[-1] ^ 1,)))),
        "signature-of-another-key": signed(info, Key(b"", algorithm, ec_key(ec.SECP384R1()).sign)),
        "signature-of-another-subject": sequence(info, algorithm, bits(P256.sign(info.replace(b"hmc1", b"hmc2")))),
        "signature-empty": sequence(info, algorithm, bits(b"")),
        "signature-zero": sequence(info, algorithm, bits(sequence(integer(0), integer(0)))),
        "signature-s-is-order": sequence(info, algorithm, bits(sequence(r, integer(order)))),
        "signature-numbers-padded": sequence(info, algorithm, bits(sequence(b"\2\x22\0\0" + r[-32:], s))),
        "signature-trailing": sequence(info, algorithm, bits(signature + b"\0")),
        "signature-unused-bits": sequence(info, algorithm, der.wrap(der.BIT_STRING, b"\1", signature[:-1] + b"\0")),
        "signature-octet-string": sequence(info, algorithm, der.wrap(der.OCTET_STRING, signature)),
        "signature-rsa-zero": sequence(rsa_info, rsa_algorithm, bits(bytes(256))),
        "signature-rsa-short": sequence(rsa_info, rsa_algorithm, bits(bytes(255))),
        "signature-rsa-huge": sequence(rsa_info, rsa_algorithm, bits(b"\xff" * 4096)),
    }


def _algorithms() -> dict[str, bytes]:
    info = request_info(P256.info)
    rsa_of_2048 = rsa_key(*good_primes())
    rsa_info = request_info(rsa_of_2048.info)
    ed25519, mldsa44 = ed25519_key(), mldsa_key(44)
    ed25519_info, mldsa44_info = request_info(ed25519.info), request_info(mldsa44.info)
    return {
        "algorithm-unknown": signed(info, P256, sequence(oid("1.2.3.4"))),
        "algorithm-of-another-key": signed(info, P256, rsa_of_2048.algorithm),
        "algorithm-of-another-hash": signed(info, P256, sequence(oid("1.2.840.10045.4.3.3"))),
        "algorithm-empty": signed(info, P256, sequence()),
        "good-algorithm-rsa-null-missing": signed(rsa_info, rsa_of_2048, sequence(oid(SHA256_WITH_RSA))),
        "algorithm-rsa-parameters-odd": signed(rsa_info, rsa_of_2048, sequence(oid(SHA256_WITH_RSA), integer(1))),
        "algorithm-ed25519-null": signed(ed25519_info, ed25519, sequence(oid("1.3.101.112"), NULL)),
        "algorithm-ed448-of-ed25519": signed(ed25519_info, ed25519, sequence(oid("1.3.101.113"))),
        "algorithm-mldsa44-null": signed(mldsa44_info, mldsa44, sequence(oid("2.16.840.1.101.3.4.3.17"), NULL)),
        "algorithm-mldsa65-of-mldsa44": signed(mldsa44_info, mldsa44, sequence(oid("2.16.840.1.101.3.4.3.18"))),
        "algorithm-dsa-of-p256": signed(info, P256, sequence(oid("2.16.840.1.101.3.4.3.2"))),
    }


def _outdated() -> dict[str, bytes]:
    p, q = good_primes()
    key = rsa_key(p, q)
    info = request_info(key.info)
    private_exponent = pow(65537, -1, (p - 1) * (q - 1))
    found = {}
    for name, (algorithm, hash_oid) in OUTDATED.items():
        digest = hashlib.new(name, info, usedforsecurity=False).digest()
        digest_info = sequence(sequence(oid(hash_oid), NULL), der.wrap(der.OCTET_STRING, digest))
        signature = pkcs1_signature(info, p * q, private_exponent, digest_info)
        found[f"signature-{name}"] = sequence(info, sequence(oid(algorithm), NULL), bits(signature))
    sha1 = ec.derive_private_key(int.from_bytes(octets("secp256r1", 31)), ec.SECP256R1()).sign(
        request_info(P256.info), ec.ECDSA(hashes.SHA1(), deterministic_signing=True)
    )
    found["signature-ecdsa-sha1"] = sequence(request_info(P256.info), sequence(oid("1.2.840.10045.4.1")), bits(sha1))
    return found


def _pss() -> dict[str, bytes]:
    """Return CSRs of a plain RSA key that are signed with RSASSA-PSS; without salt, so that each run makes the same."""
    p, q = good_primes()
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=(d := pow(65537, -1, (p - 1) * (q - 1))),
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(65537, p * q),
    )
    key, info = numbers.private_key(), request_info(rsa_key(p, q).info)
    found = {}
    identifier = sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)
    mask = sequence(oid("1.2.840.113549.1.1.8"), identifier)
    no_salt = der.wrap(CONTEXT_0 + 2, integer(0))  # which, without the others, says SHA-1
    for name, hash_algorithm, parameters in (
        (
            "good-signature-pss",
            hashes.SHA256(),
            (der.wrap(CONTEXT_0, identifier), der.wrap(CONTEXT_0 + 1, mask), no_salt),
        ),
        ("signature-pss-sha1", hashes.SHA1(), (no_salt,)),
    ):
        signature = key.sign(info, padding.PSS(padding.MGF1(hash_algorithm), 0), hash_algorithm)
        found[name] = sequence(info, sequence(oid(RSA_PSS), sequence(*parameters)), bits(signature))
    signature = pkcs1_signature(info, p * q, d)
    found["algorithm-pss-without-parameters"] = sequence(info, sequence(oid(RSA_PSS)), bits(signature))
    return found


def _encodings() -> dict[str, bytes]:
    good = csr(P256)
    info, algorithm, signature = der.children(good)
    return {
        "good-plain": good,
        "der-trailing-octet": good + b"\0",
        "der-trailing-csr": good + good,
        "der-cut-short": good[:-1],
        "der-cut-header": good[:3],
        "der-fourth-part": sequence(info, algorithm, signature, NULL),
        "der-two-parts": sequence(info, algorithm),
        "der-length-not-shortest": b"\x30\x83\0" + good[2:4] + good[4:],
        "der-length-huge": b"\x30\x84\xff\xff\xff\xff" + good[4:],
        "der-length-of-9-octets": b"\x30\x89" + bytes(7) + good[2:4] + good[4:],
        "der-indefinite": b"\x30\x80" + info + algorithm + signature + b"\0\0",
        "der-info-indefinite": sequence(b"\x30\x80" + b"".join(der.children(info)) + b"\0\0", algorithm, signature),
        "der-is-a-set": b"\x31" + good[1:],
        "der-info-fifth-part": signed(request_info(P256.info, rest=NULL), P256),
        "der-attributes-missing": signed(sequence(b"\x02\x01\0", PLAIN_NAME, P256.info), P256),
        "der-attributes-twice": signed(request_info(P256.info, rest=der.wrap(CONTEXT_0)), P256),
        "der-key-before-subject": signed(request_info(PLAIN_NAME, subject=P256.info), P256),
    }


def _versions() -> dict[str, bytes]:
    versions = {
        "1": b"\x02\x01\1",
        "2": b"\x02\x01\2",
        "negative": b"\x02\x01\xff",
        "padded": b"\x02\x02\0\0",
        "empty": b"\x02\0",
        "huge": der.wrap(der.INTEGER, b"\x7f" * 40),
        "256": b"\x02\x02\1\0",
        "boolean": b"\x01\x01\0",
        "missing": b"",
    }
    return {f"version-{name}": csr(P256, version=version) for name, version in versions.items()}


def _strangers() -> dict[str, bytes]:
    good = csr(P256)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    key = ec.derive_private_key(int.from_bytes(octets("secp256r1", 31)), ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hmc1")])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, moment, moment.replace(year=2036))
    certificate = builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    return {
        "no-csr-empty": b"",
        "no-csr-one-octet": b"\x30",
        "no-csr-text": b"Please sign this.\n",
        "no-csr-zeros": bytes(1000),
        "no-csr-random": octets("random", 1000),
        "no-csr-empty-sequence": b"\x30\0",
        "no-csr-certificate": certificate.public_bytes(serialization.Encoding.DER),
        "no-csr-key-only": P256.info,
        "no-csr-pem-inside": b"-----BEGIN CERTIFICATE REQUEST-----\n",
        "no-csr-json": b'{"data":["' + good.hex().encode() + b'"]}',
        "no-csr-nested-deep": _nested(4000),
    }


def _nested(depth: int) -> bytes:
    element = NULL
    for _ in range(depth):
        element = sequence(element)
    return element
