"""A restored CA knows what was revoked since the backup, or was told to forget it: nothing is valid again silently."""

import json
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from support.agents import always, open_agent, request
from support.backups import UNVERIFIED, names
from support.documents import block, code_blocks
from support.intents import make_intent
from support.needs import need
from support.processes import run
from support.restore_story import AFTER, AFTER_HELD, BEFORE, GOOD, HELD, REVOKED, SINCE, Story, story
from support.revoking import ask, question, read_crl, release, serial_of, write_pem

from protocol.errors import ErrorCode
from protocol.records import Error
from runtime import state_dir
from runtime.clock import milliseconds
from runtime.errors import StartError
from vmi_agent.backup import restore as restoring
from vmi_agent.backup import revocation_list
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.keys.open import Access
from vmi_agent.ledger import blocked_keys
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.schema import reading

__all__ = ["story"]  # a fixture

GUIDE = Path(__file__).parents[2] / "docs" / "ca.md"

SOURCES: dict[str, Callable[[Path], dict[str, object]]] = {
    "old state directory": lambda directory: {"old_state_dir": directory / "agent"},
    "list": lambda directory: {"lists": [directory / "list"]},
    "CRL": lambda directory: {"crls": [directory / "crl"]},
    "all": lambda directory: {
        "old_state_dir": directory / "agent",
        "lists": [directory / "list"],
        "crls": [directory / "crl"],
    },
}


@pytest.mark.parametrize("source", SOURCES)
def test_revocations_since_the_backup(tmp_path: Path, story: Story, source: str) -> None:
    """Every source brings all of them back, with reasons and times, also of certificates that were issued since."""
    restored = story.restore(**SOURCES[source](tmp_path))

    assert story.names_of({each.serial for each in restored.later.again}) == {SINCE}
    assert story.names_of({each.serial for each in restored.later.carried}) == {AFTER, AFTER_HELD}
    with reading(story.restored) as connection:
        verify(connection)
    with open_agent(story.restored, story.time) as agent:
        agent.publishing.refresh()
        listed = read_crl(agent)
        assert story.names_of({each.serial_number.to_bytes(17) for each in listed}) == REVOKED | {HELD}
        before = {each.serial_number: each for each in x509.load_der_x509_crl((tmp_path / "crl").read_bytes())}
        for name in REVOKED:
            here = listed.get_revoked_certificate_by_serial_number(story.leaves[name].serial_number)
            assert here is not None
            there = before[story.leaves[name].serial_number]
            assert here.revocation_date_utc == there.revocation_date_utc
            assert list(here.extensions) == list(there.extensions)
        root = agent.generations.current.root
        for name, leaf in story.leaves.items():
            status = ask(agent, question(leaf, root)).certificate_status
            expected = ocsp.OCSPCertStatus.GOOD if name == GOOD else ocsp.OCSPCertStatus.REVOKED
            assert status is expected, name
        (tmp_path / "new.crl").write_bytes(listed.public_bytes(Encoding.PEM))
        trusted = write_pem(tmp_path / "root.pem", root)
    for name, leaf in story.leaves.items():
        command = [need("openssl"), "verify", "-crl_check", "-CRLfile", str(tmp_path / "new.crl"), "-CAfile", trusted]
        done = subprocess.run([*command, write_pem(tmp_path / "leaf.pem", leaf)], capture_output=True, check=False)
        assert (done.returncode == 0) == (name == GOOD), name


@pytest.mark.parametrize("source", SOURCES)
def test_keys_that_were_blocked_since_the_backup(tmp_path: Path, story: Story, source: str) -> None:
    """They stay blocked, whether the ledger holds their certificates or not; a CRL knows no keys of the latter."""
    story.restore(**SOURCES[source](tmp_path))
    blocked = {BEFORE, HELD, SINCE} if source == "CRL" else {BEFORE, HELD, SINCE, AFTER, AFTER_HELD}

    with open_agent(story.restored, story.time) as agent:
        for name, csr in story.csrs.items():
            answer = agent.sign(request(csr, user="again"), sha256(csr).digest(), always).answer
            is_blocked = isinstance(answer, Error) and answer.code == ErrorCode.CSR_BLOCKED_KEY
            assert is_blocked == (name in blocked), name
        agent.publishing.refresh()
    with reading(story.restored) as connection:
        verify(connection)


def test_what_was_released_since_the_backup(tmp_path: Path, story: Story) -> None:
    """A hold that ended since is named, and stays until it is released here."""
    restored = story.restore(lists=[tmp_path / "list"])

    assert story.names_of(set(restored.later.still_on_hold)) == {HELD}
    with open_agent(story.restored, story.time) as agent:
        release(agent, story.leaves[HELD], story.time)
        csr = story.csrs[HELD]
        assert not isinstance(agent.sign(request(csr), sha256(csr).digest(), always).answer, Error)


def test_restore_without_anything_newer(tmp_path: Path, story: Story) -> None:
    """It is refused, naming the time of the backup and the ways out; what is forgotten on demand is recorded."""
    with pytest.raises(StartError) as refused:
        story.restore()
    words = ["--old-state-dir", "--revocations", "--crl", "--forget-revocations", "Nothing was restored"]
    assert all(word in str(refused.value) for word in words)
    assert not story.restored.exists()

    restored = story.restore(forget=True)
    assert restored.made_at.isoformat(timespec="seconds").replace("+00:00", "Z") in str(refused.value)
    assert restored.later.unknown_since == {1: restored.made_at}
    with reading(story.restored) as connection:
        row = connection.exec_driver_sql("SELECT fields FROM audit WHERE event = 'restored'").scalar_one()
    assert json.loads(row)["revocations_unknown_since"] == {"1": restored.made_at.isoformat()}


def test_second_restore_keeps_what_the_first_took_over(tmp_path: Path, story: Story) -> None:
    """A list of a restored CA names the revocations that were carried over, and its backup holds them."""
    story.restore(lists=[tmp_path / "list"])
    back_up(story.restored, tmp_path / "second.tar", story.time())
    story.time.advance(seconds=10)
    revocation_list.write(story.restored, tmp_path / "second-list", Access(), story.time())
    later = Later(lists=[tmp_path / "second-list"])
    again = restoring.restore(tmp_path / "second.tar", tmp_path / "again", story.time(), UNVERIFIED, later).later

    assert (again.again, again.carried, again.blocks) == ([], [], 0)
    with open_agent(tmp_path / "again", story.time) as agent:
        agent.publishing.refresh()
        assert len(list(read_crl(agent))) == 5
    with reading(tmp_path / "again") as connection:
        verify(connection)


def test_intent_that_was_pending_at_the_backup(tmp_path: Path, story: Story) -> None:
    """It may have been signed and revoked since, so it is not signed again; its revocation is carried over."""
    intent = make_intent(1)
    with open_agent(story.state, story.time) as agent:
        agent.ledger.record_intent(intent)
        (tmp_path / "backup.tar").unlink()
        back_up(story.state, tmp_path / "backup.tar", story.time())
    story.restore(old_state_dir=story.state)
    with reading(story.restored) as connection:
        verify(connection)
        status = connection.exec_driver_sql("SELECT status FROM issuance WHERE serial = ?", (intent.serial,)).scalar()
    assert status == "abandoned"


def test_old_state_directory_in_use(tmp_path: Path, story: Story) -> None:
    """While an agent serves from it, it may still revoke: refused."""
    lock = state_dir.claim(story.state)
    with pytest.raises(StartError, match="Stop it first"):
        story.restore(old_state_dir=story.state)
    lock.release()
    story.restore(old_state_dir=story.state)


def test_old_state_directory_whose_audit_is_broken(tmp_path: Path, story: Story) -> None:
    """Its revocations are applied all the same, for they only make the CA stricter; a warning says why."""
    with open_agent(story.state, story.time) as agent:
        agent.ledger.change(
            lambda connection: connection.exec_driver_sql(
                "UPDATE audit SET at_ms = at_ms + 1 WHERE id = (SELECT max(id) FROM audit)"
            )
        )
    restored = story.restore(old_state_dir=story.state)

    assert "does not verify" in restored.later.sources[0].warning
    assert story.names_of({each.serial for each in restored.later.again}) == {SINCE}


def test_keys_unblocked_since_the_backup(tmp_path: Path, story: Story) -> None:
    """A key that was blocked by hand and freed since is named, and stays blocked."""
    key = bytes(range(32))
    with open_agent(story.state, story.time) as agent:
        now_ms = milliseconds(story.time())
        agent.ledger.change(lambda it: blocked_keys.block_by_hand(it, [key], "lost", now_ms, "tester"))
        (tmp_path / "backup.tar").unlink()
        back_up(story.state, tmp_path / "backup.tar", story.time())
        agent.ledger.change(lambda it: blocked_keys.unblock(it, key, now_ms, "tester"))
    restored = story.restore(old_state_dir=story.state)

    assert restored.later.still_blocked == [key]


def test_restore_command(tmp_path: Path, story: Story) -> None:
    """The commands export and restore, and print every serial; anchors show how much was lost, and find a forgery."""
    state = ["--state-dir", str(story.state)]
    exported = run("vmi-agent", "certs", "export-revocations", *state, str(tmp_path / "list"))
    assert exported.stdout.startswith("revocations written: 4, blocks of keys: 4, as of ")
    with reading(story.state) as connection:
        last_id, digest = connection.exec_driver_sql("SELECT last_id, hash FROM audit_head").one()
    anchor = {"at": "2026-11-23T12:00:00Z", "last_id": last_id, "hash": digest.hex()}
    (tmp_path / "anchors").write_text(json.dumps(anchor) + "\n")
    command = ["vmi-agent", "restore", "--unverified", "--state-dir", str(story.restored)]
    command += ["--revocations", str(tmp_path / "list"), str(tmp_path / "backup.tar")]
    (tmp_path / "forged").write_text(json.dumps(anchor | {"last_id": 3}) + "\n")
    forged = run(*command, "--anchor", str(tmp_path / "forged"))
    assert (forged.returncode, forged.stderr.count("\n")) == (1, 1)
    assert "the chain was made anew" in forged.stderr

    done = run(*command, "--anchor", str(tmp_path / "anchors"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    serials = {name: serial_of(leaf).hex() for name, leaf in story.leaves.items()}
    assert f"revoked again: {serials[SINCE]} (keyCompromise)" in lines
    assert f"revoked, not in this ledger, kept on the CRL: {serials[AFTER]} (keyCompromise)" in lines
    assert any(line.startswith(f"still on hold, was released after the backup: {serials[HELD]}") for line in lines)
    assert lines[-1] == f"restored: {story.restored}"
    assert "audit rows were written after it" in done.stderr
    assert names(tmp_path) >= {"restored"}
    assert ".restored.restoring" not in names(tmp_path)


def test_restore_as_the_guide_has_it(tmp_path: Path, story: Story) -> None:
    """The guide's command for 3 a.m., with everything that there may be, restores and brings the revocations back."""
    with open_agent(story.state, story.time) as agent:
        trusted = write_pem(tmp_path / "root.pem", agent.generations.current.root)
    words = block("vmi-agent restore", code_blocks(GUIDE.read_text(encoding="utf-8"))).split()
    meant = {"NEW": str(story.restored), "ASIDE": str(story.state), "root.pem": trusted, "1.crl": str(tmp_path / "crl")}
    meant["vmi-agent.tar"] = str(tmp_path / "backup.tar")
    assert meant.keys() <= set(words)
    done = run(*(meant.get(word, word) for word in words))

    assert done.returncode == 0, done.stderr
    assert f"revoked again: {serial_of(story.leaves[SINCE]).hex()} (keyCompromise)" in done.stdout
