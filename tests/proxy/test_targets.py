"""Request targets: one reading of each, as RFC 9112, 3.2 and RFC 3986 have it."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmc_proxy.http1.request_target import is_host, is_origin_of, path_of

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


HTTP, HTTPS = (b"http",), (b"https",)
ORIGINS = [
    (b"https://bmc", b"bmc", HTTPS, True),
    (b"https://bmc:443", b"bmc", HTTPS, True),
    (b"https://bmc", b"bmc:443", HTTPS, True),
    (b"http://bmc:80", b"bmc", HTTP, True),
    (b"https://bmc:8443", b"bmc:8443", HTTPS, True),
    (b"HTTPS://BMC", b"bmc", HTTPS, True),
    (b"https://bmc", b"BMC", HTTPS, True),
    (b"https://[::1]:8443", b"[::1]:8443", HTTPS, True),
    (b"https://[0:0::1]", b"[::1]:443", HTTPS, True),
    (b"https://[FE80::1]", b"[fe80::1]", HTTPS, True),
    (b"http://bmc", b"bmc", HTTPS, False),
    (b"https://bmc", b"bmc", HTTP, False),
    (b"https://bmc:80", b"bmc", HTTPS, False),
    (b"https://bmc", b"bmc:80", HTTPS, False),
    (b"https://bmc:8443", b"bmc", HTTPS, False),
    (b"https://bmc.", b"bmc", HTTPS, False),
    (b"https://evil.bmc", b"bmc", HTTPS, False),
    (b"https://[::1]", b"[::2]", HTTPS, False),
    (b"https://[::1]", b"::1", HTTPS, False),
    (b"null", b"bmc", HTTPS, False),
    (b"null", b"null", HTTPS, False),
    (b"", b"", HTTPS, False),
    (b"https://", b"", HTTPS, False),
    (b"bmc", b"bmc", HTTPS, False),
    (b"file://bmc", b"bmc", HTTPS, False),
    (b"https://bmc/", b"bmc", HTTPS, False),
    (b"https://a@bmc", b"bmc", HTTPS, False),
    (b"https://bmc https://evil", b"bmc", HTTPS, False),
    (b"https://bmc:00443", b"bmc", HTTPS, True),
    (b"https://bmc:", b"bmc:" + b"0" * 5_000 + b"443", HTTPS, True),
    (b"https://bmc:65535", b"bmc:65535", HTTPS, True),
    (b"https://bmc:100000", b"bmc:100000", HTTPS, False),
    (b"https://bmc:" + b"9" * 5_000, b"bmc", HTTPS, False),
]


@pytest.mark.parametrize(("origin", "host", "schemes", "expected"), ORIGINS)
def test_is_origin_of(origin: bytes, host: bytes, schemes: tuple[bytes, ...], expected: bool) -> None:
    """Scheme, host and port are compared, each in its one spelling; an opaque origin is nobody's."""
    assert is_origin_of(origin, host, schemes) is expected
