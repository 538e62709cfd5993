"""What a CSR is told that cannot be read, or asks in a form that cannot: the cause, and what to change."""

import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.corpus_table import EXPECTED
from support.csrs import make_csr

from runtime.asn1 import der
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.errors import Refused
from vmi_agent.policy import key_policy
from vmi_agent.policy.csr import check_possession, parse
from vmi_agent.policy.malformed import cause
from vmi_agent.policy.profile import Profile, approve
from vmi_agent.policy.subject_rules import SubjectRules

CSRS = Path(__file__).parents[1] / "corpus" / "csrs"
ALTERNATIVES = "subjectAltName in a form that cannot be read"
# File of the corpus -> a part of what is said of it.
SAID = {
    "version-1": "version is not 0",
    "version-negative": "version is not 0",
    "version-padded": "version is not 0",
    "version-missing": "no version in front",
    "der-attributes-missing": "no attributes field",
    "der-attributes-twice": "not version, subject, public key and attributes",
    "der-key-before-subject": "subject is not a sequence of sets",
    "der-fourth-part": "not three parts",
    "der-trailing-octet": "octets after the element",
    "der-cut-short": "reaches past the end",
    "der-indefinite": "length that is indefinite",
    "der-length-not-shortest": "not in its shortest form",
    "der-is-a-set": "no DER",
    "no-csr-empty": "no DER",
    "no-csr-certificate": "a certificate and not a CSR",
    "algorithm-empty": "no object identifier",
    "algorithm-ed25519-null": "parameters that do not belong to it",
    "algorithm-ecdsa-integer": "parameters that do not belong to it",
    "signature-octet-string": "no BIT STRING",
    "ec-parameters-twice": "public key is not an algorithm with its own parameters",
    "ed25519-parameters-null": "public key is not an algorithm with its own parameters",
    "subject-printable-at-sign": "subject's CN holds characters that its type, PrintableString",
    "subject-bmp-odd-octets": "subject's CN holds characters that its type, BMPString",
    "subject-bmp-surrogate": "subject's CN holds characters that its type, BMPString",
    "subject-universal-short": "subject's CN is of the type UniversalString",
    "subject-set-out-of-order": "DER's order",
    "subject-attribute-type-padded": "type is not an object identifier",
    "subject-length-not-shortest": "not in its shortest form",
    "subject-value-length-not-shortest": "attribute that cannot be read",
    "subject-country-utf8": "subject's C is of the type UTF8String. Write it as PrintableString",
    "subject-country-digits": "country is not two letters",
    "subject-country-long": "country is not two letters",
    "subject-email-utf8": "emailAddress is of the type UTF8String. Write it as IA5String",
    "subject-email-dots": "emailAddress is not plain name@host",
    "subject-common-name-ia5": "CN is of the type IA5String. Write it as UTF8String or PrintableString",
    "subject-domain-component-dotted": "DC is not one label",
    "subject-value-65-characters": "CN has 65 characters. Use 1 to 64",
    "subject-utf8-hangul-filler": "character that is not seen",
    "subject-value-bits": "is of a type that is not taken",
    "attribute-not-a-sequence": "not a type with a SET of values",
    "attribute-without-values": "not a type with a SET of values",
    "attribute-unknown-no-value": "an attribute without a value",
    "attribute-request-no-value": "a request for extensions without a value",
    "attribute-request-two-values": "request for extensions with several values",
    "attribute-request-twice": "more than one request for extensions",
    "attribute-request-string": "request for extensions that holds something else",
    "attribute-challenge-password-two-values": "challengePassword with several values",
    "attribute-challenge-password-twice": "more than one challengePassword",
    "names-address-5-octets": ALTERNATIVES,
    "names-trailing": ALTERNATIVES,
    "wish-ca-true-is-1": "basicConstraints in a form that cannot be read",
    "wish-ca-false-then-true": "the extension 2.5.29.19 twice",
    "wish-critical-false-written-of-two": "an extension twice",
    "wish-usage-nine-bits": "keyUsage in a form that cannot be read",
    "wish-not-an-extension": "an extension in a form that cannot be read",
    "wish-application-policies-server": "application policy other than clientAuth",
    "wish-security-identifier": "the extension 1.3.6.1.4.1.311.25.2, which is not granted",
}


def read(name: str) -> bytes:
    """Return a CSR of the corpus."""
    return (CSRS / f"{name}.der").read_bytes()


def judge(csr: bytes, profile: Profile | None = None) -> str:
    """Judge a CSR in the order in which issuing does; return its subject's text."""
    parsed = parse(csr)
    key = key_policy.check(parsed)
    check_possession(parsed)
    return approve(parsed, key, profile or Profile(), ReservedNames()).subject_text


def refusal(csr: bytes, profile: Profile | None = None) -> Refused:
    """Return the refusal of a CSR."""
    with pytest.raises(Refused) as caught:
        judge(csr, profile)
    return caught.value


@pytest.mark.parametrize(("name", "said"), SAID.items(), ids=SAID.keys())
def test_refusal_names_the_cause(name: str, said: str) -> None:
    """The text of a refusal names what is wrong with this CSR."""
    assert said in refusal(read(name)).text


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected != "issued"])
def test_refusal_is_plain_text(name: str) -> None:
    """Every refusal is printable ASCII, a sentence, and nothing of the CSR's own text."""
    text = refusal(read(name)).text

    assert text.isascii()
    assert text.isprintable()
    assert text.endswith(".")
    assert all(own not in text for own in ("hmc1", "example.com", "evil", "not a secret"))


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected == "issued"])
def test_subjects_text_is_rfc_4514s(name: str) -> None:
    """A subject is listed as the cryptography package writes it."""
    csr = read(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it counts octets where characters have an upper bound
        expected = parse(csr).request.subject.rfc4514_string()

    assert judge(csr) == expected


@pytest.mark.parametrize(
    "value", ['a"b', "a\\b", "a,b", "a+b", "a;b", "a<b", "a>b", "#a", " a", "a ", "a=b", "a#b", "é"]
)
def test_subjects_text_is_escaped(value: str) -> None:
    """Characters that RFC 4514 escapes are escaped, wherever they stand."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, value), x509.NameAttribute(NameOID.LOCALITY_NAME, "x")]
    )
    csr = make_csr(subject=subject)

    assert judge(csr) == subject.rfc4514_string()


@pytest.mark.parametrize("dotted", ["1.2.3.4", "1.3.6.1.4.1.2.6.99999", "2.999.3", "2.5.4.51", "0.9.2342.1"])
def test_subjects_text_has_types_by_number(dotted: str) -> None:
    """An attribute without a name stands in the text, and in a profile's rules, by its number."""
    oid = x509.ObjectIdentifier(dotted)
    csr = make_csr(subject=x509.Name([x509.NameAttribute(oid, "rack 7")]))

    assert judge(csr) == f"{dotted}=rack 7"
    assert judge(csr, Profile(subject=SubjectRules(fixed={oid: "rack 7"}))) == f"{dotted}=rack 7"
    assert dotted in refusal(csr, Profile(subject=SubjectRules(fixed={oid: "rack 8"}))).text


def test_ecdsa_with_null_parameters_is_verified() -> None:
    """A CSR whose ECDSA algorithm has NULL parameters has to be signed by its own key all the same."""
    good = read("good-algorithm-ecdsa-null")
    changed = good.replace(b"hmc1.example.com", b"hmc2.example.com")

    assert judge(good) == "CN=hmc1.example.com,C=US"
    assert refusal(changed).code.name == "CSR_BAD_SIGNATURE"


def test_cause_of_what_is_none_of_these() -> None:
    """A CSR in which nothing else is wrong is told of its key, which is what remains."""
    assert "public key" in cause(make_csr())
    assert "public key" in cause(read("good-attribute-windows"))


@pytest.mark.parametrize(
    "kind",
    [b"\6\0", b"\6\1\x80", b"\6\3\x55\x80\1", b"\6\2\x55\x81", b"\6\x15\x2a" + b"\x81" * 19 + b"\1", b"\2\1\1"],
    ids=["empty", "begun", "padded", "not ended", "arc of 20 octets", "INTEGER"],
)
def test_cause_of_an_attributes_odd_type(kind: bytes) -> None:
    """An attribute's type that is no object identifier, or one of absurd size, is named."""
    information, *others = der.children(make_csr())
    version, _, *rest = der.children(information)
    attribute = der.wrap(der.SEQUENCE, kind, der.wrap(0x0C, b"hmc1"))
    subject = der.wrap(der.SEQUENCE, der.wrap(0x31, attribute))
    csr = der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, version, subject, *rest), *others)

    assert "type is not an object identifier" in refusal(csr).text
