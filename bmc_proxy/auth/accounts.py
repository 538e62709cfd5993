"""Accounts: who may ask, in which role, kept in one file that is read anew whenever somebody changed it.

`STATE/accounts.json` is 0600 and replaced as a whole, under a lock, so that `bmc-proxy account` and a running proxy may
both write it. It holds argon2id hashes, never a password.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum, unique
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.files import FileRefused, read_secret, remove_leftovers, replace_file

FILE_NAME = "accounts.json"
LIMIT = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
NAME_RULE = "1 to 64 letters, digits, '.', '_' or '-', the first a letter or '_'"
# Callers without login are recorded under this name in the ledger.
ANONYMOUS = "anonymous"
# The agent records its own acts under this name, so nobody may have it.
AGENT_ITSELF = "vmi-agent"
RESERVED = (ANONYMOUS, AGENT_ITSELF)
LOCK_PATIENCE_S = 3.0
LOCK_POLL_S = 0.02
_VERSION = 1


@unique
class Privilege(Enum):
    """What Redfish roles are made of (DSP0266, 13.2)."""

    LOGIN = "Login"
    CONFIGURE_MANAGER = "ConfigureManager"
    CONFIGURE_USERS = "ConfigureUsers"
    CONFIGURE_COMPONENTS = "ConfigureComponents"
    CONFIGURE_SELF = "ConfigureSelf"


@unique
class Role(Enum):
    """Redfish's own three roles."""

    ADMINISTRATOR = "Administrator"
    OPERATOR = "Operator"
    READ_ONLY = "ReadOnly"

    @property
    def privileges(self) -> frozenset[Privilege]:
        """What an account of this role may do."""
        return _PRIVILEGES[self]


_PRIVILEGES = {
    Role.ADMINISTRATOR: frozenset(Privilege),
    Role.OPERATOR: frozenset({Privilege.LOGIN, Privilege.CONFIGURE_COMPONENTS, Privilege.CONFIGURE_SELF}),
    Role.READ_ONLY: frozenset({Privilege.LOGIN, Privilege.CONFIGURE_SELF}),
}


class AccountsUnusable(Exception):
    """The file of accounts may not be used as it is; the text says what to change."""


class AccountRefused(Exception):
    """A change of the accounts is refused; the text says what to change.

    Attributes:
        about: what was wrong: "name", "password", "exists", "missing", "limit" or "last".
    """

    def __init__(self, about: str, text: str) -> None:
        super().__init__(text)
        self.about = about
        self.text = text


@dataclass(frozen=True, slots=True)
class Account:
    """One account.

    Attributes:
        password_hash: argon2id in its own text form; None where no password lets in, only a certificate or another
            checker.
    """

    name: str
    role: Role
    password_hash: str | None
    enabled: bool = True

    @property
    def administers(self) -> bool:
        """Whether this is an Administrator who is let in."""
        return self.enabled and self.role is Role.ADMINISTRATOR

    @property
    def password_id(self) -> str:
        """Another one for each password: what was opened with an old password can be told from what was not."""
        return password_id_of(self.password_hash)

    def version(self, *, is_locked: bool) -> str:
        """Return what names this state of the account, its password included; another one after each change."""
        told = (self.name, self.role.value, self.enabled, self.password_id, is_locked)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def password_id_of(password_hash: str | None) -> str:
    """Return what `Account.password_id` is for this hash."""
    return hashlib.sha256((password_hash or "").encode()).hexdigest()


def check_name(name: str) -> None:
    """Raise AccountRefused where an account cannot have this name."""
    if not NAME.fullmatch(name) or is_reserved(name):
        reserved = " or ".join(map(repr, RESERVED))
        raise AccountRefused("name", f"An account's name is {NAME_RULE}; not {reserved}.")


def is_reserved(name: str) -> bool:
    """Return whether the ledger and the audit use this name for somebody who is no account."""
    return name.lower() in RESERVED


Accounts = Mapping[str, Account]
Guard = Callable[[Accounts], None]


def _anybody(_accounts: Accounts) -> None:
    """Whoever may write the file may change it."""


class AccountStore:
    """The accounts of one state directory.

    Args:
        state_dir: exists.
        report: is told, once until it works again, why a changed file cannot be read; what was read last then stays.

    Attributes:
        on_change: called with the accounts where another version of the file was read.

    Raises:
        AccountsUnusable: the file is there and cannot be used.
    """

    def __init__(self, state_dir: Path, report: Callable[[str], None] = lambda _reason: None) -> None:
        self.on_change: Guard = _anybody
        self._path = state_dir / FILE_NAME
        self._report = report
        self._reported = False
        self._seen: tuple[int, int, int] | None = None
        self._accounts: Accounts = MappingProxyType({})
        self._look(self._stamp())

    def all(self) -> Accounts:
        """Return the accounts by name, as they are now."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._look(stamp)
            self._reported = False
        except AccountsUnusable as error:
            if not self._reported:
                self._report(str(error))
            self._reported = True
        return self._accounts

    def get(self, name: str) -> Account | None:
        """Return the account of this name."""
        return self.all().get(name)

    def add(self, account: Account, guard: Guard = _anybody) -> None:
        """Add an account. Blocks, as every change does: for a lock, and until it is durable.

        Args:
            guard: is shown the accounts as they are when the change is made, and raises where it may not be.

        Raises:
            AccountRefused: the name is taken or none, or there are `LIMIT` accounts.
            AccountsUnusable: the file cannot be read or locked.
            OSError: it cannot be written.
        """
        with self._changing(guard) as accounts:
            check_name(account.name)
            if account.name in accounts:
                raise AccountRefused("exists", f"There is an account {account.name} already.")
            if len(accounts) >= LIMIT:
                raise AccountRefused(
                    "limit", f"There are {LIMIT} accounts, which is all there can be. Remove one first."
                )
            accounts[account.name] = account

    def remove(self, name: str, guard: Guard = _anybody, *, keep_administrator: bool = False) -> None:
        """Remove an account.

        Args:
            guard: as for `add`, with its errors.
            keep_administrator: refuse to take the last enabled Administrator away.

        Raises:
            AccountRefused: there is none of this name, or it is the last Administrator.
        """
        with self._changing(guard) as accounts:
            account = _existing(accounts, name)
            if keep_administrator:
                _refuse_for_the_last(accounts, account)
            del accounts[name]

    def change(
        self,
        name: str,
        change: Callable[[Account], Account],
        guard: Guard = _anybody,
        *,
        keep_administrator: bool = False,
    ) -> Account:
        """Put what `change` makes of an account in its place and return it. Arguments and errors as for `remove`."""
        with self._changing(guard) as accounts:
            account = _existing(accounts, name)
            changed = change(account)
            if changed.enabled and is_reserved(name):
                raise AccountRefused("name", f"The name {name} is reserved. Remove the account, and add another one.")
            if keep_administrator and not changed.administers:
                _refuse_for_the_last(accounts, account)
            accounts[name] = changed
        return changed

    @contextmanager
    def _changing(self, guard: Guard) -> Iterator[dict[str, Account]]:
        """Yield the accounts for changing, and store them; no two changes, of whatever process, overlap."""
        path = self._path.with_suffix(".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, path)
            remove_leftovers(self._path)
            before = _read(self._path)
            guard(before)
            accounts = dict(before)
            yield accounts
            if accounts != before:
                replace_file(self._path, _to_json(accounts))
        finally:
            os.close(descriptor)

    def _look(self, stamp: tuple[int, int, int] | None) -> None:
        # The stamp is from before reading: what is written meanwhile is seen the next time.
        self._accounts = MappingProxyType(_read(self._path))
        self._seen = stamp
        self.on_change(self._accounts)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            state = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AccountsUnusable(f"{self._path}: {error.strerror}") from error
        return state.st_ino, state.st_mtime_ns, state.st_ctime_ns


def _lock(descriptor: int, path: Path) -> None:
    """Lock the file, which others have for milliseconds; whoever holds it for long must not stop logins.

    Waits in the calling thread, which is the one that hashes, or a command's: never the reactor's.
    """
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up_at:
                raise AccountsUnusable(
                    f"{path} is locked by another process. Try again once that has ended."
                ) from error
            time.sleep(LOCK_POLL_S)
        else:
            return


def _existing(accounts: Accounts, name: str) -> Account:
    if name not in accounts:
        raise AccountRefused("missing", f"There is no account {name}.")
    return accounts[name]


def _refuse_for_the_last(accounts: Accounts, account: Account) -> None:
    if account.administers and not any(each.administers for each in accounts.values() if each is not account):
        raise AccountRefused("last", "This is the last enabled Administrator. Make another one first.")


def _to_json(accounts: Accounts) -> bytes:
    rows = [asdict(account) | {"role": account.role.value} for account in accounts.values()]
    return (json.dumps({"version": _VERSION, "accounts": rows}, indent=2) + "\n").encode()


def _read(path: Path) -> dict[str, Account]:
    try:
        stored = json.loads(read_secret(path))
        if stored["version"] != _VERSION:
            raise AccountsUnusable(f"{path} has version {stored['version']}, this proxy knows {_VERSION}")
        return {row["name"]: _account(row) for row in stored["accounts"]}
    except FileNotFoundError:
        return {}
    except FileRefused as error:
        raise AccountsUnusable(str(error)) from error
    except OSError as error:
        raise AccountsUnusable(f"{path}: {error.strerror}. It must belong to the user of the proxy.") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AccountsUnusable(f"{path} cannot be read: {error}. Restore it from a backup, or remove it.") from error


def _account(row: Any) -> Account:
    name, role, password_hash, enabled = (row[field] for field in ("name", "role", "password_hash", "enabled"))
    if not isinstance(name, str) or not isinstance(password_hash, str | None) or not isinstance(enabled, bool):
        raise TypeError("an account has a field of another type")
    # An account of a reserved name, from before it was reserved, lets nobody in: its requests would pass for another's.
    return Account(name, Role(role), password_hash, enabled and not is_reserved(name))
