"""What can be said of a CSR's subject from its octets, before the cryptography package reads it.

That package only warns, on stderr, of a common name over its upper bound, reads surrogates out of a BMPString, which
has none, and takes string types that no name may have. Whether the subject's text may be certified is `profile`'s
question.
"""

from protocol import der
from protocol.errors import ErrorCode
from vmi_agent.errors import Refused

MOST_ATTRIBUTES = 32

# RFC 5280, appendix A.1: the least and the most characters of an attribute, by the contents of its type.
_BOUNDS = {
    bytes.fromhex("550403"): (1, 64),  # common name
    bytes.fromhex("550405"): (1, 64),  # serial number
    bytes.fromhex("550406"): (2, 2),  # country
    bytes.fromhex("550407"): (1, 128),  # locality
    bytes.fromhex("550408"): (1, 128),  # state or province
    bytes.fromhex("55040a"): (1, 64),  # organization
    bytes.fromhex("55040b"): (1, 64),  # organizational unit
    bytes.fromhex("55040c"): (1, 64),  # title
    bytes.fromhex("550441"): (1, 128),  # pseudonym
    bytes.fromhex("2b0601040182373c020103"): (2, 2),  # jurisdiction of incorporation, country
    bytes.fromhex("2a864886f70d010901"): (1, 255),  # e-mail address
}
_UTF8_STRING, _UNIVERSAL_STRING, _BMP_STRING = 0x0C, 0x1C, 0x1E
# DirectoryString (RFC 5280, 4.1.2.4) and IA5String, for e-mail addresses. OpenSSL reads no certificate whose common
# name is of another type, such as VisibleString.
_STRINGS = (_UTF8_STRING, 0x13, 0x14, 0x16, _UNIVERSAL_STRING, _BMP_STRING)
_OCTETS_OF_CHARACTER = {_UNIVERSAL_STRING: 4, _BMP_STRING: 2}


def check_octets(subject: bytes) -> None:
    """Judge the number of a subject's attributes and the lengths of their values.

    Args:
        subject: a DER Name.

    Raises:
        Refused: CSR_POLICY.
    """
    try:
        attributes = [der.children(attribute) for part in der.children(subject) for attribute in der.children(part)]
        values = [(kind, value, der.read(value)) for kind, value in attributes]
    except ValueError as error:
        text = "The subject holds an attribute that cannot be read. Use UTF-8 or printable strings."
        raise Refused(ErrorCode.CSR_POLICY, text) from error
    if len(values) > MOST_ATTRIBUTES:
        text = f"The subject holds more than {MOST_ATTRIBUTES} attributes. Leave out what is not needed."
        raise Refused(ErrorCode.CSR_POLICY, text)
    for kind, value, (tag, start, end) in values:
        contents = value[start:end]
        if tag not in _STRINGS:
            text = "The subject holds an attribute that is not a text of a usual type. Use UTF-8 or printable strings."
            raise Refused(ErrorCode.CSR_POLICY, text)
        if tag == _BMP_STRING and any(0xD8 <= octet <= 0xDF for octet in contents[::2]):
            raise Refused(ErrorCode.CSR_POLICY, "The subject holds a BMPString with surrogates. Use UTF-8.")
        least, most = _BOUNDS.get(kind[2:], (0, len(contents)))
        if not least <= _characters(tag, contents) <= most:
            text = "The subject holds an attribute that is shorter or longer than RFC 5280, appendix A.1 allows."
            raise Refused(ErrorCode.CSR_POLICY, f"{text} A country has 2 letters, a common name at most 64 characters.")


def _characters(tag: int, contents: bytes) -> int:
    if tag == _UTF8_STRING:
        return len(contents.decode(errors="replace"))
    return len(contents) // _OCTETS_OF_CHARACTER.get(tag, 1)
