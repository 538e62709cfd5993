"""What commands of the agent print of texts that others chose: nothing that a terminal obeys, hides or cannot show."""

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.agents import Time, always, open_agent, request
from support.csrs import make_csr
from support.processes import run

# An escape sequence, a right-to-left override, a line break and a zero-width space, none of which may be printed.
USER = "ad\u202emin\x1b[2J\nroot\u200b"
ESCAPED = "ad\\u202emin\\u001b[2J\\u000aroot\\u200b"
SUBJECT = "東京"


@pytest.fixture
def serial(tmp_path: Path) -> str:
    """Issue a certificate to a user whose name an earlier version let in; return its serial number."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SUBJECT)])
    with open_agent(tmp_path, Time()) as agent:
        return agent.issuing.issue(request(make_csr(subject=name), user=USER), always).serial.hex()


@pytest.mark.parametrize(
    "command", [("certs", "list"), ("certs", "show"), ("audit", "tail"), ("audit", "export"), ("certs", "export")]
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_commands_print_no_control_and_no_format_character(
    tmp_path: Path, serial: str, command: tuple[str, ...], encoding: str
) -> None:
    """Each line stays one line of visible characters, in an encoding that has all of them and in one that has not."""
    words = [*command, *([serial] if command[1] == "show" else [])]
    done = run("vmi-agent", *words, "--state-dir", str(tmp_path), PYTHONIOENCODING=encoding)

    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.split("\n") if not line.isprintable()] == []
    if command[1] in ("list", "show"):
        assert ESCAPED in done.stdout
        assert (SUBJECT in done.stdout) == (encoding == "utf-8")
    if command[1] == "export":
        assert USER in [
            record.get("user", record.get("fields", {}).get("user"))
            for record in map(json.loads, done.stdout.splitlines())
        ]


def test_errors_echo_no_control_character(tmp_path: Path) -> None:
    """What a command was given and refuses is named without what a terminal would obey."""
    directory = tmp_path / "no\x1b[2Jledger\n"
    done = run("vmi-agent", "certs", "list", "--state-dir", str(directory))

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.rstrip("\n").isprintable()
    assert "no\\u001b[2Jledger\\u000a" in done.stderr
