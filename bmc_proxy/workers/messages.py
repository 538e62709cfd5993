"""What goes over the pipe between the first process and a worker: one frozen dataclass a record, JSON in a frame.

Both run the same code of the same version, so there is no negotiation. Whatever is not exactly one of these is refused.
"""

import json
from dataclasses import dataclass, field, fields
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


class RecordRefused(Exception):
    """The octets are no record; the text says why, and nothing of what they hold."""


# From the first process


@dataclass(frozen=True, slots=True)
class SetUp:
    """Asked first of all: be ready to listen.

    Attributes:
        worker: its number, from 1 on.
        config: the worker's own part of it, as JSON.
        listeners: the options whose listening sockets the worker inherited, in the order of their descriptors.
        is_replacement: the proxy serves already.
    """

    worker: int
    log_format: str
    config: str
    listeners: tuple[str, ...]
    is_replacement: bool


@dataclass(frozen=True, slots=True)
class Listen:
    """Asked: accept connections from now on."""


@dataclass(frozen=True, slots=True)
class SessionIs:
    """Told: this is a session, a new one or one that changed."""

    id: str
    user: str
    password_id: str
    next_password_id: str | None
    address: str
    token_sha256: str = field(repr=False)
    xsrf_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Told: a session is none any more."""

    id: str


@dataclass(frozen=True, slots=True)
class Confirm:
    """Asked: that all that was told so far is known."""


@dataclass(frozen=True, slots=True)
class Reload:
    """Told: read the certificates anew."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Asked: accept no more connections, which is the answer; then finish what is under way, and end."""


# From a worker


@dataclass(frozen=True, slots=True)
class CheckPassword:
    """Asked: is this password right? Answered with `LetIn`."""

    user: str
    password: str = field(repr=False)
    address: str


@dataclass(frozen=True, slots=True)
class LogIn:
    """Asked: open a session. Answered with `LoggedIn`."""

    user: str
    password: str = field(repr=False)
    address: str


@dataclass(frozen=True, slots=True)
class EndSession:
    """Asked: end a session.

    Attributes:
        by: the user who asked for it; None where its account does not let it in any more.
    """

    id: str
    by: str | None
    address: str


@dataclass(frozen=True, slots=True)
class Used:
    """Asked: note that these sessions were used.

    Attributes:
        ages_ms: how long ago each of them was used last.
    """

    ids: tuple[str, ...]
    ages_ms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LookAtLock:
    """Asked: is this account locked? Answered with `Locked`."""

    name: str


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants accounts changed, as `Caller` has it; what it may do is looked up in the first process."""

    user: str
    method: str
    address: str
    password_id: str | None
    session_id: str | None


@dataclass(frozen=True, slots=True)
class AddAccount:
    """Asked: make an account. Answered with `AccountIs`."""

    by: Asker
    name: str
    password: str | None = field(repr=False)
    role: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class RemoveAccount:
    """Asked: remove an account.

    Attributes:
        versions: of the account, one of which it must still have, where `has_versions` is set.
    """

    by: Asker
    name: str
    has_versions: bool
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChangeAccount:
    """Asked: change what is not None of an account. Answered with `AccountIs`. Versions as in `RemoveAccount`."""

    by: Asker
    name: str
    password: str | None = field(repr=False)
    role: str | None
    enabled: bool | None
    unlock: bool
    has_versions: bool
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Told, with the number of a question: nobody waits for its answer any more."""


# Answers


@dataclass(frozen=True, slots=True)
class Done:
    """It is done."""


@dataclass(frozen=True, slots=True)
class LetIn:
    """The password is that of this account."""

    name: str
    password_id: str


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """This session was opened; it was told before."""

    session_id: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Locked:
    """Whether the account is."""

    is_locked: bool


@dataclass(frozen=True, slots=True)
class AccountIs:
    """The account as it is now; its hash stays in the file."""

    name: str
    role: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """It was refused; see `refusals`."""

    kind: str
    text: str
    name: str
    exists: bool
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed for a reason that the first process has logged."""


Record = (
    SetUp
    | Listen
    | SessionIs
    | SessionEnded
    | Confirm
    | Reload
    | Drain
    | CheckPassword
    | LogIn
    | EndSession
    | Used
    | LookAtLock
    | AddAccount
    | RemoveAccount
    | ChangeAccount
    | GiveUp
    | Done
    | LetIn
    | LoggedIn
    | Locked
    | AccountIs
    | Refused
    | Failed
)
ANSWERS = (Done, LetIn, LoggedIn, Locked, AccountIs, Refused, Failed)
_BY_CODE: dict[int, Any] = dict(enumerate(get_args(Record), 1))
_CODES = {kind: code for code, kind in _BY_CODE.items()}
_FIELDS = MappingProxyType({kind: get_type_hints(kind) for kind in (*_CODES, Asker)})


def encode(record: Record) -> tuple[int, bytes]:
    """Return a record's type code and its payload."""
    return _CODES[type(record)], json.dumps(_values(record)).encode()


def decode(code: int, payload: bytes) -> Record:
    """Return the record. Raises RecordRefused."""
    kind = _BY_CODE.get(code)
    if kind is None:
        raise RecordRefused(f"type {code} is none")
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RecordRefused(f"{kind.__name__} is not JSON") from error
    record: Record = _record(kind, values)
    return record


def _values(record: Any) -> list[Any]:
    values = [getattr(record, each.name) for each in fields(record)]
    return [_values(value) if isinstance(value, Asker) else value for value in values]


def _record(kind: Any, values: Any) -> Any:
    hints = _FIELDS[kind]
    if not isinstance(values, list) or len(values) != len(hints):
        raise RecordRefused(f"{kind.__name__} has other fields")
    return kind(*(_value(kind, hint, value) for hint, value in zip(hints.values(), values, strict=True)))


def _value(kind: Any, hint: Any, value: Any) -> Any:
    if hint is Asker:
        return _record(Asker, value)
    if get_origin(hint) is tuple:
        if isinstance(value, list) and all(type(each) is get_args(hint)[0] for each in value):
            return tuple(value)
    elif type(value) in (get_args(hint) if isinstance(hint, UnionType) else (hint,)):
        return value
    raise RecordRefused(f"{kind.__name__} has a field of another type")
