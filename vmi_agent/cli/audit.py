"""`vmi-agent audit`: read it, verify it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from runtime.cli_output import print_line
from runtime.clock import milliseconds, utc_now
from runtime.errors import StartError
from runtime.hints import command
from vmi_agent.cli.groups import iso, main, settings, tell
from vmi_agent.ledger.audit import anchors as audit_anchors
from vmi_agent.ledger.audit import chain as audit_rows
from vmi_agent.ledger.audit import verify as audit_check
from vmi_agent.ledger.audit.chain import Event, Row
from vmi_agent.ledger.audit.reconcile import AuditBroken
from vmi_agent.ledger.audit.trusted_time import CLOCK_ACCEPTED, read_times
from vmi_agent.ledger.queries import PAGE
from vmi_agent.ledger.schema import reading, writing


@main.group()
def audit() -> None:
    """Read the audit, and find out whether it was tampered with."""


@audit.command("verify")
@settings.common
@click.option(
    "--anchor",
    "anchor_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What `serve --anchor-file` wrote: the chain must hold every row that it names.",
)
@tell
def audit_verify(state_dir: Path, anchor_file: Path | None) -> None:
    """Check every row and the ledger against them; exit 1 and name the first row that is bad or missing.

    Example: vmi-agent audit verify --state-dir /var/lib/vmi-agent
    """
    anchors = audit_check.NO_ANCHORS if anchor_file is None else audit_anchors.read_file(anchor_file)
    try:
        with reading(state_dir) as connection:
            head = audit_check.verify(connection, anchors)
    except AuditBroken as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"audit verified: {head.last_id} rows, head {head.hash.hex()}")


@audit.command("tail")
@settings.common
@click.option("--lines", type=click.IntRange(1), default=20, show_default=True, help="How many of the last rows.")
@tell
def audit_tail(state_dir: Path, lines: int) -> None:
    """Print the last rows.

    Example: vmi-agent audit tail --state-dir /var/lib/vmi-agent --lines 50
    """
    with reading(state_dir) as connection:
        last_rows = list(audit_rows.rows(connection, last=lines))
    for row in last_rows:
        at, event, fields = _readable(row)
        described = "  ".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
        print_line(f"{row.id}  {at}  {event}  {described}")


@audit.command("export")
@settings.common
@tell
def audit_export(state_dir: Path) -> None:
    """Print all rows, one line of JSON each.

    Example: vmi-agent audit export --state-dir /var/lib/vmi-agent > audit.jsonl
    """
    for row in _all_rows(state_dir):
        at, event, fields = _readable(row)
        record = {"id": row.id, "at": at, "event": event, "fields": fields, "hash": row.hash.hex()}
        click.echo(json.dumps(record))


@audit.command("accept-clock")
@settings.common
@tell
def audit_accept_clock(state_dir: Path) -> None:
    """Let the agent start although the audit was last written at a later time: that time was the wrong one.

    Example: vmi-agent audit accept-clock --state-dir /var/lib/vmi-agent
    """
    now = utc_now()
    with writing(state_dir) as connection:
        latest_ms = read_times(connection).latest_ms
        latest = datetime.fromtimestamp(latest_ms / 1000, UTC)
        if latest_ms <= milliseconds(now):
            raise StartError(
                f"there is nothing to accept: it is {iso(now)}, and the audit's latest row is of {iso(latest)}."
                " Set the clock if it is wrong, then start the agent."
            )
        fields = {"last_row_at": iso(latest)}
        audit_rows.append(connection, [Event(CLOCK_ACCEPTED, milliseconds(now), fields)])
    click.echo(f"accepted: it is {iso(now)}, whatever was written until {iso(latest)}")


def _all_rows(state_dir: Path) -> Iterator[Row]:
    """Yield all rows, a page at a time: a look that stays open keeps SQLite's log from being emptied."""
    last_id = -1
    while True:
        with reading(state_dir) as connection:
            page = list(audit_rows.rows(connection, after=last_id, limit=PAGE))
        yield from page
        if len(page) < PAGE:
            return
        last_id = page[-1].id


def _readable(row: Row) -> tuple[str, str, dict[str, object]]:
    """Return time, event and fields.

    Raises:
        ClickException: the row was tampered with so that it cannot be read.
    """
    try:
        at = iso(datetime.fromtimestamp(row.at_ms / 1000, UTC))
        return at, row.event.decode(), json.loads(row.fields)
    except (TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        verify = command("vmi-agent", "audit verify")
        raise click.ClickException(f"audit row {row.id} cannot be read. Run: `{verify}`") from error
