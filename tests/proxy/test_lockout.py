"""Lock-out: who is shut out by wrong passwords, for how long, and who is not."""

import pytest

from bmc_proxy.auth.lockout import (
    FAILING_NETWORKS_LIMIT,
    FAILING_SITES_LIMIT,
    FAILING_SITES_PER_NETWORK,
    FAILURES_AT_ONCE,
    FAILURES_PER_S,
    LOCK_AFTER,
    LOCK_S,
    STRANGERS_LIMIT,
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


def test_many_networks_leave_the_account_to_known_sources() -> None:
    """Past 16 failing networks only those sources get a try that logged in before."""
    lockout = Lockout()
    lockout.succeeded(ROOT, GOOD)
    for number in range(FAILING_NETWORKS_LIMIT - 1):
        lockout.failed(ROOT, f"198.51.{number}.1", 0)
    assert not lockout.is_closed(ROOT, "203.0.113.1", 0)
    lockout.failed(ROOT, "203.0.113.1", 0)

    assert lockout.is_closed(ROOT, "203.0.114.1", 0)
    assert not lockout.is_closed(ROOT, GOOD, 0)


def test_many_sites_close_their_network_alone() -> None:
    """Past 16 failing addresses of a /24 that network is closed, but for known sources, and no other."""
    lockout = Lockout()
    lockout.succeeded(ROOT, "198.51.100.250")
    for number in range(FAILING_SITES_PER_NETWORK - 1):
        lockout.failed(ROOT, f"198.51.100.{number}", 0)
    assert not lockout.is_closed(ROOT, "198.51.100.200", 0)
    lockout.failed(ROOT, "198.51.100.199", 0)

    assert lockout.is_closed(ROOT, "198.51.100.200", 0)
    assert not lockout.is_closed(ROOT, "198.51.100.250", 0)
    assert not lockout.is_closed(ROOT, "198.51.101.1", 0)


def test_guesses_from_many_sites_are_bounded() -> None:
    """Past 64 failing addresses, in however few networks, only known sources get a try."""
    lockout = Lockout()
    for number in range(FAILING_SITES_LIMIT):
        assert not lockout.is_closed(ROOT, "203.0.113.1", 0)
        lockout.failed(ROOT, f"198.51.{number // (FAILING_SITES_PER_NETWORK - 1)}.{number}", 0)

    assert lockout.is_closed(ROOT, "203.0.113.1", 0)


def test_networks_of_ipv6_count_as_one() -> None:
    """However many /64s of a /48 fail they shut out nobody else; those of one /56 have one try together."""
    lockout = Lockout()
    for number in range(LOCK_AFTER):
        lockout.failed(ROOT, f"2001:db8:0:{number:x}::/64", 0)

    assert lockout.is_closed(ROOT, "2001:db8:0:ff::/64", 0)
    assert not lockout.is_closed(ROOT, "2001:db8:0:100::/64", 0)
    for number in range(1, FAILING_SITES_PER_NETWORK):
        lockout.failed(ROOT, f"2001:db8:0:{number:x}00::/64", 0)
    assert lockout.is_closed(ROOT, "2001:db8:0:ff00::/64", 0)
    assert not lockout.is_closed(ROOT, "2001:db8:1::/64", 0)
    assert not lockout.is_closed(ROOT, "192.0.2.1", 0)


def test_sixteen_networks_of_ipv6_count_as_sixteen() -> None:
    """Sixteen /48s that failed leave the account to known sources, as sixteen IPv4 networks do."""
    lockout = Lockout()
    for number in range(FAILING_NETWORKS_LIMIT):
        assert not lockout.is_closed(ROOT, "2001:db8:ffff::/64", 0)
        lockout.failed(ROOT, f"2001:db8:{number:x}::/64", 0)
    assert lockout.is_closed(ROOT, "2001:db8:ffff::/64", 0)


def test_known_source_is_closed_by_its_own_failure_only() -> None:
    """A neighbour in the same /56 closes it to sources of which nothing is known."""
    lockout = locked(source="2001:db8::/64")
    lockout.succeeded(ROOT, "2001:db8:0:1::/64")

    assert not lockout.is_closed(ROOT, "2001:db8:0:1::/64", 0)
    assert lockout.is_closed(ROOT, "2001:db8:0:2::/64", 0)
    lockout.failed(ROOT, "2001:db8:0:1::/64", 0)
    assert lockout.is_closed(ROOT, "2001:db8:0:1::/64", 0)


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
    for number in range(2 * STRANGERS_LIMIT):
        lockout.failed(Target(f"stranger{number}"), f"source{number}", 0)

    assert lockout.is_locked(ROOT, 0)


def test_locked_stranger_outlives_names_that_are_tried_once() -> None:
    """No flood of names makes a locked one be forgotten, which would tell that it is no account."""
    lockout = locked(Target("stranger"))
    for number in range(2 * STRANGERS_LIMIT):
        lockout.failed(Target(f"another{number}"), f"source{number}", 0)

    assert lockout.is_locked(Target("stranger"), 0)
    assert not lockout.is_locked(Target("another0"), 0)


def test_flood_cannot_lock_names_as_fast_as_they_are_remembered() -> None:
    """A flood that has all checks of a lock's time, at 8 ms each, locks fewer names than are remembered."""
    assert LOCK_S / 0.008 / LOCK_AFTER < STRANGERS_LIMIT


def test_own_passwords_flush_nobody_elses_lock() -> None:
    """An account that changes its password again and again, and fails after each change, has one entry for all."""
    lockout = locked()
    for number in range(2 * STRANGERS_LIMIT):
        lockout.failed(Target("reader", f"password {number}"), BAD, 0)

    assert lockout.is_locked(ROOT, 0)
    assert not lockout.is_locked(Target("reader", f"password {2 * STRANGERS_LIMIT - 1}"), 0)


def test_failure_against_the_old_password_counts_no_more() -> None:
    """Another password opens a locked account, and a failure with it begins at one."""
    lockout = locked()
    changed = Target("root", "of another password")

    assert not lockout.is_locked(changed, 0)
    assert not lockout.failed(changed, BAD, 0)
    assert not lockout.is_closed(changed, BAD, 0)


def test_account_that_is_removed_is_forgotten() -> None:
    """Neither its lock nor the sources that logged in to it wait for the next account of that name."""
    lockout = locked()
    lockout.succeeded(OPERATOR, GOOD)
    lockout.keep(["operator"])
    assert not lockout.is_locked(ROOT, 0)
    assert lockout.known.has("operator", GOOD)

    lockout.failed(OPERATOR, BAD, 0)
    lockout.forget("operator")
    assert not lockout.known.has("operator", GOOD)
    assert [lockout.failed(OPERATOR, BAD, 0) for _ in range(LOCK_AFTER)] == [False] * 4 + [True]
