"""What happens to a CA in its life: made, rotated, brought along, or put under an offline root.

Each is told to the audit before it is there: a CA that the audit cannot tell of is not made.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.x509.oid import NameOID

from runtime.errors import StartError
from runtime.files import read_secret, replace_file, sync_directory
from runtime.hints import command
from vmi_agent.ca import authority
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Authority
from vmi_agent.ca.certificates import cross_certificate, issuing_ca_request, self_signed_root
from vmi_agent.ca.chain import read_chain
from vmi_agent.keys import Custody, CustodyError, file_key
from vmi_agent.keys.algorithms import key_type_of
from vmi_agent.keys.open import KEY_FILE, Access, has_key, make_key, open_key
from vmi_agent.ledger.audit.chain import Event

Note = Callable[[Event], None]


def create(state_dir: Path, key_type: str, access: Access, now: datetime, note: Note) -> x509.Certificate:
    """Make a key and a self-signed root, as the next generation; return the root.

    Args:
        key_type: one of `custody.KEY_TYPES`.
        now: aware UTC time.
        note: writes to the audit.

    Raises:
        CustodyError: the key cannot be made.
    """
    with ca_store.adding(state_dir) as (generation, staging, finish):
        with closing(make_key(staging, key_type, access, _label(generation))) as custody:
            root = _add_root(staging, generation, custody, now)
        note(_event("ca made", now, root))
        finish()
    return root


def create_ephemeral(
    state_dir: Path, key_type: str, now: datetime, note: Note, *, publish_at: str | None = None
) -> Authority:
    """Make a root whose key is in this process's memory only; return the CA with it. Arguments as for `create`.

    Args:
        publish_at: as for `authority.load`.
    """
    with ca_store.adding(state_dir) as (generation, staging, finish):
        custody = file_key.FileCustody(file_key.make_key(key_type))
        (staging / ca_store.EPHEMERAL_FILE).touch()
        note(_event("ca made, ephemeral", now, _add_root(staging, generation, custody, now)))
        finish()
    return authority.assemble(state_dir, generation, custody, publish_at)


def rotate(
    state_dir: Path, key_type: str | None, access: Access, now: datetime, note: Note, *, to_file: bool = False
) -> x509.Certificate:
    """Make the next generation, with cross-certificates both ways where the old root is valid; return the new root.

    A root that was imported may allow no CA below it (path length 0): it gets none for the new one.

    Args:
        key_type: None for the kind of key that the old one has. The others as for `create`.
        to_file: make the new key in a file, although there is a token for the old one.

    Raises:
        CustodyError: a key cannot be used or made.
        StartError: the CA's root is offline: it cannot be rotated here.
    """
    old_generation = ca_store.newest(state_dir)
    old_directory = ca_store.directory_of(state_dir, old_generation)
    certificates = authority.certificates_of(state_dir, old_generation)
    if len(certificates) > 1:
        csr = command("vmi-agent", "ca csr", opens_keys=True)
        install = command("vmi-agent", "ca install-chain chain.pem", opens_keys=True)
        raise StartError(
            f"the root of this CA is offline. Make a CSR for a new issuing CA: `{csr} > issuing.csr`. Have the root"
            f" sign it, and take over the chain: `{install}`"
        )
    old = certificates[0]
    with ExitStack() as opened:
        old_custody = None
        if not ca_store.is_ephemeral(old_directory):
            old_custody = opened.enter_context(closing(open_key(old_directory, access)))
        if key_type is None:
            key_type = key_type_of(old.public_key())
        generation, staging, finish = opened.enter_context(ca_store.adding(state_dir))
        if generation != old_generation + 1:
            raise StartError("somebody else has just changed the CA. Nothing was changed here.")
        made_with = Access(access.passphrase) if to_file else access
        custody = opened.enter_context(closing(make_key(staging, key_type, made_with, _label(generation))))
        root = _add_root(staging, generation, custody, now)
        # What names a root that is not valid would not be valid either.
        if old_custody is not None and old.not_valid_before_utc <= now < old.not_valid_after_utc:
            old_with_new = cross_certificate(old, authority.issuer_of(root), custody, now)
            ca_store.write_certificates(staging / ca_store.OLD_WITH_NEW_FILE, [old_with_new])
            if _allows_ca_below(old):
                new_with_old = cross_certificate(root, authority.issuer_of(old), old_custody, now)
                ca_store.write_certificates(staging / ca_store.NEW_WITH_OLD_FILE, [new_with_old])
        crosses = [
            {
                "issuer": cross.issuer.rfc4514_string(),
                "subject": _name(cross),
                "serial": f"{cross.serial_number:034x}",
                "certificate_sha256": cross.fingerprint(hashes.SHA256()).hex(),
            }
            for name in (ca_store.NEW_WITH_OLD_FILE, ca_store.OLD_WITH_NEW_FILE)
            if (staging / name).exists()
            for cross in ca_store.read_certificates(staging / name)
        ]
        note(_event("ca rotated", now, root, cross_certificates=crosses))
        finish()
    return root


def import_ca(
    state_dir: Path,
    key_pem: bytes,
    key_passphrase: bytes | None,
    chain_pem: bytes,
    access: Access,
    now: datetime,
    note: Note,
) -> x509.Certificate:
    """Take over a CA that was made elsewhere, as the next generation; return its certificate.

    Args:
        key_pem: its private key, PKCS#8 or older forms, in PEM.
        key_passphrase: of `key_pem`.
        chain_pem: its certificate and those above it, root last, in PEM.
        access: its passphrase encrypts the key here. Others as for `create`.

    Raises:
        CustodyError: key or certificates are refused; the text says why.
    """
    key = file_key.parse(key_pem, key_passphrase, "the key", "--import-passphrase-file")
    if access.token is not None:
        raise CustodyError("a key cannot be imported into a token. Make one there and use ca csr, or import to a file.")
    certificates = read_chain(chain_pem, key.public_key, now)
    with ca_store.adding(state_dir) as (_, staging, finish):
        _refuse_known_key(state_dir, key.public_key)
        file_key.store(key.private_key, staging / KEY_FILE, access.passphrase)
        _install(staging, certificates)
        note(_event("ca imported", now, certificates[0]))
        finish()
    return certificates[0]


def request_issuing_ca(state_dir: Path, key_type: str, access: Access, common_name: str) -> bytes:
    """Make the key of an issuing CA and return a CSR for it in PEM; made once, the same key is asked for again.

    Raises:
        CustodyError: the key cannot be made or used.
    """
    with ca_store.locked(state_dir):
        ca_dir = ca_store.make_ca_dir(state_dir)
        directory = ca_dir / ca_store.REQUESTED
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(ca_dir)  # what an offline root signs is worth nothing without its key
        is_new = not has_key(directory)
        custody = make_key(directory, key_type, access, "VMI issuing CA") if is_new else open_key(directory, access)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "VMI Certificate Exchange"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    with closing(custody):
        return issuing_ca_request(custody, name).public_bytes(serialization.Encoding.PEM)


def install_chain(state_dir: Path, chain_pem: bytes, access: Access, now: datetime, note: Note) -> x509.Certificate:
    """Take the certificate that an offline root gave for `request_issuing_ca`, as the next generation; return it.

    Args:
        chain_pem: the issuing CA's certificate and those above it, root last, in PEM.

    Raises:
        CustodyError: nothing was asked for, or the chain is refused; the text says why.
    """
    requested = state_dir / "ca" / ca_store.REQUESTED
    with ca_store.adding(state_dir, fill_from=requested) as (_, staging, finish):
        if not has_key(requested):
            csr = command("vmi-agent", "ca csr", opens_keys=True)
            raise CustodyError(f"no issuing CA was asked for. Begin with: `{csr} > issuing.csr`")
        with closing(open_key(requested, access)) as custody:
            certificates = read_chain(chain_pem, custody.public_key, now)
        _install(staging, certificates)
        note(_event("ca installed under an offline root", now, certificates[0]))
        finish()
    return certificates[0]


def encrypt_keys(state_dir: Path, old: bytes | None, new: bytes | None, now: datetime, note: Note) -> int:
    """Write all key files anew, encrypted with another passphrase or none; return how many there are.

    Raises:
        CustodyError: one cannot be read; then none was changed.
    """
    with ca_store.locked(state_dir):
        paths = [
            path
            for directory in ca_store.key_directories(state_dir)
            for name in (KEY_FILE, ca_store.OCSP_FILE)
            if (path := directory / name).exists()
        ]
        rewritten = [(path, file_key.reencrypt(read_secret(path), old, new, f"key {path}")) for path in paths]
        if not rewritten:
            raise CustodyError(f"no key files in {state_dir}: keys are in a token, or there is no CA")
        note(Event("ca keys encrypted anew" if new else "ca keys decrypted", int(now.timestamp() * 1000), {}))
        for path, content in rewritten:
            replace_file(path, content)
    return len(rewritten)


def refuse_while_requested(state_dir: Path) -> None:
    """Refuse to make a root where an issuing CA was asked for: whoever did so has another root in mind.

    Raises:
        StartError: with the two ways on.
    """
    requested = state_dir / "ca" / ca_store.REQUESTED
    if has_key(requested):
        install = command("vmi-agent", "ca install-chain chain.pem", opens_keys=True)
        raise StartError(
            f"an issuing CA was asked for, and its certificate is not here yet. Take it over: `{install}`."
            f" To have a self-signed root instead, remove {requested}"
        )


def _refuse_known_key(state_dir: Path, public_key: CertificateIssuerPublicKeyTypes) -> None:
    """Refuse a key that a generation has already: revocations of the one would be missing on the other's CRL."""
    for generation in ca_store.generations(state_dir):
        if authority.certificates_of(state_dir, generation)[0].public_key() == public_key:
            raise CustodyError(
                f"generation {generation} of the CA has this key already. A new one needs a key of its own."
            )


def _install(directory: Path, certificates: Sequence[x509.Certificate]) -> None:
    (directory / ca_store.ISSUING_FILE).unlink(missing_ok=True)  # of an installation that was killed
    if certificates[:-1]:
        ca_store.write_certificates(directory / ca_store.ISSUING_FILE, certificates[:-1])
    ca_store.write_certificates(directory / ca_store.ROOT_FILE, certificates[-1:])


def _add_root(directory: Path, generation: int, custody: Custody, now: datetime) -> x509.Certificate:
    root = self_signed_root(custody, generation, now)
    ca_store.write_certificates(directory / ca_store.ROOT_FILE, [root])
    return root


def _allows_ca_below(root: x509.Certificate) -> bool:
    return root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length != 0


def _event(name: str, now: datetime, certificate: x509.Certificate, **more: object) -> Event:
    told = {"subject": _name(certificate), "certificate_sha256": certificate.fingerprint(hashes.SHA256()).hex()}
    return Event(name, int(now.timestamp() * 1000), told | more)


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def _label(generation: int) -> str:
    return f"VMI CA {generation}"
