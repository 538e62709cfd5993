"""The ledger's rows: tables, what one transaction does to them, and reading them back (SQLite through SQLAlchemy Core).

A certificate is not stored beside its TBS: the row holds the TBS from before the key was used and the signature from
after, and `certificate.assemble` of the two is what was answered, so what was signed cannot differ from what was
recorded.

States of a row: pending (the intent), issued, abandoned (the process died in between; nothing was answered).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError

from protocol.records import NO_IDEMPOTENCY_KEY
from vmi_agent.errors import LedgerUnavailable

FILE_NAME = "ledger.sqlite"
SCHEMA_VERSION = 1
REPLAY_WINDOW_MS = 10 * 60 * 1000
BUSY_TIMEOUT_S = 5.0

PENDING, ISSUED, ABANDONED = "pending", "issued", "abandoned"

_metadata = MetaData()
_issuance = Table(
    "issuance",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("status", String, nullable=False),
    Column("root_generation", Integer, nullable=False),
    Column("profile", String, nullable=False),
    Column("user", String, nullable=False),
    Column("method", String, nullable=False),
    Column("address", String, nullable=False),
    Column("request_digest", LargeBinary, nullable=False),
    Column("csr_sha256", LargeBinary, nullable=False),
    Column("key_sha256", LargeBinary, nullable=False),
    Column("subject", String, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False),
    Column("issued_ms", BigInteger),
    Column("tbs", LargeBinary, nullable=False),
    Column("signature", LargeBinary),
    Index("issuance_by_request", "request_digest", "recorded_ms"),
)
_idempotency = Table(
    "idempotency",
    _metadata,
    Column("token", LargeBinary, primary_key=True),
    Column("csr_sha256", LargeBinary, nullable=False),
    Column("serial", LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Intent:
    """A certificate that is about to be signed.

    Attributes:
        serial: 17 octets.
        tbs: the DER of its TBSCertificate.
        user, method, address: the requester.
        idempotency_key: 16 octets, all zero for none.
        csr_sha256, key_sha256: over the CSR and its SubjectPublicKeyInfo, in DER.
        not_before, not_after: in seconds since 1970-01-01 UTC; `recorded_ms` in milliseconds.
    """

    serial: bytes
    tbs: bytes
    root_generation: int
    profile: str
    user: str
    method: str
    address: str
    idempotency_key: bytes
    csr_sha256: bytes
    key_sha256: bytes
    subject: str
    not_before: int
    not_after: int
    recorded_ms: int

    @property
    def request_digest(self) -> bytes:
        """Equal for the same requester and the same CSR, and for nothing else."""
        return _digest(self.user, self.csr_sha256)

    @property
    def idempotency_token(self) -> bytes | None:
        """Equal for the same requester and the same key; None without a key."""
        has_key = self.idempotency_key != NO_IDEMPOTENCY_KEY
        return _digest(self.user, self.idempotency_key) if has_key else None


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature over a recorded intent's TBS, made at `issued_ms`, milliseconds since 1970-01-01 UTC."""

    serial: bytes
    value: bytes
    issued_ms: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """The intent is on disk: sign it."""


@dataclass(frozen=True, slots=True)
class AlreadyIssued:
    """The same was asked before: this TBS and signature are its certificate."""

    serial: bytes
    tbs: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """The same requester used the same idempotency key for another CSR."""


Outcome = Recorded | AlreadyIssued | Conflict


def record_signatures(connection: Connection, signatures: Sequence[Signature]) -> None:
    """Complete the rows of these intents.

    Raises:
        LedgerUnavailable: one of them has no pending row.
    """
    if not signatures:
        return
    statement = (
        update(_issuance)
        .where(_issuance.c.serial == bindparam("of_serial"), _issuance.c.status == PENDING)
        .values(status=ISSUED, signature=bindparam("with_signature"), issued_ms=bindparam("at_ms"))
    )
    rows = [{"of_serial": each.serial, "with_signature": each.value, "at_ms": each.issued_ms} for each in signatures]
    if connection.execute(statement, rows).rowcount != len(rows):
        raise LedgerUnavailable("a signature without its recorded intent")


def record_intents(connection: Connection, intents: Sequence[Intent]) -> list[Outcome]:
    """Insert a row for each intent whose certificate was not issued before; return one outcome each, in order."""
    if not intents:
        return []
    by_digest = _recently_issued(connection, intents)
    by_token = _known_tokens(connection, intents)
    taken: dict[bytes, bytes] = {}  # tokens that are new in this very batch, and their CSRs
    outcomes: list[Outcome] = []
    new: list[Intent] = []
    tokens: list[dict[str, bytes]] = []
    for intent in intents:
        token = intent.idempotency_token
        known = by_token.get(token) if token else None
        earlier = known or by_digest.get(intent.request_digest)
        serial = intent.serial
        csr_of_token = known.csr_sha256 if known else taken.get(token or b"", intent.csr_sha256)
        if csr_of_token != intent.csr_sha256:
            outcomes.append(Conflict())
            continue
        if earlier is not None and earlier.status == ISSUED and earlier.root_generation == intent.root_generation:
            outcomes.append(AlreadyIssued(earlier.serial, earlier.tbs, earlier.signature))
            serial = earlier.serial
        else:
            outcomes.append(Recorded())
            new.append(intent)
        if token is not None:
            taken[token] = intent.csr_sha256
            tokens.append({"token": token, "csr_sha256": intent.csr_sha256, "serial": serial})
    if new:
        connection.execute(insert(_issuance), [_row(intent) for intent in new])
    if tokens:
        statement = upsert(_idempotency)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["token"], set_={"serial": statement.excluded.serial}),
            tokens,
        )
    return outcomes


def _recently_issued(connection: Connection, intents: Sequence[Intent]) -> dict[bytes, Any]:
    """Return the newest certificate for each same requester and CSR within the replay window, by request digest."""
    since = min(intent.recorded_ms for intent in intents) - REPLAY_WINDOW_MS
    rows = connection.execute(
        select(_issuance)
        .where(_issuance.c.request_digest.in_([intent.request_digest for intent in intents]))
        .where(_issuance.c.recorded_ms > since, _issuance.c.status == ISSUED)
        .order_by(_issuance.c.recorded_ms)
    )
    return {row.request_digest: row for row in rows}


def _known_tokens(connection: Connection, intents: Sequence[Intent]) -> dict[bytes, Any]:
    """Return, for each idempotency key that was used before, the CSR and certificate it stands for, by token."""
    tokens = [token for intent in intents if (token := intent.idempotency_token)]
    if not tokens:
        return {}
    rows = connection.execute(
        select(
            _idempotency.c.token,
            _idempotency.c.csr_sha256,
            _issuance.c.serial,
            _issuance.c.status,
            _issuance.c.root_generation,
            _issuance.c.tbs,
            _issuance.c.signature,
        )
        .join_from(_idempotency, _issuance, _idempotency.c.serial == _issuance.c.serial)
        .where(_idempotency.c.token.in_(tokens))
    )
    return {row.token: row for row in rows}


def _row(intent: Intent) -> dict[str, Any]:
    row = {column.name: getattr(intent, column.name, None) for column in _issuance.columns}
    del row["id"]
    return row | {"status": PENDING}


# Reading, from any process


def list_certificates(state_dir: Path) -> Iterator[Any]:
    """Yield the rows of all issued certificates, oldest first.

    Raises:
        LedgerUnavailable: there is no ledger, or it cannot be read.
    """
    yield from _read(state_dir, lambda table: table.c.status == ISSUED)


def find_certificate(state_dir: Path, serial: bytes) -> Any | None:
    """Return the row of one issued certificate, or None. Raises as `list_certificates` does."""
    rows = _read(state_dir, lambda table: (table.c.status == ISSUED) & (table.c.serial == serial))
    return next(iter(list(rows)), None)


def _read(state_dir: Path, condition: Callable[[Table], Any]) -> Iterator[Any]:
    path = state_dir / FILE_NAME
    if not path.exists():
        raise LedgerUnavailable(f"no ledger in {state_dir}: no agent has served from it yet")
    engine = open_ledger(path, for_writing=False)
    try:
        with engine.connect() as connection:
            yield from connection.execute(select(_issuance).where(condition(_issuance)).order_by(_issuance.c.id))
    except SQLAlchemyError as error:
        raise LedgerUnavailable(f"ledger {path}: {reason(error)}") from error
    finally:
        engine.dispose()


def check_not_missing(state_dir: Path) -> None:
    """Refuse a state directory whose ledger is gone: what was issued before would be forgotten without a word.

    Raises:
        LedgerUnavailable: with the two ways out.
    """
    path = state_dir / FILE_NAME
    if not path.exists():
        raise LedgerUnavailable(
            f"{state_dir} holds a CA and no ledger. Restore {FILE_NAME} from a backup,"
            f" or begin an empty one: touch {path}"
        )


def open_ledger(path: Path, *, for_writing: bool) -> Engine:
    """Return an engine on the file, which is made where it is missing: WAL, every commit synced to the disk."""
    # A transaction that begins with reading and then writes is refused at once where another process writes; one that
    # begins as a writer waits its turn.
    begin_with = "BEGIN IMMEDIATE" if for_writing else "BEGIN"
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # SQLAlchemy's documented recipe: the driver must not begin transactions on its own.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin_with)

    return engine


def prepare(connection: Connection) -> int:
    """Make the tables where they are not there yet; return how many intents a dead process left behind.

    Raises:
        LedgerUnavailable: the file is of another version.
    """
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version not in (0, SCHEMA_VERSION):
        raise LedgerUnavailable(f"the ledger has schema version {version}, this agent knows {SCHEMA_VERSION}")
    _metadata.create_all(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    # What a dead process left between its intent and its signature was never answered to anybody.
    return connection.execute(update(_issuance).where(_issuance.c.status == PENDING).values(status=ABANDONED)).rowcount


def _digest(user: str, value: bytes) -> bytes:
    # `value` has a fixed size, so the two cannot run into each other.
    return hashlib.sha256(value + user.encode()).digest()


def reason(error: BaseException) -> str:
    """Return what went wrong without the statement and its parameters, which SQLAlchemy's own text would show."""
    return str(getattr(error, "orig", None) or error)
