"""Fuzz target: a CSR through every step of `Issuing.issue` before the ledger, and what comes of one that is approved.

The first octet says who asks, and whether the rest, a CSR in DER, is signed anew, with which of a few known keys: so
that proof of possession holds, and profile, subject and names are judged, whatever became of the rest. Inputs are
changed element by element, and begin anew now and then from one of tests/corpus/csrs.

Only Refused leaves judging, with a text that can be told, and no library warns. A CSR that is approved makes a
certificate that the cryptography package and OpenSSL both read, that verifies under its root, and that holds subject
and public key octet for octet, is no CA, is for clientAuth, and has no extension but those of the profile.
"""

import random
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parent.parent / "tests" / "corpus"))

with atheris.instrument_imports(
    include=["protocol", "vmi_agent.policy", "vmi_agent.certificate", "vmi_agent.ca.reserved_names"]
):
    from protocol.errors import ErrorCode
    from runtime.asn1 import der
    from runtime.asn1.der import DerError
    from vmi_agent.ca.reserved_names import ReservedNames
    from vmi_agent.certificate import Issuer, assemble, certificate_tbs
    from vmi_agent.policy import key_policy
    from vmi_agent.policy.alternative_names import NameRules
    from vmi_agent.policy.csr import Csr, check_possession, parse
    from vmi_agent.policy.profile import Approved, Profile, approve, choose
    from vmi_agent.policy.requested_extensions import requested_extensions
    from vmi_agent.policy.subject_encoding import read_subject
    from vmi_agent.policy.subject_rules import SubjectRules

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from csr_parts import Key, bits, ec_key, ed25519_key, mldsa_key
from der_mutator import elements_of, mutate
from OpenSSL import crypto
from rsa_numbers import prime, rsa_key

from vmi_agent.ca.certificates import self_signed_root
from vmi_agent.errors import Refused
from vmi_agent.keys.algorithms import signature_algorithm
from vmi_agent.keys.file_key import FileCustody

MAX_INPUT = 17 * 1024
# One in so many inputs begins anew from a CSR of the corpus.
FRESH = 8
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
CODES = (
    *(ErrorCode.CSR_TOO_LARGE, ErrorCode.CSR_MALFORMED, ErrorCode.CSR_WEAK_KEY),
    *(ErrorCode.CSR_BAD_SIGNATURE, ErrorCode.CSR_POLICY),
)
PROFILES = (
    Profile(requesters=("hmc",)),
    Profile(
        name="strict",
        requesters=("strict",),
        validity=30 * DAY,
        key_kinds=("rsa", "p256"),
        key_usages=("digitalSignature", "nonRepudiation"),
        extended_key_usages=(CLIENT, SERVER),
        subject=SubjectRules(
            required=(NameOID.COMMON_NAME,),
            forbidden=(NameOID.TITLE,),
            patterns={NameOID.COMMON_NAME: ("*.example.com", "hmc*"), NameOID.COUNTRY_NAME: ("U*",)},
        ),
        names=NameRules(True, ("*.example.com", "**.hmc.example"), (ip_network("192.0.2.0/24"),), ("*.example",)),
    ),
)
USERS = ("hmc", "strict", "hmc", "nobody")
CORPUS = Path(__file__).parent.parent / "tests" / "corpus" / "csrs"
SEEDS = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
DONORS = elements_of(seed for seed in SEEDS if len(seed) < 700)
KEYS = (
    ec_key(ec.SECP256R1()),
    ed25519_key(),
    ec_key(ec.SECP384R1()),
    rsa_key(prime("p", 1024), prime("q", 1024)),
    mldsa_key(44),
)
CUSTODY = FileCustody(ec.derive_private_key(7, ec.SECP256R1()))
ROOT = self_signed_root(CUSTODY, 1, NOW)
ISSUER = Issuer(
    ROOT.subject.public_bytes(),
    signature_algorithm(CUSTODY.public_key),
    ROOT.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
    ROOT.not_valid_after_utc,
)
RESERVED = ReservedNames([ISSUER.name])
TRUST = crypto.X509Store()
TRUST.add_cert(crypto.X509.from_cryptography(ROOT))
TRUST.set_flags(crypto.X509StoreFlags.X509_STRICT)
TRUST.set_time(NOW)
STAMPED = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}


def signed_anew(csr: bytes, key: Key) -> bytes:
    """Return the CSR with this key in the place of its own, and its signature; as it is where it has no such place."""
    try:
        information = der.children(csr)[0]
        fields = der.children(information)
        fields[2] = key.info
    except (DerError, IndexError):
        return csr
    information = der.wrap(der.SEQUENCE, *fields)
    return der.wrap(der.SEQUENCE, information, key.algorithm, bits(key.sign(information)))


def judged(csr_der: bytes, user: str) -> Approved | tuple[ErrorCode, str]:
    """Take the steps of `Issuing.issue` up to the ledger; return what was approved, or why nothing was."""
    try:
        csr = parse(csr_der)
        key = key_policy.check(csr)
        check_possession(csr)
        return approve(csr, key, choose(PROFILES, user), RESERVED)
    except Refused as refused:
        assert refused.code in CODES
        assert refused.text.isascii()
        assert refused.text.isprintable()
        return refused.code, refused.text


def check_leaf(approved: Approved) -> None:
    """Make the certificate and look at it with others' eyes."""
    csr, profile = approved.csr, approved.profile
    serial = b"\1" + csr.sha256[:16]
    period = profile.period(NOW, ISSUER.not_after)
    tbs = certificate_tbs(ISSUER, serial, *period, csr.subject, csr.public_key_info, approved.extensions)
    made = assemble(tbs, CUSTODY.sign(tbs))
    assert der.leaf_subject_and_key(made) == der.csr_subject_and_key(csr.der)

    leaf, request = x509.load_der_x509_certificate(made), csr.request
    leaf.verify_directly_issued_by(ROOT)
    public_key = leaf.public_key()
    assert leaf.subject == request.subject
    assert public_key == request.public_key()
    assert leaf.version is x509.Version.v3
    assert leaf.tbs_certificate_bytes == tbs
    assert leaf.serial_number == int.from_bytes(serial)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == period
    _check_extensions(leaf, csr, profile, is_rsa=isinstance(public_key, rsa.RSAPublicKey))

    read = crypto.load_certificate(crypto.FILETYPE_ASN1, made)
    crypto.X509StoreContext(TRUST, read).verify_certificate()


def _check_extensions(leaf: x509.Certificate, csr: Csr, profile: Profile, *, is_rsa: bool) -> None:
    found = {each.oid: each for each in leaf.extensions}
    wanted = {each.oid: each.value for each in requested_extensions(csr)}
    asked = wanted.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    assert asked is None or isinstance(asked, x509.SubjectAlternativeName)
    names: list[x509.GeneralName] = [] if asked is None else list(asked)
    names += [each for each in map(x509.RFC822Name, read_subject(csr.subject).mailboxes) if each not in names]
    assert set(found) == STAMPED | ({ExtensionOID.SUBJECT_ALTERNATIVE_NAME} if names else set())
    constraints = found[ExtensionOID.BASIC_CONSTRAINTS]
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    usage = found[ExtensionOID.KEY_USAGE]
    assert usage.critical
    assert isinstance(usage.value, x509.KeyUsage)
    assert usage.value.digital_signature
    assert usage.value.key_encipherment == (is_rsa and profile is PROFILES[0])
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert found[ExtensionOID.EXTENDED_KEY_USAGE].value == x509.ExtendedKeyUsage(profile.extended_key_usages)
    if names:
        assert found[ExtensionOID.SUBJECT_ALTERNATIVE_NAME].value == x509.SubjectAlternativeName(names)
        assert all(isinstance(each, x509.DNSName | x509.IPAddress | x509.RFC822Name) for each in names)
    assert asked is not None or not profile.names.required


def one_input(data: bytes) -> None:
    """Run one input."""
    if not data:
        return
    how, csr = data[0], data[1:]
    if how & 1:
        csr = signed_anew(csr, KEYS[(how >> 1 & 7) % len(KEYS)])
    user = USERS[how >> 4 & 3]
    verdict = judged(csr, user)
    if isinstance(verdict, Approved):
        check_leaf(verdict)
    again = judged(csr, user)
    assert again == verdict or isinstance(again, Approved)


def other_input(data: bytes, most: int, seed: int) -> bytes:
    """Return another input, made from this one."""
    draw = random.Random(seed)  # noqa: S311  # a fuzzer's choices are no secret
    if len(data) < 2 or draw.randrange(FRESH) == 0:
        return (bytes((draw.randrange(256),)) + draw.choice(SEEDS))[:most]
    if draw.randrange(FRESH) == 0:
        return bytes(atheris.Mutate(data, most))
    how = draw.randrange(256) if draw.randrange(FRESH) == 0 else data[0]
    return bytes((how,)) + mutate(data[1:], most - 1, seed, DONORS)


if __name__ == "__main__":
    warnings.simplefilter("error")
    # A country of two characters that are six octets: it is judged, and the agent logs a library's warning.
    warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)
    target: Callable[[bytes], None] = one_input
    atheris.Setup([*sys.argv, f"-max_len={MAX_INPUT}"], target, custom_mutator=other_input)
    atheris.Fuzz()
