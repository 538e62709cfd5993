"""Request targets, Host and Origin (RFC 9112, 3.2; RFC 9110, 7.2; RFC 6454, 7)."""

import re
from collections.abc import Collection
from contextlib import suppress
from ipaddress import IPv6Address

# RFC 3986, 3.5: no fragment, which readers end the path at or take for a part of it.
_OCTETS = re.compile(rb"[!-\"$-~]+")
# uri-host [":" port] (RFC 9110, 7.2): a name or an IPv4 address, or an IPv6 address in brackets. A port has 16 bits.
_AUTHORITY = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::0*[0-9]{0,5})?"
_HOST = re.compile(_AUTHORITY)
_ORIGIN = re.compile(rb"(?P<scheme>(?i:https?))://(?P<authority>" + _AUTHORITY + rb")")
_DEFAULT_PORTS = {b"http": 80, b"https": 443}
# A path that is not empty begins with a slash, and a query with the first question mark (RFC 3986, 3.3 and 3.4).
_ORIGIN_FORM = re.compile(rb"(/[^?]*)(?:\?.*)?")
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://(?!:)(?P<authority>" + _AUTHORITY + rb")(?P<path>/[^?]*)?(?:\?.*)?")


def path_of(method: bytes, target: bytes) -> bytes | None:
    """Return the path of a request target; None for one of a form that a server does not take.

    That is an origin's or an absolute one, of which an empty path means "/", or "*" with OPTIONS. The authority form is
    for tunnels, and there are no tunnels here.
    """
    if _OCTETS.fullmatch(target) is None:
        return None
    if found := _ORIGIN_FORM.fullmatch(target):
        return found[1]
    found = _ABSOLUTE_FORM.fullmatch(target)
    if found is not None and found["authority"]:
        return found["path"] or b"/"
    return target if (method, target) == (b"OPTIONS", b"*") else None


def is_origin_of(origin: bytes, host: bytes, schemes: Collection[bytes]) -> bool:
    """Return whether an Origin is the one that a page of this host has (RFC 6454, 4): scheme, host and port.

    Args:
        origin: of a request, such as `https://bmc:8443`; `null` is nobody's.
        host: of the Host header of the same request.
        schemes: in lower case, that the page may have come by. The port that goes without saying is the scheme's.
    """
    found = _ORIGIN.fullmatch(origin)
    if found is None or found["scheme"].lower() not in schemes:
        return False
    default = _DEFAULT_PORTS[found["scheme"].lower()]
    return bool(found["authority"]) and _place(found["authority"], default) == _place(host, default)


def _place(authority: bytes, default_port: int) -> tuple[bytes, int]:
    """Return host and port, in the one spelling of each."""
    host, port = authority.lower(), default_port
    if not host.endswith(b"]"):
        name, colon, digits = host.rpartition(b":")
        if colon:
            host, port = name, int(digits.lstrip(b"0") or b"0") if digits else default_port
    if host.startswith(b"["):
        with suppress(ValueError):
            host = IPv6Address(host[1:-1].decode()).packed
    return host, port


def is_host(value: bytes) -> bool:
    """Return whether this is what a Host header may say, which includes nothing."""
    return _HOST.fullmatch(value) is not None
