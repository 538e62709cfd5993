"""Sessions: who is logged in. In memory alone: whoever was logged in when the proxy ended logs in again."""

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

PER_USER_LIMIT = 64
LIMIT = 256
TOKEN_OCTETS = 32


@dataclass(slots=True)
class Session:
    """One login.

    Attributes:
        id: names it in URLs; no secret.
        user: the account.
        password_id: of the account's password at login; see `Account.password_id`.
        address: where the login came from.
        used_at: in seconds of the table's clock.
        token_sha256: of the secret itself, which is not kept.
        xsrf_token: what a page that may write has to show beside the cookie.
        is_closed: it has ended.
        next_password_id: of the password that this very session is about to set.
    """

    id: str
    user: str
    password_id: str
    address: str
    used_at: float
    token_sha256: bytes
    xsrf_token: str
    is_closed: bool = False
    next_password_id: str | None = None


class SessionTable(Protocol):
    """What requests see of the sessions: of all, wherever the table of them is kept.

    Attributes:
        idle_s: how long a session lives unused.
    """

    @property
    def idle_s(self) -> float: ...

    def use(self, token: str) -> Session | None:
        """Return the session of a token, and note that it is used now."""

    def all(self) -> list[Session]:
        """Return the sessions that live."""

    def find(self, session_id: str) -> Session | None:
        """Return the session of this id."""

    def close(self, session: Session) -> None:
        """End a session whose account does not let it in any more."""


class Sessions:
    """The table of sessions.

    Args:
        now: seconds since 1970-01-01 UTC, or of any clock.
        idle_s: how long a session lives unused.
    """

    def __init__(
        self,
        now: Callable[[], float],
        idle_s: float,
        limit: int = LIMIT,
        per_user_limit: int = PER_USER_LIMIT,
    ) -> None:
        self._now = now
        self.idle_s = idle_s
        self._limit = limit
        self._per_user_limit = per_user_limit
        self._by_token: dict[bytes, Session] = {}  # the longest unused first

    def open(self, user: str, password_id: str, address: str) -> tuple[Session, str]:
        """Open a session; return it and its token, 256 random bits.

        At a cap the one idle longest ends: of this user's, or of the user that has the most of all. So accounts that
        open as many as they may do not end the sessions of one that has fewer.
        """
        self._expire()
        of_user = [session for session in self._by_token.values() if session.user == user]
        if len(of_user) >= self._per_user_limit:
            self.close(of_user[0])
        if len(self._by_token) >= self._limit:
            counts = Counter(session.user for session in self._by_token.values())
            most = max(counts.values())
            self.close(next(each for each in self._by_token.values() if counts[each.user] == most))
        token, now = secrets.token_urlsafe(TOKEN_OCTETS), self._now()
        session = Session(
            id=secrets.token_hex(8),
            user=user,
            password_id=password_id,
            address=address,
            used_at=now,
            token_sha256=digest(token),
            xsrf_token=secrets.token_urlsafe(TOKEN_OCTETS),
        )
        self._by_token[session.token_sha256] = session
        return session, token

    def use(self, token: str) -> Session | None:
        """Return the session of a token, and note that it is used now.

        Tokens are found by their SHA-256: how far a guess agrees with a token cannot be seen in the time that it takes.
        """
        session = self._by_token.get(digest(token))
        if session is None:
            return None
        if self._is_idle(session):
            self.close(session)
            return None
        session.used_at = self._now()
        self._by_token[session.token_sha256] = self._by_token.pop(session.token_sha256)
        return session

    def all(self) -> list[Session]:
        """Return the sessions that live, the longest unused first."""
        self._expire()
        return list(self._by_token.values())

    def find(self, session_id: str) -> Session | None:
        """Return the session of this id."""
        return next((session for session in self.all() if session.id == session_id), None)

    def expect_password(self, session: Session, password_id: str) -> None:
        """The session's own account gets this password, which does not end it."""
        session.next_password_id = password_id

    def password_set(self, session: Session, password_id: str) -> None:
        """The session's own account has this password now."""
        session.password_id = password_id

    async def settled(self) -> None:
        """Wait until all that became of sessions so far counts everywhere: here it does at once."""

    def close(self, session: Session) -> None:
        """End a session; one that has ended already may be given."""
        session.is_closed = True
        self._by_token.pop(session.token_sha256, None)

    def _sort(self) -> None:
        """Put the table in order, after uses that were learned of later."""
        self._by_token = dict(sorted(self._by_token.items(), key=lambda item: item[1].used_at))

    def _expire(self) -> None:
        for session in list(self._by_token.values()):
            if not self._is_idle(session):
                break  # those behind it were used later
            self.close(session)

    def _is_idle(self, session: Session) -> bool:
        return self._now() - session.used_at >= self.idle_s


def digest(token: str) -> bytes:
    """Return what a token is known by."""
    return hashlib.sha256(token.encode()).digest()
