"""Revoking a certificate of this CA that its ledger does not hold, such as one that was issued after a backup.

The certificate itself shows that the CA issued it; the caller has verified that. Its serial number goes onto the CRL of
its generation, and OCSP says "revoked" (`vmi_agent.ledger.carried_revocations`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from vmi_agent.ledger import blocked_keys, carried_revocations, revocation
from vmi_agent.ledger.carried_revocations import CarriedRevocation
from vmi_agent.ledger.revocation import Reason, RevocationRefused
from vmi_agent.ledger.schema import ISSUED, issuance


@dataclass(frozen=True, slots=True)
class Unheld:
    """A certificate that a generation of this CA issued, named as the columns of the ledger are.

    Attributes:
        serial: 17 octets.
        not_after: in seconds since 1970-01-01 UTC.
        key_sha256: over its SubjectPublicKeyInfo.
        tbs, signature: as in the certificate.
    """

    serial: bytes
    root_generation: int
    not_after: int
    key_sha256: bytes
    tbs: bytes
    signature: bytes


def is_held(connection: Connection, certificate: Unheld) -> bool:
    """Return whether the ledger holds a certificate, so that it is revoked as others are."""
    columns = issuance.c
    wanted = columns.serial == certificate.serial, columns.root_generation == certificate.root_generation
    return connection.execute(select(columns.id).where(*wanted, columns.status == ISSUED)).first() is not None


def revoke_one(
    connection: Connection, certificate: Unheld, _others: Sequence[Any], reason: Reason, now_ms: int, by: str
) -> list[Any]:
    """Revoke a certificate; return it. Arguments and errors as for `revoke_all`."""
    return revoke_all(connection, certificate, (), reason, now_ms, by)


def revoke_all(
    connection: Connection, certificate: Unheld, others: Sequence[Any], reason: Reason, now_ms: int, by: str
) -> list[Any]:
    """Revoke a certificate, and others of its key, in the transaction of the connection.

    keyCompromise and certificateHold block its key. Nothing releases a hold here: it ends with the certificate, or with
    another reason.

    Args:
        others: rows from `revocation.others_of_key`, which are revoked with it where they can be.
        now_ms: in milliseconds since 1970-01-01 UTC.
        by: who does it, for the audit.

    Returns:
        What was revoked: of the others alone, where the certificate was revoked before.

    Raises:
        RevocationRefused: there was nothing to revoke.
    """
    serial = certificate.serial
    revoked: list[Any] = []
    carried = CarriedRevocation(serial, certificate.root_generation, int(reason), now_ms, certificate.not_after)
    if carried_revocations.carry(connection, carried, f"its certificate, from {by}", now_ms):
        revoked.append(certificate)
        if reason.name in blocked_keys.BLOCKING:
            blocked_keys.block(connection, certificate.key_sha256, serial, reason.name, now_ms, by)
        else:
            blocked_keys.lift_hold(connection, certificate.key_sha256, serial, now_ms, by)
    for row in others:
        if row.reason is None or row.reason == Reason.certificateHold != reason:
            revocation.revoke(connection, row.serial, reason, now_ms, by)
            revoked.append(row)
    if not revoked:
        standing = carried_revocations.find(connection, serial, certificate.root_generation)
        raise RevocationRefused(f"certificate {serial.hex()} is revoked already ({Reason(standing.reason).name})")
    return revoked
