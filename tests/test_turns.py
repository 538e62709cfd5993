"""Turns: one at a time, a bounded queue, and work that goes on for whoever hung up."""

from functools import partial

import pytest
from conftest import LogWatch
from twisted.internet.defer import CancelledError, Deferred

from bmc_proxy.accounts import Account, Role
from bmc_proxy.callers import Caller
from bmc_proxy.errors import AuthFailed, AuthRequired, Forbidden, TooManyRequests
from bmc_proxy.sessions import Session
from bmc_proxy.turns import Turns


class Work:
    """Work that is done when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Deferred[str]] = []

    async def __call__(self) -> str:
        done: Deferred[str] = Deferred()
        self.begun.append(done)
        return await done


def take(turns: Turns, source: str, work: Work) -> tuple[Deferred[str], list[object]]:
    """Ask for a turn; return what waits for it, and a list that gets the result or the error."""
    results: list[object] = []
    waiting = Deferred.fromCoroutine(turns.take(source, work))
    waiting.addBoth(lambda result: results.append(getattr(result, "value", result)))
    return waiting, results


def test_turns_come_one_at_a_time() -> None:
    """The second begins when the first is done."""
    turns, work = Turns(), Work()
    _, first = take(turns, "a", work)
    _, second = take(turns, "a", work)
    assert len(work.begun) == 1
    work.begun[0].callback("one")
    assert (first, second, len(work.begun)) == (["one"], [], 2)
    work.begun[1].callback("two")
    assert second == ["two"]


def test_queue_is_bounded_in_all_and_for_each_source() -> None:
    """Two of one source, three in all; one more is refused, and there is room again once one is done."""
    turns, work = Turns(limit=3, limit_per_source=2), Work()
    for source in ("a", "a", "b"):
        assert take(turns, source, work)[1] == []
    for source in ("a", "b", "c"):
        [refused] = take(turns, source, work)[1]
        assert isinstance(refused, TooManyRequests)
    work.begun[0].callback("one")
    assert take(turns, "c", work)[1] == []


def test_keys_take_turns_apart() -> None:
    """What has another key does not wait."""
    turns, work = Turns(), Work()
    for key in ("a", "b", "a"):
        Deferred.fromCoroutine(turns.take("source", work, key))
    assert len(work.begun) == 2
    work.begun[0].callback("one")
    assert len(work.begun) == 3


def test_closed_turns_refuse_whoever_waits() -> None:
    """Once closed, what is being done is done; who waits, and who comes, is refused."""
    turns, work = Turns(), Work()
    results = [take(turns, "a", work)[1] for _ in range(3)]
    turns.close()
    assert [type(each) for _, each in zip(range(2), (*results[1], *results[2]), strict=True)] == [TooManyRequests] * 2
    assert isinstance(take(turns, "a", work)[1][0], TooManyRequests)
    work.begun[0].callback("one")
    assert results[0] == ["one"]


def test_hundreds_that_are_refused_at_once_leave_nothing_behind() -> None:
    """A whole queue whose work fails without waiting is done in its order, and there are turns for others again."""
    turns, work = Turns(), Work()
    take(turns, "a", work)
    order: list[int] = []

    async def refuse(number: int) -> str:
        order.append(number)
        raise AuthFailed

    for number in range(254):
        waiting = Deferred.fromCoroutine(turns.take("ab"[number % 2], partial(refuse, number)))
        waiting.addErrback(lambda failure: failure.trap(AuthFailed))
    work.begun[0].callback("one")

    assert order == list(range(254))
    assert take(turns, "c", work)[1] == []
    assert len(work.begun) == 2


def test_keys_are_all_waited_for() -> None:
    """What has two keys has its turn when both are free."""
    turns, work = Turns(), Work()
    for keys in (("a", "x"), ("b", "x"), ("b", "y")):
        Deferred.fromCoroutine(turns.take("source", work, *keys))
    assert len(work.begun) == 1
    work.begun[0].callback("one")
    assert len(work.begun) == 2
    work.begun[1].callback("two")
    assert len(work.begun) == 3


def test_work_goes_on_for_whoever_hung_up() -> None:
    """Giving up the wait neither ends the work nor lets the next one begin before it is done."""
    turns, work = Turns(), Work()
    waiting, gone = take(turns, "a", work)
    _, second = take(turns, "b", work)
    waiting.cancel()
    assert isinstance(gone[0], CancelledError)
    assert len(work.begun) == 1
    work.begun[0].callback("one")
    assert len(work.begun) == 2
    work.begun[1].callback("two")
    assert second == ["two"]


@pytest.mark.parametrize("hangs_up", [True, False])
def test_failure_of_work_reaches_who_waits_or_the_log(log_watch: LogWatch, hangs_up: bool) -> None:
    """An error goes to whoever waits; where nobody does, a bug is logged and a refusal is not."""
    turns, work = Turns(), Work()
    waits = [take(turns, "a", work) for _ in range(2)]
    if hangs_up:
        log_watch.expect_error("nobody waits for")
        for waiting, _ in waits:
            waiting.cancel()
    work.begun[0].errback(AuthFailed())
    work.begun[1].errback(ZeroDivisionError())

    assert [type(results[0]) for _, results in waits] == (
        [CancelledError] * 2 if hangs_up else [AuthFailed, ZeroDivisionError]
    )
    assert log_watch.texts().count("work that nobody waits for failed") == hangs_up


def test_caller_is_who_the_accounts_say() -> None:
    """A caller has the privileges of its account as it is now, and none without it."""
    account = Account("root", Role.ADMINISTRATOR, "hash")
    caller = Caller("root", "basic", "192.0.2.1", account.role.privileges, account.password_id)

    assert caller.as_of({"root": account}) == caller
    reader = Account("root", Role.READ_ONLY, "hash")
    with pytest.raises(Forbidden):
        caller.as_of({"root": reader}).must_have(Role.ADMINISTRATOR.privileges)
    for accounts in ({}, {"root": Account("root", Role.ADMINISTRATOR, "another")}):
        with pytest.raises(AuthRequired):
            caller.as_of(accounts)


def test_caller_of_a_session_that_changes_its_own_password() -> None:
    """What a session asked before goes on while and after it changes the password; a closed session's does not."""
    old, new = (Account("root", Role.ADMINISTRATOR, password_hash) for password_hash in ("old", "new"))
    session = Session("id", "root", old.password_id, "192.0.2.1", 0.0, bytes(32), "xsrf")
    caller = Caller("root", "token", "192.0.2.1", old.role.privileges, session=session)

    with pytest.raises(AuthRequired):
        caller.as_of({"root": new})
    session.next_password_id = new.password_id
    assert caller.as_of({"root": old}) == caller.as_of({"root": new}) == caller
    session.password_id = new.password_id
    assert caller.as_of({"root": new}) == caller
    session.is_closed = True
    with pytest.raises(AuthRequired):
        caller.as_of({"root": new})
