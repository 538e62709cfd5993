"""What all listeners share, and what a connection and a request see of theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from bmc_proxy.api.router import Router
from bmc_proxy.api.types import CSR_BODY_LIMIT
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.client_certificates import ClientCertificate
from bmc_proxy.server.body_producer import Pouring
from runtime.limits.byte_quota import BodyRoom
from runtime.limits.crowd import Crowd
from runtime.limits.token_bucket import Allowance
from runtime.log_throttle import Sparse

BURST_S = 2.0
STRANGERS_SHARE = 1 / 20
# How many reads, beyond the few that any request takes, a source may cause for each request that it may make.
READS_PER_REQUEST = 20
# What there is room for, for each connection that may be: several times what any CSR takes.
BODY_OCTETS_PER_CONNECTION = 16 * 1024
LEAST_BODIES = 4


class Allowances:
    """How many requests each source may make: as somebody who is known, and as a stranger.

    Args:
        now: seconds, of a clock that goes forward.
        per_s: requests a second of a source that is known.
    """

    def __init__(self, now: Callable[[], float], per_s: float) -> None:
        strangers = max(1.0, per_s * STRANGERS_SHARE)
        self._now = now
        self._known = Allowance(per_s, per_s * BURST_S)
        self._strange = Allowance(strangers, strangers * BURST_S)
        self._connections = Allowance(per_s, per_s * BURST_S)
        self._refusals = Allowance(per_s, per_s * BURST_S)
        self._reads = Allowance(per_s * READS_PER_REQUEST, per_s * READS_PER_REQUEST * BURST_S)

    def take(self, source: str, *, is_known: bool) -> float:
        """Return 0 where one more request is allowed now, else in how many seconds."""
        allowance = self._known if is_known else self._strange
        return allowance.take(source, self._now())

    def may_connect(self, source: str) -> bool:
        """Return whether one more connection is allowed now: as many as requests of somebody who is known."""
        return self._connections.take(source, self._now()) == 0

    def may_be_refused(self, source: str) -> bool:
        """Return whether one more request may be refused on a connection that lives on.

        A refusal costs nearly what an answer does. Past as many as answers, each costs the client its connection, and
        connections have an allowance of their own.
        """
        return self._refusals.take(source, self._now()) == 0

    def take_read(self, source: str) -> float:
        """Return 0 where one more read is allowed now, else in how many seconds.

        A read costs the same whether it brings one octet or thousands, and TLS makes one of each record.
        """
        return self._reads.take(source, self._now())


def body_room(connections: int) -> BodyRoom:
    """Return room for the bodies of so many connections at once: for none less than a few of the largest."""
    return BodyRoom(max(connections * BODY_OCTETS_PER_CONNECTION, LEAST_BODIES * CSR_BODY_LIMIT))


@dataclass(frozen=True, slots=True)
class Edge:
    """What all listeners share.

    Attributes:
        now: seconds, of a clock that goes forward, whatever becomes of the time of day.
        room: for bodies, over all listeners.
        certificate_of: reads the client certificate of a transport, if there is one.
        tell_of_stranger: logs what anybody can cause.
        deadline_s: how long a request may take.
    """

    reactor: IReactorTime
    now: Callable[[], float]
    router: Router
    access: Access
    crowd: Crowd
    room: BodyRoom
    allowances: Allowances
    certificate_of: Callable[[object], ClientCertificate | None]
    tell_of_stranger: Sparse
    deadline_s: float


class Listener(Protocol):
    """What a connection sees of the site that made it.

    Attributes:
        is_anonymous: whoever brings no credentials may have CSRs signed.
        draining: no further request is taken on any connection.
    """

    edge: Edge
    is_anonymous: bool
    draining: bool

    def channel_lost(self, channel: object) -> None: ...


class Channel(Protocol):
    """What a request sees of its connection.

    Attributes:
        address: where it comes from.
        source: what counts as one source of that address.
        certificate: its client's, which OpenSSL accepted when it began.
        is_tls: it is encrypted.
        persistent: it lives on after the answer.
    """

    listener: Listener
    address: str
    source: str
    is_tls: bool
    certificate: ClientCertificate | None
    persistent: bool

    def __hash__(self) -> int: ...

    def write(self, octets: bytes) -> None: ...

    def pour(self, pouring: Pouring, octets: int) -> None: ...

    def request_done(self) -> None: ...
