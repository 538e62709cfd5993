"""What stands in a ledger's schema, compared with what an agent makes.

SQLite keeps the text of each CREATE statement and obeys it: whoever can write the file can add a CHECK, a trigger, a
generated column or `ON CONFLICT IGNORE`, and have SQLite ignore or undo what an agent writes without an error. So the
texts are compared word for word; only white space does not count.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection


class SchemaObject(NamedTuple):
    """A table, index, trigger or view.

    Attributes:
        kind: as sqlite_master names it.
        table: that it belongs to.
        text: of its CREATE statement, white space normalised; empty for an index that a constraint made.
    """

    kind: str
    table: str
    text: str


# The objects that may stand under each name.
Known = Mapping[str, frozenset[SchemaObject]]

# As agents of version 1 made them.
_VERSION_1 = (
    "CREATE TABLE issuance (id INTEGER NOT NULL, serial BLOB NOT NULL, status VARCHAR NOT NULL,"
    " root_generation INTEGER NOT NULL, profile VARCHAR NOT NULL, user VARCHAR NOT NULL, method VARCHAR NOT NULL,"
    " address VARCHAR NOT NULL, request_digest BLOB NOT NULL, csr_sha256 BLOB NOT NULL, key_sha256 BLOB NOT NULL,"
    " subject VARCHAR NOT NULL, not_before BIGINT NOT NULL, not_after BIGINT NOT NULL, recorded_ms BIGINT NOT NULL,"
    " issued_ms BIGINT, tbs BLOB NOT NULL, signature BLOB, PRIMARY KEY (id), UNIQUE (serial))",
    "CREATE INDEX issuance_by_request ON issuance (request_digest, recorded_ms)",
    "CREATE TABLE idempotency (token BLOB NOT NULL, csr_sha256 BLOB NOT NULL, serial BLOB NOT NULL,"
    " PRIMARY KEY (token))",
)

# What SQLite's own ANALYZE makes. It changes how rows are found, never which.
_STATISTICS = {
    name: frozenset({SchemaObject("table", name, text)})
    for name, text in (
        ("sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"),
        ("sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"),
    )
}


def make_version_1(connection: Connection) -> None:
    """Make the tables of a ledger of version 1."""
    for statement in _VERSION_1:
        connection.exec_driver_sql(statement)


def objects_of(connection: Connection) -> dict[str, SchemaObject]:
    """Return all that stands in a database's schema, by name."""
    rows = connection.exec_driver_sql("SELECT name, type, tbl_name, sql FROM sqlite_master ORDER BY rootpage, name")
    return {row.name: SchemaObject(row.type, row.tbl_name, _normalised(row.sql or "")) for row in rows}


def stranger(found: Mapping[str, SchemaObject], known: Known) -> str | None:
    """Return a text about the first object that is not as it is known; None if there is none."""
    for name, object_ in found.items():
        if object_ not in known.get(name, _STATISTICS.get(name, ())):
            how = "is not as an agent makes it" if name in known else "was not made by an agent"
            return f"the {object_.kind} {name!r} in the ledger's schema {how}"
    return None


def fault(found: Mapping[str, SchemaObject], known: Known) -> str | None:
    """Return a text about the first object that is not as it is known, or is missing; None if there is none."""
    strange = stranger(found, known)
    if strange is not None:
        return strange
    missing = next((name for name in known if name not in found), None)
    return None if missing is None else f"{missing!r} is missing from the ledger's schema"


def _normalised(text: str) -> str:
    """Return the text with white space where words need it, and nowhere else."""
    return re.sub(r" ?([(),]) ?", r"\1", " ".join(text.split()))
