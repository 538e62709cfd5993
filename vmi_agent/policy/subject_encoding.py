"""A CSR's subject, read from its octets: each attribute in its ASN.1 types, within its bounds, and visible.

RFC 5280, appendix A.1 gives each attribute its string types and upper bound. The cryptography package checks neither:
it takes a country in UTF-8, which others refuse to read, only warns, on stderr, of a common name over its bound, and
reads surrogates out of a BMPString, which has none. Whether a profile wants the subject is `subject_rules`' question.
"""

import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from protocol.errors import ErrorCode
from runtime.asn1 import der
from vmi_agent.ca.reserved_names import (
    BMP_STRING,
    IA5_STRING,
    PRINTABLE_STRING,
    TELETEX_STRING,
    UNIVERSAL_STRING,
    UTF8_STRING,
    Attribute,
    decode,
)
from vmi_agent.certificate import object_identifier
from vmi_agent.errors import Refused
from vmi_agent.policy.hosts import is_label, mailbox_fault
from vmi_agent.policy.subject_rules import short_name
from vmi_agent.policy.visible import is_visible

MOST_ATTRIBUTES = 32

_STRING_NAMES = {
    UTF8_STRING: "UTF8String",
    PRINTABLE_STRING: "PrintableString",
    TELETEX_STRING: "TeletexString",
    IA5_STRING: "IA5String",
    UNIVERSAL_STRING: "UniversalString",
    BMP_STRING: "BMPString",
}
# DirectoryString (RFC 5280, 4.1.2.4) less UniversalString, which Go and pkilint do not read.
_DIRECTORY = frozenset({UTF8_STRING, PRINTABLE_STRING, TELETEX_STRING, BMP_STRING})
_USUAL = (UTF8_STRING, PRINTABLE_STRING, IA5_STRING)
_PRINTABLE, _IA5 = frozenset({PRINTABLE_STRING}), frozenset({IA5_STRING})
_PRINTABLE_OCTETS = re.compile(rb"[A-Za-z0-9 '()+,./:=?-]*\Z")  # X.680, table 10
_COUNTRY = re.compile(r"[A-Za-z]{2}\Z")
_SPECIAL = re.compile(r'[\\",+;<>]|\A[# ]|(?<=.) \Z')  # RFC 4514, 2.4


@dataclass(frozen=True, slots=True)
class _Rule:
    """What RFC 5280, appendix A.1, or where it has none X.520 and RFC 4519, ask of a value.

    Attributes:
        name: the attribute's, for people.
        label: the attribute's name in RFC 4514 texts.
        tags: the string types that it may have.
        most: characters, its upper bound.
    """

    oid: x509.ObjectIdentifier | None
    name: str
    label: str
    tags: frozenset[int]
    most: int


_OCTETS_AT_MOST = 1 << 15  # ub-name; the CSR's own limit is lower
_BOUNDS = (
    (NameOID.COMMON_NAME, _DIRECTORY, 64),
    (NameOID.SURNAME, _DIRECTORY, _OCTETS_AT_MOST),
    (NameOID.SERIAL_NUMBER, _PRINTABLE, 64),
    (NameOID.COUNTRY_NAME, _PRINTABLE, 2),
    (NameOID.LOCALITY_NAME, _DIRECTORY, 128),
    (NameOID.STATE_OR_PROVINCE_NAME, _DIRECTORY, 128),
    (NameOID.STREET_ADDRESS, _DIRECTORY, 128),
    (NameOID.ORGANIZATION_NAME, _DIRECTORY, 64),
    (NameOID.ORGANIZATIONAL_UNIT_NAME, _DIRECTORY, 64),
    (NameOID.TITLE, _DIRECTORY, 64),
    (NameOID.BUSINESS_CATEGORY, _DIRECTORY, 128),
    (NameOID.POSTAL_CODE, _DIRECTORY, 40),
    (NameOID.GIVEN_NAME, _DIRECTORY, _OCTETS_AT_MOST),
    (NameOID.INITIALS, _DIRECTORY, _OCTETS_AT_MOST),
    (NameOID.GENERATION_QUALIFIER, _DIRECTORY, _OCTETS_AT_MOST),
    (NameOID.DN_QUALIFIER, _PRINTABLE, _OCTETS_AT_MOST),
    (NameOID.PSEUDONYM, _DIRECTORY, 128),
    (NameOID.ORGANIZATION_IDENTIFIER, _DIRECTORY, 256),
    (NameOID.USER_ID, _DIRECTORY, 256),
    (NameOID.DOMAIN_COMPONENT, _IA5, 63),
    (NameOID.EMAIL_ADDRESS, _IA5, 255),
    (NameOID.JURISDICTION_COUNTRY_NAME, _PRINTABLE, 2),
    (NameOID.JURISDICTION_LOCALITY_NAME, _DIRECTORY, 128),
    (NameOID.JURISDICTION_STATE_OR_PROVINCE_NAME, _DIRECTORY, 128),
    (x509.ObjectIdentifier("2.5.4.41"), _DIRECTORY, _OCTETS_AT_MOST),  # name
    (NameOID.UNSTRUCTURED_NAME, _DIRECTORY | _IA5, 255),  # PKCS9String (RFC 2985, A)
    (x509.ObjectIdentifier("2.5.4.20"), _PRINTABLE, 32),  # telephone number
    (x509.ObjectIdentifier("2.5.4.27"), _PRINTABLE, 128),  # destination indicator
)


def _rule(oid: x509.ObjectIdentifier, tags: frozenset[int], most: int) -> _Rule:
    return _Rule(oid, short_name(oid), x509.NameAttribute(oid, "US").rfc4514_attribute_name, tags, most)


# By the contents of an attribute's type.
_RULES = {object_identifier(oid)[2:]: _rule(oid, tags, most) for oid, tags, most in _BOUNDS}
_UNKNOWN = _Rule(None, "attribute of a type that is not known here", "", _DIRECTORY, _OCTETS_AT_MOST)
_COUNTRIES = frozenset(object_identifier(oid)[2:] for oid in (NameOID.COUNTRY_NAME, NameOID.JURISDICTION_COUNTRY_NAME))
_DOMAIN_COMPONENT = object_identifier(NameOID.DOMAIN_COMPONENT)[2:]
_EMAIL_ADDRESS = object_identifier(NameOID.EMAIL_ADDRESS)[2:]
_WITH_SYNTAX = _COUNTRIES | {_DOMAIN_COMPONENT, _EMAIL_ADDRESS}


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject whose every attribute may be certified.

    Attributes:
        name: its parts, each with one or more attributes.
        mailboxes: the values of emailAddress, each once, in order.
    """

    name: tuple[tuple[Attribute, ...], ...]
    mailboxes: tuple[str, ...]

    def text(self) -> str:
        """Return the subject as RFC 4514 writes it, the last part first."""
        return ",".join("+".join(_attribute_text(*attribute) for attribute in part) for part in reversed(self.name))

    def attributes(self) -> list[tuple[x509.ObjectIdentifier, str]]:
        """Return the types and values of all attributes, in order."""
        return [
            (_RULES.get(kind, _UNKNOWN).oid or x509.ObjectIdentifier(_dotted(kind)), text)
            for part in self.name
            for kind, text in part
        ]


def _attribute_text(kind: bytes, text: str) -> str:
    label = _RULES.get(kind, _UNKNOWN).label or _dotted(kind)
    return f"{label}={_SPECIAL.sub(_escaped, text)}"


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def _dotted(kind: bytes) -> str:
    """Return an object identifier's dotted form, by its contents (X.690, 8.19)."""
    arcs, arc = [], 0
    for octet in kind:
        arc = arc << 7 | octet & 0x7F
        if octet < 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def read_subject(subject: bytes) -> Subject:
    """Judge a subject's attributes: their number, types, lengths and characters.

    Args:
        subject: a DER Name.

    Raises:
        Refused: CSR_POLICY, naming the attribute.
    """
    name: list[tuple[Attribute, ...]] = []
    mailboxes: dict[str, None] = {}
    count = 0
    try:
        parts = [[der.children(each) for each in der.children(part)] for part in der.children(subject)]
        for part in parts:
            count += len(part)
            if count > MOST_ATTRIBUTES:
                raise _refuse(f"The subject holds more than {MOST_ATTRIBUTES} attributes. Leave some of them out.")
            attributes = tuple((kind[2:], _text(kind[2:], value)) for kind, value in part)
            if any(kind[2:] not in _RULES and _has_two_arcs(kind) for kind, _ in part):
                raise _refuse(
                    "The subject holds an attribute whose type has two arcs, which some readers refuse. Take it out."
                )
            if len(attributes) != 1:
                _judge_part(attributes)
            for kind, text in attributes:
                if kind == _EMAIL_ADDRESS:
                    mailboxes[text] = None
            name.append(attributes)
    except ValueError as error:
        raise _refuse("The subject holds an attribute that cannot be read. Use UTF-8 or printable strings.") from error
    if not name:
        raise _refuse("The subject is empty. Name the console in it, at least by a common name.")
    return Subject(tuple(name), tuple(mailboxes))


def _has_two_arcs(kind: bytes) -> bool:
    """Return whether an object identifier in DER has one subidentifier, which stands for two arcs (X.690, 8.19.4)."""
    contents = kind[2:]
    return kind[0] == der.OBJECT_IDENTIFIER and contents[-1:] < b"\x80" and sum(octet < 0x80 for octet in contents) == 1


def _judge_part(attributes: tuple[Attribute, ...]) -> None:
    kinds = {kind for kind, _ in attributes}
    if not kinds:
        raise _refuse("The subject holds a set without attributes. Take it out.")
    if len(kinds) != len(attributes):  # X.501, 9.3: the attribute types of one RDN differ
        raise _refuse("The subject holds the same attribute twice in one set. Give each a set of its own.")


def _text(kind: bytes, value: bytes) -> str:
    """Return an attribute's value, judged."""
    rule = _RULES.get(kind, _UNKNOWN)
    tag, start, end = der.read(value)
    contents = value[start:end]
    if tag not in rule.tags:
        accepted = " or ".join(_STRING_NAMES[each] for each in _USUAL if each in rule.tags)
        given = _STRING_NAMES.get(tag)
        is_given = f"is of the type {given}" if given else "is of a type that is not taken"
        raise _refuse(f"The subject's {rule.name} {is_given}. Write it as {accepted} (RFC 5280, appendix A.1).")
    try:
        text = decode(tag, contents)
        sound = _PRINTABLE_OCTETS.match(contents) if tag == PRINTABLE_STRING else True
    except ValueError:
        sound = False
    if not sound or (tag == BMP_STRING and 2 * len(text) != len(contents)):  # surrogates, which it has none of
        if tag == UTF8_STRING:
            raise _refuse(f"The subject's {rule.name} is not valid UTF-8 (RFC 3629), as its type, UTF8String, demands.")
        way_out = "Write it as UTF8String." if UTF8_STRING in rule.tags else "Leave them out."
        raise _refuse(
            f"The subject's {rule.name} holds characters that its type, {_STRING_NAMES[tag]}, does not have. {way_out}"
        )
    if kind in _WITH_SYNTAX:
        _judge_syntax(kind, text)
    if not text or len(text) > rule.most:
        raise _refuse(
            f"The subject's {rule.name} has {len(text)} characters. Use 1 to {rule.most} (RFC 5280, appendix A.1)."
        )
    if not text.strip() or not is_visible(text):
        raise _refuse(
            f"The subject's {rule.name} is blank, or holds a character that is not seen, such as a control, format or"
            " blank one. Take it out."
        )
    return text


def _judge_syntax(kind: bytes, text: str) -> None:
    if kind in _COUNTRIES and not _COUNTRY.match(text):
        raise _refuse("The subject's country is not two letters. Use its ISO 3166 code, such as US.")
    if kind == _DOMAIN_COMPONENT and not is_label(text):
        raise _refuse("The subject's DC is not one label of a host name (RFC 4519, 2.4). Give each label its DC.")
    if kind == _EMAIL_ADDRESS and (fault := mailbox_fault(text)):
        raise _refuse(f"The subject's emailAddress {fault}. Correct it, or leave it out.")


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)
