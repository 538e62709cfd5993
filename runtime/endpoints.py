"""Endpoint descriptions: parsing them, which are private to this machine, and how a bound port is written down."""

import ipaddress
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import IAddress, IReactorCore, IStreamClientEndpoint, IStreamServerEndpoint

from runtime.lifecycle import ConfigError


def server_endpoint(reactor: IReactorCore, option: str, description: str) -> IStreamServerEndpoint:
    """Return the endpoint that a description given for `option` names, or raise ConfigError."""
    accepted = "tcp:PORT:interface=127.0.0.1 or unix:PATH"
    endpoint: IStreamServerEndpoint = _parsed(serverFromString, reactor, option, description, accepted)
    return endpoint


def client_endpoint(reactor: IReactorCore, option: str, description: str) -> IStreamClientEndpoint:
    """Return the endpoint that a description given for `option` names, or raise ConfigError."""
    accepted = "tcp:HOST:PORT or unix:PATH"
    endpoint: IStreamClientEndpoint = _parsed(clientFromString, reactor, option, description, accepted)
    return endpoint


def _parsed(parse: Callable[..., Any], reactor: IReactorCore, option: str, description: str, accepted: str) -> Any:
    try:
        return parse(reactor, description)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{option} {description!r} is not an endpoint: {error}. Accepted: {accepted}.") from error


def is_local(description: str) -> bool:
    """Return whether a Twisted server endpoint description can only be reached from this machine.

    True for `unix:` and for `tcp:` with a loopback `interface`. Anything else, a name or a type that is not known
    included, is taken to be reachable.
    """
    kind, _, rest = description.partition(":")
    if kind == "unix":
        return True
    if kind != "tcp":
        return False
    # A colon inside a value is written "\:" (twisted.internet.endpoints).
    arguments = [part.replace("\0", ":") for part in rest.replace("\\:", "\0").split(":")]
    interfaces = [part.removeprefix("interface=") for part in arguments if part.startswith("interface=")]
    try:
        return len(interfaces) == 1 and ipaddress.ip_address(interfaces[0]).is_loopback
    except ValueError:
        return False


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
