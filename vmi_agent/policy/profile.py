"""Profiles: what is stamped into a leaf, and which wishes of a CSR are granted.

A request for power is refused, never passed over: whoever asked for a CA certificate and got a leaf would find out at
the worst moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from protocol.errors import ErrorCode
from runtime.asn1 import der
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.certificate import encode_extension, extension, object_identifier
from vmi_agent.errors import Refused
from vmi_agent.policy.alternative_names import NameRules
from vmi_agent.policy.csr import Csr
from vmi_agent.policy.key_kinds import KEY_KINDS, USAGES_OF, AcceptedKey
from vmi_agent.policy.key_policy import LEAST_RSA_BITS, MOST_RSA_BITS
from vmi_agent.policy.patterns import text_matches
from vmi_agent.policy.requested_extensions import requested_extensions
from vmi_agent.policy.subject_encoding import read_subject
from vmi_agent.policy.subject_rules import SubjectRules

EXTENDED_KEY_USAGES = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
}

# What a CSR may ask for besides: it gives no power, and is passed over. Windows asks for most of these.
_HARMLESS = frozenset(
    {
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        x509.ObjectIdentifier("1.2.840.113549.1.9.15"),  # S/MIME capabilities (RFC 4262): what the asker can decrypt
        x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2"),  # the template, by name: an Active Directory CA's profile
        x509.ObjectIdentifier("1.3.6.1.4.1.311.21.7"),  # the template, by number
        x509.ObjectIdentifier("2.16.840.1.113730.1.13"),  # Netscape's comment, which openssl's stock configuration has
    }
)
# Extended key usages in another form (MS-WCCE, 2.2.2.7.7.3): Windows asks for both.
_APPLICATION_POLICIES = x509.ObjectIdentifier("1.3.6.1.4.1.311.21.10")
_RFC822_NAME = 0x81  # of GeneralName (RFC 5280, 4.2.1.6)
_NO_RULES = SubjectRules()
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


def approve(csr: Csr, key: AcceptedKey, profile: Profile, reserved: ReservedNames) -> Approved:
    """Judge key, subject and wishes of a CSR whose signature was verified.

    Args:
        key: what `key_policy` said of its key.
        profile: from `choose`.
        reserved: the names of our own CAs and OCSP responders, which no leaf may bear.

    Raises:
        Refused: CSR_POLICY, CSR_WEAK_KEY where the profile does not take the key, or CSR_MALFORMED where an extension
            cannot be read.
    """
    _judge_key(key, profile)
    subject = read_subject(csr.subject)
    if subject.name in reserved:
        raise _refuse(
            "The subject is that of a CA or OCSP responder of this agent, as names are compared (RFC 5280, 7.1). Name"
            " the console in it."
        )
    if profile.subject != _NO_RULES:
        profile.subject.judge(subject.attributes())
    asked: x509.SubjectAlternativeName | None = None
    for wish in requested_extensions(csr):
        match wish.value:
            case x509.SubjectAlternativeName() as names:
                profile.names.judge(names)
                asked = names
            case other:
                _judge_wish(other, profile, key.kind)
    if profile.names.required and asked is None:
        kinds = ", ".join(profile.names.kinds)
        raise _refuse(f"The CSR asks for no alternative name, and the profile requires one. Ask for one of: {kinds}.")
    stamped = profile.constant_extensions(key.kind)
    if asked is not None or subject.mailboxes:
        profile.names.judge_subject_mailboxes(subject.mailboxes)
        stamped = (*stamped, _alternative_names(asked, subject.mailboxes))
    return Approved(csr, profile, subject.text(), stamped)


def _alternative_names(asked: x509.SubjectAlternativeName | None, mailboxes: Sequence[str]) -> bytes:
    """Return the extension with the names asked for, and the subject's mailboxes that are not among them.

    RFC 5280, 4.1.2.6: a subject's e-mail addresses must be alternative names as well.
    """
    names = [] if asked is None else der.children(asked.public_bytes())
    mailbox_names = [der.wrap(_RFC822_NAME, mailbox.encode("ascii")) for mailbox in mailboxes]
    names += [name for name in mailbox_names if name not in names]
    return encode_extension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der.wrap(der.SEQUENCE, *names))


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)


def _judge_key(key: AcceptedKey, profile: Profile) -> None:
    least, most = profile.rsa_bits
    if key.kind not in profile.key_kinds or (key.kind == "rsa" and not least <= key.bits <= most):
        text = f"The CSR's public key is of a kind or size that the profile does not take. Use {profile.keys_text}."
        raise Refused(ErrorCode.CSR_WEAK_KEY, text)


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
        case _ if wish.oid in _HARMLESS:
            return
        case x509.UnrecognizedExtension(oid=oid, value=value) if oid == _APPLICATION_POLICIES:
            if not _are_granted(value, profile):
                allowed = profile.extended_key_usages_text
                raise _refuse(f"The CSR asks for an application policy other than {allowed}. Ask for {allowed} only.")
        case _:
            raise _refuse(
                f"The CSR asks for the extension {wish.oid.dotted_string}, which is not granted. Leave it out; allowed:"
                f" {', '.join((*profile.usages(key_kind), profile.extended_key_usages_text))}, alternative names of"
                f" these kinds: {', '.join(profile.names.kinds) or 'none'}."
            )


def _are_granted(policies: bytes, profile: Profile) -> bool:
    """Return whether Microsoft's application policies, written like certificatePolicies, ask for granted usages."""
    granted = [object_identifier(usage) for usage in profile.extended_key_usages]
    try:
        return all(der.children(policy)[0] in granted for policy in der.children(policies))
    except (ValueError, IndexError):
        return False


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
