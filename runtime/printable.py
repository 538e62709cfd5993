"""Text for a terminal: what a reader would not see, or would see as something else, is written out as an escape.

Names and subjects come from CSRs, requests and files. A control character in one can rewrite a terminal's screen, a
format character can reverse or hide what stands beside it, and a character that the stream's encoding lacks ends a
command in a traceback. Every text that leaves the process for a person goes through here.
"""

from collections.abc import Iterator


def printable(text: str, encoding: str | None = None) -> str:
    r"""Return a text as one line with nothing in it that is invisible or that changes how the rest is shown.

    Escaped, as `\uXXXX` or `\UXXXXXXXX`, are the Unicode categories Other (Cc, Cf, Cs, Co, Cn: controls, bidirectional
    and other format characters, surrogates, private use, unassigned) and Separator (Zl, Zp, Zs) but the space. A
    backslash stays as it is, so the result is for reading and not for parsing.

    Args:
        text: of any origin; a JSON text needs no escaping beyond JSON's own.
        encoding: of the stream that the text is for, such as `sys.stdout.encoding`: what it cannot hold is escaped as
            well. None leaves that to the stream.
    """
    # str.isprintable asks exactly for these categories.
    if text.isprintable() and _holds(encoding, text):
        return text
    return "".join(_escaped(text, encoding))


def _escaped(text: str, encoding: str | None) -> Iterator[str]:
    for character in text:
        if character.isprintable() and _holds(encoding, character):
            yield character
        else:
            code = ord(character)
            yield f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _holds(encoding: str | None, text: str) -> bool:
    """Return whether an encoding has all characters of a text."""
    if encoding is None or text.isascii():
        return True
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
