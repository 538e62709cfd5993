"""The desk: what there is once, however many processes serve: password checks, sessions, changes of accounts."""

import time
from functools import partial

from twisted.cred.checkers import ICredentialsChecker
from twisted.logger import Logger

from bmc_proxy.auth.account_service import OwnAdministration
from bmc_proxy.auth.accounts import AccountStore
from bmc_proxy.auth.backends import AccountChecker, PamChecker
from bmc_proxy.auth.known_sources import KnownSourcesFile
from bmc_proxy.auth.login import Logins
from bmc_proxy.auth.login_service import OwnEntrance
from bmc_proxy.auth.sessions import Sessions
from bmc_proxy.auth.work_queue import WorkQueue
from bmc_proxy.config import Config
from bmc_proxy.notices import not_usable
from runtime.errors import StartError
from runtime.hints import command
from runtime.lifecycle import Reactor
from runtime.threads import Workers

# PAM waits: for a directory, or after a wrong password.
PAM_THREADS = 8
# What is left of the ten seconds of a stop, for each kind of work.
WORKERS_S = 0.4

_log = Logger()


class Desk:
    """Who is let in, and who changes accounts.

    Args:
        reactor: runs it.
        config: says who checks passwords.
        accounts: who there is.
        sessions: who is logged in.

    Raises:
        StartError: whoever is to check passwords is not installed.
    """

    def __init__(self, reactor: Reactor, config: Config, accounts: AccountStore, sessions: Sessions) -> None:
        # One thread: a hash takes a core and much memory, and signing needs both.
        self._hashing = Workers(reactor, 1, "hashing")
        self._checking = Workers(reactor, PAM_THREADS, "checking")
        self._known = KnownSourcesFile(
            reactor, config.state_dir, self._hashing.run, partial(not_usable, "known sources")
        )
        is_pam, places = config.checker == "pam", config.max_connections
        checks = WorkQueue(reactor, PAM_THREADS if is_pam else 1, places)
        # Where PAM checks passwords, changes of accounts do not wait for it; else both hash, one at a time.
        changes = WorkQueue(reactor, 1, places) if is_pam else checks
        self._queues = (checks, changes)
        checker = self._checker(config, accounts)
        logins = Logins(accounts, checker, checks, time.monotonic, self._known.sources, are_apart=is_pam)
        self.accounts = accounts
        self.sessions = sessions
        self.entrance = OwnEntrance(logins, sessions)
        self.administration = OwnAdministration(
            accounts, sessions, logins, changes, self._hashing.run, has_passwords=not is_pam
        )

    def open(self) -> None:
        """Begin."""
        self._hashing.start()
        self._checking.start()
        self._known.load(self.accounts.all())
        if not self.accounts.all():
            add = command("bmc-proxy", "account add NAME --role Administrator --password-stdin")
            _log.warn("no accounts yet", add_one_with=f"`{add}`")

    def refuse(self) -> None:
        """Refuse the checks and changes that wait, and those that come from now on."""
        for queue in self._queues:
            queue.close()

    async def close(self) -> None:
        """Wait a moment for what is under way."""
        for workers in (self._hashing, self._checking):
            if not await workers.stop(WORKERS_S):
                _log.warn("a password check or a change of accounts goes on")
        self._known.close()

    def _checker(self, config: Config, accounts: AccountStore) -> ICredentialsChecker:
        if config.checker == "accounts":
            checker: ICredentialsChecker = AccountChecker(accounts, self._hashing.run)
            return checker
        try:
            pam: ICredentialsChecker = PamChecker(config.pam_service, self._checking.run)
        except ImportError as error:
            text = "--checker pam needs the extra: pip install 'vmi-certificate-exchange[pam]'"
            raise StartError(text) from error
        return pam
