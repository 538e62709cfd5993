"""The options that open the CA's keys, which several commands take, as one value."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from runtime import hints
from runtime.errors import ConfigError
from runtime.files import read_secret
from vmi_agent.cli.groups import settings, tell
from vmi_agent.keys.open import Access
from vmi_agent.keys.pkcs11.token import Token, read_pin

# What systemd calls the passphrase where LoadCredential= brings it (systemd.exec(5)).
CREDENTIAL = "vmi-agent-key-passphrase"
_LONGEST_PASSPHRASE = 1023  # OpenSSL's limit

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def opens_keys(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and give the command what they say as `access`."""

    @wraps(command)
    def with_access(
        *arguments: Any,
        key_passphrase_file: Path | None,
        key_passphrase_fd: int | None,
        pkcs11_module: Path | None,
        pkcs11_token: str | None,
        pkcs11_pin_file: Path | None,
        **options: Any,
    ) -> None:
        passphrase = _passphrase(key_passphrase_file, key_passphrase_fd)
        given = {
            "--key-passphrase-file": key_passphrase_file,
            "--pkcs11-module": pkcs11_module,
            "--pkcs11-token": pkcs11_token,
            "--pkcs11-pin-file": pkcs11_pin_file,
        }
        hints.remember("vmi-agent", {name: value for name, value in given.items() if value is not None})
        command(*arguments, access=_access(passphrase, pkcs11_module, pkcs11_token, pkcs11_pin_file), **options)

    decorated: Callable[..., None] = tell(with_access)
    for option in reversed(
        (
            settings.option(
                "--key-passphrase-file", type=_FILE, metavar="FILE", help="The passphrase of the CA's key file, 0600."
            ),
            settings.option(
                "--key-passphrase-fd",
                type=click.IntRange(0),
                metavar="FD",
                help=f"The same from an open file descriptor. Without either, systemd's credential {CREDENTIAL}.",
            ),
            settings.option(
                "--pkcs11-module",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help="The PKCS#11 library of the token that holds the CA's keys.",
            ),
            settings.option("--pkcs11-token", metavar="LABEL", help="The token's label."),
            settings.option("--pkcs11-pin-file", type=_FILE, metavar="FILE", help="The token's user PIN, 0600."),
        )
    ):
        decorated = option(decorated)
    return decorated


def read_passphrase(path: Path) -> bytes:
    """Return the first line of a file that only this user may read.

    Raises:
        ConfigError: it is empty, or too long.
        FileRefused: others may read it.
    """
    return _first_line(read_secret(path), str(path))


def _passphrase(path: Path | None, descriptor: int | None) -> bytes | None:
    if path is not None and descriptor is not None:
        raise ConfigError("--key-passphrase-file and --key-passphrase-fd are both given: give one")
    if path is not None:
        return read_passphrase(path)
    if descriptor is not None:
        try:
            with open(descriptor, "rb") as file:
                return _first_line(file.read(_LONGEST_PASSPHRASE + 1), f"file descriptor {descriptor}")
        except OSError as error:
            raise ConfigError(f"--key-passphrase-fd {descriptor}: {error.strerror}") from error
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(credentials) / CREDENTIAL if credentials else None
    # systemd gives it to the service's user alone.
    return _first_line(credential.read_bytes(), str(credential)) if credential and credential.exists() else None


def _first_line(content: bytes, where: str) -> bytes:
    line = content.split(b"\n", 1)[0].removesuffix(b"\r")
    if not 0 < len(line) <= _LONGEST_PASSPHRASE:
        raise ConfigError(f"{where}: the first line is to be the passphrase, 1 to {_LONGEST_PASSPHRASE} octets")
    return line


def _access(passphrase: bytes | None, module: Path | None, label: str | None, pin_file: Path | None) -> Access:
    if module is None and label is None and pin_file is None:
        return Access(passphrase)
    if module is None or label is None or pin_file is None:
        raise ConfigError("a PKCS#11 token needs all of --pkcs11-module, --pkcs11-token and --pkcs11-pin-file")
    return Access(passphrase, Token(module, label, read_pin(pin_file)))
