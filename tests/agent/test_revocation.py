"""Revoking and releasing: what may follow what, what a retry then gets, what the audit tells, and the commands."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import Connection
from support.agents import Agent, Time, always, open_agent, request
from support.csrs import make_csr
from support.processes import run
from support.revoking import OFFICER, issue, release, release_of, revocation_of, revoke, serial_of, time_of_day

from runtime.clock import milliseconds
from vmi_agent.ledger import revocation
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.revocation import Reason, Revocation, RevocationRefused
from vmi_agent.ledger.schema import FILE_NAME, reading, writing

KEY = bytes(range(16))


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


def changes(agent: Agent, since: int = 0) -> list[Revocation]:
    """Return what changed since an audit row."""
    return agent.ledger.read(lambda connection: list(revocation.changes_since(connection, since)))


def told(state_dir: Path, *names: str) -> list[tuple[str, Any]]:
    """Return the audit's events of these names."""
    with reading(state_dir) as connection:
        rows = list(audit_chain.rows(connection))
    return [(row.event.decode(), json.loads(row.fields)) for row in rows if row.event.decode() in names]


def assert_refused(state_dir: Path, change: Callable[[Connection], None], text: str) -> None:
    """Whoever asks for the change hears why not."""
    with pytest.raises(RevocationRefused, match=text), writing(state_dir) as connection:
        change(connection)


@pytest.mark.parametrize("reason", Reason)
def test_revoke_for_each_reason(reason: Reason, tmp_path: Path, time: Time) -> None:
    """The row has reason and time, a change is told once, and the audit says who did it and why."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        time.advance(minutes=5)
        revoke(agent, leaf, time, reason)
        (change,) = changes(agent)

        end = int(leaf.not_valid_after_utc.timestamp())
        expected = Revocation(change.number, serial_of(leaf), 1, reason, milliseconds(time()), end)
        assert change == expected
        assert changes(agent, change.number) == []
    serial = serial_of(leaf).hex()
    fields = {"serial": serial, "reason": int(reason), "reason_name": reason.name, "by": OFFICER}
    assert told(tmp_path, "revoked") == [("revoked", fields)]


@pytest.mark.parametrize("reason", Reason)
def test_revoke_twice(reason: Reason, tmp_path: Path, time: Time) -> None:
    """What is revoked for good stays as it is, whatever comes after: no second row, no second change."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        revoke(agent, leaf, time, Reason.superseded)
        before = changes(agent)
        time.advance(minutes=5)
        assert_refused(tmp_path, revocation_of(leaf, time, reason), r"revoked already \(superseded\)")
        assert_refused(tmp_path, release_of(leaf, time), "only one on hold can be released")

        assert changes(agent) == before
    assert len(told(tmp_path, "revoked", "released")) == 1


def test_hold_release_and_revoke(tmp_path: Path, time: Time) -> None:
    """A hold is taken back and told; a later revocation has its own date."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        revoke(agent, leaf, time, Reason.certificateHold)
        assert_refused(tmp_path, revocation_of(leaf, time, Reason.certificateHold), r"already \(certificateHold\)")
        time.advance(hours=1)
        release(agent, leaf, time)
        (released,) = changes(agent)
        assert_refused(tmp_path, release_of(leaf, time), "is not revoked")
        time.advance(hours=1)
        revoke(agent, leaf, time, Reason.keyCompromise)
        (revoked,) = changes(agent)

    assert released.reason is None
    assert (revoked.reason, revoked.revoked_ms) == (Reason.keyCompromise, milliseconds(time()))
    assert revoked.number > released.number
    names = [(name, fields.get("reason_name")) for name, fields in told(tmp_path, "revoked", "released")]
    assert names == [("revoked", "certificateHold"), ("released", None), ("revoked", "keyCompromise")]


def test_revoke_for_good_what_is_on_hold(tmp_path: Path, time: Time) -> None:
    """It counts as revoked from the beginning of the hold."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        held_ms = milliseconds(time())
        revoke(agent, leaf, time, Reason.certificateHold)
        time.advance(hours=1)
        revoke(agent, leaf, time, Reason.keyCompromise)
        (change,) = changes(agent)

    assert (change.reason, change.revoked_ms) == (Reason.keyCompromise, held_ms)


@pytest.mark.parametrize("status", ["pending", "abandoned"])
def test_revoke_what_was_never_issued(status: str, tmp_path: Path, time: Time) -> None:
    """An intent without a certificate is nothing to revoke or release."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
            connection.execute("UPDATE issuance SET status = ?, signature = NULL", (status,))
        assert_refused(tmp_path, revocation_of(leaf, time), "was issued here")
        assert_refused(tmp_path, release_of(leaf, time), "was issued here")
    assert told(tmp_path, "revoked", "released") == []


def test_revoke_of_another_ca(tmp_path: Path, time: Time) -> None:
    """A serial that is not in the ledger is refused."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir(mode=0o700)
    with open_agent(tmp_path / "there", time) as other:
        leaf = issue(other)
    with open_agent(tmp_path / "here", time):
        assert_refused(tmp_path / "here", revocation_of(leaf, time), "was issued here")


@pytest.mark.parametrize("reason", [Reason.superseded, Reason.privilegeWithdrawn])
@pytest.mark.parametrize("key", [KEY, bytes(16)], ids=["with key", "without key"])
def test_retry_after_a_revocation(key: bytes, reason: Reason, tmp_path: Path, time: Time) -> None:
    """The same request gets the same certificate until that is revoked, then one new one (promise 3)."""
    wish = request(make_csr(), key=key)
    with open_agent(tmp_path, time) as agent:
        first = agent.issuing.issue(wish, always)
        again = agent.issuing.issue(wish, always)
        revoke(agent, x509.load_der_x509_certificate(first.chain[0]), time, reason)
        second = agent.issuing.issue(wish, always)
        second_again = agent.issuing.issue(wish, always)

    assert again == replace(first, is_new=False)
    assert second.is_new
    assert second.serial != first.serial
    assert second_again == replace(second, is_new=False)


def test_retry_after_a_hold_that_was_taken_back(tmp_path: Path, time: Time) -> None:
    """A certificate that counts as valid again is what its request gets again."""
    wish = request(make_csr(), key=KEY)
    with open_agent(tmp_path, time) as agent:
        first = agent.issuing.issue(wish, always)
        leaf = x509.load_der_x509_certificate(first.chain[0])
        revoke(agent, leaf, time, Reason.certificateHold)
        release(agent, leaf, time)

        assert agent.issuing.issue(wish, always) == replace(first, is_new=False)


def test_audit_after_revocations(tmp_path: Path, time: Time) -> None:
    """The chain is whole, and the ledger is what the audit says of it."""
    with open_agent(tmp_path, time) as agent:
        leaves = [issue(agent, name) for name in ("a", "b", "c")]
        for leaf in leaves:
            revoke(agent, leaf, time, Reason.certificateHold)
        release(agent, leaves[0], time)
        revoke(agent, leaves[1], time, Reason.superseded)
        agent.publishing.refresh()
    with reading(tmp_path) as connection:
        verify(connection)


def command(state_dir: Path, *words: str) -> str:
    """Run `vmi-agent certs`; return what it printed."""
    done = run("vmi-agent", "certs", *words, "--state-dir", str(state_dir))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_without_an_agent(tmp_path: Path) -> None:
    """Revoke, release, show and list work on the state directory alone; the audit names who ran them."""
    time = time_of_day()
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
    serial = serial_of(leaf).hex()
    colons = ":".join(serial[at : at + 2] for at in range(0, len(serial), 2)).upper()

    held, blocked = command(tmp_path, "revoke", colons, "--reason", "certificateHold").splitlines()
    assert held == f"revoked: {serial} (certificateHold)"
    assert blocked.startswith("key blocked: ")
    assert "on-hold" in command(tmp_path, "list")
    assert command(tmp_path, "release", serial) == f"released: {serial}\n"
    assert json.loads(command(tmp_path, "show", serial, "--json"))["status"] == "valid"
    assert command(tmp_path, "revoke", serial) == f"revoked: {serial} (unspecified)\n"
    shown = json.loads(command(tmp_path, "show", serial, "--json"))
    assert (shown["status"], shown["reason"]) == ("revoked", "unspecified")
    assert datetime.fromisoformat(shown["revoked_at"]) - datetime.now(UTC) < timedelta(minutes=1)
    by = [fields["by"] for _, fields in told(tmp_path, "revoked", "released")]
    assert len(by) == 3
    assert all("(uid " in each for each in by)


def test_commands_beside_an_agent(tmp_path: Path) -> None:
    """What a command wrote, the agent that has the ledger open takes in, and its audit goes on behind it."""
    time = time_of_day()
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        agent.publishing.refresh()
        command(tmp_path, "revoke", serial_of(leaf).hex(), "--reason", "keyCompromise")
        time.now = datetime.now(UTC)

        assert agent.publishing.refresh() == {serial_of(leaf)}
        issue(agent, "after it")
    with reading(tmp_path) as connection:
        verify(connection)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["revoke", "01" * 17], 1, "no certificate with the serial number"),
        (["revoke", "00"], 1, "no certificate with the serial number"),
        (["release", "01" * 17], 1, "no certificate with the serial number"),
        (["revoke", "xyz"], 2, "hexadecimal digits"),
        (["revoke", "01" * 18], 2, "hexadecimal digits"),
        (["revoke", "01", "--reason", "cACompromise"], 2, "is not one of"),
        (["revoke"], 2, "Missing argument"),
    ],
)
def test_commands_refuse(words: list[str], status: int, text: str, tmp_path: Path) -> None:
    """What cannot be revoked is told in one line, without a traceback."""
    with open_agent(tmp_path, time_of_day()) as agent:
        issue(agent)

    done = run("vmi-agent", "certs", *words, "--state-dir", str(tmp_path))

    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_refuse_what_is_not_as_it_should_be(tmp_path: Path) -> None:
    """Revoked twice, released without a hold, and a directory without a ledger: each is told, with status 1."""
    with open_agent(tmp_path, time_of_day()) as agent:
        serial = serial_of(issue(agent)).hex()

    def refusal(state_dir: Path, *words: str) -> str:
        done = run("vmi-agent", "certs", *words, serial, "--state-dir", str(state_dir))
        assert done.returncode == 1
        return done.stderr

    assert "only one on hold can be released" in refusal(tmp_path, "release")
    command(tmp_path, "revoke", serial)
    assert "revoked already (unspecified)" in refusal(tmp_path, "revoke")
    (tmp_path / "empty").mkdir()
    assert "no agent has served from it yet" in refusal(tmp_path / "empty", "revoke")
