"""Endpoint descriptions: parsing them, which are private to this machine, and how a bound port is written down.

Twisted's own, and `tls:`, which is `tcp:` with TLS on it (Twisted has it for clients only, with other arguments).
"""

import os
import socket
import stat
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import clientFromString, serverFromString, wrapClientTLS
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReactorCore,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory

from runtime.descriptions import LOCAL_ENDPOINTS, arguments, is_loopback, tcp_ports, without_tls
from runtime.errors import ConfigError, StartError
from runtime.tls import TlsContext

# Connections that wait until they are accepted; the kernel has a limit of its own (net.core.somaxconn).
BACKLOG = 1024


def server_endpoint(reactor: IReactorCore, option: str, description: str) -> IStreamServerEndpoint:
    """Return the endpoint that a description given for `option` names, or raise ConfigError.

    `tls:` is not put on yet: see `with_tls`. A unix socket is open to its own user only, unless the description says
    another `mode`.
    """
    if description.startswith("unix:"):
        # The lock file that Twisted would lay beside the socket holds a pid, which another process may bear by now.
        description += ":lockfile=0" + ("" if ":mode=" in description else ":mode=600")
    accepted = f"{LOCAL_ENDPOINTS}, tls:PORT"
    endpoint: IStreamServerEndpoint = _parsed(_with_backlog, reactor, option, description, accepted)
    return endpoint


def client_endpoint(reactor: IReactorCore, option: str, description: str) -> IStreamClientEndpoint:
    """Return the endpoint that a description given for `option` names, or raise ConfigError; `tls:` as above."""
    accepted = "tls:HOST:PORT, tcp:127.0.0.1:PORT or unix:PATH"
    endpoint: IStreamClientEndpoint = _parsed(clientFromString, reactor, option, description, accepted)
    return endpoint


def connect_with_tls(endpoint: IStreamClientEndpoint, context: TlsContext) -> IStreamClientEndpoint:
    """Return the endpoint with TLS on it."""
    wrapped: IStreamClientEndpoint = wrapClientTLS(context, endpoint)
    return wrapped


def _with_backlog(reactor: IReactorCore, description: str) -> Any:
    """Parse a description, with a longer queue than Twisted's 50 where it names none.

    While the queue is full the kernel turns away whoever comes, honest ones for a second or more.
    """
    if description.startswith(("tcp:", "unix:")) and ":backlog=" not in description:
        description += f":backlog={BACKLOG}"
    parse: Callable[..., IStreamServerEndpoint] = serverFromString  # whose types Twisted has not told
    return parse(reactor, description)


def _parsed(parse: Callable[..., Any], reactor: IReactorCore, option: str, description: str, accepted: str) -> Any:
    plain = without_tls(description)
    try:
        for port in tcp_ports(plain):
            if not 0 <= port <= 65535:
                raise ValueError(f"port {port} is not in 0 to 65535")
        return parse(reactor, plain)
    except TypeError as error:
        text = f"{option} {description!r} is not an endpoint: it has too few arguments, or too many."
        raise ConfigError(f"{text} Accepted: {accepted}.") from error
    except (LookupError, ValueError, OSError) as error:
        raise ConfigError(f"{option} {description!r} is not an endpoint: {error}. Accepted: {accepted}.") from error


async def listen(
    endpoint: IStreamServerEndpoint, factory: IProtocolFactory, description: str, *, locally: bool
) -> IListeningPort:
    """Listen; where it must be `locally`, make sure of what `is_local` promised.

    Raises:
        StartError: the address is taken, cannot be made, or can be reached from other machines and must not.
    """
    if description.startswith("unix:"):
        _remove_dead_socket(arguments(description)[0])
    try:
        port: IListeningPort = await endpoint.listen(factory)
    except (CannotListenError, OSError) as error:
        cause = getattr(error, "socketError", error)
        text = f"cannot listen on {description}: {cause}. Choose another address, or stop what uses it."
        raise StartError(text) from error
    address = port.getHost()
    if locally and not isinstance(address, UNIXAddress) and not is_loopback(str(getattr(address, "host", ""))):
        await maybeDeferred(port.stopListening)
        raise StartError(f"{description} listens on {describe(address)}, which other machines can reach.")
    return port


async def check_can_listen(listeners: Sequence[tuple[IStreamServerEndpoint, str, bool]]) -> None:
    """Listen on all of these at once, and stop again; whoever connects meanwhile is closed.

    Args:
        listeners: an endpoint, its description and whether it must be `locally`, as `listen` takes them.

    Raises:
        StartError: as `listen` does.
    """
    ports: list[IListeningPort] = []
    try:
        for endpoint, description, locally in listeners:
            ports.append(await listen(endpoint, _Closed(), description, locally=locally))
    finally:
        for port in ports:
            await maybeDeferred(port.stopListening)


class _Closed(Factory):
    """Closes every connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> None:
        return None


def _remove_dead_socket(path: str) -> None:
    """Remove a unix socket that nobody listens on, such as a killed process leaves behind; never another file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # to connect to it is refused as well
    except OSError:
        return  # nothing there: listening will tell
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # nothing there, or not a socket: listening will tell


def source_of(address: IAddress) -> str:
    """Return what counts as one source of connections: a peer's address without its port, "unix"."""
    return "unix" if isinstance(address, UNIXAddress) else str(getattr(address, "host", "-"))


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
