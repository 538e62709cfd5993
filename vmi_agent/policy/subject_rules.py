"""What a profile asks of a subject. The leaf bears the CSR's own, octet for octet: rules refuse it or let it be.

Attributes go by OpenSSL's short names, or by dotted object identifiers. Values are compared as text, upper and lower
case told apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.x509.oid import NameOID

from protocol.errors import ErrorCode
from vmi_agent.errors import Refused
from vmi_agent.policy.patterns import text_matches, text_sample

ATTRIBUTES = {
    "CN": NameOID.COMMON_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "street": NameOID.STREET_ADDRESS,
    "postalCode": NameOID.POSTAL_CODE,
    "emailAddress": NameOID.EMAIL_ADDRESS,
    "serialNumber": NameOID.SERIAL_NUMBER,
    "UID": NameOID.USER_ID,
    "DC": NameOID.DOMAIN_COMPONENT,
    "title": NameOID.TITLE,
    "SN": NameOID.SURNAME,
    "GN": NameOID.GIVEN_NAME,
    "dnQualifier": NameOID.DN_QUALIFIER,
    "organizationIdentifier": NameOID.ORGANIZATION_IDENTIFIER,
}
# Of two letters, whatever a pattern says.
_COUNTRIES = (NameOID.COUNTRY_NAME, NameOID.JURISDICTION_COUNTRY_NAME)
_SHORT_NAMES = {oid: name for name, oid in ATTRIBUTES.items()}


@dataclass(frozen=True, slots=True)
class SubjectRules:
    """Which attributes a subject must have, may not have, and with which values.

    Attributes:
        required: are there at least once.
        forbidden: are not there.
        fixed: are there, and every one of them is exactly this.
        patterns: where they are there, every one of them matches one of these.
    """

    required: tuple[x509.ObjectIdentifier, ...] = ()
    forbidden: tuple[x509.ObjectIdentifier, ...] = ()
    fixed: Mapping[x509.ObjectIdentifier, str] = field(default_factory=dict)
    patterns: Mapping[x509.ObjectIdentifier, tuple[str, ...]] = field(default_factory=dict)

    def judge(self, attributes: Sequence[tuple[x509.ObjectIdentifier, str]]) -> None:
        """Judge a subject's attributes, each a type and a value.

        Raises:
            Refused: CSR_POLICY, saying what the profile asks for.
        """
        present = {oid for oid, _ in attributes}
        for oid in (*self.required, *self.fixed):
            if oid not in present:
                raise _refuse(f"The subject has no {short_name(oid)}, which the profile requires. Put it in.")
        for oid in self.forbidden:
            if oid in present:
                raise _refuse(f"The subject has the {short_name(oid)} that the profile forbids. Take it out.")
        for oid, value in attributes:
            if oid in self.fixed and value != self.fixed[oid]:
                raise _refuse(f"The subject's {short_name(oid)} is not what the profile fixes: {self.fixed[oid]}.")
            patterns = self.patterns.get(oid)
            if patterns is not None and not any(text_matches(pattern, value) for pattern in patterns):
                raise _refuse(f"The subject's {short_name(oid)} is not allowed; allowed: {', '.join(patterns)}.")

    def example(self) -> x509.Name:
        """Return a subject that the rules let be.

        Raises:
            ValueError: an attribute cannot have the value that is fixed for it, or that its first pattern leads to.
        """
        values = {oid: example_value(oid, "*") for oid in self.required}
        values |= {oid: example_value(oid, patterns[0]) for oid, patterns in self.patterns.items()}
        values |= self.fixed
        if not values:
            free = (oid for oid in ATTRIBUTES.values() if oid not in self.forbidden)
            values = {oid: example_value(oid, "*") for oid in list(free)[:1]}
        attributes = [x509.NameAttribute(oid, value) for oid, value in values.items()]
        # Lint reads the domain components as a host name, which it wants to have a dot.
        attributes += [attribute for attribute in attributes if attribute.oid == NameOID.DOMAIN_COMPONENT]
        return x509.Name(attributes)


def short_name(oid: x509.ObjectIdentifier) -> str:
    """Return an attribute's short name, or its dotted number where it has none here."""
    return _SHORT_NAMES.get(oid, oid.dotted_string)


def example_value(oid: x509.ObjectIdentifier, pattern: str) -> str:
    """Return a value of an attribute that matches a pattern, and that the attribute can have if any can."""
    if oid in _COUNTRIES and "*" in pattern:
        begin, _, end = pattern.replace("*", "\0", 1).replace("*", "").partition("\0")
        return begin + "US"[: max(0, 2 - len(begin + end))] + end
    if oid == NameOID.EMAIL_ADDRESS and "*" in pattern:
        local, at, host = pattern.partition("@")
        if not at:
            return pattern.replace("*", "a@a.example", 1).replace("*", "")
        return f"{text_sample(local)}@{host.replace('*', 'a' if '.' in host else 'a.example')}"
    return text_sample(pattern.replace("*", "**") if oid == NameOID.DOMAIN_COMPONENT else pattern)


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)
