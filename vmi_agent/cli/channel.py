"""`vmi-agent channel`: what agent and proxy know each other by."""

import sys
from pathlib import Path

import click

from runtime import state_dir as state_directory
from runtime.clock import refuse_before_build, utc_now
from runtime.errors import ConfigError, StartError
from runtime.files import read_secret, replace_file, sync_directory
from runtime.hints import command
from vmi_agent.cli.groups import accepts_clock, main, settings, tell

# Beside the agent's own, until it is handed over.
_PROXY_CREDENTIALS = "channel-of-proxy.pem"


@main.group()
def channel() -> None:
    """Make what agent and proxy know each other by over tls:."""


@channel.command("init")
@settings.common
@click.option(
    "--replace",
    is_flag=True,
    help="Replace what is there: after a SIGHUP no proxy gets in with the old ones, after a restart none stays in.",
)
@accepts_clock
@tell
def channel_init(state_dir: Path, replace: bool, accept_clock: bool) -> None:
    """Make the channel's credentials, the agent's and the proxy's, each of which pins the other.

    Example: vmi-agent channel init --state-dir /var/lib/vmi-agent
    """
    refuse_before_build(utc_now(), accepted=accept_clock)
    state_directory.make(state_dir)
    from runtime import channel_credentials

    path = state_dir / channel_credentials.FILE_NAME
    if path.exists() and not replace:
        raise StartError(f"{path} exists already. Nothing was changed. To shut out whoever has the old ones: --replace")
    agent, proxy = channel_credentials.make_credentials()
    replace_file(state_dir / _PROXY_CREDENTIALS, proxy)
    replace_file(path, agent)
    hand_over = command("vmi-agent", "channel hand-over --to channel.pem")
    click.echo(f"Channel credentials made. Move the proxy's over: `{hand_over}`")


@channel.command("hand-over")
@settings.common
@click.option(
    "--to", metavar="FILE", required=True, help="channel.pem in the proxy's state directory, or - for stdout."
)
@click.option("--replace", is_flag=True, help="Replace the file where it exists.")
@tell
def channel_hand_over(state_dir: Path, to: str, replace: bool) -> None:
    """Move the proxy's credentials to the proxy; the agent keeps no copy of its key.

    Example: vmi-agent channel hand-over --state-dir /var/lib/vmi-agent --to /var/lib/bmc-proxy/channel.pem
    """
    path = state_dir / _PROXY_CREDENTIALS
    try:
        credentials = read_secret(path)
    except FileNotFoundError as error:
        raise StartError(
            f"{state_dir} holds no proxy's credentials: they were handed over, or never made:"
            f" `{command('vmi-agent', 'channel init')}`"
        ) from error
    if to == "-":
        if sys.stdout is None or sys.stdout.isatty():
            raise StartError(
                "the credentials hold a private key, which is not for a terminal: give --to FILE or a pipe"
            )
        sys.stdout.buffer.write(credentials)
        sys.stdout.buffer.flush()
    else:
        target = Path(to)
        if target.parent.resolve() == state_dir.resolve():
            raise ConfigError(f"--to {to!r} is refused: this is the agent's own directory, not the proxy's")
        if target.is_symlink() or (target.exists() and not (replace and target.is_file())):
            raise StartError(f"{to} exists already. Nothing was changed. To replace a file: --replace")
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(target, credentials)
    path.unlink()
    sync_directory(state_dir)
