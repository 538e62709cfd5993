"""Patterns: what a star stands for, and that no pattern is slow."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmi_agent.policy.patterns import (
    host_matches,
    host_sample,
    is_host_pattern,
    is_text_pattern,
    text_matches,
    text_sample,
)

HOST_PATTERNS = st.from_regex(r"(\*\*|[a-b*-]{1,4})(\.[a-b*-]{1,4}){0,3}", fullmatch=True).filter(is_host_pattern)
HOSTS = st.from_regex(r"[a-b]{1,4}(\.[a-b]{1,4}){0,4}", fullmatch=True)


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
@example("a*a", "a")
@example("*ab*ab", "abab")
@example("", "")
def test_text_matches_as_the_shell_does(pattern: str, text: str) -> None:
    """A star stands for any characters, none included, as in a shell."""
    assert text_matches(pattern, text) == fnmatchcase(text, pattern)


@given(st.text("*ab\0", min_size=1, max_size=20), st.text("ab\n.", max_size=40))
def test_text_sample_matches(pattern: str, text: str) -> None:
    """The sample of a pattern matches it, and a text matches itself."""
    assert text_matches(pattern, text_sample(pattern))
    assert text_matches(text, text)


def test_text_matches_tells_case_apart() -> None:
    """Upper and lower case differ."""
    assert text_matches("HMC*", "HMC1")
    assert not text_matches("HMC*", "hmc1")


def test_text_matches_takes_no_time() -> None:
    """What makes a regular expression try until doomsday is over within this test's own time limit."""
    assert not text_matches("*a" * 126 + "*b", "a" * 1_000_000)
    assert text_matches("*a" * 126, "a" * 1_000_000)


@given(HOST_PATTERNS, HOSTS)
@example("*", "a.b")
@example("a*", "a.b")
@example("*.b", "a.a.b")
def test_host_matches_never_across_a_dot(pattern: str, host: str) -> None:
    """Without `**` a match has as many labels as the pattern, each matching its own."""
    if pattern.startswith("**"):
        return
    wanted, labels = pattern.split("."), host.split(".")
    each_matches = len(wanted) == len(labels) and all(map(fnmatchcase, labels, wanted))
    assert host_matches(pattern, host) == each_matches


@given(HOST_PATTERNS)
def test_host_sample_matches(pattern: str) -> None:
    """The sample of a host pattern matches it, in any case."""
    assert host_matches(pattern, host_sample(pattern))
    assert host_matches(pattern.upper(), host_sample(pattern))


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("*.hmc.example.com", "a.hmc.example.com", True),
        ("*.hmc.example.com", "A.HMC.example.COM", True),
        ("*.hmc.example.com", "hmc.example.com", False),
        ("*.hmc.example.com", ".hmc.example.com", False),
        ("*.hmc.example.com", "a.b.hmc.example.com", False),
        ("*.hmc.example.com", "a.hmc.example.com.evil.example", False),
        ("*.hmc.example.com", "a.hmc.example.com.", False),
        ("hmc*.example.com", "hmc.example.com", True),
        ("hmc*.example.com", "hmc12.example.com", True),
        ("hmc*.example.com", "hmc1.evil.example.com", False),
        ("**.example.com", "a.example.com", True),
        ("**.example.com", "a.b.c.example.com", True),
        ("**.example.com", "example.com", False),
        ("**.example.com", "a..example.com", False),
        ("**.example.com", "aexample.com", False),
        ("**", "a", True),
        ("**", "a.b", True),
        ("**", "", False),
        ("*", "a", True),
        ("*", "a.b", False),
    ],
)
def test_host_matches(pattern: str, host: str, expected: bool) -> None:
    """A star stays within its label; two stars are one or more whole labels at the front."""
    assert host_matches(pattern, host) is expected


@pytest.mark.parametrize("pattern", ["", "a" * 254, "a?", "[a]", " a", "a\n", "a\0"])
def test_is_text_pattern_refuses(pattern: str) -> None:
    """What its writer means otherwise, or what nothing matches, is no pattern."""
    assert not is_text_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "a.", ".a", "a..b", "-a", "a-", "a.**", "***", "a**", "a b", "a" * 64, "a/b"])
def test_is_host_pattern_refuses(pattern: str) -> None:
    """What no host name matches, or what could be taken for more, is no pattern."""
    assert not is_host_pattern(pattern)


def test_patterns_at_their_longest() -> None:
    """A pattern may be as long as a host name."""
    assert is_text_pattern("a" * 253)
    assert is_host_pattern(".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]))
    assert not is_host_pattern(".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 62]))
