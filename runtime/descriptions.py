"""Endpoint descriptions, as text: which have TLS, and which are private to this machine."""

import ipaddress

from runtime.errors import ConfigError

LOCAL_ENDPOINTS = r"tcp:PORT:interface=127.0.0.1, tcp:PORT:interface=\:\:1 or unix:PATH"

_TLS = "tls:"
# What both ends of the channel can be of; Twisted knows more.
_CHANNEL_TYPES = ("tls", "tcp", "unix")


def check_channel_type(option: str, description: str, accepted: str) -> None:
    """Refuse a description for the channel that begins with another type, such as a mistyped one.

    Args:
        option: that it was given for.
        accepted: examples, for the refusal.

    Raises:
        ConfigError: naming the type and those that are accepted.
    """
    kind = description.partition(":")[0]
    if kind not in _CHANNEL_TYPES:
        *most, last = _CHANNEL_TYPES
        text = f"{option} {description!r} is not an endpoint: {kind!r} is not {', '.join(most)} or {last}."
        raise ConfigError(f"{text} Accepted: {accepted}.")


def has_tls(description: str) -> bool:
    """Return whether a description is one of `tls:`."""
    return description.startswith(_TLS)


def without_tls(description: str) -> str:
    """Return the description of what TLS is put on."""
    return "tcp:" + description.removeprefix(_TLS) if has_tls(description) else description


def is_local(description: str) -> bool:
    """Return whether a Twisted server endpoint description can only be reached from this machine.

    True for `unix:` and for `tcp:` with a loopback `interface`. Anything else, a name or a type that is not known
    included, is taken to be reachable.
    """
    if _has_odd_escapes(description):
        return False
    interfaces = [part.removeprefix("interface=") for part in arguments(description) if part.startswith("interface=")]
    return description.startswith("unix:") or (
        description.startswith("tcp:") and len(interfaces) == 1 and is_loopback(interfaces[0])
    )


def is_local_peer(description: str) -> bool:
    """Return whether a Twisted client endpoint description leads to this machine: `unix:`, or `tcp:` to loopback."""
    if _has_odd_escapes(description):
        return False
    first, *others = arguments(description) or [""]
    # A key that stands twice counts for Twisted where it stands last, so each must be loopback.
    hosts = [first, *(part for part in others if part.startswith("host="))]
    return description.startswith("unix:") or (
        description.startswith("tcp:") and all(is_loopback(host.removeprefix("host=")) for host in hosts)
    )


def _has_odd_escapes(description: str) -> bool:
    """Return whether anything but a colon is escaped: Twisted takes escapes anywhere, even inside a key's name."""
    return "\\" in description.replace("\\:", "")


def arguments(description: str) -> list[str]:
    """Return what follows the type. A colon inside a value is written "\\:" (twisted.internet.endpoints)."""
    parts = description.replace("\\:", "\0").split(":")[1:]
    return [part.replace("\0", ":") for part in parts]


def tcp_ports(description: str) -> list[int]:
    """Return the numbers among the arguments of a `tcp:` description: Twisted leaves their range to the socket."""
    if not description.startswith("tcp:"):
        return []
    parts = [part.removeprefix("port=") for part in arguments(description)]
    return [int(part) for part in parts if part.removeprefix("-").isdecimal()]


def is_loopback(host: str) -> bool:
    """Return whether an address, not a name, is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
