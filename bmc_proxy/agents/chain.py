"""Whether the certificates in an answer are one chain: names, key identifiers and basic constraints, octet by octet.

That is a check of the peer's answer, before it is handed out as "leaf, issuing CA, root". It is no verdict about a
certificate: signatures, validity, policies and revocation are the agent's to answer for, and the relying party's to
check. A signature check costs 0.1 to 1 ms per certificate, as much as all else that the proxy does for a CSR; this one
costs about 12 µs.
"""

from functools import lru_cache
from typing import NamedTuple

from runtime.asn1.der import BOOLEAN, OBJECT_IDENTIFIER, OCTET_STRING, DerError, children, read, wrap

_EXTENSIONS = 0xA3  # [3] of a TBSCertificate (RFC 5280, 4.1)
_KEY_IDENTIFIER = 0x80  # [0] of an AuthorityKeyIdentifier (RFC 5280, 4.2.1.1)
_SUBJECT_KEY_IDENTIFIER = wrap(OBJECT_IDENTIFIER, bytes.fromhex("551d0e"))
_BASIC_CONSTRAINTS = wrap(OBJECT_IDENTIFIER, bytes.fromhex("551d13"))
_AUTHORITY_KEY_IDENTIFIER = wrap(OBJECT_IDENTIFIER, bytes.fromhex("551d23"))
_CA = wrap(BOOLEAN, b"\xff")
_IDENTIFIER_WITHIN = 6 + 5  # the longest header that `read` takes, and one of the object identifiers above


class NoChain(ValueError):
    """The certificates are not one chain; the text says why, and nothing of what they hold."""


class Issuer(NamedTuple):
    """What a certificate says of its issuer, or a CA of itself: a name in DER, and a key identifier if it has one."""

    name: bytes
    key_identifier: bytes | None


class Certificate(NamedTuple):
    """What of an X.509 v3 certificate tells where it stands in a chain, each as its whole DER element.

    Attributes:
        extensions: each as it stands; `_value` looks into the one that is asked for.
    """

    issuer: bytes
    subject: bytes
    key_info: bytes
    extensions: list[bytes]

    @classmethod
    def read(cls, der: bytes) -> "Certificate":
        """Return the parts of a certificate.

        Raises:
            DerError: it does not have the shape of RFC 5280, 4.1, with extensions.
        """
        parts = children(der)
        fields = children(parts[0]) if len(parts) == 3 else []
        if len(fields) < 8 or fields[-1][0] != _EXTENSIONS:
            raise DerError("not a certificate of version 3")
        return cls(fields[3], fields[5], fields[6], children(children(fields[-1])[0]))

    @property
    def as_issuer(self) -> Issuer:
        """What this one is to the certificates that it issued."""
        value = self._value(_SUBJECT_KEY_IDENTIFIER)
        return Issuer(self.subject, None if value is None else _contents(value))

    @property
    def named_issuer(self) -> Issuer:
        """What this one says of its issuer."""
        value = self._value(_AUTHORITY_KEY_IDENTIFIER)
        named = [] if value is None else [each for each in children(value) if each[0] == _KEY_IDENTIFIER]
        return Issuer(self.issuer, _contents(named[0]) if named else None)

    @property
    def is_ca(self) -> bool:
        """Whether the basic constraints say so (RFC 5280, 4.2.1.9)."""
        value = self._value(_BASIC_CONSTRAINTS)
        return value is not None and children(value)[:1] == [_CA]

    def check_issued_by(self, issuer: Issuer) -> None:
        """Check that this certificate names that issuer.

        Raises:
            NoChain: the names differ, octet for octet, or the key identifiers do where both have one.
            DerError: an extension does not have its shape.
        """
        name, key_identifier = self.named_issuer
        if name != issuer.name:
            raise NoChain("a certificate names another issuer than the next one's subject")
        if None not in (key_identifier, issuer.key_identifier) and key_identifier != issuer.key_identifier:
            raise NoChain("a certificate names another key of its issuer than the next one's")

    def _value(self, oid: bytes) -> bytes | None:
        """Return the contents of the extension with this object identifier; None if the certificate lacks it."""
        for each in self.extensions:
            if oid not in each[:_IDENTIFIER_WITHIN]:
                continue
            extension = children(each)
            if extension[0] != oid:
                continue
            if extension[-1][0] != OCTET_STRING:
                raise DerError("an extension without a value")
            return _contents(extension[-1])
        return None


@lru_cache(maxsize=4)  # they come with every answer, and change with the root
def read_authorities(chain: tuple[bytes, ...]) -> Issuer:
    """Return what the leaves of a CA name as their issuer; its chain has the issuing CA first and the root last.

    Raises:
        NoChain, DerError: a certificate is no CA or is not issued by the next one, or the last is not self-issued.
    """
    certificates = [Certificate.read(each) for each in chain]
    for certificate, issuer in zip(certificates, [*certificates[1:], certificates[-1]], strict=True):
        if not certificate.is_ca:
            raise NoChain("a certificate above the leaf is no CA's")
        certificate.check_issued_by(issuer.as_issuer)
    return certificates[0].as_issuer


def _contents(element: bytes) -> bytes:
    _, start, end = read(element)
    return element[start:end]
