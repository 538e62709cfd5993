"""The CA's directory, one below it for each root generation.

    STATE/ca/1/root.pem             the trust anchor of generation 1
    STATE/ca/1/issuing.pem          the CAs between it and the leaves, that of the key first; only under an offline root
    STATE/ca/1/key.pem, key.uri     the key, or where in a token it is
    STATE/ca/1/ephemeral            in place of a key that was in memory only
    STATE/ca/2/new-with-old.pem     generation 2's root as generation 1 certifies it, and the other way round
    STATE/ca/2/old-with-new.pem
    STATE/ca/1/ocsp.pem             the OCSP responder's key and certificate
    STATE/ca/requested/             the key of an issuing CA whose certificate is awaited

A generation's directory is filled under another name and then renamed: it is there whole or not at all.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from runtime.errors import StartError
from runtime.file_lock import lock_within, open_lock
from runtime.files import replace_file, sync_directory
from runtime.hints import command
from vmi_agent.keys import CustodyError

ROOT_FILE = "root.pem"
ISSUING_FILE = "issuing.pem"
NEW_WITH_OLD_FILE = "new-with-old.pem"
OLD_WITH_NEW_FILE = "old-with-new.pem"
OCSP_FILE = "ocsp.pem"
EPHEMERAL_FILE = "ephemeral"
REQUESTED = "requested"
_LOCK_FILE = "ca.lock"


def generations(state_dir: Path) -> list[int]:
    """Return all generations that there are, oldest first."""
    ca_dir = state_dir / "ca"
    return sorted(int(each.name) for each in ca_dir.iterdir() if each.name.isdecimal()) if ca_dir.is_dir() else []


def newest(state_dir: Path) -> int:
    """Return the newest generation.

    Raises:
        CustodyError: there is none.
    """
    found = generations(state_dir)
    if not found:
        raise CustodyError(f"no CA in {state_dir}. Make one: `{command('vmi-agent', 'ca init', opens_keys=True)}`")
    return found[-1]


def directory_of(state_dir: Path, generation: int) -> Path:
    """Return where a generation is kept."""
    return state_dir / "ca" / str(generation)


def is_ephemeral(directory: Path) -> bool:
    """Return whether the key of a generation was in memory only."""
    return (directory / EPHEMERAL_FILE).exists()


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Let nobody else change the CA, or back it up, meanwhile; a running agent does not mind.

    Raises:
        StartError: there is no such state directory.
    """
    try:
        descriptor = open_lock(state_dir / _LOCK_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StartError(f"there is no state directory {state_dir}. Give the agent's.") from error
    with open(descriptor, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_within(state_dir: Path, wait_s: float) -> Iterator[None]:
    """Do as `locked` does, for an agent that cannot wait for long.

    Raises:
        CustodyError: somebody else went on changing the CA, or backing it up.
        OSError: the lock's file cannot be opened.
    """
    with open(open_lock(state_dir / _LOCK_FILE), "rb") as file:
        if not lock_within(file.fileno(), wait_s):
            raise CustodyError("the CA is being changed or backed up by somebody else")
        yield


@contextmanager
def adding(state_dir: Path, fill_from: Path | None = None) -> Iterator[tuple[int, Path, Callable[[], None]]]:
    """Give the next generation's number, a directory to fill, and what to call when it is full.

    Where that is not called, what was filled in is gone afterwards.

    Args:
        fill_from: a directory that becomes it, with what is in it; it stays where it is otherwise.
    """
    with locked(state_dir):
        generation = max(generations(state_dir), default=0) + 1
        ca_dir = make_ca_dir(state_dir)
        staging = fill_from or ca_dir / f".{generation}.new"
        if fill_from is None:
            if staging.exists():  # a creation that was killed; nothing ever used what it left
                shutil.rmtree(staging)
            staging.mkdir(mode=0o700)

        def finish() -> None:
            sync_directory(staging)
            staging.rename(ca_dir / str(generation))
            sync_directory(ca_dir)

        try:
            yield generation, staging, finish
        finally:
            if fill_from is None and staging.exists():
                shutil.rmtree(staging)


def make_ca_dir(state_dir: Path) -> Path:
    """Make the CA's directory where it is missing, durably; return it."""
    ca_dir = state_dir / "ca"
    ca_dir.mkdir(mode=0o700, exist_ok=True)
    sync_directory(state_dir)
    return ca_dir


def key_directories(state_dir: Path) -> list[Path]:
    """Return the directories that may hold keys: all generations', oldest first, and what is requested."""
    found = [directory_of(state_dir, generation) for generation in generations(state_dir)]
    return [*found, state_dir / "ca" / REQUESTED]


def write_certificates(path: Path, certificates: Sequence[x509.Certificate]) -> None:
    """Write certificates in PEM, durably."""
    replace_file(path, b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates))


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read one or more certificates in PEM.

    Raises:
        CustodyError: they cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CustodyError(f"certificate {path} cannot be read: {error}. Restore it from a backup.") from error
