"""Composition root of the agent: builds the parts, starts and stops them."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from protocol.records import Hello, Role
from runtime import state_dir
from runtime.clock import milliseconds, refuse_before_build, utc_now
from runtime.descriptions import has_tls, without_tls
from runtime.endpoints import check_can_listen, describe, listen, server_endpoint
from runtime.errors import StartError
from runtime.files import FileRefused
from runtime.lifecycle import DRAIN_S, Reactor, within
from runtime.log_throttle import Sparse
from runtime.reload import Reloadable, channel_reloadable
from runtime.threads import Workers
from runtime.tls import TlsFactory
from runtime.transport import make_hello, new_boot_id
from vmi_agent import preflight
from vmi_agent.ca import authority
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca.authority import Generations
from vmi_agent.config import Config
from vmi_agent.errors import CheckpointFailed, LedgerUnavailable
from vmi_agent.handlers import Dispatch
from vmi_agent.issuance.issue import Issuing
from vmi_agent.issuance.scheduler import Walk, Walks, recorded
from vmi_agent.keys import CustodyError
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.trusted_time import read_times
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import check_ca_not_missing, check_not_missing
from vmi_agent.maintenance import Upkeep
from vmi_agent.policy.profile_file import load_profiles
from vmi_agent.policy.profile_lint import check
from vmi_agent.revocation.ocsp import OcspResponder
from vmi_agent.revocation.ocsp_signer import Responders
from vmi_agent.revocation.publisher import Publishing
from vmi_agent.server import OCSP_AT_ONCE, AgentServer

# How soon what a command did beside the agent is taken in.
ROUND_S = 0.5
# What is left of the ten seconds of a stop for a round under way.
UPKEEP_S = 0.5

# What a disk, a token or a ledger can do to us; everything else is a bug, and told with a traceback.
_EXPECTED = (OSError, SQLAlchemyError, sqlite3.Error, LedgerUnavailable, CustodyError)

_log = Logger()
_warn = Sparse(_log.warn, time.monotonic)


class AgentApplication:
    """The agent as a process runs it.

    Args:
        reactor: runs it.
        config: judged already.

    Raises:
        ConfigError: a --listen is not an endpoint, or a profile is refused.
    """

    def __init__(self, reactor: Reactor, config: Config) -> None:
        self._reactor = reactor
        self._config = config
        self._endpoints = [server_endpoint(reactor, "--listen", each) for each in config.listen]
        self._profiles = load_profiles(config.profiles)
        self._walks: Walks | None = None
        self._responders = ThreadPool(0, OCSP_AT_ONCE, name="OCSP")
        self._upkeep_thread = Workers(reactor, 1, "upkeep")
        self._rounds: LoopingCall | None = None
        self._upkeep: Upkeep | None = None
        self._told = (0, 0)
        self._ports: list[IListeningPort] = []
        self._boot_id = new_boot_id()
        self._lock: state_dir.StateDirLock | None = None
        self._ledger: Ledger | None = None
        self._generations: Generations | None = None
        self._server: AgentServer | None = None
        self._tls: Reloadable | None = None

    async def start(self) -> dict[str, object]:
        """Check whatever can be, then open the state directory, make the CA where there is none, and listen."""
        config = self._config
        refuse_before_build(utc_now(), accepted=config.accept_clock)
        check(self._profiles, utc_now(), authority.pointers(config.publishing.publish_at, 1))
        preflight.check(config)
        listeners = zip(self._endpoints, config.listen, strict=True)
        await check_can_listen([(endpoint, without_tls(each), not has_tls(each)) for endpoint, each in listeners])
        self._lock = lock = state_dir.claim(config.state_dir, shared=config.shared)
        try:
            ledger = self._open_ledger(alone=lock.is_alone)
            self._generations = generations = self._open_ca(ledger)
            ledger.note(_event("started", self._started(ledger, generations)))
        except (CustodyError, LedgerUnavailable) as error:
            raise StartError(str(error)) from error
        lock.started()
        self._upkeep = upkeep = self._build(ledger, generations)
        self._told = upkeep.round()  # before anybody asks: there is a CRL from the beginning
        assert self._walks is not None  # just built
        self._walks.start()
        self._responders.start()
        self._upkeep_thread.start()
        assert self._server is not None  # just built
        addresses = [
            await self._listen(self._server, endpoint, description)
            for endpoint, description in zip(self._endpoints, config.listen, strict=True)
        ]
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = self._reactor
        self._rounds.start(ROUND_S, now=False)
        return {"listen": addresses, "root_generation": generations.current.generation}

    async def stop(self) -> None:
        """Take no new connection, let what is under way finish, then close everything in the order of its making."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._server is not None:
            if not await within(self._reactor, DRAIN_S, self._server.drain()):
                abandoned = self._server.admission.under_way + self._server.admission.waiting
                _log.warn("requests abandoned" if abandoned else "a proxy took no part in the drain", count=abandoned)
            await self._server.disconnect()  # bounded: a peer that does not read is cut off after LAST_WORD_S
            self._server.stranger_audit.finish()
        if self._rounds is not None:
            self._rounds.stop()
        if not await self._upkeep_thread.stop(UPKEEP_S):
            _log.warn("a round of upkeep goes on")
        if self._responders.started:
            assert self._walks is not None  # started before
            self._walks.stop()
            self._responders.stop()
        if self._ledger is not None:
            self._close(self._ledger)
        if self._generations is not None:
            self._generations.close()
        if self._lock is not None:
            self._lock.release()

    def reload(self) -> None:
        """Take the channel's credentials anew."""
        if self._tls is not None:
            self._tls.reload()

    # Opening

    @property
    def _process(self) -> dict[str, object]:
        """What tells agents apart that share an audit."""
        return {"boot_id": self._boot_id.hex(), "shared": self._config.shared}

    def _started(self, ledger: Ledger, generations: Generations) -> dict[str, object]:
        clock = ledger.read(read_times).fields(ledger.trusted_ms)
        return {"root_generation": generations.current.generation, **self._process, **clock}

    def _open_ledger(self, *, alone: bool) -> Ledger:
        path = self._config.state_dir
        if authority.exists(path):
            check_not_missing(path)
        # Before the CA: a CA without a ledger is refused.
        self._ledger = ledger = Ledger(path, utc_now(), _tell_of_ledger, alone=alone)
        if ledger.is_new and authority.exists(path):
            _log.warn("ledger begun anew: what was issued and revoked before is forgotten; rotate the CA")
            ledger.note(_event("ledger begun anew", {}))
        if ledger.abandoned_at_start:
            _log.warn("intents without certificate closed off", count=ledger.abandoned_at_start)
        return ledger

    def _open_ca(self, ledger: Ledger) -> Generations:
        config = self._config
        path, publish_at, now = config.state_dir, config.publishing.publish_at, utc_now()
        if not authority.exists(path):
            check_ca_not_missing(path)
        ephemeral = None
        if config.ephemeral_ca:
            preflight.refuse_ephemeral(config)
            ephemeral = ca_lifecycle.create_ephemeral(path, config.key_type, now, ledger.note, publish_at=publish_at)
        elif not authority.exists(path):
            ca_lifecycle.refuse_while_requested(path)
            root = ca_lifecycle.create(path, config.key_type, config.access, now, ledger.note)
            _log.info("CA made", subject=root.subject.rfc4514_string(), key_type=config.key_type)
        return Generations(path, config.access, publish_at, now, _not_usable, ephemeral)

    def _build(self, ledger: Ledger, generations: Generations) -> Upkeep:
        config = self._config

        def hello() -> Hello:
            root_generation = generations.current.generation
            return make_hello(Role.AGENT, self._boot_id, window=config.window, root_generation=root_generation)

        validity, period = config.publishing.crl_validity, config.publishing.crl_period
        publishing = Publishing(generations, ledger, validity, period, utc_now)
        responders = Responders(config.state_dir, config.access.passphrase, ledger, utc_now)
        responder = OcspResponder(generations, responders, ledger, utc_now, partial(_report, "OCSP request failed"))
        issuing = Issuing(lambda: generations.current, self._profiles, utc_now)
        self._walks = Walks(ledger, partial(self._reactor.callFromThread, _deliver), config.signers, _end_at_once)
        report = partial(_report, "request failed")
        self._server = AgentServer(
            clock=self._reactor,
            dispatch=Dispatch(generations, issuing, publishing, responder, utc_now, report),
            make_hello=hello,
            in_thread=partial(deferToThreadPool, self._reactor, self._responders),
            as_walk=partial(_as_walk, self._walks),
            at_once=config.signers,
            max_requests=config.max_requests,
            uids=config.uids,
            note=partial(_note_peer, self._walks),
        )
        return Upkeep(generations, publishing, responder, ledger, config.anchor_to, config.keep_expired, utc_now)

    async def _listen(self, server: AgentServer, endpoint: IStreamServerEndpoint, description: str) -> str:
        factory: IProtocolFactory = server
        if has_tls(description):
            try:
                self._tls = self._tls or channel_reloadable(self._config.state_dir)
            except FileRefused as error:
                raise StartError(str(error)) from error
            factory = TlsFactory(self._tls.context, server)
        elif description.startswith("tcp:"):
            _log.warn("plain TCP: every user of this machine can ask for certificates here", listen=description)
        port = await listen(endpoint, factory, without_tls(description), locally=not has_tls(description))
        self._ports.append(port)
        address = describe(port.getHost())
        return "tls:" + address.removeprefix("tcp:") if has_tls(description) else address

    # Running

    def _round(self) -> Deferred[None]:
        assert self._upkeep is not None  # there are rounds
        if self._tls is not None:
            self._tls.look()
        done = self._upkeep_thread.run(self._upkeep.round).addCallback(self._tell_proxies)
        return done.addErrback(partial(_log.failure, "a round of upkeep failed"))  # and the next one is tried

    def _tell_proxies(self, status: tuple[int, int]) -> None:
        if status != self._told:
            self._told = status
            assert self._server is not None  # it was started
            root_generation, crl_number = status
            self._server.tell_status(root_generation, crl_number)

    def _close(self, ledger: Ledger) -> None:
        if self._upkeep is not None:  # it was started
            try:
                ledger.note(_event("stopped", self._process | self._upkeep.clock_fields()))
            except LedgerUnavailable as error:
                _log.warn("the audit does not tell of this stop", reason=str(error))
            try:
                self._upkeep.write_anchor()
            except (LedgerUnavailable, OSError) as error:
                _log.warn("audit not anchored", reason=str(error))
        ledger.close()


def _as_walk(walks: Walks, function: Callable[..., Walk[Any]], *arguments: Any) -> Deferred[Any]:
    done: Deferred[Any] = Deferred()
    walks.begin(function(*arguments), done)
    return done


def _deliver(over: Sequence[tuple[Deferred[Any], Any]]) -> None:
    """Fire the Deferreds of walks that are over, on the reactor's thread."""
    for done, result in over:
        done.callback(Failure(result) if isinstance(result, BaseException) else result)


def _end_at_once(error: BaseException) -> None:
    """End this process, of which nobody would ever get an answer again; whoever starts the next one sees that."""
    _log.failure("requests are not gone on with: this process ends", Failure(error))
    os.kill(os.getpid(), signal.SIGKILL)  # nothing that is under way can be waited for


def _event(name: str, fields: Mapping[str, object]) -> Event:
    return Event(name, milliseconds(datetime.now(UTC)), fields)


def _note_peer(walks: Walks, name: str, fields: Mapping[str, object]) -> None:
    """Tell the audit of a channel's peer; nobody waits for it, and the log has it as well."""

    async def note() -> None:
        await recorded(_event(name, fields))

    def not_noted(failure: Failure) -> None:
        _log.warn("audit not written", audit_event=name, reason=failure.getErrorMessage())

    _as_walk(walks, note).addErrback(not_noted)


def _not_usable(generation: int, reason: str) -> None:
    _log.warn("older generation of the CA not usable: no more CRLs of it", root_generation=generation, reason=reason)


def _tell_of_ledger(unavailable: LedgerUnavailable | None) -> None:
    if unavailable is None:
        _log.info("ledger written again")
        return
    is_checkpoint = isinstance(unavailable, CheckpointFailed)
    what = "ledger's checkpoint failed" if is_checkpoint else "ledger cannot be written, nothing is issued"
    if isinstance(unavailable.__cause__, _EXPECTED):
        _log.error(what, reason=str(unavailable))
    else:
        _log.failure(what, Failure(unavailable.__cause__))


def _report(what: str, error: BaseException, csr_sha256: bytes = b"") -> None:
    if isinstance(error, _EXPECTED):
        _warn(what, reason=str(error))
    else:
        _log.failure(what, Failure(error), csr_sha256=csr_sha256.hex())
