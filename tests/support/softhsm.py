"""Tokens of SoftHSM: each in a directory of its own, gone with the test."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.needs import need, need_library
from support.run_log import secret
from vmi_agent.keys.pkcs11.module import Module, module_at
from vmi_agent.keys.pkcs11.token import Token

PIN = secret("softhsm-user-pin")
SECURITY_OFFICER_PIN = secret("softhsm-so-pin")


@dataclass(frozen=True, slots=True)
class SoftToken:
    """A token that is there.

    Attributes:
        token: to log in to it.
        directory: where SoftHSM keeps it.
        environment: what another process needs to see it.
    """

    token: Token
    directory: Path
    environment: dict[str, str]


@contextmanager
def soft_token(parent: Path, label: str) -> Iterator[SoftToken]:
    """Make a token; this process sees it, and no other token, until the end of it.

    Args:
        parent: a temporary directory.
        label: no other test's, as the custody remembers for each token whether its PIN was refused.
    """
    path = Path(need_library("libsofthsm2.so", "softhsm2"))
    directory, configuration = parent / "tokens", parent / "softhsm2.conf"
    directory.mkdir()
    configuration.write_text(f"directories.tokendir = {directory}\nobjectstore.backend = file\nlog.level = ERROR\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    try:
        add_token(label)
        yield SoftToken(Token(path, label, PIN), directory, {"SOFTHSM2_CONF": str(configuration)})
    finally:
        # SoftHSM reads its configuration when it starts.
        module_at(path).stop()
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before


def add_token(label: str) -> None:
    """Make one more token in the same directory."""
    program = need("softhsm2-util")
    pins = ("--so-pin", SECURITY_OFFICER_PIN, "--pin", PIN)
    command = [program, "--init-token", "--free", "--label", label, *pins]
    subprocess.run(command, check=True, capture_output=True)


def close_sessions(token: Token) -> None:
    """Close all of this process's sessions with a token, and so its login, under whoever uses them.

    It is done between two calls of the module: SoftHSM 2.6 frees a session that another thread is using, and the
    process dies of it.
    """
    module = module_at(Path(token.module))
    with module.alone():
        close_all = ctypes.CDLL(str(module.path)).C_CloseAllSessions
        close_all.argtypes, close_all.restype = [ctypes.c_ulong], ctypes.c_ulong
        assert close_all(_slot_of(module, token)) == 0


def _slot_of(module: Module, token: Token) -> int:
    (slot,) = (
        each.slot_id
        for each in module.library.get_slots(token_present=True)
        if each.get_token().label == token.label  # SoftHSM always has one more, without label
    )
    return int(slot)
