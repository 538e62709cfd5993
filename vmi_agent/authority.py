"""The CA itself: a key in custody and its self-signed root, one pair per root generation.

    STATE/ca/1/key.pem      0600
    STATE/ca/1/root.pem     the trust anchor of generation 1

A generation's directory is filled under another name and then renamed: it is there whole or not at all.
"""

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protocol import der
from runtime.files import sync_directory
from vmi_agent.ca_certificates import self_signed_root
from vmi_agent.certificate import Issuer
from vmi_agent.custody import Custody, CustodyError, file


@dataclass(frozen=True, slots=True)
class Authority:
    """What issues.

    Attributes:
        generation: of its root, from 1.
        root: the trust anchor.
        root_der: the same, in DER.
        issuer: what of it goes into every leaf.
        custody: signs for it.
    """

    generation: int
    root: x509.Certificate
    root_der: bytes
    issuer: Issuer
    custody: Custody

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The CA's certificates in DER, issuing CA first, root last. The root signs leaves itself."""
        return (self.root_der,)


def exists(state_dir: Path) -> bool:
    """Return whether the state directory holds a CA."""
    return bool(_generations(state_dir))


def create(state_dir: Path, key_type: str, now: datetime) -> Authority:
    """Make a key and a root, as the next generation, and store both durably.

    Args:
        key_type: one of `custody.KEY_TYPES`.
        now: aware UTC time.
    """
    generation = max(_generations(state_dir), default=0) + 1
    key = file.make_key(key_type)
    ca_dir = state_dir / "ca"
    ca_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = ca_dir / f".{generation}.new"
    if staging.exists():  # a creation that was killed; nothing ever used what it left
        shutil.rmtree(staging)
    staging.mkdir(mode=0o700)
    file.store(key, staging / "key.pem")
    root = self_signed_root(file.FileCustody(key), generation, now)
    with open(staging / "root.pem", "wb") as out:
        out.write(root.public_bytes(serialization.Encoding.PEM))
        out.flush()
        os.fsync(out.fileno())
    sync_directory(staging)
    staging.rename(ca_dir / str(generation))
    sync_directory(ca_dir)
    return load(state_dir)


def load(state_dir: Path) -> Authority:
    """Read the newest generation.

    Raises:
        CustodyError: there is none, its key may not be used, or key and root do not belong together.
    """
    generation, root = newest_root(state_dir)
    directory = state_dir / "ca" / str(generation)
    custody = file.load(directory / "key.pem")
    if root.public_key() != custody.public_key:
        raise CustodyError(f"key and root in {directory} do not belong together. Restore both from one backup.")
    return Authority(generation, root, root.public_bytes(serialization.Encoding.DER), _issuer(root), custody)


def newest_root(state_dir: Path) -> tuple[int, x509.Certificate]:
    """Return the newest generation and its root; the key is not looked at.

    Raises:
        CustodyError: there is none, or it cannot be read.
    """
    generations = _generations(state_dir)
    if not generations:
        raise CustodyError(f"no CA in {state_dir}. Make one: vmi-agent ca init --state-dir {state_dir}")
    path = state_dir / "ca" / str(max(generations)) / "root.pem"
    try:
        return max(generations), x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CustodyError(f"root certificate {path} cannot be read: {error}. Restore it from a backup.") from error


def _generations(state_dir: Path) -> list[int]:
    ca_dir = state_dir / "ca"
    return [int(entry.name) for entry in ca_dir.iterdir() if entry.name.isdecimal()] if ca_dir.is_dir() else []


def _issuer(root: x509.Certificate) -> Issuer:
    root_der = root.public_bytes(serialization.Encoding.DER)
    return Issuer(
        name=root.subject.public_bytes(),
        signature_algorithm=der.children(root_der)[1],
        key_identifier=root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        not_after=root.not_valid_after_utc,
    )
