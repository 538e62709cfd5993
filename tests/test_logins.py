"""Logins and changes of accounts in memory, with threads that wait for the test."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LogWatch
from run_log import secret
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from bmc_proxy.access import Access
from bmc_proxy.accounts import Account, AccountStore, Role
from bmc_proxy.administration import OwnAdministration
from bmc_proxy.callers import Caller, Credentials
from bmc_proxy.checkers import AccountChecker
from bmc_proxy.entrance import OwnEntrance
from bmc_proxy.errors import AuthFailed, AuthRequired, PropertyRefused
from bmc_proxy.logins import Logins
from bmc_proxy.passwords import hash_password
from bmc_proxy.sessions import Session, Sessions
from bmc_proxy.work_queue import WorkQueue

OLD, NEW = secret("the-old-password"), secret("the-new-password")
HERE = "192.0.2.1"


class Threads:
    """Work for a thread, done when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Keep work until `go`."""
        done: Deferred[Any] = Deferred()
        self.waiting.append(lambda: maybeDeferred(work, *arguments).chainDeferred(done))
        return done

    def go(self) -> None:
        """Do what waits longest."""
        self.waiting.pop(0)()


class House:
    """The parts around who asks, with one Administrator."""

    def __init__(self, directory: Path) -> None:
        self.threads = Threads()
        self.accounts = AccountStore(directory)
        self.accounts.add(Account("root", Role.ADMINISTRATOR, hash_password(OLD)))
        clock = Clock()
        queue = WorkQueue(clock.seconds)
        self.logins = Logins(self.accounts, AccountChecker(self.accounts, self.threads.run), queue, clock.seconds)
        self.sessions = Sessions(clock.seconds, 1800)
        self.access = Access(self.accounts, self.sessions, OwnEntrance(self.logins, self.sessions))
        self.administration = OwnAdministration(self.accounts, self.sessions, self.logins, queue, self.threads.run)

    def log_in(self, password: str) -> tuple[Session, str] | BaseException:
        """Log in at once; return the session and its token, or the error."""
        waiting = Deferred.fromCoroutine(self.access.log_in("root", password, HERE))
        self.threads.go()
        found: tuple[Session, str] | BaseException = result_of(waiting)
        return found

    def session(self) -> tuple[Session, str]:
        """Return a session of the Administrator's, and its token."""
        found = self.log_in(OLD)
        assert isinstance(found, tuple)
        return found

    def known(self, token: str) -> Caller | None:
        """Return whom a token names."""
        return self.access.known(Credentials(token=token), HERE)


def result_of(waiting: Deferred[Any]) -> Any:
    """Return the result or the error of what is done."""
    results: list[Any] = []
    waiting.addBoth(lambda result: results.append(getattr(result, "value", result)))
    return results[0]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return the parts."""
    return House(tmp_path)


def test_old_password_that_is_changed_while_it_is_checked(house: House) -> None:
    """A password that was right when the check began, and is not any more when it ends, lets nobody in."""
    waiting = Deferred.fromCoroutine(house.access.log_in("root", OLD, HERE))
    check = house.threads.waiting.pop()
    stored = hash_password(NEW)
    # The checker has read the old hash by now.
    house.accounts.change("root", lambda account: replace(account, password_hash=stored))
    check()

    assert isinstance(result_of(waiting), AuthFailed)
    assert isinstance(house.log_in(OLD), AuthFailed)
    assert isinstance(house.log_in(NEW), tuple)


def test_own_session_outlives_its_change_of_password(house: House) -> None:
    """While the new password is being stored, and after it, the session that sets it goes on; another one ends."""
    (_, token), (_, other) = house.session(), house.session()
    caller = house.known(token)
    assert caller is not None
    waiting = Deferred.fromCoroutine(house.administration.change_account(caller, "root", password=NEW))
    seen: list[bool] = []
    watched = house.accounts.change

    def change_and_look(*arguments: Any, **options: Any) -> Account:
        account = watched(*arguments, **options)
        seen.append(house.known(token) is not None)
        return account

    house.accounts.change = change_and_look  # type: ignore[method-assign]  # looks where a poll would fall
    house.threads.go()  # it hashes,
    house.threads.go()  # and stores

    assert seen == [True]
    assert isinstance(result_of(waiting), Account)
    assert house.known(token) is not None
    assert house.known(other) is None


def test_change_of_a_client_that_hangs_up_is_logged(house: House, log_watch: LogWatch) -> None:
    """A change is made and told of, whether or not anybody waits for the answer."""
    _, token = house.session()
    caller = house.known(token)
    assert caller is not None
    for name in ("first", "first"):
        add = house.administration.add_account(caller, name, secret("of-the-account"), Role.READ_ONLY, True)
        waiting = Deferred.fromCoroutine(add)
        waiting.addErrback(lambda _failure: None)
        waiting.cancel()
        house.threads.go()

    assert "first" in house.accounts.all()
    assert log_watch.texts().count("account added") == 1


def test_change_that_is_queued_behind_ones_own_end(house: House) -> None:
    """Who is logged out while the change waits for its turn changes nothing."""
    session, token = house.session()
    caller = house.known(token)
    assert caller is not None
    waiting = Deferred.fromCoroutine(house.administration.add_account(caller, "late", OLD, Role.ADMINISTRATOR, True))
    house.sessions.close(session)
    house.threads.go()

    assert isinstance(result_of(waiting), AuthRequired)
    assert "late" not in house.accounts.all()


def test_name_that_is_none_costs_no_hash(house: House) -> None:
    """What is refused at once takes no turn."""
    _, token = house.session()
    caller = house.known(token)
    assert caller is not None
    waiting = Deferred.fromCoroutine(house.administration.add_account(caller, "a/b", OLD, Role.READ_ONLY, True))

    assert isinstance(result_of(waiting), PropertyRefused)
    assert house.threads.waiting == []


def test_change_that_changes_nothing_writes_nothing(house: House, tmp_path: Path) -> None:
    """The file is not replaced for the same accounts."""
    before = (tmp_path / "accounts.json").stat().st_ino
    house.accounts.change("root", lambda account: account)

    assert (tmp_path / "accounts.json").stat().st_ino == before
