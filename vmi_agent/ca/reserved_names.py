"""Distinguished names as relying parties compare them (RFC 5280, 7.1), and the names that no leaf may bear.

Two names are the same where their attributes match after string preparation (RFC 4518, 2): whatever string type holds
them, in upper or lower case, with one space or several, with compatibility characters or the plain ones. OpenSSL
looks for an issuer in that way; a leaf that bore a CA's name in another spelling would be taken for the CA.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from runtime.asn1 import der

UTF8_STRING, PRINTABLE_STRING, TELETEX_STRING, IA5_STRING, UNIVERSAL_STRING, BMP_STRING = (
    *(0x0C, 0x13, 0x14, 0x16),
    *(0x1C, 0x1E),
)
_CODECS = {
    UTF8_STRING: "utf-8",
    PRINTABLE_STRING: "ascii",
    TELETEX_STRING: "ascii",
    IA5_STRING: "ascii",
    UNIVERSAL_STRING: "utf-32-be",
    BMP_STRING: "utf-16-be",
}

# An attribute's type, as the contents of its object identifier, and its value.
Attribute = tuple[bytes, str]
RelativeName = Sequence[Attribute]


def decode(tag: int, contents: bytes) -> str:
    """Return the text of a string value.

    Args:
        tag: one of the string types above.

    Raises:
        ValueError: the contents are not of that type; TeletexString is read as ASCII only, as readers disagree about
            the rest.
    """
    return contents.decode(_CODECS[tag])


def prepare(text: str) -> str:
    """Return a text in the form in which texts are compared (RFC 4518, 2.2 to 2.6.1)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.lower().split())


def canonical(name: Iterable[RelativeName]) -> tuple[frozenset[Attribute], ...]:
    """Return a name in a form that is equal for names that are the same (RFC 5280, 7.1)."""
    return tuple(frozenset((kind, prepare(text)) for kind, text in part) for part in name)


class ReservedNames:
    """The subjects of our own CAs and OCSP responders, none of which a leaf may bear.

    Args:
        names: DER Names.
    """

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        read = [canonical(_read(name)) for name in names]
        self._names = frozenset(read)
        # Most subjects share their last attribute with none of these: one comparison is enough for them.
        self._last = frozenset(attribute for name in read for part in name[-1:] for attribute in part)

    def __contains__(self, name: Sequence[RelativeName]) -> bool:
        """Return whether a name, its parts not empty, is one of these."""
        kind, text = name[-1][0]
        return (kind, prepare(text)) in self._last and canonical(name) in self._names


def _read(name: bytes) -> list[list[Attribute]]:
    return [[_attribute(each) for each in der.children(part)] for part in der.children(name)]


def _attribute(attribute: bytes) -> Attribute:
    kind, value = der.children(attribute)
    tag, start, end = der.read(value)
    try:
        text = decode(tag, value[start:end])
    except (KeyError, ValueError):
        text = value.hex()  # no text: no subject that is text can be the same
    return kind[2:], text
