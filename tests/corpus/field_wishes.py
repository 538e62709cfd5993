"""CSRs as real clients write them: attributes with several values, Windows' wishes, defaults that are written out.

All are signed with the P-256 key. Those with `good-` in front are issued.
"""

from csr_parts import (
    BMP,
    BOOLEAN,
    ECDSA_SHA256,
    IA5,
    NULL,
    P256,
    PRINTABLE,
    SET,
    UTF8,
    csr,
    extension,
    extension_request,
    integer,
    oid,
    request_info,
    sequence,
    signed,
)

from runtime.asn1 import der

BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE, KEY_IDENTIFIER = "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.14"
CLIENT_AUTH, SERVER_AUTH = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"
CHALLENGE_PASSWORD, UNSTRUCTURED_NAME = "1.2.840.113549.1.9.7", "1.2.840.113549.1.9.2"
MICROSOFT = "1.3.6.1.4.1.311"
FALSE, TRUE = der.wrap(BOOLEAN, b"\0"), der.wrap(BOOLEAN, b"\xff")


def files() -> dict[str, bytes]:
    """Return the CSRs by file name, without its suffix."""
    asking = {name: csr(P256, extension_request(*wanted)) for name, wanted in _extensions().items()}
    return asking | {name: csr(P256, *attributes) for name, attributes in _attributes().items()} | _algorithms()


def _attribute(kind: str, *values: bytes) -> bytes:
    return sequence(oid(kind), der.wrap(SET, *sorted(values)))


def _extensions() -> dict[str, tuple[bytes, ...]]:
    usage = extension(KEY_USAGE, der.wrap(der.BIT_STRING, b"\5\xa0"), TRUE)
    ca = extension(BASIC_CONSTRAINTS, sequence(TRUE), FALSE)
    return {
        "good-wish-smime-capabilities": (_capabilities(),),
        "good-wish-template-name": (extension(f"{MICROSOFT}.20.2", der.wrap(BMP, "User".encode("utf-16-be"))),),
        "good-wish-template": (
            extension(f"{MICROSOFT}.21.7", sequence(oid(f"{MICROSOFT}.21.8.1.2.3"), integer(100), integer(4))),
        ),
        "good-wish-comment": (extension("2.16.840.1.113730.1.13", der.wrap(IA5, b"OpenSSL Generated Certificate")),),
        "good-wish-application-policies": (_policies(CLIENT_AUTH),),
        "wish-application-policies-server": (_policies(CLIENT_AUTH, SERVER_AUTH),),
        "wish-application-policies-odd": (extension(f"{MICROSOFT}.21.10", integer(1)),),
        "wish-application-policies-empty": (extension(f"{MICROSOFT}.21.10", sequence(sequence())),),
        "wish-netscape-type": (extension("2.16.840.1.113730.1.1", der.wrap(der.BIT_STRING, b"\0\7")),),
        "wish-security-identifier": (extension(f"{MICROSOFT}.25.2", sequence()),),
        "good-wish-critical-false-written": (extension(BASIC_CONSTRAINTS, sequence(), FALSE), usage),
        "good-wish-ca-false-written": (extension(BASIC_CONSTRAINTS, sequence(FALSE), TRUE), usage),
        "wish-ca-critical-false-written": (ca,),
        "wish-critical-false-written-of-two": (
            extension(BASIC_CONSTRAINTS, sequence(), FALSE),
            extension(BASIC_CONSTRAINTS, sequence(), FALSE),
        ),
        "wish-critical-false-written-twice": (sequence(oid(KEY_USAGE), FALSE, FALSE, der.wrap(der.OCTET_STRING, b"")),),
        "wish-extension-empty": (sequence(),),
    }


def _capabilities() -> bytes:
    rc2 = sequence(oid("1.2.840.113549.3.2"), integer(128))
    return extension("1.2.840.113549.1.9.15", sequence(rc2, sequence(oid("1.2.840.113549.3.7"))))


def _policies(*usages: str) -> bytes:
    return extension(f"{MICROSOFT}.21.10", sequence(*(sequence(oid(usage)) for usage in usages)))


def _attributes() -> dict[str, tuple[bytes, ...]]:
    password = _attribute(CHALLENGE_PASSWORD, der.wrap(PRINTABLE, b"not a secret"))
    other = _attribute(CHALLENGE_PASSWORD, der.wrap(PRINTABLE, b"nor this"))
    names = _attribute(UNSTRUCTURED_NAME, der.wrap(UTF8, b"hmc1"), der.wrap(UTF8, b"rack 7"))
    usage = extension(KEY_USAGE, der.wrap(der.BIT_STRING, b"\5\xa0"), TRUE)
    key_identifier = extension(KEY_IDENTIFIER, der.wrap(der.OCTET_STRING, b"\x11" * 20))
    client = sequence(
        integer(5),
        der.wrap(UTF8, b"ws1.example.com"),
        der.wrap(UTF8, rb"EXAMPLE\user1"),
        der.wrap(UTF8, b"certreq.exe"),
    )
    provider = der.wrap(BMP, "Microsoft Software Key Storage Provider".encode("utf-16-be"))
    return {
        "good-attribute-two-values": (names,),
        "good-attribute-two-values-and-extensions": (names, extension_request(usage)),
        "attribute-unknown-no-value": (_attribute(UNSTRUCTURED_NAME),),
        "attribute-challenge-password-two-values": (
            _attribute(CHALLENGE_PASSWORD, der.wrap(PRINTABLE, b"one"), der.wrap(PRINTABLE, b"two")),
        ),
        "attribute-challenge-password-twice": (password, other),
        "attribute-challenge-password-long-tag": (_attribute(CHALLENGE_PASSWORD, b"\x1f\x81\x01\0"),),
        # What certreq of Windows Server 2022 writes.
        "good-attribute-windows": (
            _attribute(f"{MICROSOFT}.13.2.3", der.wrap(IA5, b"10.0.20348.2")),
            _attribute(f"{MICROSOFT}.21.20", client),
            _attribute(f"{MICROSOFT}.13.2.2", sequence(integer(1), provider, b"\x03\x01\0")),
            extension_request(usage, _capabilities(), key_identifier),
        ),
    }


def _algorithms() -> dict[str, bytes]:
    info = request_info(P256.info)
    return {
        "good-algorithm-ecdsa-null": signed(info, P256, sequence(oid(ECDSA_SHA256), NULL)),
        "algorithm-ecdsa-integer": signed(info, P256, sequence(oid(ECDSA_SHA256), integer(1))),
        "algorithm-ecdsa-null-cut-short": signed(info, P256, sequence(oid(ECDSA_SHA256), b"\5")),
    }
