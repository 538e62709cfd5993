"""Text that a person sees as it is: an allow list of Unicode's general categories, less what has one and shows nothing.

Letters, marks, numbers, punctuation, symbols and the space are allowed. So are names in any script; that letters of
two scripts look alike is not judged here.
"""

import unicodedata
from bisect import bisect_right

# The first letter of the general category; of separators (Z) the space alone is allowed, of others (C) nothing.
_ALLOWED = frozenset("LMNPS")
_MARK = "M"

# Default_Ignorable_Code_Point (DerivedCoreProperties of Unicode 14 to 17, the same in all of them): first and last
# code point of each run. Python's unicodedata has no such property.
DEFAULT_IGNORABLE = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
# Symbols and marks whose glyph is blank or a stand-in, whatever their category says: Braille pattern blank, ideographic
# half fill space, object replacement and replacement character, Khitan filler, blank hieroglyphs, null notehead.
BLANK = frozenset(map(chr, (0x2800, 0x303F, 0xFFFC, 0xFFFD, 0x13441, 0x13442, 0x16FE4, 0x1D159)))

_FIRST = [first for first, _ in DEFAULT_IGNORABLE]


def is_visible(text: str) -> bool:
    """Return whether each character of a text is seen, and each mark has a character to stand on."""
    if text.isascii():
        return text.isprintable()
    before = " "
    for character in text:
        category = unicodedata.category(character)[0]
        if character != " " and (category not in _ALLOWED or character in BLANK or is_default_ignorable(character)):
            return False
        if category == _MARK and before == " ":
            return False
        before = character
    return True


def is_default_ignorable(character: str) -> bool:
    """Return whether a character has Unicode's property Default_Ignorable_Code_Point."""
    place = bisect_right(_FIRST, ord(character)) - 1
    return place >= 0 and ord(character) <= DEFAULT_IGNORABLE[place][1]
