"""Sessions that several workers serve: the first process's table, its replicas, and who waits for them."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.worker_values import PASSWORD, SESSION, result_of
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from bmc_proxy.auth.account_service import OwnAdministration
from bmc_proxy.auth.accounts import Account, AccountStore, Role
from bmc_proxy.auth.backends import AccountChecker
from bmc_proxy.auth.login import Logins
from bmc_proxy.auth.login_service import OwnEntrance
from bmc_proxy.auth.principal import Caller
from bmc_proxy.auth.sessions import LIMIT
from bmc_proxy.auth.work_queue import WorkQueue
from bmc_proxy.workers.messages import Record, RecordRefused, SessionEnded, SessionIs, Used
from bmc_proxy.workers.session_replica import Replica
from bmc_proxy.workers.session_table import GRACE_S, SharedSessions

IDLE_S = 1800.0


class Shared:
    """The first process's sessions and the replicas of two workers, as far as they have confirmed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[Record] = []
        self.sessions = SharedSessions(self.clock.seconds, IDLE_S, self.told.append, self._confirm)
        self.ended: list[str] = []
        self.replicas = [Replica(self.clock.seconds, IDLE_S, lambda each: self.ended.append(each.id)) for _ in range(2)]

    async def _confirm(self) -> None:
        for record in self.told:
            for replica in self.replicas:
                if isinstance(record, SessionIs):
                    replica.learn(record)
                else:
                    assert isinstance(record, SessionEnded)
                    replica.forget(record.id)
        self.told.clear()

    def settle(self) -> None:
        """Let the replicas take what they were told."""
        assert result_of(Deferred.fromCoroutine(self.sessions.settled())) is None


def test_session_lives_as_long_as_any_worker_uses_it() -> None:
    """Idle is what no worker used: uses on one count for all, and the end comes within seconds of its time."""
    shared = Shared()
    session, token = shared.sessions.open("root", "id", "unix")
    shared.settle()
    for _ in range(5):
        shared.clock.advance(IDLE_S - 1)
        assert shared.replicas[1].use(token) is not None
        used = shared.replicas[1].take_used()
        assert used == Used((session.id,), (0,))
        shared.clock.advance(1)  # on its way
        shared.sessions.used(used)
    assert shared.sessions.all() == [session]
    shared.clock.advance(IDLE_S + GRACE_S)
    assert shared.sessions.all() == []
    shared.settle()
    assert [replica.use(token) for replica in shared.replicas] == [None, None]
    assert shared.replicas[0].take_used() is None


def test_use_that_is_told_late_does_not_make_a_session_newer() -> None:
    """The order in which sessions are evicted is that of their uses."""
    shared = Shared()
    first, token = shared.sessions.open("root", "id", "unix")
    shared.settle()
    shared.replicas[0].use(token)
    shared.clock.advance(1)
    second, _ = shared.sessions.open("root", "id", "unix")
    used = shared.replicas[0].take_used()
    assert used is not None
    shared.sessions.used(replace(used, ids=(*used.ids, "gone"), ages_ms=(*used.ages_ms, 0)))
    assert shared.sessions.all() == [first, second]


def test_session_whose_account_is_closed_ends_here_first() -> None:
    """A worker that finds it forgets it at once, and tells of it once; whoever holds it sees that it is closed."""
    shared = Shared()
    session, token = shared.sessions.open("root", "id", "unix")
    shared.settle()
    known = shared.replicas[0].find(session.id)
    assert known is not None
    shared.replicas[0].close(known)
    shared.replicas[0].close(known)
    assert known.is_closed
    assert shared.replicas[0].use(token) is None
    assert shared.ended == [session.id]


def test_change_of_a_session_reaches_who_holds_it() -> None:
    """A request under way sees the password that its own session sets."""
    shared = Shared()
    session, _ = shared.sessions.open("root", "old", "unix")
    shared.settle()
    held = shared.replicas[0].find(session.id)
    assert held is not None
    shared.sessions.expect_password(session, "new")
    shared.settle()
    assert (held.password_id, held.next_password_id) == ("old", "new")
    shared.sessions.password_set(session, "new")
    shared.settle()
    assert held.password_id == "new"  # noqa: S105  # names of passwords


def test_replica_is_bounded() -> None:
    """More sessions than there may be are nonsense, and so is a digest that is none."""
    shared = Shared()
    for number in range(LIMIT):
        shared.replicas[0].learn(replace(SESSION, id=str(number), token_sha256=f"{number:064x}"))
    with pytest.raises(RecordRefused):
        shared.replicas[0].learn(SESSION)
    with pytest.raises(RecordRefused):
        shared.replicas[1].learn(replace(SESSION, token_sha256="x"))  # noqa: S106  # no digest


def test_password_that_is_set_waits_for_the_workers(tmp_path: Path) -> None:
    """A new password is stored only when every worker knows which session it does not end."""
    accounts, confirmed, told = AccountStore(tmp_path), [Deferred[None](), Deferred[None]()], list[Record]()
    accounts.add(Account("root", Role.ADMINISTRATOR, None))
    waiting_for = iter(confirmed)

    async def confirm() -> None:
        await next(waiting_for)

    sessions, queue = SharedSessions(Clock().seconds, IDLE_S, told.append, confirm), WorkQueue(Clock())
    logins = Logins(accounts, AccountChecker(accounts, maybeDeferred), queue, Clock().seconds)
    administration = OwnAdministration(accounts, sessions, logins, queue, maybeDeferred)
    before = accounts.all()["root"]
    session, _ = sessions.open("root", before.password_id, "unix")
    caller = Caller("root", "token", "unix", before.role.privileges, session=session)
    change = Deferred.fromCoroutine(administration.change_account(caller, "root", password=PASSWORD))
    assert accounts.all()["root"] == before
    confirmed[0].callback(None)
    account = result_of(change)
    assert isinstance(account, Account)
    first, expected, after = (each for each in told if isinstance(each, SessionIs))
    assert first.next_password_id is None
    assert expected.next_password_id == after.password_id == account.password_id
    # The end of a session is told, and waited for in the same way.
    ending = Deferred.fromCoroutine(OwnEntrance(logins, sessions).end(session, caller))
    assert result_of(ending) is None
    assert told[-1] == SessionEnded(session.id)
    assert not ending.called
    confirmed[1].callback(None)
    assert ending.called
