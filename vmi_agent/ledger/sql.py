"""Statements that are executed for every certificate: as text, and past SQLAlchemy.

For a short statement SQLAlchemy takes ten times what SQLite does. All others go through it.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import PoolProxiedConnection

from runtime.hints import command
from vmi_agent.errors import LedgerUnavailable

# In a transaction, whoever began it.
AnyConnection = sqlite3.Connection | Connection


def driver_of(connection: PoolProxiedConnection) -> sqlite3.Connection:
    """Return the connection of SQLite's that one of SQLAlchemy's stands on."""
    return cast(sqlite3.Connection, connection.driver_connection)


def execute(connection: AnyConnection, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Execute a statement in the transaction of the connection; return the rows that it finds.

    Args:
        statement: in SQLite's words, without anybody's input; `?` for each parameter.

    Raises:
        DBAPIError: as SQLAlchemy does; the statement and its parameters are not in it.
    """
    try:
        return _driver(connection).execute(statement, parameters).fetchall()
    except sqlite3.Error as error:
        raise DBAPIError(None, None, error) from error


def execute_change(connection: AnyConnection, statement: str, parameters: Sequence[object], expected: int) -> None:
    """Execute a statement that changes this many rows. Arguments as for `execute`.

    Raises:
        DBAPIError: as `execute` does.
        LedgerUnavailable: it changed another number of rows.
    """
    try:
        changed = _driver(connection).execute(statement, parameters).rowcount
    except sqlite3.Error as error:
        raise DBAPIError(None, None, error) from error
    check_changed(changed, expected)


def execute_many(connection: AnyConnection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Execute a statement, which changes one row, once for each of these rows of parameters.

    Raises:
        DBAPIError: as `execute` does.
        LedgerUnavailable: it did not change one row each time.
    """
    try:
        changed = _driver(connection).executemany(statement, rows).rowcount
    except sqlite3.Error as error:
        raise DBAPIError(None, None, error) from error
    check_changed(changed, len(rows))


def check_changed(changed: int, expected: int) -> None:
    """Refuse an effect that is not the promised one.

    Args:
        changed: how many rows a statement changed.
        expected: how many it was to change.

    Raises:
        LedgerUnavailable: the two differ. The transaction must be undone.
    """
    if changed != expected:
        raise LedgerUnavailable(
            f"the ledger ignored what was written to it: {changed} rows were changed instead of {expected}. Nothing was"
            f" done. Find out who changed its schema or its rows: `{command('vmi-agent', 'audit verify')}`"
        )


def one_of(values: Sequence[object]) -> str:
    """Return the condition, in SQL text, that something is one of so many parameters."""
    return f"IN ({', '.join('?' * len(values))})"


def _driver(connection: AnyConnection) -> sqlite3.Connection:
    return connection if isinstance(connection, sqlite3.Connection) else driver_of(connection.connection)
