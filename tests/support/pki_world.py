"""A proxy's cache of what agents publish, and the agent that it asks."""

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import Agents
from bmc_proxy.pki_cache import Publications
from protocol.records import (
    MAX_PART,
    Answer,
    GetPublished,
    Request,
)
from runtime.limits.networks import path_of
from support.publishing_agents import PublishingAgent, part_of

START = 1_000_000.0
CRL = bytes(at % 251 for at in range(2 * MAX_PART + 5))

DEADLINE_S = 30.0


class Outcome:
    """What becomes of an asker."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.value: Any = None
        self.failure: type[BaseException] | None = None
        self.deferred = Deferred.fromCoroutine(coroutine)
        self.deferred.addCallbacks(self._got, self._failed)

    def _got(self, value: Any) -> None:
        self.value = value

    def _failed(self, failure: Failure) -> None:
        self.failure = failure.type


class World:
    """One agent and the publications of a proxy that is connected to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.agent = PublishingAgent(self.clock)
        self.publications = Publications(Agents([self.agent.link]), self.clock, self.now, DEADLINE_S)
        self.agent.on_news = self.publications.look_anew

    def now(self) -> float:
        """Return the time of day."""
        return START + self.clock.seconds()

    @property
    def deadline(self) -> Deadline:
        """Of a request that comes now."""
        return Deadline.after(self.clock, DEADLINE_S)

    def publish(self, der: bytes = CRL, version: int = 1, next_update: float | None = None) -> None:
        """Have the agent publish this, of any kind and generation."""
        next_update_ms = 0 if next_update is None else int((START + next_update) * 1000)

        def answer(asked: Request) -> Answer:
            assert isinstance(asked, GetPublished)
            return part_of(asked, der, version, next_update_ms)

        self.agent.answer = answer

    def ask(self, generation: int = 1, asker: str = "192.0.2.1") -> Outcome:
        """Ask for a CRL; the agent does not hear of it yet."""
        return Outcome(self.publications.crl(generation, path_of(asker), self.deadline))

    def ask_ocsp(self, request: bytes = b"request", asker: str = "192.0.2.1") -> Outcome:
        """Send an OCSP request."""
        return Outcome(self.publications.ocsp(request, path_of(asker), self.deadline))

    def get(self, generation: int = 1) -> Any:
        """Return the CRL, or the class of what went wrong."""
        asked = self.ask(generation)
        self.agent.settle()
        return asked.value if asked.failure is None else asked.failure
