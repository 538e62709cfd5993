"""Request targets and Host (RFC 9112, 3.2)."""

import re

_TARGET = re.compile(rb"[!-~]+")
# uri-host [":" port] (RFC 9110, 7.2): a name or an IPv4 address, or an IPv6 address in brackets.
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_SCHEMES = (b"http", b"https")


def path_of(target: bytes) -> bytes:
    """Return the path in a request target, which may be in absolute form (RFC 9112, 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in _SCHEMES:
        target = b"/" + rest.partition(b"/")[2]
    return target.partition(b"?")[0]


def is_target(method: bytes, target: bytes) -> bool:
    """Return whether a target has a form that a server takes: an origin's or an absolute one, or * with OPTIONS.

    The authority form is for tunnels, which there are none of.
    """
    if _TARGET.fullmatch(target) is None:
        return False
    if target.startswith(b"/"):
        return True
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in _SCHEMES:
        authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
        return bool(authority) and not authority.startswith(b":") and is_host(authority)
    return method == b"OPTIONS" and target == b"*"


def is_host(value: bytes) -> bool:
    """Return whether this is what a Host header may say, which includes nothing."""
    return _AUTHORITY.fullmatch(value) is not None
