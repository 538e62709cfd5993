"""Sessions: their tokens, how they idle out, and what their caps do."""

import secrets

from support.run_log import secret

from bmc_proxy.auth.sessions import Session, Sessions


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(sessions: Sessions, user: str = "root") -> tuple[Session, str]:
    """Open a session and remember its secrets."""
    session, token = sessions.open(user, "password id", "192.0.2.1")
    secret(token)
    secret(session.xsrf_token)
    return session, token


def test_token_is_long_and_finds_its_session() -> None:
    """A token has 256 random bits, is kept by its hash only, and no other finds the session."""
    sessions = Sessions(Clock(), 100)
    session, token = opened(sessions)

    assert len(token) == len(secrets.token_urlsafe(32)) == 43
    assert sessions.use(token) is session
    assert sessions.use(token[:-1]) is None
    assert sessions.use("") is None
    assert token not in repr(session)
    assert len({opened(sessions)[1] for _ in range(50)}) == 50


def test_session_idles_out() -> None:
    """Used within its time a session lives on; unused for all of it, it is gone."""
    clock = Clock()
    sessions = Sessions(clock, 100)
    session, token = opened(sessions)
    for now in (99.9, 199.8):
        clock.now = now
        assert sessions.use(token) is session
    clock.now = 199.8 + 100

    assert sessions.all() == []
    assert sessions.find(session.id) is None
    assert sessions.use(token) is None


def test_session_is_closed() -> None:
    """A closed session is gone; closing it again is nothing."""
    sessions = Sessions(Clock(), 100)
    session, token = opened(sessions)
    assert sessions.find(session.id) is session
    sessions.close(session)
    sessions.close(session)

    assert sessions.use(token) is None
    assert sessions.find(session.id) is None


def test_cap_of_a_user_ends_the_one_idle_longest() -> None:
    """At the cap one more session is opened, and the user's own that was unused longest ends; others' do not."""
    clock = Clock()
    sessions = Sessions(clock, 100, limit=10, per_user_limit=3)
    _, others = opened(sessions, "other")
    tokens = [opened(sessions)[1] for _ in range(3)]
    assert all(sessions.use(token) for token in tokens)
    sessions.use(tokens[0])
    tokens.append(opened(sessions)[1])

    assert [sessions.use(token) is not None for token in tokens] == [True, False, True, True]
    assert sessions.use(others) is not None


def test_cap_of_all_ends_the_one_idle_longest() -> None:
    """At the cap over all users the session that was unused longest ends, whosever it is."""
    sessions = Sessions(Clock(), 100, limit=4, per_user_limit=3)
    tokens = [opened(sessions, user)[1] for user in ("a", "a", "b", "c")]
    assert len(sessions.all()) == 4
    sessions.use(tokens[0])
    opened(sessions, "d")

    assert [sessions.use(token) is not None for token in tokens] == [True, False, True, True]
    assert len(sessions.all()) == 4


def test_cap_of_all_ends_sessions_of_the_user_with_the_most() -> None:
    """Users that open as many sessions as they may end their own, not the one of a user that has fewer."""
    sessions = Sessions(Clock(), 100, limit=8, per_user_limit=3)
    root, _ = opened(sessions, "root")
    for number in range(20):
        opened(sessions, f"reader{number % 4}")

    assert not root.is_closed
    assert len(sessions.all()) == 8
