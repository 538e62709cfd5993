"""Headers: those that every answer has, and what a request's say about who asks."""

import base64
import binascii

from bmc_proxy.auth.client_certificates import ClientCertificate
from bmc_proxy.auth.principal import Credentials
from bmc_proxy.http1.request_head import Head
from bmc_proxy.http1.request_target import is_origin_of

FIXED_HEADERS = {
    "Content-Type": "application/json",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# What older and newer firmware calls the cookie.
SESSION_COOKIES = ("BMCWEB-SESSION", "SESSION")
XSRF_COOKIE = "XSRF-TOKEN"
_COOKIE_ATTRIBUTES = "; Path=/; SameSite=Strict; Secure"


# What reverse proxies and content networks add; `X-Forwarded-…` beside them.
_OF_FORWARDERS = frozenset(
    {
        b"via",
        b"forwarded",
        b"cdn-loop",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-envoy-external-address",
        b"x-proxyuser-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"fastly-client-ip",
    }
)


def login_cookies(token: str, xsrf_token: str) -> tuple[str, ...]:
    """Return the Set-Cookie values of a login. The XSRF token is for scripts to read, the session's is not."""
    session = f"{SESSION_COOKIES[0]}={token}{_COOKIE_ATTRIBUTES}; HttpOnly"
    return session, f"{XSRF_COOKIE}={xsrf_token}{_COOKIE_ATTRIBUTES}"


def logout_cookies() -> tuple[str, ...]:
    """Return the Set-Cookie values that take a login's away."""
    return tuple(f"{name}={_COOKIE_ATTRIBUTES}; Max-Age=0" for name in (SESSION_COOKIES[0], XSRF_COOKIE))


def credentials_in(head: Head, certificate: ClientCertificate | None) -> Credentials:
    """Return what a request brings to be known by. What cannot be read is as good as not there."""
    return Credentials(
        certificate=certificate,
        token=_one(head, b"x-auth-token"),
        cookie_tokens=_session_cookies(head) if b"cookie" in head else (),
        xsrf_token=_one(head, b"x-xsrf-token"),
        basic=_basic(head) if b"authorization" in head else None,
        writes=head.method not in (b"GET", b"HEAD"),
    )


def is_cross_site(head: Head, *, is_tls: bool) -> bool:
    """Return whether a browser says that a page of another site sent this (Fetch Metadata; RFC 6454, 7).

    Basic and client certificates go along with whatever a browser sends, so they would make such a page's wish ours.

    Args:
        head: of the request.
        is_tls: it came over TLS, so a page of ours came by https. Without TLS that is http, unless the browser itself
            says that the page has the origin of what it asked for: then something in front of us ended its TLS.
    """
    sites = head.values(b"sec-fetch-site")
    if any(site in (b"cross-site", b"same-site") for site in sites):
        return True
    if b"origin" not in head:
        return False
    schemes = (b"https",) if is_tls else (b"http", b"https") if list(sites) == [b"same-origin"] else (b"http",)
    host = (head.values(b"host") or [b""])[0]
    return not all(is_origin_of(origin, host, schemes) for origin in head.values(b"origin"))


def is_forwarded(head: Head) -> bool:
    """Return whether a reverse proxy says that it sends this on for somebody else (RFC 7239; RFC 9110, 7.6.3)."""
    return any(name in _OF_FORWARDERS or name.startswith(b"x-forwarded") for name in head.names())


def _one(head: Head, name: bytes) -> str | None:
    values = head.values(name)
    return values[0].decode("latin-1") if len(values) == 1 and values[0] else None


def _session_cookies(head: Head) -> tuple[str, ...]:
    found = []
    for line in head.values(b"cookie"):
        for pair in line.decode("latin-1").split(";"):
            name, _, value = pair.strip().partition("=")
            if name in SESSION_COOKIES:
                found.append(value)
    return tuple(found[:4])


def _basic(head: Head) -> tuple[str, str] | None:
    """Return user and password of an Authorization header (RFC 7617, in UTF-8)."""
    scheme, _, value = (_one(head, b"authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
