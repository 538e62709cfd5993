"""Statements that are executed for every certificate: as text, and past SQLAlchemy, in its transactions.

For a short statement SQLAlchemy takes ten times what SQLite does. All others go through it.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def execute(connection: Connection, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Execute a statement in the transaction of the connection; return the rows that it finds.

    Args:
        statement: in SQLite's words, without anybody's input; `?` for each parameter.

    Raises:
        DBAPIError: as SQLAlchemy does; the statement and its parameters are not in it.
    """
    try:
        found: list[tuple[Any, ...]] = connection.connection.cursor().execute(statement, parameters).fetchall()
    except sqlite3.Error as error:
        raise DBAPIError(None, None, error) from error
    return found


def execute_many(connection: Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Execute a statement once for each of these rows of parameters. Raises as `execute` does."""
    try:
        connection.connection.cursor().executemany(statement, rows)
    except sqlite3.Error as error:
        raise DBAPIError(None, None, error) from error


def one_of(values: Sequence[object]) -> str:
    """Return the condition, in SQL text, that something is one of so many parameters."""
    return f"IN ({', '.join('?' * len(values))})"
