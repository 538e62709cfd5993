"""Which text is seen as it is: Unicode's own tables, as perl has them, and samples of both kinds."""

import subprocess
import unicodedata

import pytest
from support.needs import need

from vmi_agent.policy.visible import BLANK, is_default_ignorable, is_visible

EVERY = [chr(code) for code in range(0x110000)]


def code_points(property_name: str) -> set[str]:
    """Return the characters that have a property of Unicode, by perl."""
    program = f'for (0 .. 0x10FFFF) {{ print "$_\\n" if chr($_) =~ /\\p{{{property_name}}}/ }}'
    command = [need("perl"), "-e", f"no warnings; {program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {chr(int(line)) for line in done.stdout.splitlines()}


def test_default_ignorable_is_unicodes() -> None:
    """Our table is DerivedCoreProperties' Default_Ignorable_Code_Point: 4,174 code points in Unicode 9 to 17."""
    ours = {character for character in EVERY if is_default_ignorable(character)}

    assert len(ours) == 4174
    assert ours == code_points("Default_Ignorable_Code_Point")


def test_is_visible_allows_what_unicode_calls_graphic() -> None:
    """Of single characters those are seen that perl calls graphic, less marks, spaces, ignorable and blank ones."""
    graphic = code_points("Graph") - code_points("Default_Ignorable_Code_Point") - BLANK
    graphic -= code_points("Mark") | code_points("Private_Use") | code_points("Format") | code_points("Surrogate")
    # What one of the two does not know yet, as its Unicode is older.
    common = graphic & {character for character in EVERY if unicodedata.category(character) != "Cn"}

    seen = {character for character in EVERY if is_visible(character)} - {" "}

    assert common <= seen
    assert (seen - common) & code_points("Assigned") == set()


@pytest.mark.parametrize(
    "text",
    ["hmc1", "HMC 1", "Zoë", "Zoe\u0308", "Консоль", "管理コンソール１号機", "وحدة", "कंसोल", "\U0001f5a5", "–", "€"],
)
def test_is_visible_takes_names_in_any_script(text: str) -> None:
    """Letters, marks on letters, numbers, punctuation, symbols and the space are seen."""
    assert is_visible(text)


@pytest.mark.parametrize(
    "character",
    [
        *("\0", "\t", "\n", "\x1b", "\x7f", "\x85", "\x9b"),  # control
        *("\u00a0", "\u1680", "\u2003", "\u202f", "\u205f", "\u3000"),  # spaces but the space
        *("\u2028", "\u2029"),  # separators of lines and paragraphs
        *("\u00ad", "\u200b", "\u200d", "\u200e", "\u202e", "\u2066", "\ufeff", "\ufff9", "\U000e0041"),  # format
        *("\u034f", "\u115f", "\u1160", "\u17b4", "\u180b", "\u3164", "\ufe0f", "\uffa0", "\U000e0100"),  # ignorable
        *("\u2800", "\u303f", "\ufffc", "\ufffd", "\U0001d159"),  # blank
        *("\ud800", "\ue000", "\U0010fffd", "\u0378", "\uffff"),  # surrogate, private use, not assigned
    ],
    ids=lambda character: f"U+{ord(character):04X}",
)
def test_is_visible_refuses_what_is_not_seen(character: str) -> None:
    """A character that is not seen is refused wherever it stands."""
    assert not is_visible(character)
    assert not is_visible(f"hmc{character}1")
    assert not is_visible(f"ö{character}")


@pytest.mark.parametrize("text", ["\u0308o", " \u0308o", "o \u0308", "\u20dd"])
def test_is_visible_refuses_marks_on_nothing(text: str) -> None:
    """A mark in front, or behind a space, has nothing to stand on."""
    assert not is_visible(text)
