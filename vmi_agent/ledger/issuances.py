"""What one transaction of the ledger does to the rows of certificates.

A certificate is not stored beside its TBS: the row holds the TBS from before the key was used and the signature from
after, and `certificate.assemble` of the two is what was answered, so what was signed cannot differ from what was
recorded.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from protocol.records import NO_IDEMPOTENCY_KEY
from vmi_agent.ledger import replay
from vmi_agent.ledger.replay import IssuedRow, PendingRow, Question, TokenRow
from vmi_agent.ledger.schema import ABANDONED, ISSUED, PENDING
from vmi_agent.ledger.sql import execute, execute_change, execute_many, one_of

REPLAY_WINDOW_MS = 10 * 60 * 1000

_COLUMNS = (
    *("serial", "root_generation", "profile", "user", "method", "address", "csr_sha256"),
    *("key_sha256", "subject", "not_before", "not_after", "recorded_ms", "tbs"),
)
_values = attrgetter(*_COLUMNS)
_INSERT = (
    f"INSERT INTO issuance (status, request_digest, {', '.join(_COLUMNS)})"  # noqa: S608  # names of our own columns
    f" VALUES ('{PENDING}', ?{', ?' * len(_COLUMNS)})"
)
_COMPLETE = f"UPDATE issuance SET status = '{ISSUED}', signature = ?, issued_ms = ? WHERE serial = ?"  # noqa: S608  # a word of our own
_CLOSE_OFF = f"UPDATE issuance SET status = '{ABANDONED}' WHERE serial"  # noqa: S608  # a word of our own
_REMEMBER = (
    "INSERT INTO idempotency (token, csr_sha256, serial) VALUES (?, ?, ?)"
    " ON CONFLICT (token) DO UPDATE SET serial = excluded.serial"
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
        instead_of: the serial of a pending intent of the same, which is not to be taken up again: what is pending is
            closed off with this one, unless somebody else did so.
        public_key_info: the key's SubjectPublicKeyInfo in DER: where the key is on the block list, nothing is recorded.
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
    public_key_info: bytes
    instead_of: bytes | None = None

    @property
    def request_digest(self) -> bytes:
        """Equal for the same requester and the same CSR, and for nothing else."""
        return digest_of(self.user, self.csr_sha256)

    @property
    def idempotency_token(self) -> bytes | None:
        """Equal for the same requester and the same key; None without a key."""
        has_key = self.idempotency_key != NO_IDEMPOTENCY_KEY
        return digest_of(self.user, self.idempotency_key) if has_key else None


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature over a recorded intent's TBS.

    Attributes:
        value: as it stands in the certificate.
        issued_ms: when it was made, in milliseconds since 1970-01-01 UTC.
        certificate_sha256: over the certificate that the two make.
        not_after: of the certificate, in seconds since 1970-01-01 UTC.
        public_key_info: as the intent has it.
    """

    serial: bytes
    value: bytes
    issued_ms: int
    certificate_sha256: bytes
    not_after: int
    public_key_info: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """The signature that a certificate has.

    Attributes:
        value: as it stands in the certificate.
        is_first: it is the one that was to be recorded; otherwise another one was before it.
    """

    value: bytes
    is_first: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """The intent is on disk: sign it.

    Attributes:
        closed_off: the serials of intents of the same that were closed off with it.
    """

    closed_off: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Resumed:
    """The same was asked before, and its signature is not recorded yet: it is this TBS that is to be signed.

    Attributes:
        recorded_ms: when its intent was recorded.
    """

    serial: bytes
    tbs: bytes
    recorded_ms: int


@dataclass(frozen=True, slots=True)
class AlreadyIssued:
    """The same was asked before: this TBS and signature are its certificate."""

    serial: bytes
    tbs: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """The same requester used the same idempotency key for another CSR."""


@dataclass(frozen=True, slots=True)
class KeyBlocked:
    """The key is on the block list: nothing was recorded, and nothing may be answered.

    Attributes:
        closed_off: the serial of the intent that was closed off with it, where its signature came too late.
    """

    closed_off: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyQuestion:
    """Whether a key is on the block list.

    Attributes:
        public_key_info: its SubjectPublicKeyInfo in DER.
    """

    public_key_info: bytes


# What has no signature yet, in the ledger or in the batch that is about to be recorded.
_Waiting = PendingRow | Intent
Outcome = Recorded | Resumed | AlreadyIssued | Conflict | KeyBlocked


def facts_of(recorded: Any) -> dict[str, object]:
    """Return what the audit says of a certificate that is about to be signed.

    Args:
        recorded: an `Intent`, or the ledger's row of one.
    """
    return {
        "serial": recorded.serial.hex(),
        "subject": recorded.subject,
        "user": recorded.user,
        "method": recorded.method,
        "address": recorded.address,
        "profile": recorded.profile,
        "root_generation": recorded.root_generation,
        "not_before": recorded.not_before,
        "not_after": recorded.not_after,
        "csr_sha256": recorded.csr_sha256.hex(),
        "key_sha256": recorded.key_sha256.hex(),
        "tbs_sha256": hashlib.sha256(recorded.tbs).hexdigest(),
    }


def record_signatures(
    connection: sqlite3.Connection, signatures: Sequence[Signature], blocked: frozenset[bytes]
) -> list[Kept | KeyBlocked | None]:
    """Complete the rows of these intents; return which signature each certificate has now.

    The first one stays, whoever made it. None where there is no certificate to answer with: the intent was closed off,
    or what somebody else made of it is revoked already. Where the key was blocked since the intent was recorded, the
    intent is closed off.

    Args:
        blocked: the SubjectPublicKeyInfos of these signatures that are blocked.
    """
    if not signatures:
        return []
    serials = [each.serial for each in signatures]
    statement = f"SELECT serial, status, signature, reason FROM issuance WHERE serial {one_of(serials)}"  # noqa: S608
    rows = execute(connection, statement, serials)
    recorded = {serial: value for serial, status, value, reason in rows if status == ISSUED and reason is None}
    pending = {serial for serial, status, _, _ in rows if status == PENDING}
    outcomes: list[Kept | KeyBlocked | None] = []
    new: list[tuple[bytes, int, bytes]] = []
    for each in signatures:
        if blocked and each.public_key_info in blocked:
            outcomes.append(KeyBlocked((each.serial,) if each.serial in pending else ()))
            pending.discard(each.serial)
        elif each.serial in recorded:
            outcomes.append(Kept(recorded[each.serial], is_first=False))
        elif each.serial in pending:
            recorded[each.serial] = each.value
            new.append((each.value, each.issued_ms, each.serial))
            outcomes.append(Kept(each.value, is_first=True))
        else:
            outcomes.append(None)
    if new:
        execute_many(connection, _COMPLETE, new)
    _close_off(connection, [serial for it in outcomes if isinstance(it, KeyBlocked) for serial in it.closed_off])
    return outcomes


def record_intents(
    connection: sqlite3.Connection, intents: Sequence[Intent], blocked: frozenset[bytes]
) -> list[Outcome]:
    """Insert a row for each intent whose certificate is neither issued nor pending; return one outcome each, in order.

    Of the same requester and CSR, and under the same root, no two are ever pending: what is older than the replay
    window, or was recorded while the clock was ahead, is closed off before another one is recorded.

    Args:
        blocked: the SubjectPublicKeyInfos of these intents that are blocked.
    """
    if not intents:
        return []
    digests = [intent.request_digest for intent in intents]
    now_ms = min(intent.recorded_ms for intent in intents)
    by_digest = replay.issued_since(connection, digests, now_ms - REPLAY_WINDOW_MS, now_ms)
    pending: dict[Question, Sequence[_Waiting]] = dict(replay.pending(connection, digests))
    by_token = replay.of_tokens(connection, [token for intent in intents if (token := intent.idempotency_token)])
    taken: dict[bytes, bytes] = {}  # tokens that are new in this very batch, and their CSRs
    outcomes: list[Outcome] = []
    new: list[tuple[object, ...]] = []
    tokens: list[tuple[bytes, bytes, bytes]] = []
    for intent, digest in zip(intents, digests, strict=True):
        if blocked and intent.public_key_info in blocked:
            outcomes.append(KeyBlocked())
            continue
        question = (digest, intent.root_generation)
        token = intent.idempotency_token
        known = by_token.get(token) if token else None
        # A key's certificate that may not be given again does not hide the one that the same CSR got since.
        candidates = (known, by_digest.get(question))
        earlier = next((each for each in candidates if each is not None and _may_be_answered_again(each, intent)), None)
        csr_of_token = known.csr_sha256 if known else taken.get(token or b"", intent.csr_sha256)
        if csr_of_token != intent.csr_sha256:
            outcomes.append(Conflict())
            continue
        waiting = pending.get(question, [])
        resumable = None if _is_among(waiting, intent.instead_of) else _resumable(waiting, intent)
        if earlier is not None:
            outcomes.append(AlreadyIssued(earlier.serial, earlier.tbs, earlier.signature))
            serial = earlier.serial
        elif resumable is not None:
            outcomes.append(Resumed(resumable.serial, resumable.tbs, resumable.recorded_ms))
            serial = resumable.serial
        else:
            outcomes.append(Recorded(tuple(each.serial for each in waiting)))
            new.append((digest, *_values(intent)))
            pending[question] = [intent]
            serial = intent.serial
        if token is not None:
            taken[token] = intent.csr_sha256
            tokens.append((token, intent.csr_sha256, serial))
    closed_off = [serial for each in outcomes if isinstance(each, Recorded) for serial in each.closed_off]
    _close_off(connection, closed_off)
    if new:
        execute_many(connection, _INSERT, new)
    if tokens:
        execute_many(connection, _REMEMBER, tokens)
    return outcomes


def _close_off(connection: sqlite3.Connection, serials: Sequence[bytes]) -> None:
    if serials:
        execute_change(connection, f"{_CLOSE_OFF} {one_of(serials)}", serials, len(serials))


def _may_be_answered_again(row: IssuedRow | TokenRow, intent: Intent) -> bool:
    is_good = row.status == ISSUED and row.reason is None and row.root_generation == intent.root_generation
    return is_good and replay.is_of_now(row, intent.recorded_ms)


def _resumable(waiting: Sequence[_Waiting], intent: Intent) -> _Waiting | None:
    now_ms = intent.recorded_ms
    return next(
        (each for each in waiting if each.recorded_ms > now_ms - REPLAY_WINDOW_MS and replay.is_of_now(each, now_ms)),
        None,
    )


def _is_among(waiting: Sequence[_Waiting], serial: bytes | None) -> bool:
    return serial is not None and any(each.serial == serial for each in waiting)


def digest_of(user: str, value: bytes) -> bytes:
    """Return what is equal for the same requester and the same CSR hash or idempotency key."""
    # `value` has a fixed size, so the two cannot run into each other.
    return hashlib.sha256(value + user.encode()).digest()
