"""Logins and changes of accounts in memory, with threads that wait for the test."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LogWatch
from support.run_log import secret
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from bmc_proxy.auth.account_service import OwnAdministration
from bmc_proxy.auth.accounts import Account, AccountStore, Role
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.backends import AccountChecker
from bmc_proxy.auth.known_sources import KnownSources
from bmc_proxy.auth.lockout import FAILURES_AT_ONCE, FAILURES_PER_S, LOCK_AFTER
from bmc_proxy.auth.login import Logins
from bmc_proxy.auth.login_service import OwnEntrance
from bmc_proxy.auth.passwords import hash_password
from bmc_proxy.auth.principal import Caller, Credentials
from bmc_proxy.auth.sessions import Session, Sessions
from bmc_proxy.auth.work_queue import WorkQueue
from bmc_proxy.errors import AuthFailed, AuthRequired, PropertyRefused, TooManyRequests

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
        clock = self.clock = Clock()
        queue = WorkQueue(clock)
        self.known_sources = KnownSources()
        checker = AccountChecker(self.accounts, self.threads.run)
        self.logins = Logins(self.accounts, checker, queue, clock.seconds, self.known_sources)
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


def checks(house: House, count: int, source: str, user: str = "root", password: str = OLD) -> list[Deferred[Account]]:
    """Ask for so many checks at once from an address."""
    return [Deferred.fromCoroutine(house.logins.check(user, password, source)) for _ in range(count)]


def test_stranger_pays_when_it_comes(house: House) -> None:
    """Twenty checks of one source wait; the next one is refused at once, and takes no place of others."""
    waiting = checks(house, FAILURES_AT_ONCE + 1, HERE, "nobody")

    assert isinstance(result_of(waiting.pop()), TooManyRequests)
    assert not any(each.called for each in waiting)
    for _ in range(LOCK_AFTER):
        house.threads.go()
    assert {type(result_of(each)) for each in waiting} == {AuthFailed}
    assert house.threads.waiting == []


def test_known_source_pays_when_its_turn_comes(house: House) -> None:
    """Once it is known, a client may send its right password with each of many requests at once."""
    house.session()
    waiting = checks(house, 3 * FAILURES_AT_ONCE, HERE)
    for _ in waiting:
        house.threads.go()

    assert {type(result_of(each)) for each in waiting} == {Account}


def test_known_source_with_wrong_passwords_pays_as_well(house: House) -> None:
    """After twenty failures it is refused without a hash, in its turn and when it comes."""
    house.session()
    waiting = checks(house, 3 * FAILURES_AT_ONCE, HERE, password=NEW)
    hashes = 0
    while house.threads.waiting:
        house.threads.go()
        hashes += 1

    found = Counter(type(result_of(each)) for each in waiting)
    assert found == {AuthFailed: FAILURES_AT_ONCE, TooManyRequests: 2 * FAILURES_AT_ONCE}
    assert hashes == LOCK_AFTER
    assert isinstance(result_of(checks(house, 1, HERE)[0]), TooManyRequests)


def test_names_get_no_lane_of_their_own(house: House) -> None:
    """A source that logged in as one account is a stranger for every other name, whether or not there is one."""
    house.session()
    for user in ("oper", "nobody"):
        waiting = checks(house, FAILURES_AT_ONCE + 1, HERE, user)
        assert isinstance(result_of(waiting.pop()), TooManyRequests)
        for each in waiting:
            each.addErrback(lambda failure: failure.trap(AuthFailed, TooManyRequests))
        house.clock.advance(FAILURES_AT_ONCE / FAILURES_PER_S)


def test_change_of_an_account_is_next_beside_strangers(house: House) -> None:
    """A caller that is logged in changes accounts after one check of a flood at most."""
    _, token = house.session()
    caller = house.known(token)
    assert caller is not None
    for number in range(140):
        for each in checks(house, 3, f"198.51.100.{number}", f"name{number}"):
            each.addErrback(lambda failure: failure.trap(AuthFailed, TooManyRequests))
    adding = Deferred.fromCoroutine(house.administration.add_account(caller, "late", NEW, Role.READ_ONLY, True))
    house.threads.go()
    house.threads.go()

    assert isinstance(result_of(adding), Account)


def test_removed_account_is_forgotten(house: House) -> None:
    """Its name, given to another account, has no known source."""
    _, token = house.session()
    caller = house.known(token)
    assert caller is not None
    for _ in range(2):
        adding = Deferred.fromCoroutine(house.administration.add_account(caller, "late", NEW, Role.READ_ONLY, True))
        house.threads.go()
        assert isinstance(result_of(adding), Account)
        first = checks(house, 2, HERE, "late", NEW)
        house.threads.go()
        house.threads.go()
        assert [type(result_of(each)) for each in first] == [Account, Account]
        removing = Deferred.fromCoroutine(house.administration.remove_account(caller, "late"))
        assert house.known_sources.has("late", HERE)
        house.threads.go()
        assert result_of(removing) is None
        assert not house.known_sources.has("late", HERE)
    assert house.known_sources.has("root", HERE)
