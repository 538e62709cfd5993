"""Headers: those that every answer has, and what a request's say about who asks."""

import base64
import binascii

from twisted.web.http_headers import Headers

from bmc_proxy.callers import Credentials

FIXED_HEADERS = {
    b"Content-Type": b"application/json",
    b"Cache-Control": b"no-store",
    b"Content-Security-Policy": b"default-src 'none'; frame-ancestors 'none'",
    b"Referrer-Policy": b"no-referrer",
    b"Strict-Transport-Security": b"max-age=31536000; includeSubDomains",
    b"X-Content-Type-Options": b"nosniff",
    b"X-Frame-Options": b"DENY",
}

# What older and newer firmware calls the cookie.
SESSION_COOKIES = ("BMCWEB-SESSION", "SESSION")
XSRF_COOKIE = "XSRF-TOKEN"
_COOKIE_ATTRIBUTES = "; Path=/; SameSite=Strict; Secure"


def login_cookies(token: str, xsrf_token: str) -> tuple[str, ...]:
    """Return the Set-Cookie values of a login. The XSRF token is for scripts to read, the session's is not."""
    session = f"{SESSION_COOKIES[0]}={token}{_COOKIE_ATTRIBUTES}; HttpOnly"
    return session, f"{XSRF_COOKIE}={xsrf_token}{_COOKIE_ATTRIBUTES}"


def logout_cookies() -> tuple[str, ...]:
    """Return the Set-Cookie values that take a login's away."""
    return tuple(f"{name}={_COOKIE_ATTRIBUTES}; Max-Age=0" for name in (SESSION_COOKIES[0], XSRF_COOKIE))


def credentials_in(headers: Headers, method: bytes, certificate_user: str | None) -> Credentials:
    """Return what a request brings to be known by. What cannot be read is as good as not there."""
    return Credentials(
        certificate_user=certificate_user,
        token=_one(headers, b"X-Auth-Token"),
        cookie_tokens=_session_cookies(headers),
        xsrf_token=_one(headers, b"X-XSRF-TOKEN"),
        basic=_basic(headers),
        writes=method not in (b"GET", b"HEAD"),
    )


def is_cross_site(headers: Headers) -> bool:
    """Return whether a browser says that a page of another site sent this (Fetch Metadata; RFC 6454, 7).

    Basic and client certificates go along with whatever a browser sends, so they would make such a page's wish ours.
    """
    if _one(headers, b"Sec-Fetch-Site") in ("cross-site", "same-site"):
        return True
    origins = headers.getRawHeaders(b"Origin", [])
    return any(origin.partition(b"://")[2] != (headers.getRawHeaders(b"Host") or [b""])[0] for origin in origins)


def names_etag(headers: Headers, etag: str) -> bool:
    """Return whether If-None-Match says that the client has this (RFC 9110, 13.1.2)."""
    named = b",".join(headers.getRawHeaders(b"If-None-Match", [])).decode("latin-1")
    return any(each.strip().removeprefix("W/") in (etag, "*") for each in named.split(","))


def _one(headers: Headers, name: bytes) -> str | None:
    values = headers.getRawHeaders(name, [])
    return values[0].decode("latin-1") if len(values) == 1 and values[0] else None


def _session_cookies(headers: Headers) -> tuple[str, ...]:
    found = []
    for line in headers.getRawHeaders(b"Cookie", []):
        for pair in line.decode("latin-1").split(";"):
            name, _, value = pair.strip().partition("=")
            if name in SESSION_COOKIES:
                found.append(value)
    return tuple(found[:4])


def _basic(headers: Headers) -> tuple[str, str] | None:
    """Return user and password of an Authorization header (RFC 7617, in UTF-8)."""
    scheme, _, value = (_one(headers, b"Authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
