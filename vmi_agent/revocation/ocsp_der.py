"""OCSP requests and responses, octet by octet (RFC 6960, 4.1 and 4.2).

A request may ask about several certificates; the cryptography package reads and builds only those about one. So a
request is taken apart into requests about one certificate each, which that package then reads and judges, and the
response is laid out here. The tests compare it, octet for octet, with what that package builds for one certificate, and
have openssl, GnuTLS and pkilint judge the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from runtime.asn1 import der
from vmi_agent.certificate import extension

# What one signature answers for; a request that the channel carries holds some forty.
MAX_CERTIFICATES = 16

_ENUMERATED, _GENERALIZED_TIME = 0x0A, 0x18
_CONTEXT_0, _CONTEXT_1, _CONTEXT_2 = 0xA0, 0xA1, 0xA2
_SUCCESSFUL = der.wrap(_ENUMERATED, b"\0")
_BASIC = der.wrap(der.OBJECT_IDENTIFIER, bytes.fromhex("2b0601050507300101"))  # id-pkix-ocsp-basic

GOOD = bytes((0x80, 0))  # [0] IMPLICIT NULL
UNKNOWN = bytes((0x82, 0))  # [2] IMPLICIT NULL


@dataclass(frozen=True, slots=True)
class AskedAbout:
    """One certificate that a request asks about.

    Attributes:
        cert_id: the CertID, as it stands in the request.
        request: an OCSPRequest about this certificate alone, with the extensions of the one that it was part of.
    """

    cert_id: bytes
    request: bytes


def take_apart(request: bytes) -> list[AskedAbout]:
    """Return what an OCSPRequest asks about, in its order. A signature over it is left out: anybody may ask.

    Raises:
        DerError: it does not have the shape of one, or asks about none or more than `MAX_CERTIFICATES`.
    """
    tbs = der.children(request)[:1]
    fields = der.children(tbs[0]) if tbs else []
    # Version [0] and requestorName [1] may come before the list, requestExtensions [2] after it.
    places = [place for place, field in enumerate(fields) if field[0] == der.SEQUENCE]
    if len(places) != 1:
        raise der.DerError("not an OCSP request")
    [place] = places
    singles = der.children(fields[place])
    if not 1 <= len(singles) <= MAX_CERTIFICATES:
        raise der.DerError(f"an OCSP request about {len(singles)} certificates, accepted 1 to {MAX_CERTIFICATES}")
    return [AskedAbout(_first(single), _request(fields[:place], single, fields[place + 1 :])) for single in singles]


def _first(single: bytes) -> bytes:
    parts = der.children(single)
    if not parts:
        raise der.DerError("not a request about a certificate")
    return parts[0]


def _request(before: Sequence[bytes], single: bytes, after: Sequence[bytes]) -> bytes:
    return der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, *before, der.wrap(der.SEQUENCE, single), *after))


def revoked(at: datetime, reason: int) -> bytes:
    """Return the CertStatus of a revoked certificate; reason 0, unspecified, is left out (RFC 5280, 5.3.1)."""
    told = der.wrap(_CONTEXT_0, der.wrap(_ENUMERATED, bytes((reason,)))) if reason else b""
    return der.wrap(_CONTEXT_1, _time(at), told)


def single_response(cert_id: bytes, cert_status: bytes, this_update: datetime, next_update: datetime) -> bytes:
    """Return a SingleResponse. The CertStatus is `GOOD`, `UNKNOWN` or from `revoked`."""
    return der.wrap(der.SEQUENCE, cert_id, cert_status, _time(this_update), der.wrap(_CONTEXT_0, _time(next_update)))


def response_data(
    responder: x509.Certificate, produced_at: datetime, responses: Sequence[bytes], nonce: x509.OCSPNonce | None
) -> bytes:
    """Return the DER of a ResponseData: what is signed. The responder is named by the SHA-1 hash of its key."""
    key_hash = x509.SubjectKeyIdentifier.from_public_key(responder.public_key()).digest
    extensions = () if nonce is None else (der.wrap(_CONTEXT_1, der.wrap(der.SEQUENCE, extension(nonce))),)
    return der.wrap(
        der.SEQUENCE,
        der.wrap(_CONTEXT_2, der.wrap(der.OCTET_STRING, key_hash)),
        _time(produced_at),
        der.wrap(der.SEQUENCE, *responses),
        *extensions,
    )


def response(data: bytes, signature_algorithm: bytes, signature: bytes, responder: x509.Certificate) -> bytes:
    """Return the OCSPResponse that a ResponseData and the signature over it make, with the responder's certificate."""
    basic = der.wrap(
        der.SEQUENCE,
        data,
        signature_algorithm,
        der.wrap(der.BIT_STRING, b"\0", signature),
        der.wrap(_CONTEXT_0, der.wrap(der.SEQUENCE, responder.public_bytes(Encoding.DER))),
    )
    carried = der.wrap(der.SEQUENCE, _BASIC, der.wrap(der.OCTET_STRING, basic))
    return der.wrap(der.SEQUENCE, _SUCCESSFUL, der.wrap(_CONTEXT_0, carried))


def _time(moment: datetime) -> bytes:
    """Return a GeneralizedTime; of aware UTC time, in whole seconds."""
    return der.wrap(_GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())
