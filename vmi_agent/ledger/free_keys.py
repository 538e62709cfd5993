"""Keys that were found free a moment ago, so that a signature does not look up again what its intent did.

They hold until anybody but this connection writes to the ledger, which SQLite tells: nothing that writes through this
connection changes the block list.
"""

import sqlite3
from collections.abc import Sequence

from vmi_agent.ledger.blocked_keys import blocked_among
from vmi_agent.ledger.sql import execute

_MOST_KEYS = 1024


class FreeKeys:
    """What one connection knows of the block list. Used inside transactions, by one thread at a time."""

    def __init__(self) -> None:
        self._data_version: object = None
        self._free: set[bytes] = set()

    def blocked_among(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> frozenset[bytes]:
        """Return those of these SubjectPublicKeyInfos that are blocked, as `blocked_keys.blocked_among` does."""
        if not keys:
            return frozenset()
        [(data_version,)] = execute(connection, "PRAGMA data_version")
        if data_version != self._data_version or len(self._free) > _MOST_KEYS:
            self._data_version = data_version
            self._free.clear()
        unknown = [key for key in keys if key not in self._free]
        blocked = blocked_among(connection, unknown)
        self._free.update(key for key in unknown if key not in blocked)
        return blocked
