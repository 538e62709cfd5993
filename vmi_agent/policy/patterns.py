"""Patterns of profiles: plain stars, never regular expressions, so that no pattern can make judging slow.

In a text pattern a `*` stands for any characters, none included. In a host pattern it stands for characters of one
label, never for a dot; `**` as the first label stands for one or more whole labels.
"""

import re

from vmi_agent.policy.visible import is_visible

MOST_PATTERN_CHARACTERS = 253  # of a host name (RFC 1035, 2.3.4)

_LABEL_PATTERN = r"[A-Za-z0-9*]([A-Za-z0-9*-]{0,61}[A-Za-z0-9*])?"
_HOST_PATTERN = re.compile(rf"(\*\*|{_LABEL_PATTERN})(\.{_LABEL_PATTERN})*\Z")


def text_matches(pattern: str, text: str) -> bool:
    """Return whether a text matches, upper and lower case told apart. Takes time in proportion to the text's length."""
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    *middle, last = others
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in middle:
        # The first place that fits leaves the most to the pieces behind it, so no other one need be tried.
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def host_matches(pattern: str, host: str) -> bool:
    """Return whether a host name matches, upper and lower case alike (RFC 4343)."""
    wanted, labels = pattern.lower().split("."), host.lower().split(".")
    if wanted[0] == "**":
        rest = len(wanted) - 1
        if len(labels) <= rest or not all(labels):
            return False
        wanted, labels = wanted[1:], labels[len(labels) - rest :]
    return len(wanted) == len(labels) and all(
        bool(label) and text_matches(each, label) for each, label in zip(wanted, labels, strict=True)
    )


def is_text_pattern(pattern: str) -> bool:
    """Return whether a text pattern says what its writer means: nothing but `*` is special, and it can match."""
    return (
        0 < len(pattern) <= MOST_PATTERN_CHARACTERS
        and pattern.strip() == pattern
        and is_visible(pattern)
        and not set(pattern) & set("?[]")
    )


def is_host_pattern(pattern: str) -> bool:
    """Return whether some host name (RFC 1034, 3.5) matches a host pattern."""
    if len(pattern) > MOST_PATTERN_CHARACTERS or not _HOST_PATTERN.match(pattern):
        return False
    return pattern == "**" or "**" not in pattern.removeprefix("**.")


def text_sample(pattern: str) -> str:
    """Return a text that matches."""
    return pattern.replace("*", "a")


def host_sample(pattern: str) -> str:
    """Return a host name that matches: one with a dot, wherever the pattern lets it have one."""
    *labels, last = pattern.removeprefix("**").split(".")
    labels = [label.replace("*", "4ca" if label.lower() == "xn--*" else "a") for label in labels]
    if pattern.startswith("**"):
        labels[:1] = ["a"]
    return ".".join([*labels, last.replace("*", "aa") or "example"])
