"""CSRs whose names readers read differently: string types, invisible text, host names, mailboxes; and sound neighbours.

All are signed with the P-256 key. Those with `good-` in front are issued.
"""

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
    UTF8,
    attribute,
    csr,
    extension,
    extension_request,
    name,
    sequence,
)

from runtime.asn1 import der

ALTERNATIVE_NAME = "2.5.29.17"
EMAIL_TAG, DNS_TAG, ADDRESS_TAG = 0x81, 0x82, 0x87
SERIAL_NUMBER, DN_QUALIFIER, DOMAIN_COMPONENT = "2.5.4.5", "2.5.4.46", "0.9.2342.19200300.100.1.25"
UNSTRUCTURED_NAME = "1.2.840.113549.1.9.2"
COMMON_NAME = attribute(CN, UTF8, b"hmc1")


def files() -> dict[str, bytes]:
    """Return the CSRs by file name, without its suffix."""
    subjects = _types() | _visible() | _syntax()
    asking = {f"names-{key}": [(DNS_TAG, host)] for key, host in _hosts().items()}
    asking |= {f"good-names-{key}": [(DNS_TAG, host)] for key, host in _good_hosts().items()}
    asking |= {f"names-email-{key}": [(EMAIL_TAG, mailbox)] for key, mailbox in _mailboxes().items()}
    asking |= {f"good-names-email-{key}": [(EMAIL_TAG, mailbox)] for key, mailbox in _good_mailboxes().items()}
    asking |= {
        "good-names-address-loopback": [(ADDRESS_TAG, bytes(15) + b"\1")],
        "good-names-address-mapped": [(ADDRESS_TAG, bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1)))],
    }
    return (
        {name: csr(P256, subject=subject) for name, subject in subjects.items()}
        | {name: csr(P256, _san(*names)) for name, names in asking.items()}
        | _mailbox_subjects()
    )


def _san(*names: tuple[int, bytes]) -> bytes:
    return extension_request(extension(ALTERNATIVE_NAME, sequence(*(der.wrap(tag, value) for tag, value in names))))


def _types() -> dict[str, bytes]:
    """Return subjects with attributes in their own and in others' string types (RFC 5280, A.1)."""

    def with_(kind: str, tag: int, value: bytes) -> bytes:
        return name(attribute(kind, tag, value), COMMON_NAME)

    return {
        "subject-country-utf8": with_(COUNTRY, UTF8, b"DE"),
        "subject-country-digits": with_(COUNTRY, PRINTABLE, b"49"),
        "good-subject-serial-number": with_(SERIAL_NUMBER, PRINTABLE, b"10-ABC12"),
        "subject-serial-number-utf8": with_(SERIAL_NUMBER, UTF8, b"10-ABC12"),
        "good-subject-dn-qualifier": with_(DN_QUALIFIER, PRINTABLE, b"1"),
        "subject-dn-qualifier-utf8": with_(DN_QUALIFIER, UTF8, b"1"),
        "subject-email-utf8": with_(EMAIL, UTF8, b"hmc@example.com"),
        "subject-email-printable": with_(EMAIL, PRINTABLE, b"hmc"),
        "subject-common-name-ia5": name(attribute(CN, IA5, b"hmc1")),
        "subject-organisation-ia5-high": with_(ORGANISATION, IA5, b"K\xf6ln"),
        "subject-attribute-unknown-ia5": with_("1.2.3.4", IA5, b"rack 7"),
        "good-subject-unstructured-name-ia5": with_(UNSTRUCTURED_NAME, IA5, b"switch1.example.com"),
        "subject-unstructured-name-ia5-high": with_(UNSTRUCTURED_NAME, IA5, b"K\xf6ln"),
        "subject-attribute-unknown-ia5-high": with_("1.2.3.4", IA5, b"K\xf6ln"),
        "subject-attribute-unknown-teletex-high": with_("1.2.3.4", TELETEX, b"K\xf6ln"),
        "subject-bmp-surrogate-alone": name(attribute(CN, BMP, b"\xd8\0\0h")),
        "good-subject-domain-components": name(
            attribute(DOMAIN_COMPONENT, IA5, b"com"), attribute(DOMAIN_COMPONENT, IA5, b"example"), COMMON_NAME
        ),
        "good-subject-domain-component-one": with_(DOMAIN_COMPONENT, IA5, b"example"),
        "subject-domain-component-utf8": with_(DOMAIN_COMPONENT, UTF8, b"example"),
        "subject-domain-component-dotted": with_(DOMAIN_COMPONENT, IA5, b"example.com"),
        "subject-set-same-type-twice": sequence(der.wrap(SET, *sorted((COMMON_NAME, attribute(CN, UTF8, b"hmc2"))))),
    }


def _visible() -> dict[str, bytes]:
    """Return subjects with text that is seen, and that is not."""
    good = {
        "64-characters": "ö" * 64,
        "cyrillic": "Консоль управления 1",
        "japanese": "管理コンソール１号機",
        "arabic": "وحدة التحكم",
        "devanagari": "कंसोल",
        "accent-precomposed": "Zoë Müller",
        "accent-combining": "Zoe\u0308 Mu\u0308ller",
        "emoji": "HMC \U0001f5a5",
    }
    hidden = {
        "hangul-filler": "hmc\u31641",
        "hangul-filler-half": "hmc\uffa01",
        "hangul-choseong-filler": "hmc\u115f1",
        "braille-blank": "hmc\u28001",
        "no-break-space": "hmc\u00a01",
        "ideographic-space": "hmc\u30001",
        "line-separator": "hmc\u20281",
        "soft-hyphen": "hmc\u00ad1",
        "grapheme-joiner": "hmc\u034f1",
        "variation-selector": "hmc\ufe0f1",
        "variation-selector-17": "hmc\U000e01001",
        "tag": "hmc\U000e00411",
        "isolate": "hmc\u20661",
        "private-use": "hmc\ue0001",
        "unassigned": "hmc\u03781",
        "replacement": "hmc\ufffd1",
        "mark-first": "\u0308hmc",
        "mark-on-space": "hmc \u0308",
    }
    return {f"good-subject-utf8-{key}": name(attribute(CN, UTF8, text.encode())) for key, text in good.items()} | {
        f"subject-utf8-{key}": name(attribute(CN, UTF8, text.encode())) for key, text in hidden.items()
    }


def _syntax() -> dict[str, bytes]:
    """Return subjects with a mailbox that is none."""
    mailboxes = {
        "no-host": b"hmc",
        "dots": b".a..b.@example.com",
        "address": b"hmc@192.0.2.1",
        "space": b"a b@example.com",
    }
    return {
        f"subject-email-{key}": name(COMMON_NAME, attribute(EMAIL, IA5, mailbox)) for key, mailbox in mailboxes.items()
    }


def _mailbox_subjects() -> dict[str, bytes]:
    """Return CSRs whose subject has mailboxes, some of them among the alternative names already."""
    one = name(COMMON_NAME, attribute(EMAIL, IA5, b"hmc@example.com"))
    two = name(
        *(attribute(EMAIL, IA5, each) for each in (b"a@example.com", b"b@example.com", b"a@example.com")), COMMON_NAME
    )
    return {
        "good-subject-email-in-names": csr(P256, _san((EMAIL_TAG, b"hmc@example.com")), subject=one),
        "good-subject-email-beside-names": csr(P256, _san((DNS_TAG, b"hmc1.example.com")), subject=one),
        "good-subject-email-two": csr(P256, _san((EMAIL_TAG, b"b@example.com")), subject=two),
    }


def _hosts() -> dict[str, bytes]:
    return {
        "dns-address": b"10.9.9.9",
        "dns-address-short": b"10.9.2313",
        "dns-address-octal": b"012.011.011.011",
        "dns-address-hex": b"0x0a.0X9",
        "dns-number": b"168364297",
        "dns-hex-empty": b"hmc.0x",
        "dns-address-behind-name": b"hmc1.10",
        "dns-address-v6": b"::1",
        "dns-label-64": b"a" * 64 + b".example.com",
        "dns-254": b".".join([b"a" * 49] * 5) + b".abcd",
        "dns-label-empty": b"hmc1..example.com",
        "dns-xn-nothing": b"xn--.example.com",
        "dns-xn-not-punycode": b"xn--a.example.com",
        "dns-xn-ascii": b"xn--abc-.example.com",
        "dns-xn-emoji": b"xn--ls8h.example.com",
        "dns-xn-invisible": b"xn--mgba3gch31f060k.example.com",
    }


def _good_hosts() -> dict[str, bytes]:
    return {
        "one-label": b"hmc1",
        "last-label-one-letter": b"hmc1.x",
        "numbers-in-front": b"10.9.9.9.example.com",
        "last-label-almost-hex": b"hmc.0xyz",
        "label-63": b"a" * 63 + b".example.com",
        "253": b".".join([b"a" * 49] * 5) + b".abc",
        "xn": b"XN--KLN-sna.example.com",
        "xn-japanese": b"xn--wgv71a119e.example.com",
    }


def _mailboxes() -> dict[str, bytes]:
    return {
        "dots": b".a..b.@example.com",
        "dot-last": b"a.@example.com",
        "quoted": b'"a b"@example.com',
        "no-host": b"hmc",
        "no-name": b"@example.com",
        "two-signs": b"a@b@example.com",
        "literal": b"hmc@[192.0.2.1]",
        "address": b"hmc@192.0.2.1",
        "65": b"a" * 65 + b"@example.com",
        "255": b"a" * 64 + b"@" + b".".join([b"b" * 62] + [b"b" * 61] * 2) + b".com",
    }


def _good_mailboxes() -> dict[str, bytes]:
    return {
        "dotted": b"a.b+c@mail.example.com",
        "one-label": b"root@hmc1",
        "64": b"a" * 64 + b"@example.com",
        "254": b"a" * 64 + b"@" + b".".join([b"b" * 61] * 3) + b".com",
        "xn": b"hmc@xn--kln-sna.example.com",
    }
