"""CSRs for the tests: made by openssl as a person would, and odd ones made by hand."""

import subprocess
from collections.abc import Sequence
from functools import cache
from math import gcd
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from runtime.asn1 import der
from support.needs import need
from vmi_agent.keys import KEY_TYPES
from vmi_agent.keys.file_key import make_key

SUBJECT = "/C=US/ST=Texas/L=Austin/O=IBM/OU=HMC/CN=hmc1.example.com/emailAddress=hmc@example.com"

# What `openssl req -newkey` is told for each kind of key.
OPENSSL_KEYS = {
    "rsa2048": ["-newkey", "rsa:2048"],
    "rsa4096": ["-newkey", "rsa:4096"],
    "p256": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
    "p521": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
    "ed25519": ["-newkey", "ed25519"],
}


def openssl_csr(directory: Path, key: str = "p256", subject: str = SUBJECT, extra: Sequence[str] = ()) -> Path:
    """Have openssl make a key and a CSR; return the CSR's path (PEM), the key's is the same with `.key`."""
    csr = directory / f"{key}.csr"
    command = [need("openssl"), "req", "-new", *OPENSSL_KEYS[key], "-nodes", "-subj", subject]
    command += ["-keyout", str(csr.with_suffix(".key")), "-out", str(csr), *extra]
    subprocess.run(command, check=True, capture_output=True)
    return csr


@cache
def private_key(kind: str = "p256") -> CertificateIssuerPrivateKeyTypes:
    """Return the one key of a kind that all tests share: making RSA keys takes long.

    "p256/a", "p256/b" … are others of the kind, for tests that block one. "rsa2048 e=65539" is "rsa2048" with that
    exponent, or the next one that its primes allow.
    """
    kind, _, exponent = kind.partition(" e=") if kind.startswith("rsa2048 ") else (kind, "", "")
    if exponent:
        return _with_exponent(private_key(kind), int(exponent))
    kind = kind.partition("/")[0]
    if kind in KEY_TYPES:
        return make_key(kind)
    match kind:
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case "secp256k1":
            return ec.generate_private_key(ec.SECP256K1())
        case "p192":
            return ec.generate_private_key(ec.SECP192R1())
        case "rsa e=3":
            return rsa.generate_private_key(3, 2048)
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def _with_exponent(key: CertificateIssuerPrivateKeyTypes, exponent: int) -> rsa.RSAPrivateKey:
    assert isinstance(key, rsa.RSAPrivateKey)
    p, q = key.private_numbers().p, key.private_numbers().q
    while gcd(exponent, (p - 1) * (q - 1)) != 1:
        exponent += 2
    d = pow(exponent, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(exponent, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def make_csr(
    *extensions: x509.ExtensionType,
    key: str = "p256",
    subject: x509.Name | None = None,
    hash_algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """Return a CSR in DER that asks for these extensions."""
    signing_key = private_key(key)
    if subject is None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hmc1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    if hash_algorithm is None and isinstance(signing_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        hash_algorithm = hashes.SHA256()
    return builder.sign(signing_key, hash_algorithm).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def resign(
    csr: bytes, *, version: bytes | None = None, subject: bytes | None = None, key_info: bytes | None = None
) -> bytes:
    """Return the CSR with parts of it replaced by other DER, signed anew with the P-256 test key."""
    info, algorithm, _ = der.children(csr)
    fields = der.children(info)
    fields[0] = version or fields[0]
    fields[1] = subject or fields[1]
    fields[2] = key_info or fields[2]
    info = der.wrap(der.SEQUENCE, *fields)
    signing_key = private_key("p256")
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
    signature = signing_key.sign(info, ec.ECDSA(hashes.SHA256()))
    return der.wrap(der.SEQUENCE, info, algorithm, der.wrap(der.BIT_STRING, b"\0", signature))


def outdated(hash_algorithm: hashes.HashAlgorithm, algorithm_oid: str) -> bytes:
    """Return an RSA CSR signed with a hash that the cryptography package refuses to make one with."""
    info = der.children(make_csr(key="rsa2048"))[0]
    signing_key = private_key("rsa2048")
    assert isinstance(signing_key, rsa.RSAPrivateKey)
    signature = signing_key.sign(info, padding.PKCS1v15(), hash_algorithm)
    algorithm = der.wrap(der.SEQUENCE, der.wrap(der.OBJECT_IDENTIFIER, bytes.fromhex(algorithm_oid)), b"\x05\0")
    return der.wrap(der.SEQUENCE, info, algorithm, der.wrap(der.BIT_STRING, b"\0", signature))


def pem(csr: bytes) -> str:
    """Return the CSR in PEM."""
    return x509.load_der_x509_csr(csr).public_bytes(serialization.Encoding.PEM).decode()
