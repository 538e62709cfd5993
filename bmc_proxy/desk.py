"""The desk: what there is once, however many processes serve: passwords' turns, sessions, changes of accounts."""

import time

from twisted.cred.checkers import ICredentialsChecker
from twisted.logger import Logger

from bmc_proxy.accounts import AccountStore
from bmc_proxy.administration import OwnAdministration
from bmc_proxy.checkers import AccountChecker, PamChecker
from bmc_proxy.config import Config
from bmc_proxy.entrance import OwnEntrance
from bmc_proxy.logins import Logins
from bmc_proxy.sessions import Sessions
from bmc_proxy.turns import Turns
from runtime.errors import StartError
from runtime.hints import command
from runtime.lifecycle import Reactor
from runtime.workers import Workers

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
        self._turns = Turns()
        checker, is_pam = self._checker(config, accounts), config.checker == "pam"
        logins = Logins(accounts, checker, self._turns, time.monotonic, are_apart=is_pam)
        self.accounts = accounts
        self.sessions = sessions
        self.entrance = OwnEntrance(logins, sessions)
        self.administration = OwnAdministration(
            accounts, sessions, logins, self._turns, self._hashing.run, has_passwords=not is_pam
        )

    def open(self) -> None:
        """Begin."""
        self._hashing.start()
        self._checking.start()
        if not self.accounts.all():
            add = command("bmc-proxy", "account add NAME --role Administrator --password-stdin")
            _log.warn("no accounts yet", add_one_with=f"`{add}`")

    def refuse(self) -> None:
        """Refuse whoever waits for a turn, or asks for one from now on."""
        self._turns.close()

    async def close(self) -> None:
        """Wait a moment for what is under way."""
        for workers in (self._hashing, self._checking):
            if not await workers.stop(WORKERS_S):
                _log.warn("a password check or a change of accounts goes on")

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
