"""`bmc-proxy account` on terminals that lack a name's characters, and with names that would rewrite a terminal."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.processes import BIN

from runtime.files import replace_file

ODD_NAME = "Zoë\u202eŁ\x1b[2J"


def account_command(state_dir: Path, *words: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """Run `bmc-proxy account` with this encoding of stdin, stdout and stderr."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [str(BIN / "bmc-proxy"), "account", *words, "--state-dir", str(state_dir)]
    return subprocess.run(command, env=environment, capture_output=True, check=False)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """Return a state directory whose accounts somebody wrote by hand."""
    row = {"name": ODD_NAME, "role": "ReadOnly", "password_hash": None, "enabled": True}
    replace_file(tmp_path / "accounts.json", json.dumps({"version": 1, "accounts": [row]}).encode())
    return tmp_path


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", "Zoë\\u202eŁ\\u001b[2J"),
        ("latin-1", "Zoë\\u202e\\u0141\\u001b[2J"),
        ("ascii", "Zo\\u00eb\\u202e\\u0141\\u001b[2J"),
    ],
)
def test_list_escapes_what_the_terminal_cannot_show(state_dir: Path, encoding: str, name: str) -> None:
    """A name outside the terminal's encoding, or with control or format characters, is listed as escapes."""
    done = account_command(state_dir, "list", encoding=encoding)

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding) == f"{name}  ReadOnly  no password\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_list_as_json_is_the_same_in_every_encoding(state_dir: Path, encoding: str) -> None:
    """`--json` holds the name itself, in JSON's own escapes."""
    done = account_command(state_dir, "list", "--json", encoding=encoding)

    assert done.returncode == 0, done.stderr
    assert [each["name"] for each in json.loads(done.stdout)] == [ODD_NAME]


def test_list_of_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A mistyped directory is no proxy without accounts."""
    done = account_command(tmp_path / "mistyped", "list", encoding="utf-8")

    assert (done.returncode, done.stdout) == (1, b"")
    assert b"there is no state directory" in done.stderr


def test_remove_echoes_the_name_escaped(state_dir: Path) -> None:
    """An account with such a name can be removed, and the line that says so is printable."""
    done = account_command(state_dir, "remove", ODD_NAME, encoding="latin-1")

    assert done.returncode == 0, done.stderr
    assert done.stdout == b"Account Zo\xeb\\u202e\\u0141\\u001b[2J removed.\n"
