"""`vmi-agent backup` and `vmi-agent restore`: the state directory as a whole."""

from pathlib import Path

import click

from runtime.clock import utc_now
from vmi_agent.ca import backup as backups
from vmi_agent.cli.groups import main, settings, tell


@main.command("backup")
@settings.common
@click.argument("target", type=click.Path(path_type=Path))
@tell
def backup(state_dir: Path, target: Path) -> None:
    """Write CA, ledger and channel credentials to a tar file, 0600, while the agent serves. Keep it like the key.

    Example: vmi-agent backup --state-dir /var/lib/vmi-agent /media/backup/vmi-agent.tar
    """
    click.echo(f"backup written: SHA-256 {backups.back_up(state_dir, target, utc_now())}")


@main.command("restore")
@settings.common
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tell
def restore(state_dir: Path, source: Path) -> None:
    """Make a state directory from a backup. What was issued after the backup is not in it.

    Example: vmi-agent restore --state-dir /var/lib/vmi-agent /media/backup/vmi-agent.tar
    """
    backups.restore(source, state_dir, utc_now())
    click.echo(f"restored: {state_dir}")
