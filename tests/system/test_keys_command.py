"""`vmi-agent keys` and what `certs revoke` says of a key, as an operator runs them; and what an HMC is answered."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from support.agents import Agent, open_agent
from support.audits import complaint
from support.blocking import CSR, KEY, OTHER_CSR, REFUSED, SIGNED, answer, code, serial_in
from support.csrs import make_csr, openssl_csr, pem
from support.judges import openssl, split_chain
from support.needs import need
from support.processes import IBM_SIGN_CSR, SIGN_CSR, post, run, running_pair
from support.revoking import time_of_day

from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.schema import reading


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Open an agent beside which commands are run."""
    with open_agent(tmp_path / "state", time_of_day()) as opened:
        yield opened


def vmi_agent(tmp_path: Path, *words: str) -> tuple[int, str]:
    """Run a command; return its exit status and what it printed."""
    done = run("vmi-agent", *words, "--state-dir", str(tmp_path / "state"))
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_block_list_and_unblock(tmp_path: Path, agent: Agent) -> None:
    """A key is blocked by its hash, listed with its reason, and taken off the list; what has no effect says so."""
    assert vmi_agent(tmp_path, "keys", "list") == (0, "")
    assert vmi_agent(tmp_path, "keys", "list", "--json") == (0, "[]\n")
    assert vmi_agent(tmp_path, "keys", "block", KEY.hex(), "--reason", "lost laptop") == (0, f"blocked: {KEY.hex()}\n")
    assert code(agent) == REFUSED

    status, told = vmi_agent(tmp_path, "keys", "list", "--json")
    [listed] = json.loads(told)
    assert (status, listed.pop("blocked_at")[-1]) == (0, "Z")
    assert listed == {"key_sha256": KEY.hex(), "serial": None, "reason": "lost laptop"}
    assert vmi_agent(tmp_path, "keys", "list")[1].split("  ")[2:] == ["by hand", "lost laptop\n"]

    status, told = vmi_agent(tmp_path, "keys", "block", KEY.hex().upper())
    assert (status, "is blocked by hand already. Nothing was changed." in told) == (1, True)
    colons = ":".join(KEY.hex()[at : at + 2] for at in range(0, 64, 2))
    assert vmi_agent(tmp_path, "keys", "unblock", colons) == (0, f"unblocked: {KEY.hex()}\n")
    assert code(agent) == SIGNED
    status, told = vmi_agent(tmp_path, "keys", "unblock", KEY.hex())
    assert (status, "is not blocked" in told) == (1, True)
    with reading(tmp_path / "state") as connection:
        assert complaint(connection) == ""
        found = [(row.event, json.loads(row.fields)) for row in audit_chain.rows(connection)]
    by = [fields["by"] for event, fields in found if event in (b"keys blocked", b"key unblocked")]
    assert len(by) == 2
    assert all("(uid " in each for each in by)


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize("kind", ["certificate", "csr", "public key"])
def test_block_from_a_file(tmp_path: Path, agent: Agent, kind: str, form: str) -> None:
    """A certificate, a CSR and a public key, as openssl writes them, block the key that openssl finds in them."""
    csr = openssl_csr(tmp_path, "rsa2048")
    key = csr.with_suffix(".key")
    spki = subprocess.run(
        [need("openssl"), "pkey", "-in", str(key), "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout
    given = tmp_path / "given"
    words = {
        "certificate": ["req", "-x509", "-key", str(key), "-in", str(csr)],
        "csr": ["req", "-in", str(csr)],
        "public key": ["pkey", "-in", str(key), "-pubout"],
    }
    openssl(*words[kind], "-outform", form, "-out", str(given))
    assert vmi_agent(tmp_path, "keys", "block", str(given)) == (0, f"blocked: {sha256(spki).hexdigest()}\n")


def test_block_a_public_list(tmp_path: Path, agent: Agent) -> None:
    """A list of 100,000 hashes is loaded whole, also where some of it was loaded before, and verifies."""
    hashes = [sha256(number.to_bytes(4)).hexdigest() for number in range(99_998)]
    listed = tmp_path / "leaked.txt"
    listed.write_text("# leaked keys\r\n\r\n" + "\n".join(hashes[:50_000]) + "\n" + KEY.hex() + "\n")
    assert vmi_agent(tmp_path, "keys", "block", str(listed), "--reason", "leaked") == (
        0,
        "blocked: 50001 keys; blocked by hand before: 0\n",
    )
    listed.write_text("\n".join([*hashes, KEY.hex().upper(), hashes[0]]))
    assert vmi_agent(tmp_path, "keys", "block", str(listed)) == (
        0,
        "blocked: 49998 keys; blocked by hand before: 50001\n",
    )
    assert code(agent) == REFUSED
    assert code(agent, make_csr(key="p384")) == SIGNED
    status, told = vmi_agent(tmp_path, "keys", "block", str(listed))
    assert (status, "all 99999 keys are blocked by hand already" in told) == (1, True)
    assert vmi_agent(tmp_path, "audit", "verify")[0] == 0
    status, told = vmi_agent(tmp_path, "keys", "list")
    assert (status, told.count("\n")) == (0, 99_999)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no key and no hash"),
        (b"# nothing\n\n", "holds no key and no hash"),
        (b"00" * 32 + b"\n" + b"0" * 63 + b"\n", "line 2, is not a SHA-256"),
        (b"00" * 32 + b"\n\n" + b"00" * 33 + b"\n", "line 3, is not a SHA-256"),
        (b"\xff\xfe\0", "is not a certificate, a CSR, a public key or a list of hashes"),
        (b"\x30\x03\x02\x01\xff", "is not a certificate, a CSR, a public key or a list of hashes"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is not a certificate"),
        (b"-----BEGIN X-----\n", "is not a certificate"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds a private key"),
        (b"00" * 32 + b"\n" + b"#" * (16 << 20), "is larger than 16777216 octets"),
    ],
)
def test_block_refuses_a_file(tmp_path: Path, agent: Agent, content: bytes, told: str) -> None:
    """A file that is none of these is refused with the line at fault, and nothing of it is blocked."""
    (tmp_path / "given").write_bytes(content)
    status, printed = vmi_agent(tmp_path, "keys", "block", str(tmp_path / "given"))
    assert (status, told in printed, "Nothing was blocked." in printed) == (2, True, True), printed
    assert vmi_agent(tmp_path, "keys", "list") == (0, "")


def test_block_refuses_what_it_cannot_take(tmp_path: Path, agent: Agent) -> None:
    """Two objects in one file, a file that is not there, a reason that is no line, a hash that is too short."""
    csr = openssl_csr(tmp_path)
    (tmp_path / "two").write_bytes(csr.read_bytes() * 2)
    status, printed = vmi_agent(tmp_path, "keys", "block", str(tmp_path / "two"))
    assert (status, "holds 2 objects" in printed) == (2, True)
    for none in (str(tmp_path / "none"), str(csr / "none"), KEY.hex() + "0", KEY.hex()[1:], "0" * 300):
        expected = f"Error: {none} is neither a file nor a hash of 64 hexadecimal digits. Nothing was blocked.\n"
        status, printed = vmi_agent(tmp_path, "keys", "block", none)
        assert (status, printed.splitlines(keepends=True)[-1]) == (2, expected)
    status, printed = vmi_agent(tmp_path, "keys", "block", str(tmp_path))
    assert (status, "cannot be read: Is a directory" in printed) == (2, True)
    for reason in ("", "a\nb", "a\x1b[31m", "x" * 201):
        status, printed = vmi_agent(tmp_path, "keys", "block", KEY.hex(), "--reason", reason)
        assert (status, "1 to 200 printable characters" in printed) == (2, True)
    status, printed = vmi_agent(tmp_path, "keys", "unblock", "00")
    assert (status, "is not 64 hexadecimal digits" in printed) == (2, True)


# Certificates of a key


def test_revoke_names_the_others_of_the_key(tmp_path: Path, agent: Agent) -> None:
    """`certs revoke` names what else is valid of the key, by serial and requester; `--all-of-key` takes that along."""
    one, other, third = (serial_in(answer(agent, user=user)).hex() for user in ("one", "other", "third"))
    serial_in(answer(agent, make_csr(key="p384")))

    status, told = vmi_agent(tmp_path, "certs", "revoke", one, "--reason", "keyCompromise")
    lines = told.splitlines()
    assert status == 0
    assert lines[:4] == [
        f"revoked: {one} (keyCompromise)",
        f"key blocked: {KEY.hex()}",
        f'valid, of the same key: {other}  requester "other"',
        f'valid, of the same key: {third}  requester "third"',
    ]
    # The command that is named works, although the certificate that it names is revoked already.
    again = shlex.split(lines[4].split("`")[1])
    done = run(*again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [f"revoked: {each} (keyCompromise)" for each in (other, third)]
    done = run(*again)
    assert (done.returncode, "revoked already (keyCompromise)" in done.stderr) == (1, True)
    with reading(tmp_path / "state") as connection:
        assert complaint(connection) == ""
        told_of = [json.loads(row.fields)["serial"] for row in audit_chain.rows(connection) if row.event == b"revoked"]
    assert told_of == [one, other, third]


def test_revoke_all_of_key_at_once(tmp_path: Path, agent: Agent) -> None:
    """With `--all-of-key` from the beginning all are revoked; what is on hold is revoked for good with them."""
    one, held = (serial_in(answer(agent, user=user)).hex() for user in ("one", "held"))
    assert vmi_agent(tmp_path, "certs", "revoke", held, "--reason", "certificateHold")[0] == 0
    status, told = vmi_agent(tmp_path, "certs", "revoke", one, "--all-of-key", "--reason", "superseded")
    assert (status, told) == (0, f"revoked: {one} (superseded)\nrevoked: {held} (superseded)\n")
    assert code(agent, OTHER_CSR) == SIGNED


def test_revoke_again_for_a_compromise(tmp_path: Path, agent: Agent) -> None:
    """Where the key of a superseded certificate turns out to be compromised, the refusal names how to block it."""
    serial = serial_in(answer(agent)).hex()
    assert vmi_agent(tmp_path, "certs", "revoke", serial, "--reason", "superseded")[0] == 0
    status, told = vmi_agent(tmp_path, "certs", "revoke", serial, "--reason", "keyCompromise")
    assert (status, "revoked already (superseded)" in told) == (1, True)
    done = run(*shlex.split(told.split("`")[1]))
    assert (done.returncode, code(agent)) == (0, REFUSED), done.stderr


def test_release_tells_what_still_blocks_the_key(tmp_path: Path, agent: Agent) -> None:
    """`certs release` says that the key is not free where something else blocks it."""
    serial = serial_in(answer(agent)).hex()
    assert vmi_agent(tmp_path, "certs", "revoke", serial, "--reason", "certificateHold")[0] == 0
    assert vmi_agent(tmp_path, "keys", "block", KEY.hex(), "--reason", "leaked")[0] == 0
    status, told = vmi_agent(tmp_path, "certs", "release", serial)
    assert (status, told) == (0, f"released: {serial}\nkey still blocked: {KEY.hex()} by hand (leaked)\n")
    assert code(agent) == REFUSED


@pytest.mark.parametrize("form", ["0x{}", "0X{}", "{}", "serial={}", "00:{}", "colons", "upper"])
def test_serial_as_openssl_prints_it(tmp_path: Path, agent: Agent, form: str) -> None:
    """`show`, `revoke` and `release` take a serial with 0x, with colons, in either case."""
    digits = serial_in(answer(agent)).hex()
    colons = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    serial = {"colons": colons, "upper": f"0x{digits.upper()}"}.get(form) or form.format(digits)

    assert digits in vmi_agent(tmp_path, "certs", "show", serial)[1]
    assert vmi_agent(tmp_path, "certs", "revoke", serial, "--reason", "certificateHold")[0] == 0
    assert vmi_agent(tmp_path, "certs", "release", serial)[0] == 0


def test_serial_prefix_keeps_its_zeros(tmp_path: Path, agent: Agent) -> None:
    """A prefix is what the serial number begins with, zeros too."""
    digits = serial_in(answer(agent)).hex()
    assert digits in vmi_agent(tmp_path, "certs", "list", "--serial-prefix", "0x" + digits[:4])[1]
    assert vmi_agent(tmp_path, "certs", "list", "--serial-prefix", "00" + digits[:4]) == (0, "")


# Over HTTP


def test_blocked_key_over_http(tmp_path: Path) -> None:
    """A revoked key gets 400 `csr.blocked_key` in both dialects, at once and after a restart of the agent."""
    body = json.dumps({"CsrString": pem(CSR)})
    with running_pair(tmp_path) as pair:
        signed = post(pair.url + SIGN_CSR, body)
        (tmp_path / "leaf.pem").write_text(split_chain(signed.json["data"][0])[0])
        serial = openssl("x509", "-in", str(tmp_path / "leaf.pem"), "-noout", "-serial").strip()
        command = ("vmi-agent", "certs", "revoke", serial, "--reason", "keyCompromise")
        assert run(*command, "--state-dir", str(pair.agent_state)).returncode == 0

        refused = post(pair.url + SIGN_CSR, body, "-H", "Idempotency-Key: one")
        assert (refused.status, refused.json["data"]["code"]) == (400, "csr.blocked_key")
        assert "Make a new key" in refused.json["data"]["description"]
        refused = post(pair.url + IBM_SIGN_CSR, body)
        assert (refused.status, refused.json["Description"]) == (400, "Bad CSR")
        assert (refused.json["Code"], "retry-after" in refused.headers) == ("csr.blocked_key", False)
        assert pair.agent.stop() == 0
    with running_pair(tmp_path) as pair:
        refused = post(pair.url + SIGN_CSR, body)
        assert (refused.status, refused.json["data"]["code"]) == (400, "csr.blocked_key")
