"""Profiles: what is stamped into a leaf, and which wishes of a CSR are granted.

A request for power is refused, never passed over: whoever asked for a CA certificate and got a leaf would find out at
the worst moment.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from protocol.errors import ErrorCode
from vmi_agent.ca.certificate import encode_extension, extension
from vmi_agent.errors import Refused
from vmi_agent.judging.alternative_names import NameRules
from vmi_agent.judging.csr import Csr
from vmi_agent.judging.key_kinds import KEY_KINDS, USAGES_OF, AcceptedKey
from vmi_agent.judging.key_policy import LEAST_RSA_BITS, MOST_RSA_BITS
from vmi_agent.judging.patterns import text_matches
from vmi_agent.judging.subject import check_octets
from vmi_agent.judging.subject_rules import SubjectRules

EXTENDED_KEY_USAGES = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
}

_EXTENSION_REQUESTS = (
    x509.ObjectIdentifier("1.2.840.113549.1.9.14"),  # extensionRequest (RFC 2985, 5.4.2)
    x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"),  # the same attribute under Microsoft's number
)
# Control, format (such as a change of writing direction), surrogate, line and paragraph separator: what a reader of a
# name does not see, or sees as something else.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BASIC_CONSTRAINTS = extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a leaf is, and for whom. The defaults serve an HMC; `profile_file` checks what others are made of.

    Attributes:
        name: for the ledger and for people.
        requesters: text patterns (`patterns`) of the users that it is for.
        validity: from notBefore to notAfter, cut off at the issuer's notAfter.
        back_date: how far before now notBefore lies, for clocks that disagree.
        key_kinds: of KEY_KINDS, the public keys that are accepted.
        rsa_bits: the least and the most that an RSA modulus may have.
        key_usages: stamped as far as the key's kind may have them.
        extended_key_usages: stamped.
        subject: what is asked of it.
        names: which alternative names may be asked for.
    """

    name: str = "hmc-client"
    requesters: tuple[str, ...] = ("*",)
    validity: timedelta = timedelta(days=365)
    back_date: timedelta = timedelta(minutes=5)
    key_kinds: tuple[str, ...] = KEY_KINDS
    rsa_bits: tuple[int, int] = (LEAST_RSA_BITS, MOST_RSA_BITS)
    key_usages: tuple[str, ...] = ("digitalSignature", "keyEncipherment")
    extended_key_usages: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    subject: SubjectRules = field(default_factory=SubjectRules)
    names: NameRules = field(default_factory=NameRules)
    # The extensions that are the same in every leaf with a key of this kind, encoded once.
    _constant: Mapping[str, tuple[bytes, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        extended = extension(x509.ExtendedKeyUsage(self.extended_key_usages))
        constant = {kind: (_BASIC_CONSTRAINTS, _key_usage(self.usages(kind)), extended) for kind in self.key_kinds}
        object.__setattr__(self, "_constant", constant)

    def usages(self, key_kind: str) -> tuple[str, ...]:
        """Return the key usages that a leaf with a key of this kind is stamped with."""
        return tuple(usage for usage in self.key_usages if usage in USAGES_OF[key_kind])

    def constant_extensions(self, key_kind: str) -> tuple[bytes, ...]:
        """Return what every leaf with a key of this kind is stamped with, whole extensions in DER."""
        return self._constant[key_kind]

    def period(self, now: datetime, limit: datetime) -> tuple[datetime, datetime]:
        """Return notBefore and notAfter, the last valid second (RFC 5280, 4.1.2.5), of a leaf that is made now.

        Args:
            now: aware UTC time.
            limit: the issuer's notAfter.
        """
        not_before = now.replace(microsecond=0) - self.back_date
        return not_before, min(not_before + self.validity - timedelta(seconds=1), limit)

    @property
    def keys_text(self) -> str:
        """The keys that are accepted, for people."""
        least, most = self.rsa_bits
        return ", ".join(f"rsa ({least} to {most} bits)" if kind == "rsa" else kind for kind in self.key_kinds)

    @property
    def extended_key_usages_text(self) -> str:
        """The extended key usages, for people."""
        names = {oid: name for name, oid in EXTENDED_KEY_USAGES.items()}
        return ", ".join(names.get(oid, oid.dotted_string) for oid in self.extended_key_usages)


@dataclass(frozen=True, slots=True)
class Approved:
    """A CSR that passed its profile. Only `approve` makes one, and only one of these is ever signed.

    Attributes:
        subject_text: the subject as RFC 4514 writes it, for lists.
        extensions: what is stamped beside the key identifiers, whole extensions in DER.
    """

    csr: Csr
    profile: Profile
    subject_text: str
    extensions: tuple[bytes, ...]


def choose(profiles: Sequence[Profile], user: str) -> Profile:
    """Return the first profile that is for a user.

    Raises:
        Refused: CSR_POLICY; none is.
    """
    for profile in profiles:
        if any(text_matches(pattern, user) for pattern in profile.requesters):
            return profile
    raise _refuse("No profile is for this user. Ask as another one, or have this one named in a profile's requesters.")


def approve(csr: Csr, key: AcceptedKey, profile: Profile, issuer_name: bytes) -> Approved:
    """Judge key, subject and wishes of a CSR whose signature was verified.

    Args:
        key: what `key_policy` said of its key.
        profile: from `choose`.
        issuer_name: the issuing CA's own subject, a DER Name, which no leaf may bear.

    Raises:
        Refused: CSR_POLICY, CSR_WEAK_KEY where the profile does not take the key, or CSR_MALFORMED where an extension
            cannot be read.
    """
    _judge_key(key, profile)
    if csr.subject == issuer_name:
        raise _refuse("The subject is the CA's own. Name the console in it.")
    check_octets(csr.subject)
    subject_text = _judge_subject(csr.request, profile)
    stamped = profile.constant_extensions(key.kind)
    named = False
    for wish in _requested_extensions(csr.request):
        match wish.value:
            case x509.SubjectAlternativeName() as names:
                profile.names.judge(names)
                stamped = (*stamped, encode_extension(names.oid, names.public_bytes()))
                named = True
            case other:
                _judge_wish(other, profile, key.kind)
    if profile.names.required and not named:
        kinds = ", ".join(profile.names.kinds)
        raise _refuse(f"The CSR asks for no alternative name, and the profile requires one. Ask for one of: {kinds}.")
    return Approved(csr, profile, subject_text, stamped)


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)


def _judge_key(key: AcceptedKey, profile: Profile) -> None:
    least, most = profile.rsa_bits
    if key.kind not in profile.key_kinds or (key.kind == "rsa" and not least <= key.bits <= most):
        text = f"The CSR's public key is of a kind or size that the profile does not take. Use {profile.keys_text}."
        raise Refused(ErrorCode.CSR_WEAK_KEY, text)


def _judge_subject(request: x509.CertificateSigningRequest, profile: Profile) -> str:
    try:
        subject = request.subject
        attributes = list(subject)
        text = subject.rfc4514_string()
    except ValueError as error:
        raise _refuse("The subject holds an attribute that cannot be read. Use UTF-8 or printable strings.") from error
    if not attributes:
        raise _refuse("The subject is empty. Name the console in it, at least by a common name.")
    for attribute in attributes:
        if not isinstance(attribute.value, str) or not attribute.value.strip():
            raise _refuse("The subject holds an attribute that is blank or no text. Take it out.")
        if not attribute.value.isprintable() and _holds_invisible(attribute.value):
            raise _refuse("The subject holds a control or format character. Take it out.")
    profile.subject.judge(attributes)
    return text


def _holds_invisible(text: str) -> bool:
    return any(unicodedata.category(character) in _INVISIBLE for character in text)


def _requested_extensions(request: x509.CertificateSigningRequest) -> list[x509.Extension[x509.ExtensionType]]:
    try:
        if sum(attribute.oid in _EXTENSION_REQUESTS for attribute in request.attributes) > 1:
            raise _refuse("The CSR asks for extensions in more than one attribute. Put them all into one.")
        return list(request.extensions)
    except x509.DuplicateExtension as error:
        raise _refuse("The CSR asks for the same extension twice. Ask once.") from error
    except (ValueError, x509.UnsupportedGeneralNameType) as error:
        text = "The CSR asks for an extension that cannot be read. Leave extensions out: they are not needed."
        raise Refused(ErrorCode.CSR_MALFORMED, text) from error


def _judge_wish(wish: x509.ExtensionType, profile: Profile, key_kind: str) -> None:
    """Refuse a wish for power. What is harmless is passed over: the profile alone says what is stamped."""
    match wish:
        case x509.BasicConstraints(ca=False):
            return
        case x509.BasicConstraints():
            raise _refuse("The CSR asks for a CA certificate (basicConstraints CA:TRUE). Profiles allow CA:FALSE only.")
        case x509.KeyUsage(key_cert_sign=False, crl_sign=False):
            return
        case x509.KeyUsage():
            allowed = ", ".join(profile.usages(key_kind))
            raise _refuse(f"The CSR asks for keyCertSign or cRLSign. Ask for {allowed} only.")
        case x509.ExtendedKeyUsage() if set() < set(wish) <= set(profile.extended_key_usages):
            return
        case x509.ExtendedKeyUsage():
            allowed = profile.extended_key_usages_text
            raise _refuse(f"The CSR asks for an extended key usage other than {allowed}. Ask for {allowed} only.")
        case _ if wish.oid == ExtensionOID.SUBJECT_KEY_IDENTIFIER:
            return
        case _:
            raise _refuse(
                f"The CSR asks for the extension {wish.oid.dotted_string}, which is not granted. Leave it out; allowed:"
                f" {', '.join((*profile.usages(key_kind), profile.extended_key_usages_text))}, alternative names of"
                f" these kinds: {', '.join(profile.names.kinds) or 'none'}."
            )


def _key_usage(usages: Sequence[str]) -> bytes:
    usage = x509.KeyUsage(
        digital_signature="digitalSignature" in usages,
        content_commitment="nonRepudiation" in usages,
        key_encipherment="keyEncipherment" in usages,
        data_encipherment=False,
        key_agreement="keyAgreement" in usages,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return extension(usage, critical=True)
