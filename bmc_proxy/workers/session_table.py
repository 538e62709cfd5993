"""The table of sessions in the first process, of which each worker has a replica."""

from collections.abc import Awaitable, Callable

from bmc_proxy.auth.sessions import Session, Sessions
from bmc_proxy.workers.messages import Record, SessionEnded, SessionIs, Used

# How often a worker tells which sessions were used there.
USED_EVERY_S = 1.0
# So that no session ends by a use that was not told yet.
GRACE_S = 3 * USED_EVERY_S


class SharedSessions(Sessions):
    """The table of sessions of several processes.

    Args:
        now: seconds, of a clock that goes forward.
        idle_s: how long a session lives unused, as far as is known here.
        tell: tells every worker.
        confirm: waits until every worker that serves has taken what it was told, or is dead.
    """

    def __init__(
        self,
        now: Callable[[], float],
        idle_s: float,
        tell: Callable[[Record], None],
        confirm: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(now, idle_s + GRACE_S)
        self._tell = tell
        self._confirm = confirm

    def open(self, user: str, password_id: str, address: str) -> tuple[Session, str]:
        """As `Sessions.open`."""
        session, token = super().open(user, password_id, address)
        self._tell(to_record(session))
        return session, token

    def expect_password(self, session: Session, password_id: str) -> None:
        """As `Sessions.expect_password`."""
        super().expect_password(session, password_id)
        self._tell_of_change(session)

    def password_set(self, session: Session, password_id: str) -> None:
        """As `Sessions.password_set`."""
        super().password_set(session, password_id)
        self._tell_of_change(session)

    def close(self, session: Session) -> None:
        """As `Sessions.close`."""
        if not session.is_closed:
            self._tell(SessionEnded(session.id))
        super().close(session)

    async def settled(self) -> None:
        """As `Sessions.settled`."""
        await self._confirm()

    def used(self, told: Used) -> None:
        """Note when sessions were used; those that have ended may be among them."""
        sessions, now = {session.id: session for session in self.all()}, self._now()
        for session_id, age_ms in zip(told.ids, told.ages_ms, strict=False):
            if session_id in sessions:
                session = sessions[session_id]
                session.used_at = max(session.used_at, min(now, now - age_ms / 1000))
        self._sort()

    def _tell_of_change(self, session: Session) -> None:
        if not session.is_closed:
            self._tell(to_record(session))


def to_record(session: Session) -> SessionIs:
    """Return what a worker is told of a session."""
    return SessionIs(
        session.id,
        session.user,
        session.password_id,
        session.next_password_id,
        session.address,
        session.token_sha256.hex(),
        session.xsrf_token,
    )
