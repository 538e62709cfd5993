"""Judging a CSR: each flaw gets its code, and what is sound gets through, on both sides of each limit."""

import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.csrs import make_csr, outdated, private_key, resign

from protocol.errors import ErrorCode
from runtime.asn1 import der
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.certificate import extension
from vmi_agent.errors import Refused
from vmi_agent.policy import key_policy
from vmi_agent.policy.csr import MAX_CSR_OCTETS, check_possession, parse
from vmi_agent.policy.profile import Approved, Profile, approve

CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "VMI Root CA")])


def judge(csr: bytes) -> Approved:
    """Judge a CSR in the order in which issuing does."""
    parsed = parse(csr)
    key = key_policy.check(parsed)
    check_possession(parsed)
    return approve(parsed, key, Profile(), ReservedNames([CA_NAME.public_bytes()]))


def code_for(csr: bytes) -> str:
    """Return the code that a CSR is refused with, or "" where it is approved."""
    try:
        judge(csr)
    except Refused as refused:
        assert refused.text.endswith((".", "openssl req wrote it."))
        return refused.code.name
    return ""


def usage(**wanted: bool) -> x509.KeyUsage:
    """Return a KeyUsage with these bits."""
    names: tuple[str, ...]
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def named(*names: x509.GeneralName) -> bytes:
    """Return a CSR that asks for these alternative names."""
    return make_csr(x509.SubjectAlternativeName(names))


def subject(value: str) -> x509.Name:
    """Return a subject with this common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value, _validate=False)])


def key_info(kind: str) -> bytes:
    """Return the SubjectPublicKeyInfo of a test key."""
    public = private_key(kind).public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_info(modulus_bits: int, exponent: int) -> bytes:
    """Return the SubjectPublicKeyInfo of an RSA key that nobody has the private part of."""
    modulus = (1 << (modulus_bits - 1)) | 1
    numbers = der.wrap(der.SEQUENCE, integer(modulus), integer(exponent))
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    return der.wrap(der.SEQUENCE, algorithm, der.wrap(der.BIT_STRING, b"\0", numbers))


def integer(value: int) -> bytes:
    """Return a DER INTEGER."""
    return der.wrap(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


GOOD = make_csr()
OTHER_NAME = x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
# X25519: a key that cannot sign, so no CSR with it can prove possession.
X25519_INFO = bytes.fromhex("302a300506032b656e032100") + bytes(31) + b"\x09"
OFF_CURVE_INFO = key_info("p256")[:-1] + bytes((key_info("p256")[-1] ^ 1,))
PSS_INFO = der.wrap(der.SEQUENCE, bytes.fromhex("300b06092a864886f70d01010a"), der.children(key_info("rsa2048"))[1])
NO_NULL_INFO = der.wrap(der.SEQUENCE, bytes.fromhex("300b06092a864886f70d010101"), der.children(key_info("rsa2048"))[1])

REFUSED = {
    "nothing": (b"", "CSR_MALFORMED"),
    "no DER": (b"hello", "CSR_MALFORMED"),
    "trailing octet": (GOOD + b"\0", "CSR_MALFORMED"),
    "cut short": (GOOD[:-1], "CSR_MALFORMED"),
    "a certificate's shape": (der.wrap(der.SEQUENCE, *der.children(GOOD), b"\x05\x00"), "CSR_MALFORMED"),
    "version 2": (resign(GOOD, version=b"\x02\x01\x01"), "CSR_MALFORMED"),
    "negative version": (resign(GOOD, version=b"\x02\x01\xff"), "CSR_MALFORMED"),
    "one octet too large": (GOOD + bytes(MAX_CSR_OCTETS + 1 - len(GOOD)), "CSR_TOO_LARGE"),
    "at the size limit, but no CSR": (GOOD + bytes(MAX_CSR_OCTETS - len(GOOD)), "CSR_MALFORMED"),
    "RSA 1024": (make_csr(key="rsa1024"), "CSR_WEAK_KEY"),
    "RSA 2047": (resign(GOOD, key_info=rsa_info(2047, 65537)), "CSR_WEAK_KEY"),
    "RSA 8193": (resign(GOOD, key_info=rsa_info(8193, 65537)), "CSR_WEAK_KEY"),
    "RSA exponent 3": (make_csr(key="rsa e=3"), "CSR_WEAK_KEY"),
    "RSA exponent 65535": (resign(GOOD, key_info=rsa_info(2048, 65535)), "CSR_WEAK_KEY"),
    "RSA even exponent": (resign(GOOD, key_info=rsa_info(2048, 65538)), "CSR_WEAK_KEY"),
    "RSA exponent of 32 bits": (resign(GOOD, key_info=rsa_info(2048, 2**31 + 1)), "CSR_WEAK_KEY"),
    "RSA-PSS key": (resign(GOOD, key_info=PSS_INFO), "CSR_WEAK_KEY"),
    "RSA key without parameters": (resign(GOOD, key_info=NO_NULL_INFO), "CSR_WEAK_KEY"),
    "secp256k1": (make_csr(key="secp256k1"), "CSR_WEAK_KEY"),
    "P-192": (make_csr(key="p192"), "CSR_WEAK_KEY"),
    "X25519": (resign(GOOD, key_info=X25519_INFO), "CSR_WEAK_KEY"),
    "point not on the curve": (resign(GOOD, key_info=OFF_CURVE_INFO), "CSR_WEAK_KEY"),
    "RSA 2048, signed by another key": (resign(GOOD, key_info=key_info("rsa2048")), "CSR_BAD_SIGNATURE"),
    "RSA 8192, its modulus 2**8191 + 1": (resign(GOOD, key_info=rsa_info(8192, 65537)), "CSR_WEAK_KEY"),
    "last octet of the signature changed": (GOOD[:-1] + bytes((GOOD[-1] ^ 1,)), "CSR_BAD_SIGNATURE"),
    "SHA-1": (outdated(hashes.SHA1(), "2a864886f70d010105"), "CSR_BAD_SIGNATURE"),
    "MD5": (outdated(hashes.MD5(), "2a864886f70d010104"), "CSR_BAD_SIGNATURE"),
    "CA:TRUE": (make_csr(x509.BasicConstraints(True, None)), "CSR_POLICY"),
    "keyCertSign": (make_csr(usage(digital_signature=True, key_cert_sign=True)), "CSR_POLICY"),
    "cRLSign": (make_csr(usage(crl_sign=True)), "CSR_POLICY"),
    "serverAuth": (make_csr(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])), "CSR_POLICY"),
    "clientAuth and codeSigning": (
        make_csr(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING])),
        "CSR_POLICY",
    ),
    "an unknown extension": (
        make_csr(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")),
        "CSR_POLICY",
    ),
    "OCSP no check": (make_csr(x509.OCSPNoCheck()), "CSR_POLICY"),
    "wildcard name": (named(x509.DNSName("*.example.com")), "CSR_POLICY"),
    "name with a space": (named(x509.DNSName("a b")), "CSR_POLICY"),
    "name with a label of 64": (named(x509.DNSName("a" * 64 + ".example.com")), "CSR_POLICY"),
    "name of 254": (named(x509.DNSName(".".join(["a" * 49] * 5) + ".abcd")), "CSR_POLICY"),
    "URI name": (named(x509.UniformResourceIdentifier("https://example.com")), "CSR_POLICY"),
    "directory name": (named(x509.DirectoryName(subject("root"))), "CSR_POLICY"),
    "other name": (named(OTHER_NAME), "CSR_POLICY"),
    "empty subject": (make_csr(subject=x509.Name([])), "CSR_POLICY"),
    "NUL in the common name": (make_csr(subject=subject("hmc1\0.evil.example")), "CSR_POLICY"),
    "line break in the common name": (make_csr(subject=subject("hmc1\nroot")), "CSR_POLICY"),
    "C1 control in the common name": (make_csr(subject=subject("hmc1\x9b31m")), "CSR_POLICY"),
    "change of direction in the common name": (make_csr(subject=subject("hmc\u202e1")), "CSR_POLICY"),
    "line separator in the common name": (make_csr(subject=subject("hmc1\u2028root")), "CSR_POLICY"),
    "blank common name": (make_csr(subject=subject("  ")), "CSR_POLICY"),
    "the CA's own subject": (make_csr(subject=CA_NAME), "CSR_POLICY"),
    "no alternative name in the extension": (
        make_csr(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x00")),
        "CSR_POLICY",
    ),
    "e-mail address with a line break": (named(x509.RFC822Name("a\n@b.example")), "CSR_POLICY"),
    "e-mail address with NUL": (named(x509.RFC822Name("a\0@b.example")), "CSR_POLICY"),
    "empty e-mail address": (
        make_csr(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x02\x81\x00")),
        "CSR_POLICY",
    ),
    "SHA-224": (make_csr(key="rsa2048", hash_algorithm=hashes.SHA224()), "CSR_BAD_SIGNATURE"),
    "an unreadable alternative name": (
        make_csr(x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x05\x00")),
        "CSR_MALFORMED",
    ),
}

ACCEPTED = {
    "plain": GOOD,
    "RSA 2048": make_csr(key="rsa2048"),
    "Ed25519": make_csr(key="ed25519"),
    "ML-DSA-65": make_csr(key="mldsa65"),
    "SHA-512": make_csr(key="rsa2048", hash_algorithm=hashes.SHA512()),
    "CA:FALSE": make_csr(x509.BasicConstraints(False, None)),
    "openssl's default usages": make_csr(usage(digital_signature=True, content_commitment=True, key_encipherment=True)),
    "clientAuth": make_csr(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])),
    "subject key identifier": make_csr(x509.SubjectKeyIdentifier(b"12345678901234567890")),
    "name with a label of 63": named(x509.DNSName("a" * 63 + ".example.com")),
    "name of 253": named(x509.DNSName(".".join(["a" * 49] * 5) + ".abc")),
    "common name beyond ASCII": make_csr(subject=subject("Köln 1 – HMC")),
    "addresses and names": named(
        x509.DNSName("hmc1.example.com"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
        x509.RFC822Name("hmc@example.com"),
    ),
}


@pytest.mark.parametrize(("csr", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_judging_refuses(csr: bytes, code: str) -> None:
    """Each flaw is refused with its own code and a text that says what to change."""
    assert code_for(csr) == code


@pytest.mark.parametrize("csr", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_judging_approves(csr: bytes) -> None:
    """What is sound, and asks for no power, is approved."""
    assert code_for(csr) == ""


@pytest.mark.parametrize(("kind", "expected"), [("rsa2048", True), ("p256", False), ("ed25519", False)])
def test_approve_grants_key_encipherment_to_rsa_only(kind: str, expected: bool) -> None:
    """Only an RSA key can encipher a key."""
    usage = x509.KeyUsage(True, False, expected, False, False, False, False, False, False)

    assert extension(usage, critical=True) in judge(make_csr(key=kind)).extensions


def test_key_policy_is_judged_before_possession() -> None:
    """A key that is refused costs no verification of a signature: the order of the two shows in the code."""
    huge = resign(GOOD, key_info=rsa_info(16384, 65537))

    assert code_for(huge) == ErrorCode.CSR_WEAK_KEY.name


def test_key_policy_refuses_a_compressed_point() -> None:
    """A public key in the compressed form, which Go does not read, is refused rather than written otherwise."""
    key = private_key("p256")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    info = der.wrap(der.SEQUENCE, der.children(key_info("p256"))[0], der.wrap(der.BIT_STRING, b"\0", point))

    assert code_for(resign(GOOD, key_info=info)) == "CSR_WEAK_KEY"


def test_private_keys_of_the_tests_are_what_they_say() -> None:
    """The weak keys above are weak in the way meant."""
    weak = private_key("rsa e=3").public_key()
    assert isinstance(weak, rsa.RSAPublicKey)
    assert (weak.key_size, weak.public_numbers().e) == (2048, 3)
