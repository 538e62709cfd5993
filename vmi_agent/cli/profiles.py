"""`vmi-agent profiles`: what is stamped, and for whom."""

from pathlib import Path

import click

from runtime.cli_output import print_line
from runtime.clock import utc_now
from runtime.errors import StartError
from vmi_agent.cli.groups import main, settings, tell

profiles_option = settings.option(
    "--profiles",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of profiles: what is stamped, and for whom (docs/profiles.md). Without it, the one built in.",
)


@main.group("profiles")
def profiles_group() -> None:
    """Look at what is stamped, and for whom."""


@profiles_group.command("check")
@settings.common
@profiles_option
@tell
def profiles_check(state_dir: Path, profiles: Path | None) -> None:
    """Check and lint profiles as `serve` does when it starts. The state directory is not looked at.

    Example: vmi-agent profiles check --state-dir /var/lib/vmi-agent --profiles /etc/vmi-agent/profiles.toml
    """
    from vmi_agent.policy.profile_file import load_profiles
    from vmi_agent.policy.profile_lint import lint

    found = 0
    for profile in load_profiles(profiles):
        findings = lint(profile, utc_now())
        found += len(findings)
        print_line(f"{profile.name}: " + ("; ".join(map(str, findings)) or f"good; keys: {profile.keys_text}"))
    if found:
        raise StartError("profiles that lint finds fault with are not served")
