"""CSRs whose subject is odd: string types, attributes, sizes. All are signed with the P-256 key."""

from csr_parts import (
    BMP,
    CN,
    COUNTRY,
    EMAIL,
    IA5,
    ORGANISATION,
    P256,
    PRINTABLE,
    SET,
    TELETEX,
    UNIT,
    UNIVERSAL,
    UTF8,
    attribute,
    csr,
    integer,
    name,
    oid,
    sequence,
)

from runtime.asn1 import der

NUMERIC, GENERAL, VISIBLE, BIT = 0x12, 0x1B, 0x1A, 0x03


def files() -> dict[str, bytes]:
    """Return the CSRs by file name, without its suffix."""
    return {name: csr(P256, subject=subject) for name, subject in (_good() | _strings() | _shapes()).items()}


def _common_name(tag: int, value: bytes) -> bytes:
    return name(attribute(CN, tag, value))


def _good() -> dict[str, bytes]:
    pair = sorted((attribute(CN, UTF8, b"hmc1"), attribute(UNIT, PRINTABLE, b"HMC")))
    return {
        "good-subject-bmp": _common_name(BMP, "Köln 1".encode("utf-16-be")),
        "good-subject-utf8": _common_name(UTF8, "Köln 1 – HMC".encode()),
        "subject-universal": _common_name(UNIVERSAL, "Köln 1".encode("utf-32-be")),
        "good-subject-teletex-ascii": _common_name(TELETEX, b"hmc1"),
        "good-subject-email": name(attribute(CN, UTF8, b"hmc1"), attribute(EMAIL, IA5, b"hmc@example.com")),
        "good-subject-multi-valued": sequence(der.wrap(SET, *pair)),
        "good-subject-common-name-twice": name(attribute(CN, UTF8, b"hmc1"), attribute(CN, UTF8, b"hmc2")),
        "good-subject-attribute-unknown": name(attribute(CN, UTF8, b"hmc1"), attribute("1.2.3.4", UTF8, b"rack 7")),
        "good-subject-mixed-types": name(
            attribute(COUNTRY, PRINTABLE, b"DE"),
            attribute(ORGANISATION, BMP, "Müller & Söhne".encode("utf-16-be")),
            attribute(CN, UTF8, b"hmc1"),
        ),
        "good-subject-backwards": name(attribute(CN, UTF8, b"hmc1"), attribute(COUNTRY, PRINTABLE, b"DE")),
        "good-subject-no-common-name": name(attribute(ORGANISATION, UTF8, b"HMC")),
    }


def _strings() -> dict[str, bytes]:
    return {
        "subject-teletex-beyond-ascii": _common_name(TELETEX, "Köln".encode("latin-1")),
        "subject-t61-escapes": _common_name(TELETEX, b"hmc\x1b$B1"),
        "subject-bmp-odd-octets": _common_name(BMP, b"\0h\0m\0"),
        "subject-bmp-surrogate": _common_name(BMP, b"\xd8\0\xdc\0"),
        "subject-bmp-nul": _common_name(BMP, b"\0h\0\0\0m"),
        "subject-universal-short": _common_name(UNIVERSAL, b"\0\0h"),
        "subject-universal-beyond-unicode": _common_name(UNIVERSAL, b"\0\x11\0\0"),
        "subject-utf8-invalid": _common_name(UTF8, b"hmc\xff1"),
        "subject-utf8-overlong-nul": _common_name(UTF8, b"hmc\xc0\x801"),
        "subject-utf8-surrogate": _common_name(UTF8, b"hmc\xed\xa0\x801"),
        "subject-utf8-right-to-left": _common_name(UTF8, "hmc\u202emoc.live".encode()),
        "subject-utf8-zero-width": _common_name(UTF8, "hmc\u200b1".encode()),
        "subject-utf8-byte-order-mark": _common_name(UTF8, "\ufeffhmc1".encode()),
        "subject-nul": _common_name(UTF8, b"hmc1\0.evil.example"),
        "subject-nul-printable": _common_name(PRINTABLE, b"hmc1\0.evil.example"),
        "subject-line-break": _common_name(UTF8, b"hmc1\r\nX-Header: 1"),
        "subject-terminal-escape": _common_name(UTF8, b"hmc1\x1b[2J"),
        "subject-printable-at-sign": _common_name(PRINTABLE, b"hmc@example.com"),
        "subject-printable-high-octets": _common_name(PRINTABLE, b"hmc\xe9"),
        "subject-email-high-octets": name(attribute(EMAIL, IA5, b"h\xf6@example.com")),
        "subject-numeric": _common_name(NUMERIC, b"1234"),
        "subject-visible": _common_name(VISIBLE, b"hmc1"),
        "subject-general": _common_name(GENERAL, b"hmc1"),
        "subject-value-empty": _common_name(UTF8, b""),
        "subject-value-blank": _common_name(UTF8, b"   "),
        "subject-value-integer": name(sequence(oid(CN), integer(7))),
        "subject-value-null": name(sequence(oid(CN), b"\x05\0")),
        "subject-value-sequence": name(sequence(oid(CN), b"\x30\0")),
        "subject-value-bits": name(attribute("2.5.4.45", BIT, b"\0\xff")),
        "subject-value-long-tag": name(sequence(oid(CN), b"\x1f\x81\x01\0")),
        "subject-string-constructed": name(sequence(oid(CN), der.wrap(0x2C, der.wrap(UTF8, b"hmc1")))),
    }


def _shapes() -> dict[str, bytes]:
    common_name = attribute(CN, UTF8, b"hmc1")
    pair = sorted((common_name, attribute(UNIT, PRINTABLE, b"HMC")), reverse=True)
    return {
        "subject-empty": sequence(),
        "subject-set-empty": sequence(der.wrap(SET)),
        "subject-set-out-of-order": sequence(der.wrap(SET, *pair)),
        "subject-set-same-twice": sequence(der.wrap(SET, common_name, common_name)),
        "subject-attribute-three-parts": name(sequence(oid(CN), der.wrap(UTF8, b"hmc1"), b"\x05\0")),
        "subject-attribute-without-value": name(sequence(oid(CN))),
        "subject-attribute-type-empty": name(sequence(b"\x06\0", der.wrap(UTF8, b"hmc1"))),
        "subject-attribute-type-two-arcs": name(sequence(b"\x06\x02\x88\x37", der.wrap(UTF8, b"hmc1"))),
        "subject-attribute-type-padded": name(sequence(b"\x06\x04\x55\x04\x80\x03", der.wrap(UTF8, b"hmc1"))),
        "subject-attribute-type-huge": name(sequence(b"\x06\x14\x2a" + b"\xff" * 18 + b"\1", der.wrap(UTF8, b"hmc1"))),
        "subject-is-a-set": der.wrap(SET, der.wrap(SET, common_name)),
        "subject-is-a-string": der.wrap(UTF8, b"hmc1"),
        "subject-length-not-shortest": b"\x30\x81" + name(common_name)[1:],
        "subject-value-length-not-shortest": name(sequence(oid(CN), b"\x0c\x81\x04hmc1")),
        "subject-value-indefinite": name(sequence(oid(CN), b"\x2c\x80\x0c\x04hmc1\0\0")),
        "subject-country-long": name(attribute(COUNTRY, PRINTABLE, b"USA"), common_name),
        "subject-country-one-letter": name(attribute(COUNTRY, PRINTABLE, b"U"), common_name),
        "subject-value-65-characters": _common_name(UTF8, b"h" * 65),
        "subject-value-huge": _common_name(UTF8, b"h" * 15_000),
        "subject-attributes-huge": name(*(attribute(UNIT, UTF8, b"HMC %d" % number) for number in range(800))),
    }
