"""Revocations that are newer than a backup: where they are found at restore time.

A ledger that is restored from a backup knows no revocation made since: those certificates would be valid again, and
their keys would be certified. What may still tell of them:

- the old state directory, where its ledger can be read: it holds the same audit chain and all that followed;
- a list that `vmi-agent certs export-revocations` wrote after the backup, signed by the CA;
- a CRL newer than the backup, which proxies serve at /pki/N.crl: of one generation, without the keys of certificates
  that the backup does not hold.

The number of a CRL rises over all generations, and the audit in the backup holds the last one, so a higher number is
newer, whatever the clocks said. How they are applied: `vmi_agent.backup.reapplied_revocations`.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from sqlalchemy import Connection, select

from runtime.clock import BACK_DATE
from runtime.errors import StartError
from vmi_agent.backup import revocation_list
from vmi_agent.backup.revocation_list import RevocationList
from vmi_agent.backup.signed_statement import StatementRefused
from vmi_agent.ca import authority
from vmi_agent.ca import store as ca_store
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys.algorithms import parameters_of
from vmi_agent.ledger import crl_numbers
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.reconcile import AuditBroken
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.carried_revocations import CarriedRevocation
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import audit as audit_rows
from vmi_agent.ledger.schema import reading

MAX_CRL_OCTETS = 256 << 20

_REASONS = {
    x509.ReasonFlags.unspecified: Reason.unspecified,
    x509.ReasonFlags.key_compromise: Reason.keyCompromise,
    x509.ReasonFlags.affiliation_changed: Reason.affiliationChanged,
    x509.ReasonFlags.superseded: Reason.superseded,
    x509.ReasonFlags.cessation_of_operation: Reason.cessationOfOperation,
    x509.ReasonFlags.certificate_hold: Reason.certificateHold,
    x509.ReasonFlags.privilege_withdrawn: Reason.privilegeWithdrawn,
}


@dataclass(frozen=True, slots=True)
class Later:
    """What an operator gives who restores.

    Attributes:
        old_state_dir: None for none.
        lists, crls: files.
        forget: restore although what was revoked since the backup is not known.
    """

    old_state_dir: Path | None = None
    lists: Sequence[Path] = ()
    crls: Sequence[Path] = ()
    forget: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """One place that told of revocations since the backup.

    Attributes:
        name: as it is printed, and recorded in the audit.
        known: what it told. A CRL tells of no blocked keys.
        generation: whose revocations it told; None for all.
        warning: why it may not be all that it should be; empty for nothing.
        generations: those whose keys it holds; none but for a state directory.
    """

    name: str
    known: RevocationList
    generation: int | None = None
    warning: str = ""
    generations: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Backup:
    """What is to be known of the ledger that is being restored.

    Attributes:
        head: where its audit ends.
        crl_number: the highest one that its audit tells of.
        issuers: the certificates of its generations' keys, by generation.
        trusted: whose statements are taken.
    """

    made_at: datetime
    head: audit_chain.Head
    crl_number: int
    issuers: Mapping[int, x509.Certificate]
    trusted: Sequence[x509.Certificate]


def gather(
    later: Later, restored: Path, made_at: datetime, trusted: Sequence[x509.Certificate], now: datetime
) -> list[Source]:
    """Read what was given; all of it must be newer than the backup.

    Args:
        restored: the state directory with the backup's contents, verified.
        made_at: when the backup was made.
        trusted: certificates of CAs beside those of the backup that may have signed a list.

    Raises:
        StartError: something given cannot be used, or nothing tells of one of the generations.
    """
    backup = _facts_of(restored, made_at, trusted)
    sources = [] if later.old_state_dir is None else [_from_state_dir(later.old_state_dir, backup)]
    sources += [_from_list(path, backup) for path in later.lists]
    sources += [_from_crl(path, backup) for path in later.crls]
    covered = {each.generation for each in sources}
    open_ones = [
        generation
        for generation, issuer in backup.issuers.items()
        if issuer.not_valid_after_utc > min(now, made_at)  # a clock may be ahead: what ended since counts as well
        and not ca_store.is_ephemeral(ca_store.directory_of(restored, generation))
        and not covered & {None, generation}
    ]
    if open_ones and not later.forget:
        raise StartError(
            f"the backup is of {_iso(made_at)}, and nothing given tells what was revoked after that under generation"
            f" {', '.join(map(str, open_ones))} of the CA: such certificates would be valid again. Give --old-state-dir"
            " DIR, if its ledger can still be read; or --revocations FILE, from vmi-agent certs export-revocations; or"
            f" for each generation --crl FILE, from a proxy's /pki/{open_ones[0]}.crl; or, where nothing was revoked or"
            " nothing is left, --forget-revocations. Nothing was restored."
        )
    return sources


def _facts_of(restored: Path, made_at: datetime, trusted: Sequence[x509.Certificate]) -> _Backup:
    generations = ca_store.generations(restored)
    all_certificates = {each: authority.certificates_of(restored, each) for each in generations}
    with reading(restored) as connection:
        head = audit_chain.read_head(connection)
        number = crl_numbers.highest(connection)
    issuers = {generation: certificates[0] for generation, certificates in all_certificates.items()}
    return _Backup(made_at, head, number, issuers, [*trusted, *issuers.values()])


def _from_state_dir(path: Path, backup: _Backup) -> Source:
    with _unused(path):
        try:
            with reading(path) as connection:
                statement = select(audit_rows.c.hash).where(audit_rows.c.id == backup.head.last_id)
                if connection.execute(statement).scalar() != backup.head.hash:
                    raise StartError(
                        f"--old-state-dir {path} does not hold what followed the backup: it is older, or another CA's."
                        " Leave it out."
                    )
                last_ms = audit_chain.last_time_ms(connection)
                known = revocation_list.of_ledger(connection, datetime.fromtimestamp(last_ms / 1000, UTC))
                warning = _complaint(connection)
        except LedgerUnavailable as error:
            raise StartError(f"--old-state-dir {path} cannot be read: {error}. Leave it out.") from error
    return Source(f"state directory {path}", known, warning=warning, generations=ca_store.generations(path))


def _complaint(connection: Connection) -> str:
    """Return what is wrong with a ledger that tells of revocations: they make nothing worse, and may not be all."""
    try:
        verify(connection)
    except AuditBroken as error:
        return f"its audit does not verify, so revocations may be missing: {error}"
    return ""


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Keep agents out of a state directory meanwhile.

    Raises:
        StartError: one is serving from it.
    """
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        text = f"--old-state-dir {path} is in use by an agent, which may still revoke there. Stop it first."
        raise StartError(text) from error
    finally:
        os.close(descriptor)


def _from_list(path: Path, backup: _Backup) -> Source:
    try:
        known, statement = revocation_list.read(_read(path, revocation_list.MAX_OCTETS))
    except StatementRefused as error:
        raise StartError(f"--revocations {path} is refused: {error}") from error
    if not statement.is_signed_under(backup.trusted):
        raise StartError(f"--revocations {path} is refused: it is not signed by this CA")
    if known.last_row <= backup.head.last_id:  # by the rows, not the times: a clock may have been ahead
        raise StartError(
            f"--revocations {path}, of {_iso(known.at)}, ends at audit row {known.last_row}, and the backup, of"
            f" {_iso(backup.made_at)}, at row {backup.head.last_id}: it tells of nothing that the backup does not know."
            " Give a newer one, or leave it out."
        )
    return Source(f"list of revocations of {_iso(known.at)}", known)


def _from_crl(path: Path, backup: _Backup) -> Source:
    octets = _read(path, MAX_CRL_OCTETS)
    try:
        is_pem = octets.startswith(b"-----BEGIN")
        crl = x509.load_pem_x509_crl(octets) if is_pem else x509.load_der_x509_crl(octets)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        generation = next((number for number, each in backup.issuers.items() if _is_signed_by(crl, each)), None)
        if generation is None:
            raise StartError(f"--crl {path} is refused: no generation of the CA in the backup signed it")
        end = int(backup.issuers[generation].not_valid_after_utc.timestamp())
        revoked = [_entry(each, generation, end) for each in crl]
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise StartError(f"--crl {path} is not a CRL that this CA made, in DER or PEM") from error
    at = crl.last_update_utc + BACK_DATE  # when it was made
    if number <= backup.crl_number:
        raise StartError(
            f"--crl {path}, of {_iso(at)}, is one that the backup of {_iso(backup.made_at)} knows already: it tells of"
            " nothing newer. Fetch it again. If proxies serve no newer one, no certificate was revoked while they heard"
            " from the agent, but keys may have been blocked: give --old-state-dir or --revocations if there is one;"
            " otherwise leave this CRL out, and say so with --forget-revocations."
        )
    return Source(f"CRL {number} of generation {generation}", RevocationList(at, 0, revoked, (), number), generation)


def _entry(entry: x509.RevokedCertificate, generation: int, end: int) -> CarriedRevocation:
    try:
        flag = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        flag = x509.ReasonFlags.unspecified
    if not 0 < entry.serial_number < 1 << 8 * SERIAL_OCTETS:
        raise ValueError("a serial number that this CA never gives")
    serial = entry.serial_number.to_bytes(SERIAL_OCTETS)
    revoked_ms = int(entry.revocation_date_utc.timestamp()) * 1000
    return CarriedRevocation(serial, generation, int(_REASONS.get(flag, Reason.unspecified)), revoked_ms, end)


def _is_signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    public_key: Any = issuer.public_key()  # of a kind whose `verify` takes these parameters
    try:
        public_key.verify(crl.signature, crl.tbs_certlist_bytes, *parameters_of(public_key))
    except InvalidSignature:
        return False
    return crl.issuer == issuer.subject


def _read(path: Path, most_octets: int) -> bytes:
    with open(path, "rb") as file:
        octets = file.read(most_octets + 1)
    if len(octets) > most_octets:
        raise StartError(f"{path} has more than {most_octets} octets")
    return octets


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
