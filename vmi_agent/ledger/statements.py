"""Statements that are executed for every certificate: as text, and past SQLAlchemy.

For a short statement SQLAlchemy takes ten times what SQLite does. All others go through it.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import PoolProxiedConnection

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


def execute_many(connection: AnyConnection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Execute a statement once for each of these rows of parameters. Raises as `execute` does."""
    try:
        _driver(connection).executemany(statement, rows)
    except sqlite3.Error as error:
        raise DBAPIError(None, None, error) from error


def one_of(values: Sequence[object]) -> str:
    """Return the condition, in SQL text, that something is one of so many parameters."""
    return f"IN ({', '.join('?' * len(values))})"


def _driver(connection: AnyConnection) -> sqlite3.Connection:
    return connection if isinstance(connection, sqlite3.Connection) else driver_of(connection.connection)
