"""The HTTP edge of one listener: what its connections share."""

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall

from bmc_proxy.server.connection import ExchangeChannel
from bmc_proxy.server.context import Edge
from runtime import endpoints
from runtime.limits.token_bucket import source_of

LOOK_EVERY_S = 1.0


class ExchangeSite(Factory):
    """Makes an `ExchangeChannel` for each connection of one listener.

    Args:
        edge: what all listeners share.
        is_anonymous: whoever brings no credentials may have CSRs signed.
    """

    noisy = False

    def __init__(self, edge: Edge, *, is_anonymous: bool) -> None:
        self.edge = edge
        self.is_anonymous = is_anonymous
        self.channels: set[ExchangeChannel] = set()
        self.draining = False
        self._drained: Deferred[None] | None = None
        self._looking = LoopingCall(self._look)
        self._looking.clock = edge.reactor

    def startFactory(self) -> None:
        """Begin to look after what arrives slowly."""
        self._looking.start(LOOK_EVERY_S, now=False)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        assert addr is not None  # a listening port knows it
        host = endpoints.source_of(addr)
        source = source_of(host)
        if not self.edge.allowances.may_connect(source) or not self.edge.crowd.has_room_for(source):
            self.edge.tell_of_stranger("connection refused", address=host, reason="too many connections")
            return None
        channel = ExchangeChannel(self)
        channel.factory = self
        self.channels.add(channel)
        return channel

    def drain(self) -> Deferred[None]:
        """Close idle connections at once and the others with their answer; fires when all are gone."""
        self.draining = True
        done: Deferred[None] = Deferred()
        self._drained = done
        for channel in list(self.channels):
            channel.drain()
        self._tell_drained()
        return done

    def abandon(self) -> None:
        """Cut off what is still open."""
        for channel in list(self.channels):
            channel.abandon()

    def channel_lost(self, channel: object) -> None:
        """A connection is gone."""
        self.channels.discard(cast(ExchangeChannel, channel))
        self._tell_drained()

    def _look(self) -> None:
        now = self.edge.now()
        for channel in list(self.channels):
            channel.look(now)

    def _tell_drained(self) -> None:
        if self._drained is not None and not self.channels:
            if self._looking.running:
                self._looking.stop()
            drained, self._drained = self._drained, None
            drained.callback(None)
