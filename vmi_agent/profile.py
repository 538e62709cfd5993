"""Profiles: what is stamped into a leaf, and which wishes of a CSR are granted.

A request for power is refused, never passed over: whoever asked for a CA certificate and got a leaf would find out at
the worst moment.
"""

import re
import unicodedata
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from protocol.errors import ErrorCode
from vmi_agent.certificate import encode_extension, extension
from vmi_agent.csr import Csr
from vmi_agent.errors import Refused
from vmi_agent.subject import check_octets

_EXTENSION_REQUESTS = (
    x509.ObjectIdentifier("1.2.840.113549.1.9.14"),  # extensionRequest (RFC 2985, 5.4.2)
    x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"),  # the same attribute under Microsoft's number
)
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\Z")
_LOCAL_PART = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}\Z")  # RFC 5322, 3.2.3: atoms and dots
# Control, format (such as a change of writing direction), surrogate, line and paragraph separator: what a reader of a
# name does not see, or sees as something else.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Profile:
    """What a leaf is.

    Attributes:
        name: for the ledger and for people.
        validity: from notBefore to notAfter, cut off at the issuer's notAfter.
        back_date: how far before now notBefore lies, for clocks that disagree.
        names: the kinds of subject alternative name that a CSR may ask for.
    """

    name: str = "hmc-client"
    validity: timedelta = timedelta(days=365)
    back_date: timedelta = timedelta(minutes=5)
    names: tuple[type[x509.GeneralName], ...] = (x509.DNSName, x509.IPAddress, x509.RFC822Name)


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


def approve(csr: Csr, profile: Profile, issuer_name: bytes) -> Approved:
    """Judge subject and wishes of a CSR whose signature was verified.

    Args:
        issuer_name: the issuing CA's own subject, a DER Name, which no leaf may bear.

    Raises:
        Refused: CSR_POLICY, or CSR_MALFORMED where an extension cannot be read.
    """
    if csr.subject == issuer_name:
        raise _refuse("The subject is the CA's own. Name the console in it.")
    check_octets(csr.subject)
    subject_text = _judge_subject(csr.request)
    stamped = [_BASIC_CONSTRAINTS, _KEY_USAGE[isinstance(csr.request.public_key(), rsa.RSAPublicKey)], _CLIENT_AUTH]
    for wish in _requested_extensions(csr.request):
        match wish.value:
            case x509.SubjectAlternativeName() as names:
                stamped.append(encode_extension(names.oid, _judge_names(names, profile)))
            case other:
                _judge_wish(other)
    return Approved(csr, profile, subject_text, tuple(stamped))


def _refuse(text: str) -> Refused:
    return Refused(ErrorCode.CSR_POLICY, text)


def _judge_subject(request: x509.CertificateSigningRequest) -> str:
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
        if any(unicodedata.category(character) in _INVISIBLE for character in attribute.value):
            raise _refuse("The subject holds a control or format character. Take it out.")
    return text


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


def _judge_names(names: x509.SubjectAlternativeName, profile: Profile) -> bytes:
    if not list(names):
        raise _refuse("The CSR asks for alternative names and gives none. Leave the extension out.")
    for name in names:
        if not isinstance(name, profile.names):
            accepted = ", ".join(kind.__name__ for kind in profile.names)
            raise _refuse(f"The CSR asks for a kind of alternative name that is not allowed; allowed: {accepted}.")
        if isinstance(name, x509.IPAddress) and not isinstance(name.value, (IPv4Address, IPv6Address)):
            raise _refuse("The CSR asks for a range of addresses. Ask for single ones (RFC 5280, 4.2.1.6).")
        if isinstance(name, x509.DNSName) and not _DNS_NAME.match(name.value):
            raise _refuse("The CSR asks for a DNS name that is not a plain host name (RFC 1034, 3.5; no wildcard).")
        if isinstance(name, x509.RFC822Name) and not _is_mailbox(name.value):
            raise _refuse("The CSR asks for an e-mail address that is not plain name@host.")
    return names.public_bytes()


def _is_mailbox(value: str) -> bool:
    local, _, host = value.rpartition("@")
    return bool(_LOCAL_PART.match(local) and _DNS_NAME.match(host))


def _judge_wish(wish: x509.ExtensionType) -> None:
    """Refuse a wish for power. What is harmless is passed over: the profile alone says what is stamped."""
    match wish:
        case x509.BasicConstraints(ca=False):
            return
        case x509.BasicConstraints():
            raise _refuse(
                "The CSR asks for a CA certificate (basicConstraints CA:TRUE). Only client certificates are issued."
            )
        case x509.KeyUsage(key_cert_sign=False, crl_sign=False):
            return
        case x509.KeyUsage():
            raise _refuse("The CSR asks for keyCertSign or cRLSign. Ask for digitalSignature only.")
        case x509.ExtendedKeyUsage() if set(wish) == {ExtendedKeyUsageOID.CLIENT_AUTH}:
            return
        case x509.ExtendedKeyUsage():
            raise _refuse("The CSR asks for an extended key usage other than clientAuth. Ask for clientAuth only.")
        case _ if wish.oid == ExtensionOID.SUBJECT_KEY_IDENTIFIER:
            return
        case _:
            raise _refuse(
                f"The CSR asks for the extension {wish.oid.dotted_string}, which is not granted. Leave it out."
            )


def _key_usage(key_encipherment: bool) -> bytes:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=key_encipherment,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return extension(usage, critical=True)


# The same in every leaf, so encoded once.
_BASIC_CONSTRAINTS = extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
_KEY_USAGE = {wanted: _key_usage(wanted) for wanted in (False, True)}
_CLIENT_AUTH = extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
