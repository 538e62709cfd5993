"""Where client certificates let in: the CAs, `--client-crl` and the agents' own CRLs, loaded and kept current."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.queue import Door
from bmc_proxy.auth import client_crls
from bmc_proxy.auth.client_certificates import AuthorityId, ClientCertificates, Crl
from bmc_proxy.auth.own_crls import OwnCrls
from bmc_proxy.config import Config
from runtime.files import FileRefused
from runtime.lifecycle import Reactor
from runtime.log_throttle import Sparse
from runtime.threads import Workers

RELOAD_EVERY_S = 24 * 3600.0
THREADS_S = 0.2

_log = Logger()
_Loaded = tuple[dict[AuthorityId, str], dict[AuthorityId, Crl]]


class ClientStatus:
    """The status of client certificates of one process.

    Args:
        reactor: runs it.
        config: with a `client_ca`.
        is_alone: no other process uses the state directory.
        is_replacement: other processes of this proxy serve: a CRL that cannot be used does not end this one. Until it
            is mended, CAs that no CRL covers let nobody in.

    Raises:
        FileRefused: a CA or a CRL cannot be used; the text says which and why.
    """

    def __init__(self, reactor: Reactor, config: Config, *, is_alone: bool, is_replacement: bool = False) -> None:
        self._config = config
        # One thread: a CRL of its limit takes seconds, and there is never a hurry for two.
        self._threads = Workers(reactor, 1, "crls")
        self._daily = LoopingCall(self._reload_crls)
        self._daily.clock = reactor
        log = Sparse(_log.warn, time.monotonic)
        self.certificates = ClientCertificates(time.time, config.client_crl_grace_h * 3600.0, log)
        unread: list[FileRefused] = []
        self._take(load(config, unread.append if is_replacement else None))
        self.certificates.is_crl_unread = bool(unread)
        for each in unread:
            _log.error(
                "a client CRL cannot be used: a CA without CRL lets nobody in until it is mended and reloaded",
                reason=str(each),
            )
        self._own = OwnCrls(
            reactor, config.state_dir, self.certificates, self._threads.run, self._tell_uncovered, is_alone=is_alone
        )
        self._tell_uncovered()

    def start(self, door: Door) -> None:
        """Begin to follow the agents, which are asked through this door, and the files."""
        self._threads.start()
        self._own.connect(door)
        self._daily.start(RELOAD_EVERY_S, now=False)

    def look(self, link: AgentLink) -> None:
        """An agent connected, or has news."""
        self._own.look(link)

    def reload(self, links: Iterable[AgentLink]) -> None:
        """Read the files again, then look at what the agents publish: CAs may let in that did not before."""

        def look(_result: None) -> None:
            for link in links:
                self._own.look(link)

        self._reload_crls().addCallback(look)

    async def stop(self) -> None:
        """Stop following."""
        if self._daily.running:
            self._daily.stop()
        await self._threads.stop(THREADS_S)

    def _reload_crls(self) -> Deferred[None]:
        """Read the files again, in a thread. What cannot be used changes nothing, and the log says why."""

        def failed(failure: Failure) -> None:
            if failure.check(FileRefused) is None:
                _log.failure("client CRLs not reloaded, the old ones stay", failure)
            else:
                _log.error("client CRLs not reloaded, the old ones stay", reason=failure.getErrorMessage())

        def taken(loaded: _Loaded) -> None:
            self._take(loaded)
            _log.info("reloaded", what="client CRLs", crls=len(self.certificates.given))
            self._tell_uncovered()

        reloading: Deferred[_Loaded] = self._threads.run(load, self._config)
        return reloading.addCallbacks(taken, failed)

    def _take(self, loaded: _Loaded) -> None:
        certificates = self.certificates
        certificates.authorities, given = loaded
        for issuer in certificates.take_given(given):
            _log.error(
                "a client CRL is earlier than the last one, which stays: give a new one",
                issuer=certificates.authorities.get(issuer, "-"),
                number=given[issuer].number,
                last_number=certificates.given[issuer].number,
            )
        for issuer, crl in certificates.given.items():
            if crl.next_update < time.time():
                _log.error(
                    "a client CRL has ended: give a new one, or certificates of its CA let nobody in",
                    issuer=certificates.authorities.get(issuer, "-"),
                    grace_h=self._config.client_crl_grace_h,
                )

    def _tell_uncovered(self) -> None:
        """Name the CAs whose certificates cannot be revoked."""
        for name, is_known in self.certificates.uncovered():
            if is_known:
                _log.warn("certificates of this client CA cannot be revoked: no --client-crl covers it", ca=name)
            else:
                _log.warn(
                    "certificates of this client CA let nobody in until an agent connects and says whether it is"
                    " its own: no --client-crl covers it",
                    ca=name,
                )


def load(config: Config, unread: Callable[[FileRefused], None] | None = None) -> _Loaded:
    """Read --client-ca and --client-crl; `unread` as for `client_crls.load_crls`. Raises FileRefused."""
    path: Path | None = config.client_ca
    assert path is not None  # or client certificates let nobody in
    authorities = client_crls.load_authorities(path)
    given = {} if config.client_crl is None else client_crls.load_crls(config.client_crl, authorities, unread)
    return {each.id: each.name for each in authorities}, given
