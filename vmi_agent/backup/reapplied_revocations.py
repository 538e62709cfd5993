"""Revocations that are newer than a backup, applied to the ledger that was restored from it.

Only what makes the restored CA stricter is applied: a hold that was released since, or a key that was unblocked, is
named and stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, select

from runtime.errors import StartError
from vmi_agent.backup import revocation_list
from vmi_agent.backup.later_revocations import Source
from vmi_agent.backup.revocation_list import RevocationList
from vmi_agent.ca import store as ca_store
from vmi_agent.ledger import blocked_keys, carried_revocations, crl_numbers
from vmi_agent.ledger.blocked_keys import BlockListRefused
from vmi_agent.ledger.carried_revocations import CarriedRevocation
from vmi_agent.ledger.revocation import Reason, RevocationRefused, revoke
from vmi_agent.ledger.schema import ISSUED, issuance

_BY = "vmi-agent restore"


@dataclass(slots=True)
class Outcome:
    """What was applied to the restored ledger.

    Attributes:
        sources: that told of it.
        again: certificates that the ledger holds, and that were revoked again.
        carried: certificates that it does not hold, and that stay on the CRL.
        lost: revoked certificates of generations that the backup does not hold.
        blocks: how many blocks of keys were added.
        still_on_hold: serials that are on hold here, and were not any more in the newest list of all revocations.
        still_blocked: hashes of keys that are blocked here, and were not any more there.
        unknown_since: from when on nothing tells of revocations, by generation.
        crl_number: the highest number of a CRL that the ledger or a source tells of.
        lost_generations: of the old state directory, that the backup does not hold.
    """

    sources: Sequence[Source]
    again: list[CarriedRevocation] = field(default_factory=list)
    carried: list[CarriedRevocation] = field(default_factory=list)
    lost: list[CarriedRevocation] = field(default_factory=list)
    blocks: int = 0
    still_on_hold: list[bytes] = field(default_factory=list)
    still_blocked: list[bytes] = field(default_factory=list)
    unknown_since: Mapping[int, datetime] = field(default_factory=dict)
    crl_number: int = 0
    lost_generations: Sequence[int] = ()

    @property
    def knows_blocked_keys(self) -> bool:
        """Whether a source told of the keys that were blocked since the backup; a CRL does not."""
        return any(each.generation is None for each in self.sources)

    @property
    def told(self) -> Mapping[str, object]:
        """What the audit records of it; each certificate and key has a row of its own."""
        return {
            "revocations_from": [each.name for each in self.sources],
            "revoked_again": len(self.again),
            "revocations_carried_over": len(self.carried),
            "revocations_of_lost_generations": len(self.lost),
            "lost_generations": list(self.lost_generations),
            "blocks_added": self.blocks,
            "crl_number": self.crl_number,
            "blocked_keys_known": self.knows_blocked_keys,
            "revocations_unknown_since": {str(key): value.isoformat() for key, value in self.unknown_since.items()},
        }


def apply(
    connection: Connection, sources: Sequence[Source], restored: Path, made_at: datetime, now: datetime
) -> Outcome:
    """Revoke and block in the restored ledger what the sources tell, in the transaction of the connection.

    Raises:
        StartError: a block list cannot be read.
    """
    now_ms, outcome = int(now.timestamp() * 1000), Outcome(sources)
    generations = ca_store.generations(restored)
    for source in sources:
        for each in source.known.revoked:
            _apply_one(connection, each, source.name, generations, now_ms, outcome)
        try:
            outcome.blocks += blocked_keys.import_blocked(connection, source.known.blocked, now_ms, _BY)
        except BlockListRefused as error:
            raise StartError(f"{source.name}: {error}") from error
    whole = [each.known for each in sources if each.generation is None]
    if whole:
        _look_for_stricter(connection, max(whole, key=lambda known: known.last_row), outcome)
    outcome.unknown_since = {
        generation: max([made_at, *(each.known.at for each in sources if each.generation in (None, generation))])
        for generation in generations
    }
    held_elsewhere = {number for each in sources for number in each.generations}
    outcome.lost_generations = sorted(held_elsewhere - set(generations))
    outcome.crl_number = max([crl_numbers.highest(connection), *(each.known.crl_number for each in sources)])
    return outcome


def _apply_one(
    connection: Connection,
    revocation: CarriedRevocation,
    source: str,
    generations: Sequence[int],
    now_ms: int,
    outcome: Outcome,
) -> None:
    serial, reason = revocation.serial, Reason(revocation.reason)
    wanted = issuance.c.serial == serial, issuance.c.status == ISSUED
    is_here = connection.execute(select(issuance.c.id).where(*wanted)).first() is not None
    if not is_here and revocation.root_generation not in generations:
        outcome.lost.append(revocation)
    elif not is_here:
        if carried_revocations.carry(connection, revocation, source, now_ms):
            outcome.carried.append(revocation)
    else:
        try:
            revoke(connection, serial, reason, now_ms, f"{_BY}, from {source}", since_ms=revocation.revoked_ms)
        except RevocationRefused:
            return  # it is revoked here already, in this way or a stricter one
        outcome.again.append(revocation)


def _look_for_stricter(connection: Connection, known: RevocationList, outcome: Outcome) -> None:
    revoked = {each.serial for each in known.revoked}
    here = revocation_list.of_ledger(connection, known.at)
    outcome.still_on_hold = [
        each.serial for each in here.revoked if each.reason == Reason.certificateHold and each.serial not in revoked
    ]
    blocked = {blocked_keys.parse_line(line).key_sha256 for line in known.blocked}
    keys = (blocked_keys.parse_line(line).key_sha256 for line in here.blocked)
    outcome.still_blocked = list(dict.fromkeys(key for key in keys if key not in blocked))
