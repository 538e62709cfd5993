"""What all commands share: the groups they hang in, the settings they read, and how they tell what went wrong."""

import getpass
import json
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

import click

from runtime.cli_errors import telling
from runtime.cli_output import print_line
from runtime.files import FileRefused
from runtime.memory_secrecy import forbid_dumps
from runtime.settings import Settings
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import CustodyError
from vmi_agent.ledger.audit import chain as audit_rows
from vmi_agent.ledger.audit.anchors import AnchorRefused
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.blocked_keys import BlockListRefused
from vmi_agent.ledger.queries import NoSuchCertificate
from vmi_agent.ledger.revocation import RevocationRefused
from vmi_agent.ledger.schema import writing

settings = Settings("VMI_AGENT", "Where CA and ledger are kept. Made where it is missing, for this user alone.")
accepts_clock = settings.option(
    "--accept-clock", is_flag=True, help="Use a clock that is before the date of this software, as it is."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
tell = telling(
    CustodyError, FileRefused, LedgerUnavailable, NoSuchCertificate, RevocationRefused, AnchorRefused, BlockListRefused
)


@click.group()
@click.version_option(package_name="vmi-certificate-exchange")
def main() -> None:
    """The CA of the VMI certificate exchange: answers bmc-proxy over the channel.

    Example: vmi-agent serve --state-dir /var/lib/vmi-agent --listen tcp:7700:interface=127.0.0.1
    """
    forbid_dumps()  # before any passphrase or key is read


def noting(state_dir: Path) -> Callable[[Event], None]:
    """Return what writes an event to the audit of a state directory, in a transaction of its own."""
    return partial(_note, state_dir)


def _note(state_dir: Path, event: Event) -> None:
    with writing(state_dir) as connection:
        audit_rows.append(connection, [event])


def operator() -> str:
    """Return who runs the command, as the audit tells it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        name = "-"
    return f"{name} (uid {os.getuid()})"


def iso(moment: datetime) -> str:
    """Return an aware UTC time as text."""
    return moment.isoformat().replace("+00:00", "Z")


def print_record(fields: dict[str, object], as_json: bool) -> None:
    """Print one record with a certificate."""
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    pem = fields.pop("certificate")
    for name, value in fields.items():
        print_line(f"{name}: {value}")
    click.echo(pem, nl=False)


def print_json_array(records: Iterable[dict[str, object]]) -> None:
    """Print a JSON array one record a line, without holding all of it."""
    separator = "["
    for record in records:
        click.echo(separator + "\n" + json.dumps(record), nl=False)
        separator = ","
    click.echo("[]" if separator == "[" else "\n]")
