"""`vmi-agent certs`: what was issued, and taking it back."""

import getpass
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime.clock import milliseconds, utc_now
from vmi_agent.ca import ca_store
from vmi_agent.ca.certificate import SERIAL_OCTETS, assemble
from vmi_agent.cli.groups import as_json, iso, main, print_json_array, print_record, settings, tell
from vmi_agent.ledger import listing
from vmi_agent.ledger.ledger_schema import writing
from vmi_agent.ledger.listing import STATUSES, Filter
from vmi_agent.status import revocation
from vmi_agent.status.revocation import Reason


class _Hexadecimal(click.ParamType[str]):
    """Digits, with or without colons; kept as lower-case digits."""

    name = "hexadecimal"

    def __init__(self, most_octets: int, *, exactly: bool = False) -> None:
        self._digits = 2 * most_octets
        self._exactly = exactly

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        digits = str(value).replace(":", "").lower()
        fits = len(digits) == self._digits if self._exactly else 1 <= len(digits) <= self._digits
        if not fits or not re.fullmatch(r"[0-9a-f]*", digits):
            size = str(self._digits) if self._exactly else f"1 to {self._digits}"
            self.fail(f"{value!r} is not {size} hexadecimal digits", param, ctx)
        return digits


_SERIAL = _Hexadecimal(SERIAL_OCTETS)


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
            click.option("--serial-prefix", type=_SERIAL, help="Whose serial number begins so."),
            click.option("--key-sha256", type=_Hexadecimal(32, exactly=True), help="Of this SubjectPublicKeyInfo."),
            click.option("--status", type=click.Choice(STATUSES), help="That are so now."),
            click.option("--expiring-within-days", type=click.IntRange(0, 36500), help="Valid now, and no more then."),
            click.option("--after", type=_SERIAL, metavar="SERIAL", help="The last one of the page before."),
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
        click.echo(
            "  ".join(str(record[name]) for name in ("serial", "status", "not_after", "user", "address", "subject"))
        )


@certs.command("show")
@settings.common
@click.argument("serial", type=_SERIAL)
@as_json
@tell
def certs_show(state_dir: Path, serial: str, as_json: bool) -> None:
    """Print one issued certificate. SERIAL is hexadecimal; colons are allowed.

    Example: vmi-agent certs show --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    row = listing.find_certificate(state_dir, serial)
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
@click.argument("serial", type=_SERIAL)
@click.option(
    "--reason",
    type=click.Choice([reason.name for reason in Reason]),
    default=Reason.unspecified.name,
    show_default=True,
    help="As RFC 5280, 5.3.1 names it; certificateHold can be taken back.",
)
@tell
def certs_revoke(state_dir: Path, serial: str, reason: str) -> None:
    """Revoke a certificate. A running agent makes a new CRL within a second.

    Example: vmi-agent certs revoke --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    with writing(state_dir) as connection:
        octets = listing.find(connection, serial).serial
        generation = listing.find(connection, serial).root_generation
        revocation.revoke(connection, octets, Reason[reason], milliseconds(utc_now()), _operator())
    click.echo(f"revoked: {octets.hex()} ({reason})")
    if ca_store.is_ephemeral(ca_store.directory_of(state_dir, generation)) and generation != ca_store.newest(state_dir):
        click.echo("Its CA was ephemeral and is gone: no CRL and no OCSP answer can tell of this.", err=True)


@certs.command("release")
@settings.common
@click.argument("serial", type=_SERIAL)
@tell
def certs_release(state_dir: Path, serial: str) -> None:
    """Take a certificate off hold: it counts as valid again.

    Example: vmi-agent certs release --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    with writing(state_dir) as connection:
        octets = listing.find(connection, serial).serial
        revocation.release(connection, octets, milliseconds(utc_now()), _operator())
    click.echo(f"released: {octets.hex()}")


@certs.command("prune")
@settings.common
@click.option("--ended-days", type=click.IntRange(1, 36500), required=True, help="Ended at least so many days ago.")
@tell
def certs_prune(state_dir: Path, ended_days: int) -> None:
    """Forget certificates that ended long ago. What the audit told of them stays.

    Example: vmi-agent certs prune --state-dir /var/lib/vmi-agent --ended-days 365
    """
    now, pruned = utc_now(), 0
    while True:
        with writing(state_dir) as connection:
            count = listing.prune(connection, now - timedelta(days=ended_days), milliseconds(now))
        pruned += count
        if count < listing.PRUNE_BATCH:
            break
    click.echo(f"pruned: {pruned}")


def _operator() -> str:
    """Return who runs the command, as the audit tells it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        name = "-"
    return f"{name} (uid {os.getuid()})"


def _records(state_dir: Path, wanted: Filter) -> Iterator[tuple[Any, dict[str, object]]]:
    now = utc_now()
    return ((row, _fields(row, now)) for row in listing.list_certificates(state_dir, wanted, now))


def _fields(row: Any, now: datetime) -> dict[str, object]:
    fields: dict[str, object] = {
        "serial": row.serial.hex(),
        "status": listing.status_of(row, now),
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
