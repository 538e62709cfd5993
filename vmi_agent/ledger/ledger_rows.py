"""What one transaction of the ledger does to the rows of certificates.

A certificate is not stored beside its TBS: the row holds the TBS from before the key was used and the signature from
after, and `certificate.assemble` of the two is what was answered, so what was signed cannot differ from what was
recorded.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from protocol.records import NO_IDEMPOTENCY_KEY
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger.ledger_schema import idempotency, issuance

REPLAY_WINDOW_MS = 10 * 60 * 1000

PENDING, ISSUED, ABANDONED = "pending", "issued", "abandoned"


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
    """

    serial: bytes
    value: bytes
    issued_ms: int
    certificate_sha256: bytes
    not_after: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """The intent is on disk: sign it."""


@dataclass(frozen=True, slots=True)
class AlreadyIssued:
    """The same was asked before: this TBS and signature are its certificate."""

    serial: bytes
    tbs: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """The same requester used the same idempotency key for another CSR."""


Outcome = Recorded | AlreadyIssued | Conflict


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


def record_signatures(connection: Connection, signatures: Sequence[Signature]) -> None:
    """Complete the rows of these intents.

    Raises:
        LedgerUnavailable: one of them has no pending row.
    """
    if not signatures:
        return
    statement = (
        update(issuance)
        .where(issuance.c.serial == bindparam("of_serial"), issuance.c.status == PENDING)
        .values(status=ISSUED, signature=bindparam("with_signature"), issued_ms=bindparam("at_ms"))
    )
    rows = [{"of_serial": each.serial, "with_signature": each.value, "at_ms": each.issued_ms} for each in signatures]
    if connection.execute(statement, rows).rowcount != len(rows):
        raise LedgerUnavailable("a signature without its recorded intent")


def record_intents(connection: Connection, intents: Sequence[Intent]) -> list[Outcome]:
    """Insert a row for each intent whose certificate was not issued before; return one outcome each, in order."""
    if not intents:
        return []
    by_digest = _recently_issued(connection, intents)
    by_token = _known_tokens(connection, intents)
    taken: dict[bytes, bytes] = {}  # tokens that are new in this very batch, and their CSRs
    outcomes: list[Outcome] = []
    new: list[Intent] = []
    tokens: list[dict[str, bytes]] = []
    for intent in intents:
        token = intent.idempotency_token
        known = by_token.get(token) if token else None
        # A key's certificate that may not be given again does not hide the one that the same CSR got since.
        candidates = (known, by_digest.get((intent.request_digest, intent.root_generation)))
        earlier = next((each for each in candidates if each is not None and _may_be_answered_again(each, intent)), None)
        serial = intent.serial
        csr_of_token = known.csr_sha256 if known else taken.get(token or b"", intent.csr_sha256)
        if csr_of_token != intent.csr_sha256:
            outcomes.append(Conflict())
            continue
        if earlier is not None:
            outcomes.append(AlreadyIssued(earlier.serial, earlier.tbs, earlier.signature))
            serial = earlier.serial
        else:
            outcomes.append(Recorded())
            new.append(intent)
        if token is not None:
            taken[token] = intent.csr_sha256
            tokens.append({"token": token, "csr_sha256": intent.csr_sha256, "serial": serial})
    if new:
        connection.execute(insert(issuance), [_row(intent) for intent in new])
    if tokens:
        statement = upsert(idempotency)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["token"], set_={"serial": statement.excluded.serial}),
            tokens,
        )
    return outcomes


def _may_be_answered_again(row: Any, intent: Intent) -> bool:
    return row.status == ISSUED and row.reason is None and bool(row.root_generation == intent.root_generation)


def _recently_issued(connection: Connection, intents: Sequence[Intent]) -> dict[tuple[bytes, int], Any]:
    """Return the newest certificate for each same requester and CSR within the replay window, of each generation.

    By request digest and root generation.
    """
    since = min(intent.recorded_ms for intent in intents) - REPLAY_WINDOW_MS
    rows = connection.execute(
        select(issuance)
        .where(issuance.c.request_digest.in_([intent.request_digest for intent in intents]))
        .where(issuance.c.recorded_ms > since, issuance.c.status == ISSUED, issuance.c.reason.is_(None))
        .order_by(issuance.c.id)
    )
    return {(row.request_digest, row.root_generation): row for row in rows}


def _known_tokens(connection: Connection, intents: Sequence[Intent]) -> dict[bytes, Any]:
    """Return, for each idempotency key that was used before, the CSR and certificate it stands for, by token."""
    tokens = [token for intent in intents if (token := intent.idempotency_token)]
    if not tokens:
        return {}
    rows = connection.execute(
        select(
            idempotency.c.token,
            idempotency.c.csr_sha256,
            issuance.c.serial,
            issuance.c.status,
            issuance.c.root_generation,
            issuance.c.reason,
            issuance.c.tbs,
            issuance.c.signature,
        )
        .join_from(idempotency, issuance, idempotency.c.serial == issuance.c.serial)
        .where(idempotency.c.token.in_(tokens))
    )
    return {row.token: row for row in rows}


def _row(intent: Intent) -> dict[str, Any]:
    row = {column.name: getattr(intent, column.name, None) for column in issuance.columns}
    del row["id"]
    return row | {"status": PENDING}


def abandon_pending(connection: Connection) -> int:
    """Close off what a dead process left between its intent and its signature, and answered to nobody; count it."""
    return connection.execute(update(issuance).where(issuance.c.status == PENDING).values(status=ABANDONED)).rowcount


def digest_of(user: str, value: bytes) -> bytes:
    """Return what is equal for the same requester and the same CSR hash or idempotency key."""
    # `value` has a fixed size, so the two cannot run into each other.
    return hashlib.sha256(value + user.encode()).digest()
