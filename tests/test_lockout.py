"""Lock-out: who is shut out by wrong passwords, for how long, and who is not."""

import pytest

from bmc_proxy.lockout import (
    FAILING_SOURCES_LIMIT,
    FAILURES_AT_ONCE,
    FAILURES_PER_S,
    GOOD_SOURCES_LIMIT,
    LOCK_AFTER,
    LOCK_S,
    TARGETS_LIMIT,
    Lockout,
    Target,
)

ROOT, OPERATOR = Target("root", "of its password"), Target("operator", "of its password")
BAD, GOOD = "192.0.2.1", "192.0.2.2"


def locked(target: Target = ROOT, source: str = BAD, now: float = 0.0) -> Lockout:
    """Return what is known after five failures."""
    lockout = Lockout()
    for _ in range(LOCK_AFTER):
        lockout.failed(target, source, now)
    return lockout


def test_lock_after_five_failures() -> None:
    """Four failures lock nothing; the fifth says that it locked the account, the sixth does not say so again."""
    lockout = Lockout()

    assert [lockout.failed(ROOT, BAD, 0) for _ in range(LOCK_AFTER - 1)] == [False] * (LOCK_AFTER - 1)
    assert not lockout.is_locked(ROOT, 0)
    assert not lockout.is_closed(ROOT, BAD, 0)
    assert lockout.failed(ROOT, BAD, 0)
    assert lockout.is_locked(ROOT, 0)
    assert lockout.is_closed(ROOT, BAD, 0)
    assert not lockout.failed(ROOT, BAD, 0)


def test_lock_lasts_300_seconds() -> None:
    """A lock ends 300 s after the fifth failure, and then all is as if nothing had been."""
    lockout = locked(now=100)

    assert lockout.is_closed(ROOT, BAD, 100 + LOCK_S - 0.001)
    assert not lockout.is_closed(ROOT, BAD, 100 + LOCK_S)
    assert not lockout.failed(ROOT, BAD, 100 + LOCK_S)


def test_failures_are_forgotten_after_300_seconds() -> None:
    """Four failures and, 300 s after the last, another four lock nothing."""
    lockout = Lockout()
    for now in (0, LOCK_S):
        for _ in range(LOCK_AFTER - 1):
            assert not lockout.failed(ROOT, BAD, now)


def test_lock_is_of_one_account() -> None:
    """Another account is open to the source that failed."""
    assert not locked().is_closed(OPERATOR, BAD, 0)


def test_lock_counts_all_sources_together() -> None:
    """Five failures from five sources lock the account, to all five."""
    lockout = Lockout()
    sources = [f"192.0.2.{number}" for number in range(1, 6)]

    assert [lockout.failed(ROOT, source, 0) for source in sources] == [False] * 4 + [True]
    assert all(lockout.is_closed(ROOT, source, 0) for source in sources)


def test_locked_account_is_open_to_whoever_did_not_fail() -> None:
    """A source without a failure gets in; after one it does not."""
    lockout = locked()

    assert not lockout.is_closed(ROOT, GOOD, 0)
    lockout.succeeded(ROOT, GOOD)
    assert not lockout.is_closed(ROOT, GOOD, 0)
    assert lockout.is_closed(ROOT, BAD, 0)
    lockout.failed(ROOT, GOOD, 0)
    assert lockout.is_closed(ROOT, GOOD, 0)


def test_success_forgets_the_sources_own_failures_only() -> None:
    """Four failures, a success and four more lock nothing; another source's success takes nothing away."""
    lockout = Lockout()
    for source in (BAD, GOOD):
        for _ in range(2):
            lockout.failed(ROOT, source, 0)
    lockout.succeeded(ROOT, GOOD)
    assert not lockout.failed(ROOT, BAD, 0)
    assert not lockout.failed(ROOT, BAD, 0)
    assert lockout.failed(ROOT, BAD, 0)


def test_many_sources_leave_the_account_to_known_ones() -> None:
    """Past 16 failing sources only those get a try that logged in before."""
    lockout = Lockout()
    lockout.succeeded(ROOT, GOOD)
    for number in range(FAILING_SOURCES_LIMIT - 1):
        lockout.failed(ROOT, f"198.51.100.{number}", 0)
    assert not lockout.is_closed(ROOT, "203.0.113.1", 0)
    lockout.failed(ROOT, "203.0.113.1", 0)

    assert lockout.is_closed(ROOT, "203.0.113.2", 0)
    assert not lockout.is_closed(ROOT, GOOD, 0)


def test_known_sources_are_bounded() -> None:
    """Eight sources are remembered, the latest ones."""
    lockout = Lockout()
    sources = [f"192.0.2.{number}" for number in range(GOOD_SOURCES_LIMIT + 1)]
    for source in sources:
        lockout.succeeded(ROOT, source)
    for number in range(FAILING_SOURCES_LIMIT):
        lockout.failed(ROOT, f"198.51.100.{number}", 0)

    assert [lockout.is_closed(ROOT, source, 0) for source in sources] == [True] + [False] * GOOD_SOURCES_LIMIT


def test_unlock() -> None:
    """An administrator's unlocking opens the account to all."""
    lockout = locked()
    lockout.clear(ROOT)

    assert not lockout.is_locked(ROOT, 0)
    assert not lockout.is_closed(ROOT, BAD, 0)


def test_source_has_twenty_failures_and_one_every_three_seconds() -> None:
    """The twenty-first failure has to wait; the allowance comes back, so nobody is shut out for good."""
    lockout = Lockout()
    for number in range(FAILURES_AT_ONCE):
        assert lockout.begin(BAD, 0) == 0
        lockout.failed(Target(f"user{number}"), BAD, 0)

    assert lockout.wait_s(BAD, 0) == pytest.approx(1 / FAILURES_PER_S)
    assert lockout.wait_s(GOOD, 0) == 0
    assert lockout.wait_s(BAD, 1 / FAILURES_PER_S) == 0


def test_success_gives_the_try_back() -> None:
    """Any number of right passwords cost a source nothing, and tries that are under way count as failures do."""
    lockout = Lockout()
    for _ in range(10 * FAILURES_AT_ONCE):
        assert lockout.begin(GOOD, 0) == 0
        lockout.succeeded(ROOT, GOOD)
    assert [lockout.begin(GOOD, 0) for _ in range(FAILURES_AT_ONCE)] == [0] * FAILURES_AT_ONCE
    assert lockout.begin(GOOD, 0) > 0


def test_names_are_bounded_and_accounts_outlive_strangers() -> None:
    """Thousands of names that are nobody's do not make a lock on an account be forgotten, however young that is."""
    lockout = locked()
    for number in range(2 * TARGETS_LIMIT):
        lockout.failed(Target(f"stranger{number}"), f"source{number}", 0)

    assert lockout.is_locked(ROOT, 0)
    assert not lockout.is_locked(Target("stranger0"), 0)
