"""The command line of vmi-agent."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from runtime import state_dir as state_directory
from runtime.errors import ConfigError, StartError
from runtime.files import FileRefused, read_secret, replace_file, sync_directory
from runtime.settings import Settings
from runtime.telling import telling
from vmi_agent import authority, ledger_rows
from vmi_agent.certificate import SERIAL_OCTETS, assemble
from vmi_agent.custody import DEFAULT_KEY_TYPE, KEY_TYPES, CustodyError
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.issuing import utc_now
from vmi_agent.ledger import Ledger

if TYPE_CHECKING:
    from runtime.lifecycle import Reactor

settings = Settings("VMI_AGENT", "Where CA and ledger are kept. Made where it is missing, for this user alone.")

# Beside the agent's own, until it is handed over.
_PROXY_CREDENTIALS = "channel-of-proxy.pem"

_key_type = settings.option(
    "--key-type",
    type=click.Choice(KEY_TYPES),
    default=DEFAULT_KEY_TYPE,
    show_default=True,
    help="Of the key of a CA that is made.",
)
_profiles = settings.option(
    "--profiles",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of profiles: what is stamped, and for whom (docs/profiles.md). Without it, the one built in.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


_telling = telling(CustodyError, FileRefused, LedgerUnavailable)


@click.group()
@click.version_option(package_name="vmi-certificate-exchange")
def main() -> None:
    """The CA of the VMI certificate exchange: answers bmc-proxy over the channel.

    Example: vmi-agent serve --state-dir /var/lib/vmi-agent --listen tcp:7700:interface=127.0.0.1
    """


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
@settings.log_format
@_key_type
@_profiles
@_telling
def serve(
    state_dir: Path,
    listen: tuple[str, ...],
    peer_uid: tuple[int, ...],
    signers: int,
    window: int,
    max_requests: int,
    log_format: str,
    key_type: str,
    profiles: Path | None,
) -> None:
    """Run the agent. Makes a CA on the first start where `ca init` was not run.

    Example: vmi-agent serve --state-dir /var/lib/vmi-agent --listen unix:/run/vmi-agent.sock
    """
    # The reactor is installed by its import; the other commands need none.
    from twisted.internet import reactor

    from runtime.lifecycle import run
    from runtime.logs import start_logging
    from vmi_agent.config import Config
    from vmi_agent.service import AgentApplication

    the_reactor = cast("Reactor", reactor)
    application = AgentApplication(
        the_reactor, Config(state_dir, listen, peer_uid, signers, window, max_requests, key_type, profiles)
    )
    start_logging(log_format)
    sys.exit(run(the_reactor, application))


@main.group()
def ca() -> None:
    """Make and show the CA."""


@ca.command("init")
@settings.common
@_key_type
@_telling
def ca_init(state_dir: Path, key_type: str) -> None:
    """Make the CA: a key and its self-signed root.

    Example: vmi-agent ca init --state-dir /var/lib/vmi-agent --key-type p384
    """
    lock = state_directory.claim(state_dir)
    if authority.exists(state_dir):
        raise StartError(f"{state_dir} holds a CA already. Nothing was changed.")
    Ledger(state_dir).close()  # before the CA: a CA without a ledger is refused
    made = authority.create(state_dir, key_type, utc_now())
    lock.release()
    click.echo(f"CA made: {made.root.subject.rfc4514_string()}")


@ca.command("show")
@settings.common
@_as_json
@_telling
def ca_show(state_dir: Path, as_json: bool) -> None:
    """Print the trust anchor.

    Example: vmi-agent ca show --state-dir /var/lib/vmi-agent --json
    """
    generation, root = authority.newest_root(state_dir)
    fields = {
        "root_generation": generation,
        "subject": root.subject.rfc4514_string(),
        "serial": f"{root.serial_number:034x}",
        "not_before": _iso(root.not_valid_before_utc),
        "not_after": _iso(root.not_valid_after_utc),
        "sha256": root.fingerprint(hashes.SHA256()).hex(),
        "certificate": root.public_bytes(serialization.Encoding.PEM).decode(),
    }
    _print_record(fields, as_json)


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
@_telling
def channel_init(state_dir: Path, replace: bool) -> None:
    """Make the channel's credentials, the agent's and the proxy's, each of which pins the other.

    Example: vmi-agent channel init --state-dir /var/lib/vmi-agent
    """
    state_directory.make(state_dir)
    from runtime import channel_tls

    path = state_dir / channel_tls.FILE_NAME
    if path.exists() and not replace:
        raise StartError(f"{path} exists already. Nothing was changed. To shut out whoever has the old ones: --replace")
    agent, proxy = channel_tls.make_credentials()
    replace_file(state_dir / _PROXY_CREDENTIALS, proxy)
    replace_file(path, agent)
    click.echo("Channel credentials made. Move the proxy's over: vmi-agent channel hand-over")


@channel.command("hand-over")
@settings.common
@click.option(
    "--to", metavar="FILE", required=True, help="channel.pem in the proxy's state directory, or - for stdout."
)
@click.option("--replace", is_flag=True, help="Replace the file where it exists.")
@_telling
def channel_hand_over(state_dir: Path, to: str, replace: bool) -> None:
    """Move the proxy's credentials to the proxy; the agent keeps no copy of its key.

    Example: vmi-agent channel hand-over --state-dir /var/lib/vmi-agent --to /var/lib/bmc-proxy/channel.pem
    """
    path = state_dir / _PROXY_CREDENTIALS
    try:
        credentials = read_secret(path)
    except FileNotFoundError as error:
        raise StartError(
            f"{state_dir} holds no proxy's credentials: they were handed over, or never made (vmi-agent channel init)."
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


@main.group("profiles")
def profiles_group() -> None:
    """Look at what is stamped, and for whom."""


@profiles_group.command("check")
@settings.common
@_profiles
@_telling
def profiles_check(state_dir: Path, profiles: Path | None) -> None:
    """Check and lint profiles as `serve` does when it starts. The state directory is not looked at.

    Example: vmi-agent profiles check --state-dir /var/lib/vmi-agent --profiles /etc/vmi-agent/profiles.toml
    """
    from vmi_agent.profile_file import load_profiles
    from vmi_agent.profile_lint import lint

    found = 0
    for profile in load_profiles(profiles):
        findings = lint(profile, utc_now())
        found += len(findings)
        click.echo(f"{profile.name}: " + ("; ".join(map(str, findings)) or f"good; keys: {profile.keys_text}"))
    if found:
        raise StartError("profiles that lint finds fault with are not served")


@main.group()
def certs() -> None:
    """Look up what was issued."""


@certs.command("list")
@settings.common
@_as_json
@_telling
def certs_list(state_dir: Path, as_json: bool) -> None:
    """Print every issued certificate, oldest first.

    Example: vmi-agent certs list --state-dir /var/lib/vmi-agent --json
    """
    rows = ledger_rows.list_certificates(state_dir)
    if as_json:
        _print_json_array(_fields(row) for row in rows)
        return
    for row in rows:
        fields = _fields(row)
        click.echo("  ".join(str(fields[name]) for name in ("serial", "not_after", "user", "address", "subject")))


@certs.command("show")
@settings.common
@click.argument("serial")
@_as_json
@_telling
def certs_show(state_dir: Path, serial: str, as_json: bool) -> None:
    """Print one issued certificate. SERIAL is hexadecimal; colons are allowed.

    Example: vmi-agent certs show --state-dir /var/lib/vmi-agent 5f3a90c4d2e1b80796a5b4c3d2e1f0a9b8
    """
    try:
        number = int(serial.replace(":", ""), 16)
    except ValueError as error:
        raise click.BadParameter(f"{serial!r} is not hexadecimal", param_hint="SERIAL") from error
    is_possible = 0 < number < 1 << 8 * SERIAL_OCTETS
    row = ledger_rows.find_certificate(state_dir, number.to_bytes(SERIAL_OCTETS)) if is_possible else None
    if row is None:
        raise click.ClickException(f"no certificate with the serial number {serial} was issued here")
    certificate = x509.load_der_x509_certificate(assemble(row.tbs, row.signature))
    fields = _fields(row) | {"certificate": certificate.public_bytes(serialization.Encoding.PEM).decode()}
    _print_record(fields, as_json)


def _fields(row: Any) -> dict[str, object]:
    return {
        "serial": row.serial.hex(),
        "status": row.status,
        "subject": row.subject,
        "user": row.user,
        "method": row.method,
        "address": row.address,
        "not_before": _iso(datetime.fromtimestamp(row.not_before, UTC)),
        "not_after": _iso(datetime.fromtimestamp(row.not_after, UTC)),
        "issued_at": _iso(datetime.fromtimestamp(row.issued_ms / 1000, UTC)),
        "profile": row.profile,
        "root_generation": row.root_generation,
        "csr_sha256": row.csr_sha256.hex(),
        "key_sha256": row.key_sha256.hex(),
    }


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _print_record(fields: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    pem = fields.pop("certificate")
    for name, value in fields.items():
        click.echo(f"{name}: {value}")
    click.echo(pem, nl=False)


def _print_json_array(records: Iterator[dict[str, object]]) -> None:
    """Print a JSON array one record a line, without holding all of it."""
    separator = "["
    for record in records:
        click.echo(separator + "\n" + json.dumps(record), nl=False)
        separator = ","
    click.echo("[]" if separator == "[" else "\n]")
