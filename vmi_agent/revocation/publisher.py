"""What the CA publishes beside leaves: for each generation its CRL and its certificates, made beforehand.

Serving one is a look into a dictionary. A CRL is made anew after each revocation and on a period. Its number is the
time of its making in milliseconds, so it rises over restored backups, which know nothing of the CRLs made since; and it
is above the highest one that the audit tells of, so it rises where the clock was set back, over all agents that share
a ledger, and over what was given when the ledger was restored. Each of these makes its own: one that has a higher
number lists all that the ones before it had to.

A CRL is dated back as leaves are, so that verifiers whose clocks are slow take it. Its entries are not: thisUpdate may
be before the last revocations that it lists. A clock that was wrong leaves nothing behind: a CRL of the future is
replaced, an entry that one left out is listed again, a revocation of the future counts from thisUpdate on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from sqlalchemy import Connection

from runtime.clock import BACK_DATE, milliseconds
from vmi_agent.ca.authority import Authority, Generations
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import CustodyError
from vmi_agent.ledger import crl_numbers
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.revocation import changes_since
from vmi_agent.revocation import crl

# How often a CRL is made anew because another agent's came before it, or a revocation.
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Publication:
    """Something published.

    Attributes:
        version: another one for other octets.
        next_update_ms: until when it is good, in milliseconds since 1970-01-01 UTC; 0 where it has no end.
    """

    der: bytes
    version: int
    next_update_ms: int


class _Entry(NamedTuple):
    """A certificate that is revoked or on hold.

    Attributes:
        not_after_s: its end, in seconds since 1970-01-01 UTC; `revoked_ms` in milliseconds.
        der: the entry, encoded.
    """

    not_after_s: int
    revoked_ms: int
    reason: int
    der: bytes


@dataclass(slots=True)
class _Revoked:
    """What one generation's CRL lists.

    Attributes:
        entries: what the CRL lists, by serial; of certificates that have ended as well, as the clock may be wrong.
        changed: the serials of who was revoked or released since the last CRL was made.
        made_at: when the last CRL was made.
    """

    entries: dict[bytes, _Entry] = field(default_factory=dict)
    changed: set[bytes] = field(default_factory=set)
    made_at: datetime | None = None


class Publishing:
    """The CRL and the certificates of each generation.

    Args:
        generations: sign them.
        ledger: knows what is revoked, and whose audit is told of each CRL.
        validity: from its making to its nextUpdate.
        period: how often a CRL is made anew where nothing was revoked.
        now: returns the aware UTC time.

    Attributes:
        newest_number: of the CRL that was made last, whichever generation's; 0 before the first `refresh`.
    """

    def __init__(
        self,
        generations: Generations,
        ledger: Ledger,
        validity: timedelta,
        period: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        self._generations = generations
        self._ledger = ledger
        self._validity = validity
        self._period = period
        self._now = now
        self._seen = 0
        self._told = (0, 0)
        self._revoked: dict[int, _Revoked] = {}
        self._made: dict[int, Publication] = {}
        self._certificates: dict[int, Publication] = {}
        self.newest_number = 0

    def crl(self, generation: int) -> Publication | None:
        """Return a generation's CRL. Does not block; any thread may call this."""
        return self._made.get(generation)

    def certificates(self, generation: int) -> Publication | None:
        """Return a generation's certificates and the cross-certificates for its root, as a certs-only CMS message.

        This is what the caIssuers of a leaf may point to (RFC 5280, 4.2.2.1). Does not block.
        """
        return self._certificates.get(generation)

    def refresh(self, forget: Callable[[frozenset[bytes]], None] = lambda _: None) -> frozenset[bytes]:
        """Take in what was revoked or released since the last call, and make those CRLs anew that are due.

        Blocks; one thread at a time.

        Args:
            forget: is told the serials whose status changed before any CRL is made, as what was said of them before is
                wrong even where no CRL can be made now.

        Returns:
            The same serials.

        Raises:
            LedgerUnavailable, CustodyError: a CRL that is due was not made; the next call tries again.
        """
        authorities = self._generations.all()
        if [authority.generation for authority in authorities] != list(self._certificates):
            self._certificates = _certificates_of(authorities)
        changed = self._take_in_changes(forget)
        failed: CustodyError | None = None
        for authority in self._generations.all():
            try:
                changed |= self._make_if_due(authority, forget)
            except CustodyError as error:  # one generation's key: the others sign all the same
                failed = failed or error
        if failed is not None:
            raise failed
        return changed

    def _make_if_due(self, authority: Authority, forget: Callable[[frozenset[bytes]], None]) -> frozenset[bytes]:
        """Make a generation's CRL where it is due; return what more was revoked or released meanwhile."""
        now = self._now().replace(microsecond=0)
        revoked = self._revoked.setdefault(authority.generation, _Revoked())
        changed: frozenset[bytes] = frozenset()
        if now < authority.valid_from and revoked.made_at is not None:  # the clock was set back since
            revoked.made_at = None
            self._made = {each: made for each, made in self._made.items() if each != authority.generation}
        is_due = revoked.made_at is None or not revoked.made_at <= now < revoked.made_at + self._period
        if not (revoked.changed or is_due) or not authority.is_valid_at(now):
            return changed
        for _ in range(_TRIES):
            if self._make(authority, revoked):
                return changed
            changed |= self._take_in_changes(forget)
        raise LedgerUnavailable("CRLs of other agents, or revocations, came before this one's CRL time and again")

    def _take_in_changes(self, forget: Callable[[frozenset[bytes]], None]) -> frozenset[bytes]:
        seen = self._seen
        changes = self._ledger.read(lambda connection: list(changes_since(connection, seen)))
        for change in changes:
            revoked = self._revoked.setdefault(change.root_generation, _Revoked())
            revoked.changed.add(change.serial)
            if change.reason is None:
                revoked.entries.pop(change.serial, None)
            else:
                entry = crl.entry(change.serial, change.revoked_ms, change.reason)
                revoked.entries[change.serial] = _Entry(change.not_after, change.revoked_ms, change.reason, entry)
            self._seen = change.number
        changed = frozenset(change.serial for change in changes)
        if changed:
            forget(changed)
        return changed

    def _make(self, authority: Authority, revoked: _Revoked) -> bool:
        """Make a CRL; return False where it may not be published: it is behind another agent's, or a revocation."""
        now = self._now().replace(microsecond=0)
        this_update = max(now - BACK_DATE, authority.valid_from)
        entries = _entries(revoked, now, this_update)
        self._told = told = self._ledger.read(self._last_number)
        number = max(milliseconds(self._now()), told[1] + 1)
        next_update = now + self._validity
        der = crl.make(authority.issuer, authority.custody, number, this_update, next_update, entries)
        fields = {
            "root_generation": authority.generation,
            "number": number,
            "revoked": len(entries),
            "sha256": sha256(der).hexdigest(),
        }
        event = Event(crl_numbers.CRL_ISSUED, milliseconds(self._now()), fields)
        if not self._ledger.change(lambda connection: self._tell(connection, event, number)):
            return False
        revoked.changed, revoked.made_at = set(), now
        self._made = self._made | {authority.generation: Publication(der, number, milliseconds(next_update))}
        self.newest_number = number
        return True

    def _tell(self, connection: Connection, event: Event, number: int) -> bool:
        """Tell the audit of a CRL, unless there is one with as high a number, or more was revoked since it was made.

        It is signed before and not meanwhile: a token may take its time, and nobody else could write.
        """
        if self._last_number(connection)[1] >= number or any(changes_since(connection, self._seen)):
            return False
        audit_chain.append(connection, [event])
        return True

    def _last_number(self, connection: Connection) -> tuple[int, int]:
        """Return the number of the audit's last row, and the highest number of a CRL until then.

        Looks only at rows that are new since the last look from outside a transaction.
        """
        return audit_chain.read_head(connection).last_id, crl_numbers.highest(connection, *self._told)


def _entries(revoked: _Revoked, now: datetime, this_update: datetime) -> list[bytes]:
    """Return the entries of the CRL that is made now.

    A certificate that was listed after its end is left out (RFC 5280, 3.3). What happened under a clock that was ahead
    is not taken at its word: neither a last CRL of the future, nor the time of a revocation.
    """
    # Ended before the last CRL's thisUpdate.
    last_s = None if revoked.made_at is None else (min(revoked.made_at, now) - BACK_DATE).timestamp()
    now_ms, this_update_ms = milliseconds(now), milliseconds(this_update)
    return [
        # A second of grace: `now` is a whole one.
        each.der if each.revoked_ms < now_ms + 1000 else crl.entry(serial, this_update_ms, each.reason)
        for serial, each in revoked.entries.items()
        if last_s is None or each.not_after_s >= last_s or serial in revoked.changed
    ]


def _certificates_of(generations: Sequence[Authority]) -> dict[int, Publication]:
    crosses = [x509.load_der_x509_certificate(each) for authority in generations for each in authority.crosses]
    published = {}
    for authority in generations:
        certificates = [*authority.certificates, *(each for each in crosses if each.subject == authority.root.subject)]
        der = pkcs7.serialize_certificates(certificates, serialization.Encoding.DER)
        published[authority.generation] = Publication(der, int.from_bytes(sha256(der).digest()[:8]) or 1, 0)
    return published
