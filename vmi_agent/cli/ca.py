"""`vmi-agent ca`: the CA's life."""

from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from runtime import state_dir as state_directory
from runtime.cli_output import print_line
from runtime.clock import refuse_before_build, utc_now
from runtime.errors import ConfigError, StartError
from runtime.files import read_secret
from vmi_agent.ca import authority
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.cli.custody_options import opens_keys, read_passphrase
from vmi_agent.cli.groups import accepts_clock, as_json, iso, main, noting, print_record, settings, tell
from vmi_agent.keys import DEFAULT_KEY_TYPE, KEY_TYPES
from vmi_agent.keys.open import Access
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import check_ca_not_missing

key_type_option = settings.option(
    "--key-type",
    type=click.Choice(KEY_TYPES),
    default=DEFAULT_KEY_TYPE,
    show_default=True,
    help="Of the key of a CA that is made.",
)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@main.group()
def ca() -> None:
    """Make, show, rotate and bring along the CA."""


@ca.command("init")
@settings.common
@key_type_option
@accepts_clock
@opens_keys
@tell
def ca_init(state_dir: Path, key_type: str, accept_clock: bool, access: Access) -> None:
    """Make the CA: a key and its self-signed root.

    Example: vmi-agent ca init --state-dir /var/lib/vmi-agent --key-type p384
    """
    refuse_before_build(utc_now(), accepted=accept_clock)
    lock = state_directory.claim(state_dir)
    if authority.exists(state_dir):
        raise StartError(f"{state_dir} holds a CA already. Nothing was changed.")
    ca_lifecycle.refuse_while_requested(state_dir)
    _make_ledger(state_dir)  # before the CA: a CA without a ledger is refused
    root = ca_lifecycle.create(state_dir, key_type, access, utc_now(), noting(state_dir))
    lock.release()
    print_line(f"CA made: {_name(root)}")


@ca.command("show")
@settings.common
@as_json
@tell
def ca_show(state_dir: Path, as_json: bool) -> None:
    """Print the trust anchor, and whether what it signs verifies now.

    Example: vmi-agent ca show --state-dir /var/lib/vmi-agent --json
    """
    generation = ca_store.newest(state_dir)
    certificates = authority.certificates_of(state_dir, generation)
    now = utc_now()
    valid_from, valid_until = authority.validity_of(certificates)
    status = "valid" if valid_from <= now < valid_until else authority.validity_text(valid_from, valid_until, now)
    fields = {"root_generation": generation, "status": status, **_fields(certificates[-1])}
    if len(certificates) > 1:
        fields["issuing"] = [_fields(each) for each in certificates[:-1]] if as_json else _name(certificates[0])
    print_record(fields, as_json)


@ca.command("rotate")
@settings.common
@click.option("--key-type", type=click.Choice(KEY_TYPES), help="Of the new key. Without it, of the old one's kind.")
@click.option("--to-file", is_flag=True, help="Make the new key in a file, although the old one is in a token.")
@accepts_clock
@opens_keys
@tell
def ca_rotate(state_dir: Path, key_type: str | None, to_file: bool, accept_clock: bool, access: Access) -> None:
    """Make a new root, with cross-certificates to and from the old one. A running agent takes it within a second.

    Example: vmi-agent ca rotate --state-dir /var/lib/vmi-agent
    """
    refuse_before_build(utc_now(), accepted=accept_clock)
    root = ca_lifecycle.rotate(state_dir, key_type, access, utc_now(), noting(state_dir), to_file=to_file)
    print_line(f"CA rotated: {_name(root)}")


@ca.command("import")
@settings.common
@click.option("--key", type=_FILE, required=True, metavar="FILE", help="The CA's private key in PEM, 0600.")
@click.option(
    "--import-passphrase-file",
    type=_FILE,
    metavar="FILE",
    help="The passphrase that --key has now; --key-passphrase-file is the one it gets here.",
)
@click.option("--chain", type=_FILE, required=True, metavar="FILE", help="The CA's certificate and those above it.")
@opens_keys
@tell
def ca_import(state_dir: Path, key: Path, import_passphrase_file: Path | None, chain: Path, access: Access) -> None:
    """Take over a CA that was made elsewhere: its key, and its certificates, root last.

    Example: vmi-agent ca import --state-dir /var/lib/vmi-agent --key ca.key --chain ca.pem
    """
    passphrase = None if import_passphrase_file is None else read_passphrase(import_passphrase_file)
    if not authority.exists(state_dir):
        lock = state_directory.claim(state_dir)
        _make_ledger(state_dir)
        lock.release()
    if passphrase is not None and access.passphrase is None:
        raise ConfigError("the key is encrypted: give --key-passphrase-file for how it is to be kept here")
    key_pem, chain_pem, now = read_secret(key), chain.read_bytes(), utc_now()
    certificate = ca_lifecycle.import_ca(state_dir, key_pem, passphrase, chain_pem, access, now, noting(state_dir))
    print_line(f"CA imported: {_name(certificate)}")


@ca.command("csr")
@settings.common
@key_type_option
@click.option("--common-name", default="VMI Issuing CA", show_default=True, help="Of the issuing CA.")
@opens_keys
@tell
def ca_csr(state_dir: Path, key_type: str, common_name: str, access: Access) -> None:
    """Make the key of an issuing CA and print a CSR for it, for an offline root to sign.

    Example: vmi-agent ca csr --state-dir /var/lib/vmi-agent > issuing-ca.csr
    """
    if not 1 <= len(common_name) <= 64 or not common_name.isprintable():
        raise ConfigError("--common-name is to have 1 to 64 printable characters")
    if not authority.exists(state_dir):
        lock = state_directory.claim(state_dir)
        _make_ledger(state_dir)
        lock.release()
    click.echo(ca_lifecycle.request_issuing_ca(state_dir, key_type, access, common_name), nl=False)


@ca.command("install-chain")
@settings.common
@click.argument("chain", type=_FILE)
@opens_keys
@tell
def ca_install_chain(state_dir: Path, chain: Path, access: Access) -> None:
    """Take what the offline root gave for `ca csr`: the issuing CA's certificate and those above it, root last.

    Example: vmi-agent ca install-chain --state-dir /var/lib/vmi-agent chain.pem
    """
    certificate = ca_lifecycle.install_chain(state_dir, chain.read_bytes(), access, utc_now(), noting(state_dir))
    print_line(f"issuing CA installed: {_name(certificate)}")


@ca.command("encrypt")
@settings.common
@click.option(
    "--new-passphrase-file",
    type=_FILE,
    metavar="FILE",
    help="The passphrase that the keys get, 0600; without it, none.",
)
@opens_keys
@tell
def ca_encrypt(state_dir: Path, new_passphrase_file: Path | None, access: Access) -> None:
    """Encrypt the key files of all generations anew, or for the first time. Give a running agent the new passphrase.

    Example: vmi-agent ca encrypt --state-dir /var/lib/vmi-agent --new-passphrase-file passphrase
    """
    new = None if new_passphrase_file is None else read_passphrase(new_passphrase_file)
    if new is None and access.passphrase is None:
        raise ConfigError("give --new-passphrase-file, or the old passphrase to take the encryption away")
    changed = ca_lifecycle.encrypt_keys(state_dir, access.passphrase, new, utc_now(), noting(state_dir))
    print_line(f"key files written anew: {changed}")


def _make_ledger(state_dir: Path) -> None:
    Ledger(state_dir, utc_now()).close()
    check_ca_not_missing(state_dir)


def _fields(certificate: x509.Certificate) -> dict[str, object]:
    return {
        "subject": _name(certificate),
        "serial": f"{certificate.serial_number:034x}",
        "not_before": iso(certificate.not_valid_before_utc),
        "not_after": iso(certificate.not_valid_after_utc),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "certificate": certificate.public_bytes(serialization.Encoding.PEM).decode(),
    }


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()
