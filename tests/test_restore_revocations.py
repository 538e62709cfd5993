"""A restored CA knows what was revoked since the backup, or was told to forget it: nothing is valid again silently."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from agents import Agent, Time, always, open_agent, request
from backups import UNVERIFIED, names
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from documents import block, code_blocks
from intents import make_intent
from needs import need
from processes import run
from revoking import ask, crl_der, question, read_crl, release, revoke, serial_of, time_of_day, write_pem

from protocol.errors import ErrorCode
from protocol.records import Error
from runtime import state_dir
from runtime.clock import milliseconds
from runtime.errors import StartError
from vmi_agent import restore as restoring
from vmi_agent import revocation_list
from vmi_agent.ca import ca_life
from vmi_agent.ca.backup import back_up
from vmi_agent.cli.groups import noting
from vmi_agent.custody.opening import Access
from vmi_agent.later_revocations import Later
from vmi_agent.ledger import blocked_keys
from vmi_agent.ledger.audit_check import verify
from vmi_agent.ledger.ledger_schema import reading
from vmi_agent.restore import Restored
from vmi_agent.status.revocation import Reason

GUIDE = Path(__file__).parent.parent / "docs" / "ca.md"
BEFORE, HELD, SINCE, AFTER, AFTER_HELD, GOOD = "before", "held", "since", "after", "after-held", "good"
REVOKED = {BEFORE, SINCE, AFTER, AFTER_HELD}


@dataclass
class Story:
    """A CA whose backup knows less than it did in the end.

    Attributes:
        directory: where `agent`, `backup.tar`, `list` and `crl` are.
        leaves, csrs: by name.
    """

    directory: Path
    time: Time
    leaves: dict[str, x509.Certificate] = field(default_factory=dict)
    csrs: dict[str, bytes] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The state directory that was backed up."""
        return self.directory / "agent"

    def issue(self, agent: Agent, name: str) -> None:
        """Have a leaf issued."""
        self.csrs[name] = _csr_of_new_key(name)
        issued = agent.issuing.issue(request(self.csrs[name], user=name), always)
        self.leaves[name] = x509.load_der_x509_certificate(issued.chain[0])

    def restore(self, **sources: object) -> Restored:
        """Restore the backup with these sources."""
        later = Later(**sources)  # type: ignore[arg-type]  # fields of Later
        return restoring.restore(self.directory / "backup.tar", self.restored, self.time(), UNVERIFIED, later)

    @property
    def restored(self) -> Path:
        """The state directory that is restored."""
        return self.directory / "restored"

    def names_of(self, serials: set[bytes]) -> set[str]:
        """Return the names of leaves with these serials."""
        return {name for name, leaf in self.leaves.items() if serial_of(leaf) in serials}


def _csr_of_new_key(name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder(subject)
    return builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """Return a CA that revoked, held and released after its backup, with a list and a CRL of the end."""
    story = Story(tmp_path, time_of_day())
    story.time.advance(hours=-1)  # openssl judges by its own clock
    with open_agent(story.state, story.time) as agent:
        for name in (BEFORE, HELD, SINCE, GOOD):
            story.issue(agent, name)
        revoke(agent, story.leaves[BEFORE], story.time, Reason.keyCompromise)
        revoke(agent, story.leaves[HELD], story.time, Reason.certificateHold)
        agent.publishing.refresh()
        (tmp_path / "old.crl").write_bytes(crl_der(agent))
    story.time.advance(seconds=10)
    revocation_list.write(story.state, tmp_path / "old-list", Access(), story.time())
    story.time.advance(seconds=10)
    back_up(story.state, tmp_path / "backup.tar", story.time())
    story.time.advance(seconds=10)
    with open_agent(story.state, story.time) as agent:
        story.issue(agent, AFTER)
        story.issue(agent, AFTER_HELD)
        revoke(agent, story.leaves[SINCE], story.time, Reason.keyCompromise)
        revoke(agent, story.leaves[AFTER], story.time, Reason.keyCompromise)
        revoke(agent, story.leaves[AFTER_HELD], story.time, Reason.certificateHold)
        release(agent, story.leaves[HELD], story.time)
        agent.publishing.refresh()
        (tmp_path / "crl").write_bytes(crl_der(agent))
    story.time.advance(seconds=10)
    revocation_list.write(story.state, tmp_path / "list", Access(), story.time())
    story.time.advance(seconds=10)
    return story


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


OLDER: dict[str, Callable[[Path], dict[str, object]]] = {
    "list": lambda directory: {"lists": [directory / "old-list"]},
    "CRL": lambda directory: {"crls": [directory / "old.crl"]},
}


@pytest.mark.parametrize("source", OLDER)
def test_sources_that_are_not_newer_than_the_backup(tmp_path: Path, story: Story, source: str) -> None:
    """What the backup knows already shows nothing, and is refused, also beside a newer one."""
    for others in ({}, {"old_state_dir": story.state}):
        with pytest.raises(StartError, match=r"knows already|does not know"):
            story.restore(**OLDER[source](tmp_path), **others)
    assert not story.restored.exists()


def test_sources_of_another_ca(tmp_path: Path, story: Story) -> None:
    """A list, a CRL or a state directory of another CA is refused, as is anything that is none of them."""
    other = tmp_path / "other"
    with open_agent(other, story.time) as agent:
        agent.publishing.refresh()
        (tmp_path / "other.crl").write_bytes(crl_der(agent))
    for _ in range(40):  # as many audit rows as the first one has
        revocation_list.write(other, tmp_path / "other-list", Access(), story.time())
    with pytest.raises(StartError, match="no generation of the CA in the backup signed it"):
        story.restore(crls=[tmp_path / "other.crl"])
    with pytest.raises(StartError, match="not signed by this CA"):
        story.restore(lists=[tmp_path / "other-list"])
    with pytest.raises(StartError, match="another CA's"):
        story.restore(old_state_dir=other)
    with pytest.raises(StartError, match="is not a CRL"):
        story.restore(crls=[tmp_path / "list"])
    with pytest.raises(StartError, match="is refused"):
        story.restore(lists=[tmp_path / "crl"])
    with pytest.raises(StartError, match="cannot be read"):
        story.restore(old_state_dir=tmp_path)
    changed = (tmp_path / "list").read_bytes().replace(serial_of(story.leaves[SINCE]).hex().encode(), b"01" * 17)
    (tmp_path / "changed").write_bytes(changed)
    with pytest.raises(StartError, match="does not verify"):
        story.restore(lists=[tmp_path / "changed"])


def test_crls_of_some_generations_only(tmp_path: Path, story: Story) -> None:
    """Each generation that has not ended needs its own CRL; one that an attacker kept back is missed."""
    with open_agent(story.state, story.time) as agent:
        ca_life.rotate(story.state, None, Access(), story.time(), agent.ledger.note)
        agent.generations.look_for_newer()
        agent.publishing.refresh()
        (tmp_path / "backup.tar").unlink()
        back_up(story.state, tmp_path / "backup.tar", story.time())
        story.issue(agent, "second")
        revoke(agent, story.leaves["second"], story.time, Reason.keyCompromise)
        story.time.advance(seconds=10)
        story.time.advance(days=2)
        agent.publishing.refresh()
        for generation in (1, 2):
            (tmp_path / f"{generation}.crl").write_bytes(crl_der(agent, generation))
    for generation in (1, 2):
        with pytest.raises(StartError, match=f"generation {3 - generation} of the CA"):
            story.restore(crls=[tmp_path / f"{generation}.crl"])

    restored = story.restore(crls=[tmp_path / "1.crl", tmp_path / "2.crl"])
    assert story.names_of({each.serial for each in restored.later.carried}) == {"second"}
    assert {each.root_generation for each in restored.later.carried} == {2}


def test_generation_that_came_after_the_backup(tmp_path: Path, story: Story) -> None:
    """A list signed by a newer root is taken over its cross-certificate; what it revoked there is named as lost."""
    ca_life.rotate(story.state, None, Access(), story.time(), noting(story.state))
    with open_agent(story.state, story.time) as agent:
        story.issue(agent, "second")
        revoke(agent, story.leaves["second"], story.time, Reason.keyCompromise)
    revocation_list.write(story.state, tmp_path / "list", Access(), story.time())
    restored = story.restore(lists=[tmp_path / "list"])

    assert story.names_of({each.serial for each in restored.later.lost}) == {"second"}
    assert story.names_of({each.serial for each in restored.later.carried}) == {AFTER, AFTER_HELD}
    with open_agent(story.restored, story.time) as agent:
        csr = story.csrs["second"]
        assert isinstance(agent.sign(request(csr), sha256(csr).digest(), always).answer, Error)


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
