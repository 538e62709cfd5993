"""Composition root of the agent: builds the parts, starts and stops them."""

from functools import partial

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from protocol.records import Role
from runtime import channel_tls, state_dir
from runtime.descriptions import has_tls, without_tls
from runtime.endpoints import describe, listen, server_endpoint
from runtime.errors import StartError
from runtime.files import FileRefused
from runtime.lifecycle import DRAIN_S, Reactor, within
from runtime.reload import Reloadable
from runtime.tls import TlsFactory
from runtime.transport import make_hello, new_boot_id
from vmi_agent import authority
from vmi_agent.authority import Authority
from vmi_agent.config import Config
from vmi_agent.custody import CustodyError
from vmi_agent.dispatch import Dispatch
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.issuing import Issuing, utc_now
from vmi_agent.ledger import Ledger
from vmi_agent.ledger_rows import check_not_missing
from vmi_agent.profile_file import load_profiles
from vmi_agent.profile_lint import check
from vmi_agent.server import AgentServer

_log = Logger()


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
        self._signers = ThreadPool(config.signers, config.signers, name="signers")
        self._ports: list[IListeningPort] = []
        self._lock: state_dir.StateDirLock | None = None
        self._ledger: Ledger | None = None
        self._server: AgentServer | None = None
        self._tls: Reloadable | None = None

    async def start(self) -> dict[str, object]:
        """Lint the profiles, open the state directory, make the CA where there is none, and listen."""
        config = self._config
        check(self._profiles, utc_now())
        self._lock = state_dir.claim(config.state_dir)
        try:
            ca = self._open_state()
        except (CustodyError, LedgerUnavailable) as error:
            raise StartError(str(error)) from error
        assert self._ledger is not None  # opened with the state
        if self._ledger.abandoned_at_start:
            _log.warn("intents without certificate closed off", count=self._ledger.abandoned_at_start)
        issuing = Issuing(ca, self._ledger, self._profiles, utc_now)
        self._server = AgentServer(
            clock=self._reactor,
            dispatch=Dispatch(ca, issuing, _report),
            make_hello=partial(
                make_hello, Role.AGENT, new_boot_id(), window=config.window, root_generation=ca.generation
            ),
            in_thread=partial(deferToThreadPool, self._reactor, self._signers),
            max_requests=config.max_requests,
            uids=config.uids,
        )
        self._signers.start()
        addresses = [
            await self._listen(self._server, endpoint, description)
            for endpoint, description in zip(self._endpoints, config.listen, strict=True)
        ]
        return {"listen": addresses, "root_generation": ca.generation}

    async def stop(self) -> None:
        """Take no new connection, let what is under way finish, then close everything in the order of its making."""
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        if self._server is not None:
            if not await within(self._reactor, DRAIN_S, self._server.drain()):
                abandoned = self._server.admission.admitted
                _log.warn("requests abandoned" if abandoned else "a proxy took no part in the drain", count=abandoned)
            await self._server.disconnect()  # bounded: a peer that does not read is cut off after LAST_WORD_S
        if self._signers.started:
            self._signers.stop()
        if self._ledger is not None:
            self._ledger.close()
        if self._lock is not None:
            self._lock.release()

    def reload(self) -> None:
        """Take the channel's credentials anew."""
        if self._tls is not None:
            self._tls.reload()

    async def _listen(self, server: AgentServer, endpoint: IStreamServerEndpoint, description: str) -> str:
        factory: IProtocolFactory = server
        if has_tls(description):
            try:
                load = partial(channel_tls.channel_context, self._config.state_dir / channel_tls.FILE_NAME)
                self._tls = self._tls or Reloadable("channel", load)
            except FileRefused as error:
                raise StartError(str(error)) from error
            factory = TlsFactory(self._tls.context, server)
        elif description.startswith("tcp:"):
            _log.warn("plain TCP: every user of this machine can ask for certificates here", listen=description)
        port = await listen(endpoint, factory, without_tls(description), locally=not has_tls(description))
        self._ports.append(port)
        address = describe(port.getHost())
        return "tls:" + address.removeprefix("tcp:") if has_tls(description) else address

    def _open_state(self) -> Authority:
        state_dir, key_type = self._config.state_dir, self._config.key_type
        if authority.exists(state_dir):
            check_not_missing(state_dir)
            ca = authority.load(state_dir)
            self._ledger = Ledger(state_dir)
            return ca
        self._ledger = Ledger(state_dir)  # before the CA: a CA without a ledger is refused
        ca = authority.create(state_dir, key_type, utc_now())
        _log.info("CA made", root_generation=ca.generation, key_type=key_type)
        return ca


def _report(error: BaseException, csr_sha256: bytes) -> None:
    _log.failure("request failed", Failure(error), csr_sha256=csr_sha256.hex())
