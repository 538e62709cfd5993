"""Text for a terminal: what is escaped, what is not, and commands on a terminal that lacks a name's characters."""

import sys
import unicodedata

import pytest

from runtime.printable import printable

ESCAPED = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hmc1", "hmc1"),
        ("CN=Größe, O=東京", "CN=Größe, O=東京"),
        ("a b", "a b"),
        ("", ""),
        ("C:\\new", "C:\\new"),
        ("a\nb\tc\r", "a\\u000ab\\u0009c\\u000d"),
        ("\x1b[2J", "\\u001b[2J"),
        ("\x85\x9b", "\\u0085\\u009b"),
        ("admin\u202enimda", "admin\\u202enimda"),
        ("a\u200bb\u2066c\ufeff", "a\\u200bb\\u2066c\\ufeff"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("\ue000\U000f0000", "\\ue000\\U000f0000"),
        ("\udc80", "\\udc80"),
        ("\u0378\U000e0001", "\\u0378\\U000e0001"),
        ("a\u00a0b\u3000c", "a\\u00a0b\\u3000c"),
    ],
)
def test_printable_escapes_what_a_reader_would_not_see(text: str, expected: str) -> None:
    """Controls, format characters, surrogates, private use, unassigned code points and separators are written out."""
    assert printable(text) == expected


def test_printable_judges_each_character_by_its_category() -> None:
    """Over all of Unicode: the escaped categories never pass, letters, marks, numbers, symbols always do."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        is_escaped = printable(character) != character
        assert is_escaped is (category in ESCAPED or (category == "Zs" and character != " ")), hex(code)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "Łódź é \U0001f511"),
        ("latin-1", "\\u0141ód\\u017a é \\U0001f511"),
        ("ascii", "\\u0141\\u00f3d\\u017a \\u00e9 \\U0001f511"),
        ("cp1252", "\\u0141ód\\u017a é \\U0001f511"),
    ],
)
def test_printable_escapes_what_the_encoding_lacks(encoding: str, expected: str) -> None:
    """The result can be written to a stream of the encoding, and what the encoding has stays as it is."""
    found = printable("Łódź é \U0001f511", encoding)

    assert found == expected
    assert found.encode(encoding).decode(encoding) == found
