"""`vmi-agent serve`."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from vmi_agent.cli.ca import key_type_option
from vmi_agent.cli.custody_options import opens_keys
from vmi_agent.cli.groups import accepts_clock, main, settings, tell
from vmi_agent.cli.profiles import profiles_option
from vmi_agent.keys.open import Access

if TYPE_CHECKING:
    from runtime.lifecycle import Reactor


@main.command()
@settings.common
@settings.option("--listen", multiple=True, metavar="ENDPOINT", help="Where the channel listens; may be repeated.")
@settings.option(
    "--peer-uid",
    type=click.IntRange(0),
    multiple=True,
    metavar="UID",
    help="Who may connect to a unix socket; may be repeated. Without it, the agent's own user.",
)
@settings.option(
    "--signers", type=click.IntRange(1, 256), default=16, show_default=True, help="Requests worked on at once."
)
@settings.option(
    "--window",
    type=click.IntRange(1, 4096),
    default=256,
    show_default=True,
    help="Unanswered requests that one proxy may have.",
)
@settings.option(
    "--max-requests",
    type=click.IntRange(1, 65536),
    default=1024,
    show_default=True,
    help="Requests under way or waiting, over all proxies.",
)
@settings.option(
    "--publish-at",
    metavar="URL",
    help="Where a proxy's /pki is reached, such as http://bmc.example.com/pki: leaves name their CRL and OCSP there.",
)
@settings.option(
    "--crl-validity-hours",
    type=click.IntRange(1, 8784),
    default=168,
    show_default=True,
    help="How long a CRL is good.",
)
@settings.option(
    "--crl-period-hours",
    type=click.IntRange(1, 8784),
    default=24,
    show_default=True,
    help="How often a CRL is made anew where nothing was revoked.",
)
@settings.option(
    "--anchor-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the audit's head is written down, elsewhere than in the state directory.",
)
@settings.option("--anchor-syslog", metavar="ADDRESS", help="The same by syslog: /dev/log, or HOST:PORT for UDP.")
@settings.option(
    "--anchor-period-s",
    type=click.IntRange(1, 86400),
    default=300,
    show_default=True,
    help="How often the head is written down.",
)
@settings.option(
    "--keep-expired-days",
    type=click.IntRange(1, 36500),
    metavar="DAYS",
    help="How long expired certificates are kept in the ledger. Without it, for ever.",
)
@settings.option("--ephemeral-ca", is_flag=True, help="Make a new root at each start, whose key is in memory only.")
@settings.option(
    "--shared",
    is_flag=True,
    help="Serve from the same state directory as other agents on this machine, all --shared.",
)
@accepts_clock
@settings.log_format
@key_type_option
@profiles_option
@opens_keys
@tell
def serve(
    state_dir: Path,
    listen: tuple[str, ...],
    peer_uid: tuple[int, ...],
    signers: int,
    window: int,
    max_requests: int,
    publish_at: str | None,
    crl_validity_hours: int,
    crl_period_hours: int,
    anchor_file: Path | None,
    anchor_syslog: str | None,
    anchor_period_s: int,
    keep_expired_days: int | None,
    ephemeral_ca: bool,
    shared: bool,
    accept_clock: bool,
    log_format: str,
    key_type: str,
    profiles: Path | None,
    access: Access,
) -> None:
    """Run the agent. Makes a CA on the first start where `ca init` was not run.

    Example: vmi-agent serve --state-dir /var/lib/vmi-agent --listen unix:/run/vmi-agent.sock
    """
    # The reactor is installed by its import; the other commands need none.
    from twisted.internet import reactor

    from runtime.lifecycle import run
    from runtime.logging import start_logging
    from vmi_agent.app import AgentApplication
    from vmi_agent.config import Config, PublishingConfig
    from vmi_agent.maintenance import AnchorTo

    config = Config(
        state_dir=state_dir,
        listen=listen,
        peer_uid=peer_uid,
        signers=signers,
        window=window,
        max_requests=max_requests,
        key_type=key_type,
        profiles=profiles,
        ephemeral_ca=ephemeral_ca,
        shared=shared,
        accept_clock=accept_clock,
        access=access,
        publishing=PublishingConfig(publish_at, timedelta(hours=crl_validity_hours), timedelta(hours=crl_period_hours)),
        anchor_to=AnchorTo(anchor_file, anchor_syslog, timedelta(seconds=anchor_period_s)),
        keep_expired=None if keep_expired_days is None else timedelta(days=keep_expired_days),
    )
    the_reactor = cast("Reactor", reactor)
    application = AgentApplication(the_reactor, config)
    start_logging(log_format)
    sys.exit(run(the_reactor, application))
