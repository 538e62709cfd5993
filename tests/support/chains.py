"""Chains of certificates that are as they should be but for what a test says, made with the cryptography package."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(4)]


@dataclass(frozen=True, slots=True)
class Link:
    """One certificate.

    Attributes:
        subject, issuer: common names.
        key, issuer_key: which of the keys here.
        ca: what the basic constraints say; None for no such extension.
        identifies: whether it has the two key identifiers.
        named_key: whose key identifier is named as the issuer's; None for `issuer_key`.
    """

    subject: str
    issuer: str
    key: int
    issuer_key: int
    ca: bool | None = True
    identifies: bool = True
    named_key: int | None = None

    def der(self) -> bytes:
        """Return the certificate."""
        named = self.issuer_key if self.named_key is None else self.named_key
        extensions: list[x509.ExtensionType] = [x509.KeyUsage(True, *[False] * 8)]
        if self.ca is not None:
            extensions.insert(0, x509.BasicConstraints(self.ca, None))
        if self.identifies:
            extensions += [
                x509.SubjectKeyIdentifier.from_public_key(KEYS[self.key].public_key()),
                x509.AuthorityKeyIdentifier.from_issuer_public_key(KEYS[named].public_key()),
            ]
        builder = x509.CertificateBuilder(
            _named(self.issuer), _named(self.subject), KEYS[self.key].public_key(), 1, _BEGIN, _BEGIN + timedelta(1)
        )
        for each in extensions:
            builder = builder.add_extension(each, critical=isinstance(each, x509.BasicConstraints))
        return builder.sign(KEYS[self.issuer_key], hashes.SHA256()).public_bytes(Encoding.DER)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


ROOT = Link("root", "root", key=0, issuer_key=0)
ISSUING = Link("issuing", "root", key=1, issuer_key=0)


def ders(links: Sequence[Link]) -> tuple[bytes, ...]:
    """Return the certificates."""
    return tuple(link.der() for link in links)
