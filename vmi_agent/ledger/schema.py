"""The ledger's file: its tables, their version, and how it is opened (SQLite through SQLAlchemy Core)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from shlex import quote as quote_for_shell
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
from vmi_agent.ledger import schema_check
from vmi_agent.ledger.write_lock import Turns

FILE_NAME = "ledger.sqlite"
SCHEMA_VERSION = 3
# What those before lack.
FIRST_WITH_AUDIT, FIRST_WITH_BLOCK_LIST = 2, 3
FIRST_WITH_CARRIED_REVOCATIONS = 3
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
PENDING_INDEX = Index(
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

# The block list: one row for each reason why a key is never to be certified. `key_sha256` is over a
# SubjectPublicKeyInfo in DER; `serial` names the certificate whose revocation or hold blocks the key, and is empty
# where it was blocked by hand (`vmi_agent.ledger.blocked_keys`).
blocked_key = Table(
    "blocked_key",
    metadata,
    Column("key_sha256", LargeBinary, primary_key=True),
    Column("serial", LargeBinary, primary_key=True),
    Column("reason", String, nullable=False),
    Column("blocked_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Revocations that a restored ledger took over, of certificates that it does not hold
# (`vmi_agent.ledger.carried_revocations`). `revocation` is the number of the audit row that records it, as above.
carried_revocation = Table(
    "carried_revocation",
    metadata,
    Column("serial", LargeBinary, primary_key=True),
    Column("root_generation", Integer, primary_key=True),
    Column("reason", Integer, nullable=False),
    Column("revoked_ms", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("revocation", BigInteger, nullable=False),
    Index("carried_revocation_by_number", "revocation"),
    sqlite_with_rowid=False,
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


def version_of(connection: Connection) -> int:
    """Return the version of the ledger's schema; 0 for one that begins."""
    version: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    return version


def fault_of_schema(connection: Connection) -> str | None:
    """Return what stands in the ledger's schema and is not ours, or is missing there; None if nothing.

    A constraint, trigger, view, generated column or index that somebody added can undo or ignore what an agent writes
    without an error. So every table and index must be, word for word, one that some version of the agent made.
    """
    found = schema_check.objects_of(connection)
    version = version_of(connection)
    if version != SCHEMA_VERSION:
        return schema_check.stranger(found, schema_before(version))
    return schema_check.fault(found, _known_schema())


@cache
def _known_schema() -> schema_check.Known:
    return _schema_of(metadata.create_all)


def schema_before(version: int) -> schema_check.Known:
    """Return what may stand in the schema of a ledger that is to be brought up to date."""
    if version == 0:
        return {}
    earlier = _schema_of(schema_check.make_version_1)
    return {name: objects | earlier.get(name, frozenset()) for name, objects in _known_schema().items()}


def _schema_of(make: Callable[[Connection], None]) -> schema_check.Known:
    engine = create_engine("sqlite://")
    try:
        with engine.begin() as connection:
            make(connection)
            return {name: frozenset({each}) for name, each in schema_check.objects_of(connection).items()}
    finally:
        engine.dispose()


def check_schema(connection: Connection) -> None:
    """Refuse a ledger whose schema is not as an agent makes it.

    Raises:
        LedgerUnavailable: naming the first object that is not ours, or is missing.
    """
    fault = fault_of_schema(connection)
    if fault is not None:
        raise not_ours(fault)


def not_ours(fault: str) -> LedgerUnavailable:
    """Return the refusal of a ledger with such a fault in its schema."""
    return LedgerUnavailable(f"{fault}. Nothing was written. Restore the ledger from a backup.")


@contextmanager
def reading(state_dir: Path, *, least_version: int = FIRST_WITH_AUDIT) -> Iterator[Connection]:
    """Give one consistent look at the ledger, from any process.

    Args:
        least_version: of the schema, which the look needs.

    Raises:
        LedgerUnavailable: there is no ledger, or it cannot be read.
    """
    with _transaction(state_dir, for_writing=False, least_version=least_version) as connection:
        yield connection


@contextmanager
def writing(state_dir: Path, *, least_version: int = FIRST_WITH_AUDIT) -> Iterator[Connection]:
    """Give one transaction, for a command that changes the ledger beside a running agent, or without one.

    Args:
        least_version: what the change needs; what an agent that starts is kept from must not need the newest.

    Raises:
        LedgerUnavailable: there is no ledger, its schema is not as an agent makes it, or it cannot be written; then
            nothing was.
    """
    with _transaction(state_dir, for_writing=True, least_version=least_version) as connection:
        yield connection


@contextmanager
def _transaction(state_dir: Path, *, for_writing: bool, least_version: int) -> Iterator[Connection]:
    path = state_dir / FILE_NAME
    if not path.exists() or path.stat().st_size == 0:
        raise LedgerUnavailable(f"no ledger in {state_dir}: no agent has served from it yet")
    if for_writing:
        _known_schema()  # takes a while, for which nobody else should wait
    engine = open_ledger(path, for_writing=for_writing)
    try:
        with _turn(state_dir) if for_writing else nullcontext(), engine.begin() as connection:
            version = version_of(connection)
            if not least_version <= version <= SCHEMA_VERSION:
                text = f"it has schema version {version}, not {SCHEMA_VERSION}; an agent of this version updates it"
                raise LedgerUnavailable(f"ledger {path}: {text}")
            fault = fault_of_schema(connection) if for_writing else None
            if fault is not None:
                raise LedgerUnavailable(f"ledger {path}: {not_ours(fault)}")
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
            " or begin an empty one, which forgets every revocation and blocked key, and rotate the CA then:"
            f" `touch {quote_for_shell(str(path))}`"
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
