"""The whole path of a request in one thread: exchange, links, streams, agent, issuing, ledger; all real, and breakable.

Nothing happens by itself. Octets arrive, time passes and blocking work takes its steps when the test says so; only the
ledger's own writer is a thread that is let alone, as everybody waits for it.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from sqlalchemy import select
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import Agents
from bmc_proxy.agents.queue import Door
from bmc_proxy.errors import ExchangeError
from bmc_proxy.root_cache import RootCache
from bmc_proxy.signing import Exchange, Requester
from runtime.clock import milliseconds
from support.agents import START, Time, create_ca, open_agent
from support.memory_stream import Stream
from support.octets import AGENT_HELLO, ASKER_HELLO
from support.stepped_work import Work, stop_at
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import Custody, CustodyError, Pace
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import FILE_NAME, PENDING, issuance
from vmi_agent.server import AgentServer

DEADLINE_S = 10.0
WINDOW = 3
AT_ONCE = 2
MAX_REQUESTS = 4
MAX_WAITING = 4


class BreakableCustody:
    """A key that stops before and after it signs, can be away, and can go wrong; it signs nothing unrecorded.

    Attributes:
        state: "good", "away" or "wrong".
        unrecorded: what it was to sign and was in no intent.
    """

    pace = Pace.ELSEWHERE

    def __init__(self, custody: Custody, ledger: Ledger) -> None:
        self.state = "good"
        self.unrecorded: list[bytes] = []
        self._custody = custody
        self._ledger = ledger

    @property
    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """The key's public half."""
        return self._custody.public_key

    def sign(self, tbs: bytes) -> bytes:
        """Return the signature over `tbs`, or what a broken key makes of it."""
        recorded = select(issuance.c.serial).where(issuance.c.tbs == tbs, issuance.c.status == PENDING)
        if self._ledger.read(lambda connection: connection.execute(recorded).first()) is None:
            self.unrecorded.append(tbs)
        stop_at("the key")
        if self.state == "away":
            raise CustodyError("the key is away")
        signature = self._custody.sign(b"other" if self.state == "wrong" else tbs)
        stop_at("the record of the signature")
        return signature

    def close(self) -> None:
        """Let go of the key."""
        self._custody.close()


class AgentLife:
    """An agent from its start to its end, whichever that is, on one state directory."""

    def __init__(self, state_dir: Path, time: Time) -> None:
        self.state_dir = state_dir
        self.clock = Clock()
        self.works: list[Work] = []
        self.is_draining = False
        self._time = time
        self._open = ExitStack()
        self.parts = self._open.enter_context(open_agent(state_dir, time))
        generations = self.parts.generations
        self.custody = BreakableCustody(generations.current.custody, self.parts.ledger)
        generations.current = replace(generations.current, custody=self.custody)
        self.server = AgentServer(
            clock=self.clock,
            dispatch=self.parts.dispatch,
            make_hello=lambda: replace(AGENT_HELLO, window=WINDOW),
            in_thread=self._in_thread,
            as_walk=partial(self._in_thread, self.parts.go),
            at_once=AT_ONCE,
            max_requests=MAX_REQUESTS,
            note=self._note,
        )

    def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        work = Work(partial(call, *arguments))
        self.works.append(work)
        return work.done

    def _note(self, event: str, fields: Mapping[str, object]) -> None:
        with suppress(LedgerUnavailable):
            self.parts.ledger.note(Event(event, milliseconds(self._time()), fields))

    def step(self, number: int) -> None:
        """Let one of the works go on."""
        work = self.works[number]
        if work.step():
            self.works.remove(work)

    def drain(self) -> None:
        """Take nothing new."""
        if not self.is_draining:
            self.is_draining = True
            self.server.drain()

    def end(self) -> None:
        """Close what is open, in good order or after a crash."""
        for work in self.works:
            work.crash()
        self._open.close()


@implementer(IStreamClientEndpoint)
@dataclass(eq=False)
class MemoryEndpoint:
    """Where the agent listens, if it does."""

    path: "WholePath"

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect, or be refused."""
        return self.path.connect(factory)


@dataclass(eq=False)
class WholePath:
    """A proxy's parts with links to one agent, and the agent, which comes and goes.

    Args:
        directory: an empty one.
        ca: a state directory with a CA, which is copied.
        links: how many connections the proxy keeps to the agent.

    Attributes:
        reachable_from: when connections to the agent are let in again.
        bugs: what was raised and nobody expected.
        failures: what all agents reported as their own.
    """

    directory: Path
    ca: Path
    links: int
    reachable_from: float = 0.0
    streams: list[Stream] = field(default_factory=list)
    bugs: list[Failure] = field(default_factory=list)
    unrecorded: list[bytes] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.time = Time()
        self.clock = Clock()
        self._lives = 0
        self._ports = 0
        self.agent: AgentLife | None = None
        self.state_dir = self._new_state_dir(self.ca)
        self.start_agent()
        self.agent_links = [
            AgentLink(self.clock, MemoryEndpoint(self), f"agent {number}", lambda: ASKER_HELLO, self._ready)
            for number in range(self.links)
        ]
        agents = Agents(self.agent_links)
        proxy_state = self.directory / "proxy"
        proxy_state.mkdir()
        roots = RootCache(proxy_state, lambda: self.time().timestamp(), self.clock.seconds, lambda _reason: None)
        self.door = Door(self.clock, agents, MAX_WAITING)
        agents.on_room = self.door.look
        self.exchange = Exchange(agents, self.door, roots, DEADLINE_S)
        self._agents = agents
        agents.start()

    def _ready(self, link: AgentLink) -> None:
        learning = Deferred.fromCoroutine(self.exchange.learn_root(link))
        learning.addErrback(lambda failure: None if failure.check(ExchangeError) else self.bugs.append(failure))

    def ask(self, der: bytes, requester: Requester, key: str | None) -> "Deferred[list[str]]":
        """Have a CSR signed, as the HTTP edge does: the chain comes, or an error, and by the deadline."""
        deadline = Deadline.after(self.clock, DEADLINE_S)
        signing = Deferred.fromCoroutine(self.exchange.sign_csr(der, requester, key, deadline))
        asking = Deferred.fromCoroutine(deadline.limit(signing))
        self.look()
        return asking

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect to the agent that is there."""
        self._ports += 1
        address = IPv4Address("TCP", "127.0.0.1", self._ports)
        agent = None
        if self.agent is not None and not self.agent.is_draining and self.clock.seconds() >= self.reachable_from:
            agent = self.agent.server.buildProtocol(address)
        if agent is None:
            return fail(ConnectionRefusedError())  # type: ignore[no-untyped-call]  # Twisted has not typed it
        proxy = factory.buildProtocol(address)
        assert proxy is not None
        stream = Stream(proxy, agent, self._ports)
        self.streams.append(stream)
        stream.open()
        return succeed(proxy)

    # What happens

    def move(self, number: int, *, to_agent: bool, octets: int) -> bool:
        """Let octets arrive on one of the streams."""
        moved = self.streams[number].move(to_agent=to_agent, octets=octets)
        self.look()
        return moved

    def pass_time(self, seconds: float, *, octets_arrive: bool = False) -> None:
        """Let time pass for everybody, in small parts."""
        while seconds > 0:
            if octets_arrive:
                self.deliver_all()
            part = min(seconds, 0.5 if seconds < 60 else 5.0)
            seconds -= part
            self.time.advance(seconds=part)
            self.clock.advance(part)
            if self.agent is not None:
                self.agent.clock.advance(part)
            self.look()

    def look(self) -> None:
        """Let everybody do what is due now."""
        for stream in list(self.streams):
            stream.look()
        self.clock.advance(0)
        self.streams = [stream for stream in self.streams if not stream.is_over]

    def deliver_all(self) -> None:
        """Let everything arrive that is under way, and what that leads to, but for blocking work."""
        while sum(stream.move(to_agent=way, octets=1 << 20) for stream in list(self.streams) for way in (True, False)):
            self.look()

    def step_all(self) -> None:
        """Let each thread of the agent take a step."""
        for work in list(self.agent.works) if self.agent is not None else ():
            assert self.agent is not None
            self.agent.step(self.agent.works.index(work))
        self.look()

    def come_to_rest(self, seconds: float) -> None:
        """Let everything arrive and all work be done, while so much time passes."""
        while seconds > 0:
            self.deliver_all()
            while self.agent is not None and self.agent.works:
                self.agent.step(0)
                self.deliver_all()
            self.pass_time(0.5)
            seconds -= 0.5

    # The agent's process

    def start_agent(self) -> None:
        """Start an agent on what the last one left."""
        self.agent = AgentLife(self.state_dir, self.time)

    def crash_agent(self, arrives: int) -> None:
        """End the agent's process where it stands; so many octets of what it had written still arrive.

        What is on the disk now is what the next one finds: the files as they are, with nothing closed.
        """
        assert self.agent is not None
        self.find_ledger()
        image = self._new_state_dir(self.state_dir)
        self._forget_agent()
        self.state_dir = image
        for stream in list(self.streams):
            stream.lose_agent(arrives)
        self.look()

    def stop_agent(self) -> None:
        """End the agent in good order, after what it is at."""
        assert self.agent is not None
        self.find_ledger()
        self.agent.drain()
        self.come_to_rest(1.0)
        self.agent.server.disconnect()
        self.come_to_rest(2.0)
        self._forget_agent()

    def _forget_agent(self) -> None:
        assert self.agent is not None
        self.agent.end()
        self.unrecorded += self.agent.custody.unrecorded
        self.failures += self.agent.parts.failures
        self.agent = None

    def _new_state_dir(self, source: Path) -> Path:
        self._lives += 1
        return Path(shutil.copytree(source, self.directory / f"life {self._lives}"))

    def lose_ledger(self) -> None:
        """Take the ledger's file away: nothing can be recorded."""
        ledger = self.state_dir / FILE_NAME
        if ledger.exists():
            ledger.rename(ledger.with_suffix(".away"))

    def find_ledger(self) -> None:
        """Put it back."""
        away = (self.state_dir / FILE_NAME).with_suffix(".away")
        if away.exists():
            away.rename(self.state_dir / FILE_NAME)

    def heal(self) -> None:
        """Let everything be well again; an agent that is draining makes room for its successor."""
        self.find_ledger()
        self.reachable_from = 0.0
        if self.agent is not None and self.agent.is_draining:
            self.stop_agent()
        if self.agent is None:
            self.start_agent()
        assert self.agent is not None
        self.agent.custody.state = "good"

    def close(self) -> list[object]:
        """Stop both; return what is left on their clocks, which should be nothing."""
        stopped = Deferred.fromCoroutine(self._agents.stop())
        stopped.addErrback(self.bugs.append)
        self.come_to_rest(3.0)
        assert stopped.called
        clocks = [self.clock]
        if self.agent is not None:
            clocks.append(self.agent.clock)
            self.stop_agent()
        return [call for clock in clocks for call in clock.getDelayedCalls()]


def make_ca(directory: Path) -> Path:
    """Make a state directory with a CA; return it."""
    create_ca(directory, now=START)
    return directory
