"""Request targets: one reading of each, as RFC 9112, 3.2 and RFC 3986 have it."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmc_proxy.http.targets import is_host, path_of

TARGETS = [
    # Origin form.
    (b"GET", b"/", b"/"),
    (b"GET", b"/login", b"/login"),
    (b"GET", b"/login?", b"/login"),
    (b"GET", b"/login?a=/b?c", b"/login"),
    (b"GET", b"//a/login", b"//a/login"),
    (b"GET", b"/http://a/b", b"/http://a/b"),
    (b"GET", b"/?http://a/login", b"/"),
    (b"GET", b"/%2F", b"/%2F"),
    # Absolute form.
    (b"GET", b"http://a/login", b"/login"),
    (b"GET", b"HTTPS://A:1/login?b", b"/login"),
    (b"GET", b"http://a", b"/"),
    (b"GET", b"http://a:", b"/"),
    (b"GET", b"http://a/", b"/"),
    (b"GET", b"http://a?/login", b"/"),
    (b"GET", b"http://a?b=http://c/login", b"/"),
    (b"GET", b"http://a:80?/login", b"/"),
    (b"GET", b"http://[::1]:8443/login", b"/login"),
    (b"GET", b"http://[::1]?/login", b"/"),
    (b"GET", b"http://a//login", b"//login"),
    # What a server does not take.
    (b"GET", b"", None),
    (b"GET", b"*", None),
    (b"OPTIONS", b"*", b"*"),
    (b"OPTIONS", b"**", None),
    (b"CONNECT", b"a:443", None),
    (b"GET", b"login", None),
    (b"GET", b"?/login", None),
    (b"GET", b"http:/a/login", None),
    (b"GET", b"http:///login", None),
    (b"GET", b"http://?/login", None),
    (b"GET", b"http://:80/login", None),
    (b"GET", b"http://a@b/login", None),
    (b"GET", b"http://a:b/login", None),
    (b"GET", b"http://a:1:2/login", None),
    (b"GET", b"http://a\\b/login", None),
    (b"GET", b"http://[::1/login", None),
    (b"GET", b"ftp://a/login", None),
    (b"GET", b"file:///login", None),
    (b"GET", b"/login#x", None),
    (b"GET", b"http://a#/login", None),
    (b"GET", b"/lo gin", None),
    (b"GET", b"/log\xffin", None),
    (b"GET", b"/log\x7fin", None),
]


@pytest.mark.parametrize(("method", "target", "path"), TARGETS)
def test_path_of(method: bytes, target: bytes, path: bytes | None) -> None:
    """Each form of a target has one path, and any other form has none."""
    assert path_of(method, target) == path


@given(st.text("htps:/?a1[].@#*%", max_size=24).map(str.encode))
def test_path_of_agrees_with_urllib(target: bytes) -> None:
    """What is taken in absolute form is read as Python's own reader does."""
    for each in (target, b"http://" + target, b"http://a" + target):
        path = path_of(b"GET", each)
        if path is not None and not each.startswith(b"/"):
            try:
                found = urlsplit(each)
            except ValueError:
                continue  # an IPv6 address that is none
            assert found.netloc
            assert path == (found.path or b"/")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"", True), (b"a", True), (b"a:1", True), (b"[::1]:1", True), (b"a/b", False), (b"a b", False), (b"a@b", False)],
)
def test_is_host(value: bytes, expected: bool) -> None:
    """A Host header holds a name or address and perhaps a port."""
    assert is_host(value) is expected
