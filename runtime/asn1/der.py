"""Just enough DER (ITU-T X.690) to find a part of a structure and to wrap parts in one; it never judges what they say.

Both processes need it: the agent copies a CSR's subject and public key octet for octet, and the proxy checks that the
leaf it was given carries them.
"""

SEQUENCE = 0x30
BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06


class DerError(ValueError):
    """The octets are not the DER that was looked for."""


def read(der: bytes, at: int = 0) -> tuple[int, int, int]:
    """Read one element's header.

    Args:
        der: the octets.
        at: where the element begins.

    Returns:
        Its tag (one octet; longer tags are refused), where its contents begin, and where they end.

    Raises:
        DerError: the header is cut short, not in its shortest form, or reaches past the end of `der`.
    """
    try:
        tag, length = der[at], der[at + 1]
    except IndexError:
        raise DerError("an element is cut short") from None
    if tag & 0x1F == 0x1F:
        raise DerError("a tag over one octet")
    start = at + 2
    if length >= 0x80:
        octets = length & 0x7F
        field = der[start : start + octets]
        length = int.from_bytes(field)
        start += octets
        # Shortest form (X.690, 10.1): no leading zero octet, no long form for what the short form holds.
        if not 1 <= octets <= 4 or len(field) != octets or field[0] == 0 or length < 0x80:
            raise DerError("a length that is indefinite or not in its shortest form")
    end = start + length
    if end > len(der):
        raise DerError("an element reaches past the end")
    return tag, start, end


def children(der: bytes) -> list[bytes]:
    """Return the whole elements inside the one constructed element that `der` is.

    Raises:
        DerError: `der` is not one constructed element, or holds anything after it.
    """
    tag, at, end = read(der)
    if not tag & 0x20:
        raise DerError("an element without parts")
    if end != len(der):
        raise DerError("octets after the element")
    found = []
    while at < end:
        # The form that most elements have is read here, without a call; the others, and what is wrong, by `read`.
        if at + 1 < end and der[at] & 0x1F != 0x1F and der[at + 1] < 0x80:
            stop = at + 2 + der[at + 1]
        else:
            _, _, stop = read(der, at)
        if stop > end:
            raise DerError("an element reaches past the end")
        found.append(der[at:stop])
        at = stop
    return found


def wrap(tag: int, *parts: bytes) -> bytes:
    """Return the element with this tag and these contents."""
    contents = b"".join(parts)
    length = len(contents)
    if length < 0x80:
        return bytes((tag, length)) + contents
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + contents


def csr_subject_and_key(csr: bytes) -> tuple[bytes, bytes]:
    """Return the subject and the subjectPublicKeyInfo elements of a CSR (RFC 2986, 4.1), octet for octet.

    Raises:
        DerError: the CSR does not have that shape.
    """
    parts = children(csr)
    fields = children(parts[0]) if len(parts) == 3 else []
    if len(fields) < 3:
        raise DerError("not a certification request")
    return fields[1], fields[2]


def leaf_subject_and_key(certificate: bytes) -> tuple[bytes, bytes]:
    """Return the subject and the subjectPublicKeyInfo elements of an X.509 v3 certificate (RFC 5280, 4.1).

    Raises:
        DerError: the certificate does not have that shape.
    """
    parts = children(certificate)
    fields = children(parts[0]) if len(parts) == 3 else []
    if len(fields) < 7:
        raise DerError("not a certificate")
    return fields[5], fields[6]
