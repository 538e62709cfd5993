"""What all listeners share, and what a connection and a request see of theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.x509 import Certificate
from twisted.internet.interfaces import IReactorTime

from bmc_proxy.access import Access
from bmc_proxy.http.crowd import Crowd
from bmc_proxy.http.routes import Router
from bmc_proxy.sources import Allowance
from runtime.sparse import Sparse

BURST_S = 2.0
STRANGERS_SHARE = 1 / 20


class Allowances:
    """How many requests each source may make: as somebody who is known, and as a stranger.

    Args:
        clock: the reactor, or a `Clock`.
        per_s: requests a second of a source that is known.
    """

    def __init__(self, clock: IReactorTime, per_s: float) -> None:
        strangers = max(1.0, per_s * STRANGERS_SHARE)
        self._clock = clock
        self._known = Allowance(per_s, per_s * BURST_S)
        self._strange = Allowance(strangers, strangers * BURST_S)

    def take(self, source: str, *, is_known: bool) -> float:
        """Return 0 where one more request is allowed now, else in how many seconds."""
        allowance = self._known if is_known else self._strange
        return allowance.take(source, self._clock.seconds())


@dataclass(frozen=True, slots=True)
class Edge:
    """What all listeners share."""

    reactor: IReactorTime
    router: Router
    access: Access
    crowd: Crowd
    allowances: Allowances
    user_of: Callable[[Certificate], str | None]
    tell_of_stranger: Sparse


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
        certificate_user: whom its client certificate names.
        persistent: it lives on after the answer.
    """

    listener: Listener
    address: str
    certificate_user: str | None
    persistent: int | bool

    def request_line(self) -> tuple[bytes, bytes, bytes]: ...

    def loseConnection(self) -> None: ...
