"""The command line of bmc-proxy."""

import os
import sys
from pathlib import Path
from typing import cast

import click

from runtime.lifecycle import ConfigError, Reactor, run
from runtime.logs import FORMATS, start_logging
from runtime.settings import Settings

settings = Settings("BMC_PROXY", "Where the last root is kept. Made where it is missing, for this user alone.")


@click.group()
@click.version_option(package_name="vmi-certificate-exchange")
def main() -> None:
    """The HTTP side of the VMI certificate exchange, on the BMC.

    Example: bmc-proxy serve --state-dir /var/lib/bmc-proxy --agent tcp:127.0.0.1:7700
    --http tcp:8080:interface=127.0.0.1 --anonymous-loopback
    """


@main.command()
@settings.common
@settings.option("--agent", multiple=True, metavar="ENDPOINT", help="Where an agent listens; may be repeated.")
@settings.option("--http", metavar="ENDPOINT", help="The plain listener: loopback or a unix socket.")
@settings.option("--anonymous-loopback", is_flag=True, help="Answer on the plain listener without login.")
@settings.option(
    "--deadline-s",
    type=click.IntRange(1, 300),
    default=30,
    show_default=True,
    help="How long a request may take, in seconds.",
)
@settings.option(
    "--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help="Of the log lines on stderr."
)
def serve(
    state_dir: Path,
    agent: tuple[str, ...],
    http: str | None,
    anonymous_loopback: bool,
    deadline_s: int,
    log_format: str,
) -> None:
    """Run the proxy.

    Example: bmc-proxy serve --state-dir /var/lib/bmc-proxy --agent unix:/run/vmi-agent.sock
    --http tcp:8080:interface=127.0.0.1 --anonymous-loopback
    """
    from twisted.internet import reactor

    from bmc_proxy.config import Config
    from bmc_proxy.service import ProxyApplication

    os.umask(0o077)
    the_reactor = cast(Reactor, reactor)
    try:
        application = ProxyApplication(the_reactor, Config(state_dir, agent, http, anonymous_loopback, deadline_s))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    start_logging(log_format)
    sys.exit(run(the_reactor, application))
