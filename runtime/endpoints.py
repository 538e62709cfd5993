"""Endpoint descriptions: parsing them, which are private to this machine, and how a bound port is written down."""

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReactorCore,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)

from runtime.lifecycle import ConfigError, StartError

LOCAL_ENDPOINTS = r"tcp:PORT:interface=127.0.0.1, tcp:PORT:interface=\:\:1 or unix:PATH"


def server_endpoint(reactor: IReactorCore, option: str, description: str) -> IStreamServerEndpoint:
    """Return the endpoint that a description given for `option` names, or raise ConfigError.

    A unix socket is open to its own user only, unless the description says another `mode`.
    """
    accepted = LOCAL_ENDPOINTS
    if description.startswith("unix:"):
        # The lock file that Twisted would lay beside the socket holds a pid, which another process may bear by now.
        description += ":lockfile=0" + ("" if ":mode=" in description else ":mode=600")
    endpoint: IStreamServerEndpoint = _parsed(serverFromString, reactor, option, description, accepted)
    return endpoint


def client_endpoint(reactor: IReactorCore, option: str, description: str) -> IStreamClientEndpoint:
    """Return the endpoint that a description given for `option` names, or raise ConfigError."""
    accepted = "tcp:HOST:PORT or unix:PATH"
    endpoint: IStreamClientEndpoint = _parsed(clientFromString, reactor, option, description, accepted)
    return endpoint


def _parsed(parse: Callable[..., Any], reactor: IReactorCore, option: str, description: str, accepted: str) -> Any:
    try:
        for port in _tcp_ports(description):
            if not 0 <= port <= 65535:
                raise ValueError(f"port {port} is not in 0 to 65535")
        return parse(reactor, description)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{option} {description!r} is not an endpoint: {error}. Accepted: {accepted}.") from error


async def listen_locally(
    endpoint: IStreamServerEndpoint, factory: IProtocolFactory, description: str
) -> IListeningPort:
    """Listen, and make sure of what `is_local` promised.

    Raises:
        StartError: the address is taken, cannot be made, or can be reached from other machines.
    """
    if description.startswith("unix:"):
        _remove_dead_socket(_arguments(description)[0])
    try:
        port: IListeningPort = await endpoint.listen(factory)
    except (CannotListenError, OSError) as error:
        cause = getattr(error, "socketError", error)
        text = f"cannot listen on {description}: {cause}. Choose another address, or stop what uses it."
        raise StartError(text) from error
    address = port.getHost()
    if not isinstance(address, UNIXAddress) and not _is_loopback(str(getattr(address, "host", ""))):
        await maybeDeferred(port.stopListening)
        raise StartError(f"{description} listens on {describe(address)}, which other machines can reach.")
    return port


def is_local(description: str) -> bool:
    """Return whether a Twisted server endpoint description can only be reached from this machine.

    True for `unix:` and for `tcp:` with a loopback `interface`. Anything else, a name or a type that is not known
    included, is taken to be reachable.
    """
    if _has_odd_escapes(description):
        return False
    interfaces = [part.removeprefix("interface=") for part in _arguments(description) if part.startswith("interface=")]
    return description.startswith("unix:") or (
        description.startswith("tcp:") and len(interfaces) == 1 and _is_loopback(interfaces[0])
    )


def is_local_peer(description: str) -> bool:
    """Return whether a Twisted client endpoint description leads to this machine: `unix:`, or `tcp:` to loopback."""
    if _has_odd_escapes(description):
        return False
    first, *others = _arguments(description) or [""]
    # A key that stands twice counts for Twisted where it stands last, so each must be loopback.
    hosts = [first, *(part for part in others if part.startswith("host="))]
    return description.startswith("unix:") or (
        description.startswith("tcp:") and all(_is_loopback(host.removeprefix("host=")) for host in hosts)
    )


def _has_odd_escapes(description: str) -> bool:
    """Return whether anything but a colon is escaped: Twisted takes escapes anywhere, even inside a key's name."""
    return "\\" in description.replace("\\:", "")


def _arguments(description: str) -> list[str]:
    """Return what follows the type. A colon inside a value is written "\\:" (twisted.internet.endpoints)."""
    parts = description.replace("\\:", "\0").split(":")[1:]
    return [part.replace("\0", ":") for part in parts]


def _tcp_ports(description: str) -> list[int]:
    """Return the numbers among the arguments of a `tcp:` description: Twisted leaves their range to the socket."""
    if not description.startswith("tcp:"):
        return []
    parts = [part.removeprefix("port=") for part in _arguments(description)]
    return [int(part) for part in parts if part.removeprefix("-").isdecimal()]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _remove_dead_socket(path: str) -> None:
    """Remove a unix socket that nobody listens on, such as a killed process leaves behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # nothing there, or not a socket: listening will tell


def describe(address: IAddress) -> str:
    """Return a bound or peer address as text: "tcp:127.0.0.1:7700", "unix:/run/agent.sock"."""
    match address:
        case IPv4Address(host=host, port=port):
            return f"tcp:{host}:{port}"
        case IPv6Address(host=host, port=port):
            return f"tcp:[{host}]:{port}"
        case UNIXAddress(name=name):
            return "unix:" + (name.decode(errors="replace") if name else "")
        case _:
            return str(address)
