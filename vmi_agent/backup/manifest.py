"""What a backup holds, as the CA states it: name, size and SHA-256 of every file, the time, and the root."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from vmi_agent.backup import signed_statement
from vmi_agent.backup.archive import MANIFEST, MEMBER
from vmi_agent.backup.signed_statement import Statement, StatementRefused
from vmi_agent.ca import authority
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Authority


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Size in octets, and SHA-256 in hexadecimal, of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read.

    Attributes:
        statement: says who signed it.
        files: by name.
        made_at: aware UTC time.
        root_sha256: over the root above the signer, in hexadecimal.
    """

    statement: Statement
    files: Mapping[str, FileFacts]
    made_at: datetime
    root_sha256: str

    @property
    def signer(self) -> x509.Certificate | None:
        """The certificate of the key that signed it; None where it is not signed."""
        return self.statement.certificates[0] if self.statement.certificates else None


def make(files: Mapping[str, FileFacts], state_dir: Path, signer: Authority | None, made_at: datetime) -> bytes:
    """Return the manifest of a backup. Arguments and errors as for `signed_statement.make`."""
    root = authority.certificates_of(state_dir, ca_store.newest(state_dir))[-1] if signer is None else signer.root
    fields = {
        "made_at": made_at.isoformat(timespec="seconds"),
        "root_sha256": root.fingerprint(hashes.SHA256()).hex(),
        "files": [{"name": name, "size": each.size, "sha256": each.sha256} for name, each in files.items()],
    }
    return signed_statement.make(signed_statement.BACKUP, fields, state_dir, signer)


def read(octets: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        StatementRefused: it is none, or its signature does not verify.
    """
    statement = signed_statement.read(signed_statement.BACKUP, octets)
    try:
        made_at = datetime.fromisoformat(statement.fields["made_at"])
        root_sha256 = statement.fields["root_sha256"]
        listed = [(each["name"], FileFacts(each["size"], each["sha256"])) for each in statement.fields["files"]]
        is_sound = all(
            MEMBER.fullmatch(name)
            and name != MANIFEST
            and type(facts.size) is int
            and re.fullmatch(r"[0-9a-f]{64}", facts.sha256)
            for name, facts in listed
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StatementRefused("its content is not that of a backup") from error
    if not is_sound or made_at.utcoffset() is None or len(dict(listed)) != len(listed):
        raise StatementRefused("its content is not that of a backup")
    return Manifest(statement, dict(listed), made_at.astimezone(UTC), root_sha256)
