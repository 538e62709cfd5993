"""The proxy's HTTP edge in memory: real accounts, sessions and dialects on a clock that the test moves."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import Logger

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.pool import Agents
from bmc_proxy.agents.queue import Door
from bmc_proxy.api.ibm import Ibm
from bmc_proxy.api.openbmc_rest import Phosphor
from bmc_proxy.api.pki import Pki
from bmc_proxy.api.redfish import Redfish
from bmc_proxy.api.router import Router
from bmc_proxy.api.types import Dialect
from bmc_proxy.auth.account_service import OwnAdministration
from bmc_proxy.auth.accounts import Account, AccountStore, Role
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.backends import AccountChecker
from bmc_proxy.auth.login import Logins
from bmc_proxy.auth.login_service import OwnEntrance
from bmc_proxy.auth.passwords import hash_password
from bmc_proxy.auth.sessions import Sessions
from bmc_proxy.auth.work_queue import WorkQueue
from bmc_proxy.pki_cache import Publications
from bmc_proxy.root_cache import RootCache
from bmc_proxy.server.context import Allowances, Edge, body_room
from bmc_proxy.server.site import ExchangeSite
from bmc_proxy.signing import Exchange
from runtime.limits.crowd import Crowd
from runtime.log_throttle import Sparse

_log = Logger()

PASSWORD = "-".join(["in", "memory", "only"])


class Wire(StringTransport):
    """What a channel writes to; closed when it is aborted."""

    is_half_closed = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """A TCP transport has this."""

    def abortConnection(self) -> None:
        """Close at once."""
        super().abortConnection()
        self.connected = False

    def loseWriteConnection(self) -> None:
        """Close this direction alone."""
        self.is_half_closed = True

    def unregisterProducer(self) -> None:
        """Forget the producer; a TCP transport does not mind where there is none."""
        self.producer = None


@dataclass
class Spoken:
    """One connection to the edge."""

    channel: Protocol
    wire: Wire
    clock: Clock

    def say(self, octets: bytes) -> None:
        """Send octets; those behind a request have their turn as well."""
        self.channel.dataReceived(octets)
        self.clock.advance(0)

    def answers(self) -> list[tuple[int, dict[str, str], Any]]:
        """Return status, headers and JSON of the answers that are new since the last call."""
        return [(status, headers, json.loads(body)) for status, headers, body in self.raw_answers()]

    def raw_answers(self) -> list[tuple[int, dict[str, str], bytes]]:
        """Return status, headers and body of these answers; none of them is to HEAD."""
        found, octets = [], self.wire.value()
        self.wire.clear()
        while octets:
            head, _, rest = octets.partition(b"\r\n\r\n")
            lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
            headers = {name.lower(): value for name, _, value in lines}
            length = int(headers.get("content-length", 0))
            found.append((int(re.split(rb" ", head)[1]), headers, rest[:length]))
            octets = rest[length:]
        return found


@dataclass
class TestEdge:
    """The edge, its clock, and its one listener."""

    __test__ = False  # pytest: no tests in here

    clock: Clock
    accounts: AccountStore
    sessions: Sessions
    site: ExchangeSite

    def connect(self, host: str = "192.0.2.1") -> Spoken:
        """Connect from an address."""
        address = IPv4Address("TCP", host, 40_000)
        channel = self.site.buildProtocol(address)
        wire = Wire(peerAddress=address)
        channel.makeConnection(wire)
        return Spoken(channel, wire, self.clock)


def edge_in(
    directory: Path,
    *,
    requests_per_s: int = 1000,
    limit: int = 512,
    is_anonymous: bool = False,
    clock: Clock | None = None,
    links: Sequence[AgentLink] = (),
    deadline_s: float = 30.0,
    hashing: Callable[..., Deferred[Any]] = maybeDeferred,
) -> TestEdge:
    """Build an edge with the one account "root", and agents if there are to be some."""
    clock = clock or Clock()
    accounts = AccountStore(directory)
    accounts.add(Account("root", Role.ADMINISTRATOR, hash_password(PASSWORD)))

    sessions = Sessions(clock.seconds, 1800)
    queue = WorkQueue(clock)
    logins = Logins(accounts, AccountChecker(accounts, hashing), queue, clock.seconds)
    access = Access(accounts, sessions, OwnEntrance(logins, sessions))
    administration = OwnAdministration(accounts, sessions, logins, queue, hashing)
    agents = Agents(links)
    door = Door(clock, agents, 256)
    agents.on_room = door.look
    exchange = Exchange(agents, door, RootCache(directory, clock.seconds, clock.seconds, lambda _reason: None), 30)
    publications = Publications(agents, clock, clock.seconds, 30)
    dialects: list[Dialect] = [
        Phosphor(exchange, access),
        Ibm(exchange),
        Redfish(access, administration, "uuid"),
        Pki(publications, clock.seconds),
    ]
    allowances = Allowances(clock.seconds, requests_per_s)
    edge = Edge(
        clock,
        clock.seconds,
        Router(dialects),
        access,
        Crowd(limit),
        body_room(limit),
        allowances,
        lambda _certificate: None,
        Sparse(_log.info, clock.seconds),
        deadline_s,
    )
    site = ExchangeSite(edge, is_anonymous=is_anonymous)
    site.doStart()
    return TestEdge(clock, accounts, sessions, site)


class NarrowTransport(StringTransport):
    """A transport that takes so much and then tells its producer to wait, as a socket's does."""

    def write(self, data: bytes) -> None:
        """Take it, and say where it was enough."""
        super().write(data)
        if len(self.value()) > 65_536:
            assert self.producer is not None
            self.producer.pauseProducing()
