"""CSRs that ask for something in their attributes. All are signed with the P-256 key."""

from itertools import count

from csr_parts import (
    BOOLEAN,
    EXTENSION_REQUEST,
    P256,
    PRINTABLE,
    SET,
    UTF8,
    attribute,
    csr,
    extension,
    extension_request,
    integer,
    name,
    octets,
    oid,
    request_info,
    sequence,
    signed,
)

from runtime.asn1 import der

BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE = "2.5.29.19", "2.5.29.15", "2.5.29.37"
ALTERNATIVE_NAME, KEY_IDENTIFIER = "2.5.29.17", "2.5.29.14"
CLIENT_AUTH, SERVER_AUTH, ANY_PURPOSE = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1", "2.5.29.37.0"
CHALLENGE_PASSWORD, MICROSOFT_REQUEST = "1.2.840.113549.1.9.7", "1.3.6.1.4.1.311.2.1.14"
CRITICAL = der.wrap(BOOLEAN, b"\xff")
EMAIL_TAG, DNS_TAG, DIRECTORY_TAG, URI_TAG, ADDRESS_TAG, OID_TAG, OTHER_TAG = 0x81, 0x82, 0xA4, 0x86, 0x87, 0x88, 0xA0
MAX_CSR_OCTETS = 16 * 1024


def files() -> dict[str, bytes]:
    """Return the CSRs by file name, without its suffix."""
    asking = {name: csr(P256, extension_request(*wanted)) for name, wanted in (_extensions() | _names()).items()}
    return asking | {name: csr(P256, *attributes) for name, attributes in _attributes().items()} | _sizes()


def _ca(*fields: bytes) -> bytes:
    return extension(BASIC_CONSTRAINTS, sequence(*fields), CRITICAL)


def _usage(bits: bytes) -> bytes:
    return extension(KEY_USAGE, der.wrap(der.BIT_STRING, bits), CRITICAL)


def _purposes(*purposes: str) -> bytes:
    return extension(EXTENDED_KEY_USAGE, sequence(*map(oid, purposes)))


def _extensions() -> dict[str, tuple[bytes, ...]]:
    true = der.wrap(BOOLEAN, b"\xff")
    return {
        "good-wish-ca-false": (_ca(),),
        "good-wish-usual": (_ca(), _usage(b"\5\xa0"), _purposes(CLIENT_AUTH)),
        "good-wish-key-identifier": (extension(KEY_IDENTIFIER, der.wrap(der.OCTET_STRING, bytes(20))),),
        "wish-ca": (_ca(true),),
        "wish-ca-path-length": (_ca(true, integer(0)),),
        "wish-ca-not-critical": (extension(BASIC_CONSTRAINTS, sequence(true)),),
        "wish-ca-true-is-1": (_ca(der.wrap(BOOLEAN, b"\1")),),
        "wish-ca-path-length-without-ca": (_ca(integer(3)),),
        "wish-ca-trailing": (extension(BASIC_CONSTRAINTS, b"\x30\0" + sequence(true)),),
        "wish-ca-false-then-true": (_ca(), _ca(true)),
        "wish-same-twice": (_purposes(CLIENT_AUTH), _purposes(CLIENT_AUTH)),
        "wish-key-cert-sign": (_usage(b"\2\x84"),),
        "wish-crl-sign": (_usage(b"\1\x02"),),
        "good-wish-usage-empty": (_usage(b"\0"),),
        "wish-usage-nine-bits": (_usage(b"\7\x80\x80"),),
        "wish-server-auth": (_purposes(SERVER_AUTH),),
        "wish-client-and-server-auth": (_purposes(CLIENT_AUTH, SERVER_AUTH),),
        "wish-any-purpose": (_purposes(ANY_PURPOSE),),
        "wish-ocsp-signing": (_purposes("1.3.6.1.5.5.7.3.9"),),
        "wish-no-purpose": (_purposes(),),
        "wish-unknown": (extension("1.2.3.4", b"\5\0"),),
        "wish-unknown-critical": (extension("1.2.3.4", b"\5\0", CRITICAL),),
        "wish-name-constraints": (extension("2.5.29.30", sequence(), CRITICAL),),
        "wish-policies": (extension("2.5.29.32", sequence(sequence(oid("2.5.29.32.0")))),),
        "wish-proxy-certificate": (
            extension("1.3.6.1.5.5.7.1.14", sequence(sequence(oid("1.3.6.1.5.5.7.21.1"))), CRITICAL),
        ),
        "wish-authority-key-identifier": (extension("2.5.29.35", sequence()),),
        "wish-precertificate-poison": (extension("1.3.6.1.4.1.11129.2.4.3", b"\5\0", CRITICAL),),
        "wish-value-not-der": (extension(KEY_USAGE, b"\x03\x81\x02\5\xa0"),),
        "wish-value-empty": (extension(KEY_USAGE, b""),),
        "wish-not-an-extension": (sequence(integer(1)),),
        "wish-value-long-tag": (extension("1.2.3.4", b"\x1f\x81\x01\0"),),
        "good-wish-nothing": (),
    }


def _san(*names: tuple[int, bytes]) -> tuple[bytes, ...]:
    return (extension(ALTERNATIVE_NAME, sequence(*(der.wrap(tag, value) for tag, value in names))),)


def _names() -> dict[str, tuple[bytes, ...]]:
    principal = oid("1.3.6.1.4.1.311.20.2.3") + der.wrap(OTHER_TAG, der.wrap(UTF8, b"root@example.com"))
    return {
        "good-names": _san(
            (DNS_TAG, b"hmc1.example.com"),
            (ADDRESS_TAG, bytes((192, 0, 2, 1))),
            (ADDRESS_TAG, bytes.fromhex("20010db8") + bytes(12)),
            (EMAIL_TAG, b"hmc@example.com"),
        ),
        "good-names-critical": (
            extension(ALTERNATIVE_NAME, sequence(der.wrap(DNS_TAG, b"hmc1.example.com")), CRITICAL),
        ),
        "good-names-many": _san(*((DNS_TAG, b"hmc%d.example.com" % number) for number in range(500))),
        "names-none": _san(),
        "names-wildcard": _san((DNS_TAG, b"*.example.com")),
        "names-wildcard-inside": _san((DNS_TAG, b"hmc.*.example.com")),
        "names-dns-nul": _san((DNS_TAG, b"hmc1.example.com\0.evil.example")),
        "names-dns-empty": _san((DNS_TAG, b"")),
        "names-dns-dot": _san((DNS_TAG, b".")),
        "names-dns-trailing-dot": _san((DNS_TAG, b"hmc1.example.com.")),
        "names-dns-underscore": _san((DNS_TAG, b"_hmc1.example.com")),
        "names-dns-space": _san((DNS_TAG, b" hmc1.example.com")),
        "names-dns-line-break": _san((DNS_TAG, b"hmc1.example.com\n")),
        "names-dns-beyond-ascii": _san((DNS_TAG, "köln.example.com".encode())),
        "names-dns-latin-1": _san((DNS_TAG, "köln.example.com".encode("latin-1"))),
        "names-dns-comma": _san((DNS_TAG, b"a.example.com,DNS:b.example.com")),
        "names-dns-long": _san((DNS_TAG, b".".join([b"a" * 60] * 5))),
        "names-email-nul": _san((EMAIL_TAG, b"hmc\0@example.com")),
        "names-email-line-break": _san((EMAIL_TAG, b"hmc@example.com\r\nBcc: x@example.com")),
        "names-email-with-name": _san((EMAIL_TAG, b"HMC <hmc@example.com>")),
        "names-address-5-octets": _san((ADDRESS_TAG, bytes(5))),
        "names-address-range": _san((ADDRESS_TAG, bytes((192, 0, 2, 0, 255, 255, 255, 0)))),
        "names-address-empty": _san((ADDRESS_TAG, b"")),
        "names-uri": _san((URI_TAG, b"https://hmc1.example.com/")),
        "names-other": _san((OTHER_TAG, principal)),
        "names-other-empty": _san((OTHER_TAG, b"")),
        "names-directory": _san((DIRECTORY_TAG, name(attribute("2.5.4.3", UTF8, b"root")))),
        "names-directory-empty": _san((DIRECTORY_TAG, b"\x30\0")),
        "names-registered-id": _san((OID_TAG, b"\x2a\x03\x04")),
        "names-x400": _san((0xA3, b"\x30\0")),
        "names-kind-unknown": _san((0x8A, b"hmc1")),
        "names-is-a-string": (extension(ALTERNATIVE_NAME, der.wrap(UTF8, b"hmc1")),),
        "names-trailing": (extension(ALTERNATIVE_NAME, sequence(der.wrap(DNS_TAG, b"hmc1")) + b"\0"),),
    }


def _attributes() -> dict[str, tuple[bytes, ...]]:
    usual = extension_request(_purposes(CLIENT_AUTH))
    password = sequence(oid(CHALLENGE_PASSWORD), der.wrap(SET, der.wrap(PRINTABLE, b"not a secret")))
    extensions = sequence(_purposes(CLIENT_AUTH))
    power = sequence(_ca(der.wrap(BOOLEAN, b"\xff")))
    return {
        "good-attribute-challenge-password": (password,),
        "good-attribute-unknown": (sequence(oid("1.2.3.4"), der.wrap(SET, integer(1))),),
        "good-attribute-microsoft": (extension_request(_purposes(CLIENT_AUTH), kind=MICROSOFT_REQUEST),),
        "attribute-microsoft-ca": (extension_request(_ca(der.wrap(BOOLEAN, b"\xff")), kind=MICROSOFT_REQUEST),),
        "attribute-request-twice": (usual, usual),
        "attribute-request-twice-second-ca": (usual, extension_request(_ca(der.wrap(BOOLEAN, b"\xff")))),
        "attribute-request-both-kinds": (usual, extension_request(_ca(), kind=MICROSOFT_REQUEST)),
        "attribute-request-two-values": (
            sequence(oid(EXTENSION_REQUEST), der.wrap(SET, *sorted((extensions, power)))),
        ),
        "attribute-request-no-value": (sequence(oid(EXTENSION_REQUEST), der.wrap(SET)),),
        "attribute-request-string": (sequence(oid(EXTENSION_REQUEST), der.wrap(SET, der.wrap(UTF8, b"CA:TRUE"))),),
        "attribute-request-is-a-sequence": (sequence(oid(EXTENSION_REQUEST), sequence(extensions)),),
        "attribute-without-values": (sequence(oid(CHALLENGE_PASSWORD)),),
        "attribute-not-a-sequence": (integer(1),),
        "good-attribute-nested-deep": (sequence(oid("1.2.3.4"), der.wrap(SET, _nested(3000))),),
    }


def _nested(depth: int) -> bytes:
    element = b"\5\0"
    for _ in range(depth):
        element = sequence(element)
    return element


def _sizes() -> dict[str, bytes]:
    """Return a sound CSR of the largest size that is taken, and one of an octet more."""
    return {name: _of_size(size) for name, size in (("good-16-KiB", MAX_CSR_OCTETS), ("too-large", 16385))}


def _of_size(size: int) -> bytes:
    # An ECDSA signature has 70 octets, give or take two: what the filler holds decides.
    for number in count():
        filler = octets(f"filler {number}", size - 400)
        while len(filler) < size:
            value = der.wrap(SET, der.wrap(der.OCTET_STRING, filler))
            made = signed(request_info(P256.info, sequence(oid("1.2.3.4"), value)), P256)
            if len(made) >= size:
                break
            filler += bytes(size - len(made))
        if len(made) == size:
            return made
    raise AssertionError  # count() does not end
