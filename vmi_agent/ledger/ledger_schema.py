"""The ledger's file: its tables, their version, and how it is opened (SQLite through SQLAlchemy Core)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    create_engine,
    event,
    literal_column,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.turns import Turns

FILE_NAME = "ledger.sqlite"
SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 2.0

metadata = MetaData()

PENDING, ISSUED, ABANDONED = "pending", "issued", "abandoned"

# One row for each certificate. Its states: pending (the intent), issued, abandoned (the process died in between;
# nothing was answered). A certificate that is revoked or on hold is issued and has a `reason` (RFC 5280, 5.3.1).
issuance = Table(
    "issuance",
    metadata,
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
    Column("reason", Integer),
    Column("revoked_ms", BigInteger),
    # The number of the audit row that tells of the last revocation or release: whoever knows all up to a number asks
    # for what is above it.
    Column("revocation", BigInteger),
    Index("issuance_by_request", "request_digest", "recorded_ms"),
    Index("issuance_by_key", "key_sha256"),
    Index("issuance_by_end", "not_after"),
)
Index("issuance_by_revocation", issuance.c.revocation, sqlite_where=issuance.c.revocation.is_not(None))
_PENDING_INDEX = Index(
    "issuance_pending",
    issuance.c.request_digest,
    issuance.c.recorded_ms,
    sqlite_where=issuance.c.status == PENDING,
)
# In words that SQLite knows again: only then does it use that index.
IS_PENDING = issuance.c.status == literal_column(f"'{PENDING}'")

idempotency = Table(
    "idempotency",
    metadata,
    Column("token", LargeBinary, primary_key=True),
    Column("csr_sha256", LargeBinary, nullable=False),
    Column("serial", LargeBinary, nullable=False),
    Index("idempotency_by_serial", "serial"),
)

# The chain, and beside it where it ends, without which its last rows could be cut off unseen.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("event", String, nullable=False),
    Column("fields", String, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
audit_head = Table(
    "audit_head",
    metadata,
    Column("one", Integer, primary_key=True),
    Column("last_id", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)


def open_ledger(path: Path, *, for_writing: bool) -> Engine:
    """Return an engine on the file, which is made where it is missing: WAL, every commit synced to the disk."""
    # A transaction that begins with reading and then writes is refused at once where another process writes; one that
    # begins as a writer waits its turn.
    begin_with = "BEGIN IMMEDIATE" if for_writing else "BEGIN"
    is_evidence = not for_writing and _is_on_read_only_medium(path)
    # SQLite reads what is in WAL mode only where it may write beside it, unless it is told that nobody writes.
    url = f"sqlite:///file:{quote(str(path))}?mode=ro&immutable=1&uri=true" if is_evidence else f"sqlite:///{path}"
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # SQLAlchemy's documented recipe: the driver must not begin transactions on its own.
        connection.isolation_level = None
        if not is_evidence:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0")  # see checkpoints.py

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin_with)

    return engine


def _is_on_read_only_medium(path: Path) -> bool:
    """Return whether nobody can write to the ledger, and no log of writes lies beside it that is to be read as well."""
    try:
        is_read_only = bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False
    return is_read_only and not path.with_name(path.name + "-wal").exists()


def strangers_in(connection: Connection) -> list[str]:
    """Return what does something by itself in the ledger's file and is not ours: the names of triggers and views."""
    found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index')")
    return [str(row.name) for row in found]


def prepare(connection: Connection, *, alone: bool) -> bool:
    """Make the tables where they are not there yet, and bring those of version 1 up to date.

    Args:
        alone: no other agent has the ledger open.

    Returns:
        Whether the ledger was of version 1, which had no audit.

    Raises:
        LedgerUnavailable: the file is of another version, or is to be brought up to date and others use it.
    """
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version not in (0, 1, SCHEMA_VERSION):
        raise LedgerUnavailable(f"the ledger has schema version {version}, this agent knows {SCHEMA_VERSION}")
    if strangers_in(connection):
        raise LedgerUnavailable("it holds triggers or views, which no agent made. Restore it from a backup.")
    if version == 1 and not alone:
        raise LedgerUnavailable("it is of another version than this agent's. Stop the other agents first.")
    if version == 1:
        for column in (issuance.c.reason, issuance.c.revoked_ms, issuance.c.revocation):
            connection.exec_driver_sql(f"ALTER TABLE issuance ADD COLUMN {column.name} {column.type}")
        for index in (*issuance.indexes, *idempotency.indexes):
            index.create(connection, checkfirst=True)
    metadata.create_all(connection)
    _PENDING_INDEX.create(connection, checkfirst=True)  # which came later than version 2
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return bool(version == 1)


@contextmanager
def reading(state_dir: Path) -> Iterator[Connection]:
    """Give one consistent look at the ledger, from any process.

    Raises:
        LedgerUnavailable: there is no ledger, or it cannot be read.
    """
    with _transaction(state_dir, for_writing=False) as connection:
        yield connection


@contextmanager
def writing(state_dir: Path) -> Iterator[Connection]:
    """Give one transaction, for a command that changes the ledger beside a running agent, or without one.

    Raises:
        LedgerUnavailable: there is no ledger, or it cannot be written; then nothing was.
    """
    with _transaction(state_dir, for_writing=True) as connection:
        yield connection


@contextmanager
def _transaction(state_dir: Path, *, for_writing: bool) -> Iterator[Connection]:
    path = state_dir / FILE_NAME
    if not path.exists() or path.stat().st_size == 0:
        raise LedgerUnavailable(f"no ledger in {state_dir}: no agent has served from it yet")
    engine = open_ledger(path, for_writing=for_writing)
    try:
        with _turn(state_dir) if for_writing else nullcontext(), engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version != SCHEMA_VERSION:
                text = f"it has schema version {version}, not {SCHEMA_VERSION}; an agent of this version updates it"
                raise LedgerUnavailable(f"ledger {path}: {text}")
            yield connection
    except (SQLAlchemyError, UnicodeDecodeError) as error:
        raise LedgerUnavailable(f"ledger {path}: {reason(error)}") from error
    finally:
        engine.dispose()


@contextmanager
def _turn(state_dir: Path) -> Iterator[None]:
    try:
        turns = Turns(state_dir)
    except OSError as error:
        raise LedgerUnavailable(f"ledger in {state_dir}: {error.strerror}") from error
    try:
        with turns.take():
            yield
    finally:
        turns.close()


def check_not_missing(state_dir: Path) -> None:
    """Refuse a state directory whose ledger is gone: what was issued before would be forgotten without a word.

    Raises:
        LedgerUnavailable: with the two ways out.
    """
    path = state_dir / FILE_NAME
    if not path.exists():
        raise LedgerUnavailable(
            f"{state_dir} holds a CA and no ledger. Restore {FILE_NAME} from a backup,"
            f" or begin an empty one, which forgets every revocation, and rotate the CA then: touch {path}"
        )


def check_ca_not_missing(state_dir: Path) -> None:
    """Refuse a state directory whose CA is gone: another one would take its number, and its certificates for its own.

    Raises:
        LedgerUnavailable: with the two ways out.
    """
    with reading(state_dir) as connection:
        if connection.execute(select(issuance.c.id).limit(1)).first() is not None:
            raise LedgerUnavailable(
                f"{state_dir} holds a ledger with certificates and no CA. Restore both from a backup, or begin anew"
                " with an empty state directory."
            )


def reason(error: BaseException) -> str:
    """Return what went wrong without the statement and its parameters, which SQLAlchemy's own text would show."""
    text = str(getattr(error, "orig", None) or error)
    # The driver shows what it cannot read; where it is the error's own text, it cannot even tell what went wrong.
    if isinstance(error, UnicodeDecodeError) or text.startswith("Could not decode to UTF-8"):
        return "a text in it is not UTF-8: the file is damaged"
    return text
