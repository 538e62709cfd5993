"""Where the key of a CA directory is, and how it is reached: `key.pem` in the directory, or `key.uri` into a token."""

from dataclasses import dataclass, field
from pathlib import Path

from runtime.files import replace_file
from vmi_agent.keys import Custody, CustodyError, file_key
from vmi_agent.keys.pkcs11.token import Token

KEY_FILE = "key.pem"
URI_FILE = "key.uri"


@dataclass(frozen=True, slots=True)
class Access:
    """What opens keys.

    Attributes:
        passphrase: of key files; None where they are not encrypted.
        token: where new keys are made, and those with a `key.uri` are; None without one.
    """

    passphrase: bytes | None = field(default=None, repr=False)
    token: Token | None = None


def has_key(directory: Path) -> bool:
    """Return whether a CA directory has a key: that of an ephemeral CA was in memory only."""
    return (directory / KEY_FILE).exists() or (directory / URI_FILE).exists()


def make_key(directory: Path, key_type: str, access: Access, label: str) -> Custody:
    """Make the key of a CA directory, in the token where there is one, else in a file.

    Args:
        key_type: one of `KEY_TYPES`.
        label: names it in a token.

    Raises:
        CustodyError: the token cannot make it.
    """
    if access.token is None:
        key = file_key.make_key(key_type)
        file_key.store(key, directory / KEY_FILE, access.passphrase)
        return file_key.FileCustody(key)
    from vmi_agent.keys.pkcs11 import signer as pkcs11

    custody = pkcs11.make_key(access.token, key_type, label)
    replace_file(directory / URI_FILE, custody.uri.encode() + b"\n")
    return custody


def check_can_make(access: Access, key_type: str) -> None:
    """Check, without making anything, that `make_key` would reach the token, if there is one, and log in to it.

    Raises:
        CustodyError: it would not, or a token makes no keys of this kind.
    """
    if access.token is None:
        return
    from vmi_agent.keys.pkcs11 import signer as pkcs11

    pkcs11.check_can_make(access.token, key_type)


def open_key(directory: Path, access: Access) -> Custody:
    """Return the key of a CA directory.

    Raises:
        CustodyError: there is none, or it cannot be opened; the text says what to change.
    """
    path = directory / URI_FILE
    if not path.exists():
        return file_key.load(directory / KEY_FILE, access.passphrase)
    if access.token is None:
        raise CustodyError(f"the key of {directory} is in a PKCS#11 token. Give --pkcs11-module and --pkcs11-token.")
    from vmi_agent.keys.pkcs11 import signer as pkcs11

    return pkcs11.load(access.token, path.read_text(encoding="ascii").strip())
