"""`vmi-agent backup` and `vmi-agent restore`: the state directory as a whole."""

import re
from collections.abc import Sequence
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from runtime.clock import utc_now
from runtime.errors import ConfigError
from runtime.termination import cleaning_up
from vmi_agent.backup import backup as backups
from vmi_agent.backup import restore as restoring
from vmi_agent.backup.later_revocations import Later
from vmi_agent.backup.restore import Check, Restored
from vmi_agent.cli.custody_options import opens_keys
from vmi_agent.cli.groups import iso, main, settings, tell
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit.anchors import read_file
from vmi_agent.ledger.audit.verify import NO_ANCHORS
from vmi_agent.ledger.revocation import Reason

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@main.command("backup")
@settings.common
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--unsigned", is_flag=True, help="Do not sign it: the CA's key is not at hand. Its SHA-256 alone vouches."
)
@opens_keys
@tell
def backup(state_dir: Path, target: Path, unsigned: bool, access: Access) -> None:
    """Write CA, ledger and channel credentials to a tar file, 0600, while the agent serves. Keep it like the key.

    It is signed with the CA's key. Keep the SHA-256 that is printed elsewhere than the file.

    Example: vmi-agent backup --state-dir /var/lib/vmi-agent /media/backup/vmi-agent.tar
    """
    with cleaning_up():
        made = backups.back_up(state_dir, target, utc_now(), None if unsigned else access)
    click.echo(f"backup written: SHA-256 {made.sha256}")
    if made.signer is None or made.root is None:
        click.echo("not signed: restore can check it by this SHA-256 alone. Write that down elsewhere.")
        return
    name, root = made.signer.subject.rfc4514_string(), made.root.fingerprint(hashes.SHA256()).hex()
    click.echo(f"signed by: {name}, under the root with the SHA-256 {root}")


@main.command("restore")
@settings.common
@click.argument("source", type=_FILE)
@click.option("--sha256", metavar="HEX", help="The backup's SHA-256, as `backup` printed it.")
@click.option(
    "--trust-root",
    type=_FILE,
    metavar="FILE",
    help="A CA certificate in PEM that you trust already, as HMCs have it: it must lead to the backup's signer.",
)
@click.option("--unverified", is_flag=True, help="Restore it although nothing shows that it is the CA's own.")
@click.option(
    "--anchor",
    type=_FILE,
    metavar="FILE",
    help="What `serve --anchor-file` wrote: the backup's audit must hold every row that it names, up to its end.",
)
@click.option(
    "--old-state-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The state directory that is replaced, if its ledger can still be read: what it revoked since is applied.",
)
@click.option(
    "--revocations",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="What `certs export-revocations` wrote after the backup; may be repeated.",
)
@click.option(
    "--crl",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A CRL from a proxy's /pki/N.crl, newer than the backup; one for each generation.",
)
@click.option("--forget-revocations", is_flag=True, help="Restore it although nothing tells what was revoked since.")
@tell
def restore(
    state_dir: Path,
    source: Path,
    sha256: str | None,
    trust_root: Path | None,
    unverified: bool,
    anchor: Path | None,
    old_state_dir: Path | None,
    revocations: tuple[Path, ...],
    crl: tuple[Path, ...],
    forget_revocations: bool,
) -> None:
    """Make a state directory from a backup. What was issued after the backup is not in it, what was revoked must be.

    Example: vmi-agent restore --state-dir /var/lib/vmi-agent --trust-root root.pem --crl 1.crl vmi-agent.tar
    """
    check = _check(sha256, trust_root, unverified, anchor)
    later = Later(old_state_dir, revocations, crl, forget_revocations)
    with cleaning_up():
        restored = restoring.restore(source, state_dir, utc_now(), check, later)
    _tell_of(restored, check)
    click.echo(f"restored: {state_dir}")


def _check(sha256: str | None, trust_root: Path | None, unverified: bool, anchor: Path | None) -> Check:
    if unverified and (sha256 is not None or trust_root is not None):
        raise ConfigError("--unverified is given, and --sha256 or --trust-root as well: leave one out")
    if not unverified and sha256 is None and trust_root is None:
        raise ConfigError(
            "whether a backup was forged cannot be seen from the backup. Give --trust-root FILE, the root certificate"
            " that HMCs or proxies have (GET /ibm/v1/Host/Certificate/root), or --sha256 HEX, which `backup` printed;"
            " or take it as it is: --unverified"
        )
    if sha256 is not None:
        sha256 = sha256.replace(":", "").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ConfigError("--sha256 is refused. Accepted: 64 hexadecimal digits.")
    anchors = NO_ANCHORS if anchor is None else read_file(anchor)
    return Check(sha256, () if trust_root is None else _read_trusted(trust_root), anchors)


def _read_trusted(path: Path) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"--trust-root {path} is refused. Accepted: one or more certificates in PEM.") from error


def _tell_of(restored: Restored, check: Check) -> None:
    signer = None if restored.manifest is None else restored.manifest.signer
    by = "not signed" if signer is None else f"signed by {signer.subject.rfc4514_string()}"
    click.echo(f"backup of {iso(restored.made_at)}, {by}")
    if check.sha256 is None and not check.trusted:
        click.echo("Warning: nothing showed that this backup is the CA's own. It may be forged.", err=True)
    if restored.manifest is None:
        click.echo("Warning: an older version made it, which signed nothing. Make a new backup.", err=True)
    if restored.rows_lost:
        click.echo(f"Warning: {restored.rows_lost} audit rows were written after it, as the anchors show.", err=True)
    _tell_of_later(restored)


def _tell_of_later(restored: Restored) -> None:
    """Print what was revoked since the backup, and what is not known."""
    later = restored.later
    for source in later.sources:
        click.echo(f"revocations until {iso(source.known.at)} from: {source.name}")
        if source.warning:
            click.echo(f"Warning: {source.name}: {source.warning}", err=True)
    for each in later.again:
        click.echo(f"revoked again: {each.serial.hex()} ({Reason(each.reason).name})")
    for each in later.carried:
        click.echo(f"revoked, not in this ledger, kept on the CRL: {each.serial.hex()} ({Reason(each.reason).name})")
    for each in later.lost:
        number = each.root_generation
        click.echo(
            f"Warning: revoked under generation {number}, which this backup does not hold: {each.serial.hex()}. No CRL"
            " of this CA can name it: let nobody trust that root.",
            err=True,
        )
    if later.blocks:
        click.echo(f"keys blocked: {later.blocks}")
    if not later.knows_blocked_keys:
        click.echo(
            f"Warning: nothing given tells of keys that were blocked after {iso(restored.made_at)}: they are certified"
            " again unless they are blocked again (vmi-agent keys block). Neither does a CRL: block the keys of"
            " certificates that this ledger does not hold as well.",
            err=True,
        )
    for number in later.lost_generations:
        click.echo(
            f"Warning: generation {number} of the CA is in the old state directory and not in this backup: it is lost."
            " Its certificates are not renewed, and no CRL and no OCSP answer will speak for them: let nobody trust its"
            " root, and have its clients ask for new certificates; or restore a backup that was made after the CA was"
            " rotated. Keep the old directory until then.",
            err=True,
        )
    for serial in later.still_on_hold:
        click.echo(f"still on hold, was released after the backup: {serial.hex()} (vmi-agent certs release)")
    for key in later.still_blocked:
        click.echo(f"still blocked, was unblocked after the backup: {key.hex()} (vmi-agent keys unblock)")
    for generation, since in later.unknown_since.items():
        click.echo(f"not known: what was revoked under generation {generation} after {iso(since)}")
