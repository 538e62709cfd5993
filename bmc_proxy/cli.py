"""The command line of bmc-proxy."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bmc_proxy.auth.accounts import Account, AccountRefused, AccountStore, AccountsUnusable, Role
from bmc_proxy.config import CHECKERS, CLIENT_USER_FIELDS, DEFAULT_HTTPS, Config
from runtime import state_dir as state_directory
from runtime.cli_errors import telling
from runtime.cli_output import print_line
from runtime.errors import ConfigError, StartError
from runtime.settings import Settings

if TYPE_CHECKING:
    from bmc_proxy.workers.process import SharingReactor
    from runtime.lifecycle import Application, Reactor

settings = Settings("BMC_PROXY", "Where accounts and the last root are kept. Made where it is missing, for this user.")

_file = click.Path(dir_okay=False, path_type=Path)
_password_stdin = click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin.")


_checker = settings.option(
    "--checker",
    type=click.Choice(CHECKERS),
    default="accounts",
    show_default=True,
    help="Who checks passwords: the accounts' own hashes, or this machine's PAM.",
)

_telling = telling(AccountsUnusable, AccountRefused)


@click.group()
@click.version_option(package_name="vmi-certificate-exchange")
def main() -> None:
    """The HTTP side of the VMI certificate exchange, on the BMC.

    Example: bmc-proxy serve --state-dir /var/lib/bmc-proxy --agent tcp:127.0.0.1:7700 --https tcp:8443
    """


@main.command()
@settings.common
@settings.option("--agent", multiple=True, metavar="ENDPOINT", help="Where an agent listens; may be repeated.")
@settings.option(
    "--peer-uid",
    type=click.IntRange(0),
    multiple=True,
    metavar="UID",
    help="Who may listen on an agent's unix socket; may be repeated. Without it, the proxy's own user.",
)
@settings.option(
    "--https", metavar="ENDPOINT", help=f"The HTTPS listener; {DEFAULT_HTTPS} where no listener is given at all."
)
@settings.option("--http", metavar="ENDPOINT", help="The plain listener. There is none without this.")
@settings.option("--anonymous-loopback", is_flag=True, help="Sign on the plain listener without login.")
@settings.option("--https-certificate", type=_file, metavar="FILE", help="Its chain in PEM; without it, self-signed.")
@settings.option("--https-key", type=_file, metavar="FILE", help="Its key in PEM; without it, in the same file.")
@settings.option("--client-ca", type=_file, metavar="FILE", help="CAs, in PEM, whose client certificates let in.")
@settings.option(
    "--client-user",
    type=click.Choice(CLIENT_USER_FIELDS),
    default="cn",
    show_default=True,
    help="What of a client certificate names the account.",
)
@settings.option(
    "--client-crl",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="CRLs of the CAs of --client-ca, in DER or PEM. Those of the agents' own CAs are fetched from the agents.",
)
@settings.option(
    "--client-crl-grace-h",
    type=click.IntRange(0, 8760),
    default=0,
    show_default=True,
    help="Hours for which a CRL counts after its nextUpdate. Past that, certificates of its CA let nobody in.",
)
@_checker
@settings.option("--pam-service", default="bmc-proxy", show_default=True, metavar="NAME", help="Of /etc/pam.d.")
@settings.option(
    "--session-idle-s",
    type=click.IntRange(30, 86_400),
    default=1800,
    show_default=True,
    help="How long a session lives unused, in seconds.",
)
@settings.option(
    "--max-connections",
    type=click.IntRange(2, 65_536),
    default=512,
    show_default=True,
    help="HTTP connections at once; a single address may have half of them.",
)
@settings.option(
    "--requests-per-s",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="Requests a second of one address; a twentieth of it before login.",
)
@settings.option(
    "--max-waiting",
    type=click.IntRange(0, 65_536),
    default=160,
    show_default=True,
    help="Requests that wait for an agent with room; each address has a fair share.",
)
@settings.option(
    "--deadline-s",
    type=click.IntRange(1, 300),
    default=30,
    show_default=True,
    help="How long a request may take from its header on, in seconds.",
)
@settings.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that serve. Each has its part, rounded up, of --max-connections, --requests-per-s, --max-waiting.",
)
@settings.option(
    "--accept-clock",
    is_flag=True,
    help="Make the HTTPS certificate although the clock is before the date of this software.",
)
@settings.log_format
@_telling
def serve(log_format: str, **options: Any) -> None:
    """Run the proxy.

    Example: bmc-proxy serve --state-dir /var/lib/bmc-proxy --agent unix:/run/vmi-agent.sock --https tcp:8443
    """
    config = Config(**options)
    # The reactor is installed by its import; the other commands need none, nor anything of Twisted.
    from twisted.internet import reactor

    from runtime.lifecycle import run

    if config.workers == 1:
        from bmc_proxy.app import ProxyApplication
        from runtime.logging import start_logging

        the_reactor = cast("Reactor", reactor)
        application: Application = ProxyApplication(the_reactor, config)
        start_logging(log_format)
    else:
        from bmc_proxy.workers.shared_log import start_shared_logging
        from bmc_proxy.workers.supervisor import FirstProcess

        the_reactor = sharing_reactor = cast("SharingReactor", reactor)
        application = FirstProcess(sharing_reactor, config, log_format)
        start_shared_logging(log_format)
    sys.exit(run(the_reactor, application))


@main.group()
def account() -> None:
    """Make, list and change accounts. A running proxy sees the change at once."""


@account.command("add")
@settings.common
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@_password_stdin
@click.option("--no-password", is_flag=True, help="Let in by client certificate or PAM only.")
@_checker
@_telling
def account_add(state_dir: Path, name: str, role: str, password_stdin: bool, no_password: bool, checker: str) -> None:
    """Add an account.

    Example: bmc-proxy account add root --state-dir /var/lib/bmc-proxy --role Administrator --password-stdin
    """
    if password_stdin is no_password:
        raise ConfigError("give either --password-stdin, and the password on the first line of stdin, or --no-password")
    if password_stdin:
        _refuse_for_pam(checker, "Give --no-password here, and set the password there.")
    state_directory.make(state_dir)
    password_hash = None if no_password else _hash_from_stdin()
    AccountStore(state_dir).add(Account(name, Role(role), password_hash))
    print_line(f"Account {name} added.")


@account.command("list")
@settings.common
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_telling
def account_list(state_dir: Path, as_json: bool) -> None:
    """Print the accounts.

    Example: bmc-proxy account list --state-dir /var/lib/bmc-proxy --json
    """
    if not state_dir.is_dir():
        raise StartError(f"there is no state directory {state_dir}. Give the one that `bmc-proxy serve` has.")
    rows = [
        {
            "name": each.name,
            "role": each.role.value,
            "enabled": each.enabled,
            "has_password": each.password_hash is not None,
        }
        for each in AccountStore(state_dir).all().values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        notes = ["disabled"] * (not row["enabled"]) + ["no password"] * (not row["has_password"])
        print_line("  ".join([str(row["name"]), str(row["role"]), *notes]))


@account.command("remove")
@settings.common
@click.argument("name")
@_telling
def account_remove(state_dir: Path, name: str) -> None:
    """Remove an account and end its sessions.

    Example: bmc-proxy account remove operator1 --state-dir /var/lib/bmc-proxy
    """
    from bmc_proxy.auth.known_sources import forget_on_disk

    state_directory.make(state_dir)
    AccountStore(state_dir).remove(name)
    forget_on_disk(state_dir, name)
    print_line(f"Account {name} removed.")


@account.command("set-password")
@settings.common
@click.argument("name")
@_password_stdin
@_checker
@_telling
def account_set_password(state_dir: Path, name: str, password_stdin: bool, checker: str) -> None:
    """Give an account a new password, end its sessions, and open it again if wrong passwords locked it.

    The password counts with --checker accounts alone. With --checker pam it is PAM's: change it there, as with passwd.

    Example: bmc-proxy account set-password root --state-dir /var/lib/bmc-proxy --password-stdin
    """
    if not password_stdin:
        raise ConfigError("give --password-stdin, and the password on the first line of stdin")
    _refuse_for_pam(checker, "Change it there, such as with passwd.")
    state_directory.make(state_dir)
    password_hash = _hash_from_stdin()
    AccountStore(state_dir).change(name, lambda account: replace(account, password_hash=password_hash))
    print_line(f"Account {name} has a new password.")


def _refuse_for_pam(checker: str, instead: str) -> None:
    """Raise ConfigError where a password would be kept and never asked for."""
    if checker == "pam":
        raise ConfigError(f"--checker pam: passwords are PAM's, and one that is kept here lets nobody in. {instead}")


def _hash_from_stdin() -> str:
    from bmc_proxy.auth.passwords import hash_password

    try:
        password = sys.stdin.buffer.readline().decode()
    except ValueError as error:
        raise AccountRefused("password", "The password is not UTF-8.") from error
    return hash_password(password.rstrip("\r\n"), may_be_development=True)
