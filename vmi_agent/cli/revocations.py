"""`vmi-agent certs export-revocations`: what a restored ledger would not know."""

from pathlib import Path

import click

from runtime.clock import utc_now
from runtime.termination import cleaning_up
from vmi_agent.backup import revocation_list
from vmi_agent.cli.certs import certs
from vmi_agent.cli.custody_options import opens_keys
from vmi_agent.cli.groups import iso, settings, tell
from vmi_agent.keys.open import Access


@certs.command("export-revocations")
@settings.common
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@opens_keys
@tell
def export_revocations(state_dir: Path, target: Path, access: Access) -> None:
    """Write all revocations and blocked keys to a file, signed, in the place of an older one: keep it beside backups.

    Example: vmi-agent certs export-revocations --state-dir /var/lib/vmi-agent /media/backup/revocations.txt
    """
    with cleaning_up():
        known = revocation_list.write(state_dir, target, access, utc_now())
    count, blocks = len(known.revoked), len(known.blocked)
    click.echo(f"revocations written: {count}, blocks of keys: {blocks}, as of {iso(known.at)}")
