"""The sessions as a worker knows them: a replica of the first process's table, which alone says when one ends."""

from collections.abc import Callable

from bmc_proxy.auth.sessions import LIMIT, Session, digest
from bmc_proxy.workers.messages import RecordRefused, SessionIs, Used


class Replica:
    """What a worker was told of the sessions.

    Args:
        now: seconds, of a clock that goes forward.
        idle_s: how long a session lives unused.
        end: tells the first process of a session that its account does not let in any more.
    """

    def __init__(self, now: Callable[[], float], idle_s: float, end: Callable[[Session], None]) -> None:
        self._now = now
        self.idle_s = idle_s
        self._end = end
        self._by_token: dict[bytes, Session] = {}
        self._by_id: dict[str, Session] = {}
        self._used: dict[str, float] = {}  # when, by id

    def use(self, token: str) -> Session | None:
        """As `SessionTable.use`."""
        session = self._by_token.get(digest(token))
        if session is not None:
            session.used_at = self._used[session.id] = self._now()
        return session

    def all(self) -> list[Session]:
        """As `SessionTable.all`."""
        return list(self._by_id.values())

    def find(self, session_id: str) -> Session | None:
        """As `SessionTable.find`."""
        return self._by_id.get(session_id)

    def close(self, session: Session) -> None:
        """As `SessionTable.close`: it is none here from now on, and nowhere once the first process knows."""
        if not session.is_closed:
            self.forget(session.id)
            self._end(session)

    def learn(self, told: SessionIs) -> None:
        """Take a session, or what changed of one. Raises RecordRefused."""
        session = self._by_id.get(told.id)
        if session is not None:
            session.password_id, session.next_password_id = told.password_id, told.next_password_id
            return
        if len(self._by_id) >= LIMIT:
            raise RecordRefused("more sessions than there may be")
        session = Session(
            id=told.id,
            user=told.user,
            password_id=told.password_id,
            address=told.address,
            used_at=self._now(),
            token_sha256=_octets(told.token_sha256),
            xsrf_token=told.xsrf_token,
            next_password_id=told.next_password_id,
        )
        self._by_id[session.id] = self._by_token[session.token_sha256] = session

    def forget(self, session_id: str) -> None:
        """A session ended; it may be forgotten already."""
        session = self._by_id.pop(session_id, None)
        if session is not None:
            session.is_closed = True
            self._by_token.pop(session.token_sha256, None)
            self._used.pop(session_id, None)

    def take_used(self) -> Used | None:
        """Return which sessions were used since the last call; None for none."""
        used, self._used = self._used, {}
        now = self._now()
        return Used(tuple(used), tuple(round((now - at) * 1000) for at in used.values())) if used else None


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise RecordRefused("a digest is not hexadecimal") from error
