"""A CRL, octet by octet (RFC 5280, 5): made from entries that are encoded once, however often the CRL is made anew."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache

from cryptography import x509

from runtime.asn1 import der
from vmi_agent.certificate import Issuer, encode_extension, extension, time
from vmi_agent.keys import Custody

_VERSION_2 = bytes.fromhex("020101")
_ENUMERATED, _CONTEXT_0 = 0x0A, 0xA0
_UNSPECIFIED = 0


def entry(serial: bytes, revoked_ms: int, reason: int) -> bytes:
    """Return one element of revokedCertificates.

    Args:
        serial: 17 octets, positive.
        revoked_ms: in milliseconds since 1970-01-01 UTC.
        reason: a CRLReason; unspecified is left out, as RFC 5280, 5.3.1 asks.
    """
    fields = [der.wrap(der.INTEGER, serial), time(datetime.fromtimestamp(revoked_ms // 1000, UTC))]
    if reason != _UNSPECIFIED:
        fields.append(_extensions(reason))
    return der.wrap(der.SEQUENCE, *fields)


@cache
def _extensions(reason: int) -> bytes:
    value = der.wrap(_ENUMERATED, bytes((reason,)))
    return der.wrap(der.SEQUENCE, encode_extension(x509.CRLReason.oid, value))


def make(
    issuer: Issuer,
    custody: Custody,
    number: int,
    this_update: datetime,
    next_update: datetime,
    entries: Iterable[bytes],
) -> bytes:
    """Return a complete CRL in DER.

    Args:
        number: cRLNumber, above that of every CRL of this issuer before.
        this_update, next_update: aware UTC times, whole seconds.
        entries: from `entry`.

    Raises:
        CustodyError: the key cannot sign now.
    """
    revoked = b"".join(entries)
    extensions = (
        extension(x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None)),
        extension(x509.CRLNumber(number)),
    )
    tbs = der.wrap(
        der.SEQUENCE,
        _VERSION_2,
        issuer.signature_algorithm,
        issuer.name,
        time(this_update),
        time(next_update),
        # Where nothing is revoked the list is left out (RFC 5280, 5.1.2.6).
        der.wrap(der.SEQUENCE, revoked) if revoked else b"",
        der.wrap(_CONTEXT_0, der.wrap(der.SEQUENCE, *extensions)),
    )
    signature = der.wrap(der.BIT_STRING, b"\0", custody.sign(tbs))
    return der.wrap(der.SEQUENCE, tbs, issuer.signature_algorithm, signature)
