"""`vmi-agent certs`: what was issued, and taking it back."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy import Connection

from runtime.cli_output import print_line
from runtime.clock import milliseconds, utc_now
from runtime.hints import command
from vmi_agent.ca import store as ca_store
from vmi_agent.certificate import assemble
from vmi_agent.cli.certificate_files import KEPT, KEPT_ON_HOLD, SERIAL_OR_FILE, find_to_revoke, read_issued
from vmi_agent.cli.groups import as_json, iso, main, operator, print_json_array, print_record, settings, tell
from vmi_agent.cli.hexadecimal import KEY_SHA256, SERIAL, SERIAL_PREFIX
from vmi_agent.ledger import blocked_keys, queries, revocation, unheld
from vmi_agent.ledger.audit import trusted_time
from vmi_agent.ledger.queries import STATUSES, Filter
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import FIRST_WITH_BLOCK_LIST, writing

_Revoke = Callable[[Connection, Any, Sequence[Any], Reason, int, str], list[Any]]


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose certificates, and give the command what they say as `wanted`."""

    @wraps(command)
    def with_filter(*arguments: Any, key_sha256: str | None, expiring_within_days: int | None, **options: Any) -> None:
        names = ("subject", "requester", "serial_prefix", "status", "after", "limit")
        end = None if expiring_within_days is None else utc_now() + timedelta(days=expiring_within_days)
        wanted = Filter(
            **{name: options.pop(name) for name in names},
            key_sha256=None if key_sha256 is None else bytes.fromhex(key_sha256),
            expiring_before=end,
        )
        command(*arguments, wanted=wanted, **options)

    decorated: Callable[..., None] = with_filter
    for option in reversed(
        (
            click.option("--subject", metavar="TEXT", help="Whose subject holds this, in any case."),
            click.option("--requester", metavar="USER", help="That this user asked for."),
            click.option("--serial-prefix", type=SERIAL_PREFIX, help="Whose serial number begins so."),
            click.option("--key-sha256", type=KEY_SHA256, help="Of this SubjectPublicKeyInfo."),
            click.option("--status", type=click.Choice(STATUSES), help="With this status now."),
            click.option(
                "--expiring-within-days",
                type=click.IntRange(0, 36500),
                help="Valid now, and ended within this number of days.",
            ),
            click.option("--after", type=SERIAL, metavar="SERIAL", help="The last one of the page before."),
            click.option("--limit", type=click.IntRange(1), help="How many at most. Without it, all."),
        )
    ):
        decorated = option(decorated)
    return decorated


@main.group()
def certs() -> None:
    """Look up what was issued, and take it back."""


@certs.command("list")
@settings.common
@_filtered
@as_json
@tell
def certs_list(state_dir: Path, wanted: Filter, as_json: bool) -> None:
    """Print issued certificates, oldest first. For pages: --limit, then --after the last serial number.

    Example: vmi-agent certs list --state-dir /var/lib/vmi-agent --status valid --limit 100 --json
    """
    records = _records(state_dir, wanted)
    if as_json:
        print_json_array(record for _, record in records)
        return
    for _, record in records:
        columns = ("serial", "status", "not_after", "user", "address", "subject")
        print_line("  ".join(str(record[name] or "-") for name in columns))


@certs.command("show")
@settings.common
@click.argument("serial", type=SERIAL)
@as_json
@tell
def certs_show(state_dir: Path, serial: str, as_json: bool) -> None:
    """Print one issued certificate. SERIAL is hexadecimal, as openssl prints it: 0x and colons are allowed.

    Example: vmi-agent certs show --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    row = queries.find_certificate(state_dir, serial)
    print_record(_fields(row, utc_now()) | {"certificate": _pem(row)}, as_json)


@certs.command("export")
@settings.common
@_filtered
@click.option("--format", "form", type=click.Choice(("jsonl", "pem")), default="jsonl", show_default=True)
@tell
def certs_export(state_dir: Path, wanted: Filter, form: str) -> None:
    """Print issued certificates whole: one line of JSON each, or PEM.

    Example: vmi-agent certs export --state-dir /var/lib/vmi-agent --format pem > issued.pem
    """
    for row, record in _records(state_dir, wanted):
        pem = _pem(row)
        click.echo(pem if form == "pem" else json.dumps(record | {"certificate": pem}), nl=form != "pem")


@certs.command("revoke")
@settings.common
@click.argument("serial", type=SERIAL_OR_FILE, metavar="SERIAL|CERTIFICATE")
@click.option(
    "--reason",
    type=click.Choice([reason.name for reason in Reason]),
    default=Reason.unspecified.name,
    show_default=True,
    help="As RFC 5280, 5.3.1 names it; certificateHold can be taken back.",
)
@click.option("--all-of-key", is_flag=True, help="Revoke every other certificate of the same key as well.")
@tell
def certs_revoke(state_dir: Path, serial: str | Path, reason: str, all_of_key: bool) -> None:
    """Revoke a certificate. A running agent makes a new CRL within a second.

    keyCompromise blocks the certificate's key for good, certificateHold until the hold is over: no CSR with a blocked
    key is signed. Other certificates of the key are named.

    CERTIFICATE is a file in PEM or DER: for a certificate that this ledger does not hold, as it was issued after the
    backup that the ledger was restored from.

    Example: vmi-agent certs revoke --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    now = utc_now()
    given = read_issued(state_dir, serial) if isinstance(serial, Path) else None
    with writing(state_dir, least_version=FIRST_WITH_BLOCK_LIST) as connection:
        # The clock may be ahead; read before this command adds rows by it.
        at_least_ms = min(milliseconds(now), trusted_time.read_times(connection).trusted_ms)
        if given is None or unheld.is_held(connection, given):
            found = find_to_revoke(connection, str(serial) if given is None else given.serial.hex())
            do: _Revoke = revocation.revoke_all if all_of_key else revocation.revoke_one
        else:
            found, do = given, unheld.revoke_all if all_of_key else unheld.revoke_one
        others = revocation.others_of_key(connection, found)
        revoked = do(connection, found, others, Reason[reason], milliseconds(now), operator())
        blocks = blocked_keys.blocks_of(connection, found.key_sha256)
    for row in revoked:
        click.echo(f"revoked: {row.serial.hex()} ({reason})")
    if found is given:
        click.echo(KEPT_ON_HOLD if reason == Reason.certificateHold.name else KEPT)
    for key_sha256 in dict.fromkeys(each.key_sha256 for each in blocks):
        click.echo(f"key blocked: {key_sha256.hex()}")
    may_be_valid = [row for row in others if row.not_after * 1000 >= at_least_ms]
    left = [row for row in may_be_valid if row not in revoked and row.reason is None]
    for row in left:
        click.echo(f"valid, of the same key: {row.serial.hex()}  requester {json.dumps(row.user)}")
    if left:
        again = command("vmi-agent", f"certs revoke {found.serial.hex()} --reason {reason} --all-of-key")
        click.echo(f"To revoke them as well: `{again}`", err=True)
    for generation in sorted({row.root_generation for row in revoked}):
        directory = ca_store.directory_of(state_dir, generation)
        if ca_store.is_ephemeral(directory) and generation != ca_store.newest(state_dir):
            click.echo("Its CA was ephemeral and is gone: no CRL and no OCSP answer can tell of this.", err=True)


@certs.command("release")
@settings.common
@click.argument("serial", type=SERIAL)
@tell
def certs_release(state_dir: Path, serial: str) -> None:
    """Take a certificate off hold: it counts as valid again, and its key is free unless something else blocks it.

    Example: vmi-agent certs release --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    with writing(state_dir, least_version=FIRST_WITH_BLOCK_LIST) as connection:
        found = queries.find(connection, serial)
        revocation.release(connection, found.serial, milliseconds(utc_now()), operator())
        blocks = blocked_keys.blocks_of(connection, found.key_sha256)
    click.echo(f"released: {found.serial.hex()}")
    for each in blocks:
        whose = "by hand" if each.serial == blocked_keys.BY_HAND else f"by certificate {each.serial.hex()}"
        click.echo(f"key still blocked: {each.key_sha256.hex()} {whose} ({each.reason})")


@certs.command("prune")
@settings.common
@click.option("--ended-days", type=click.IntRange(1, 36500), required=True, help="Ended at least so many days ago.")
@tell
def certs_prune(state_dir: Path, ended_days: int) -> None:
    """Forget certificates that ended long ago. What the audit told of them stays.

    Not the clock decides what has ended, which may be wrong, but the time for which agents ran; see `audit show`.

    Example: vmi-agent certs prune --state-dir /var/lib/vmi-agent --ended-days 365
    """
    now, pruned = utc_now(), 0
    with writing(state_dir) as connection:
        trusted_ms = _trusted_ms(connection, milliseconds(now))
    trusted = datetime.fromtimestamp(trusted_ms / 1000, UTC)
    while True:
        with writing(state_dir) as connection:
            count = queries.prune(connection, trusted - timedelta(days=ended_days), milliseconds(now))
        pruned += count
        if count < queries.PRUNE_BATCH:
            break
    click.echo(f"pruned: {pruned}")
    click.echo(f"Counted from {iso(trusted)}, the time that agents noted while they ran, not from the clock.", err=True)


def _trusted_ms(connection: Connection, now_ms: int) -> int:
    """Return what time it is at least; have the audit note it where it does not yet, before this command adds to it."""
    times = trusted_time.read_times(connection)
    trusted_ms = min(now_ms, times.trusted_ms or now_ms)
    if not times.is_noted:
        trusted_time.note_times(connection, trusted_ms, now_ms)
    return trusted_ms


def _records(state_dir: Path, wanted: Filter) -> Iterator[tuple[Any, dict[str, object]]]:
    now = utc_now()
    return ((row, _fields(row, now)) for row in queries.list_certificates(state_dir, wanted, now))


def _fields(row: Any, now: datetime) -> dict[str, object]:
    fields: dict[str, object] = {
        "serial": row.serial.hex(),
        "status": queries.status_of(row, now),
        "subject": row.subject,
        "user": row.user,
        "method": row.method,
        "address": row.address,
        "not_before": iso(datetime.fromtimestamp(row.not_before, UTC)),
        "not_after": iso(datetime.fromtimestamp(row.not_after, UTC)),
        "issued_at": iso(datetime.fromtimestamp(row.issued_ms / 1000, UTC)),
        "profile": row.profile,
        "root_generation": row.root_generation,
        "csr_sha256": row.csr_sha256.hex(),
        "key_sha256": row.key_sha256.hex(),
    }
    if row.reason is not None:
        fields["reason"] = Reason(row.reason).name
        fields["revoked_at"] = iso(datetime.fromtimestamp(row.revoked_ms / 1000, UTC))
    return fields


def _pem(row: Any) -> str:
    certificate = x509.load_der_x509_certificate(assemble(row.tbs, row.signature))
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
