"""Certificates that a restored ledger does not hold are revoked by the certificate itself."""

import json
import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from support.agents import always, open_agent, request
from support.processes import run
from support.restore_story import AFTER, GOOD, SINCE, Story, csr_of_new_key, story
from support.revoking import ask, issue, question, read_crl, serial_of, write_pem

from protocol.records import Error
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.schema import reading

__all__ = ["story"]  # a fixture


@pytest.fixture
def restored(story: Story) -> Story:
    """Return a CA that was restored without its last revocations, with a certificate from after the backup."""
    with open_agent(story.state, story.time) as agent:
        story.issue(agent, "late")
    story.restore(forget=True)
    return story


def revoke(story: Story, given: str | Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the restored CA."""
    done = run("vmi-agent", "certs", "revoke", "--state-dir", str(story.restored), str(given), *options)
    story.time.now = datetime.now(UTC)  # by which the command went
    return done


def file_of(story: Story, name: str, encoding: Encoding = Encoding.PEM) -> Path:
    """Write a leaf to a file."""
    path = story.directory / f"{name}.cert"
    path.write_bytes(story.leaves[name].public_bytes(encoding))
    return path


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER], ids=["PEM", "DER"])
@pytest.mark.parametrize("reason", ["unspecified", "keyCompromise", "certificateHold"])
def test_certificate_from_after_the_backup(restored: Story, reason: str, encoding: Encoding) -> None:
    """It goes onto the CRL, OCSP says revoked, its key is blocked where the reason blocks it, and the audit agrees."""
    leaf, csr = restored.leaves["late"], restored.csrs["late"]
    serial = serial_of(leaf).hex()
    unknown = revoke(restored, serial)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "give the certificate itself" in unknown.stderr

    done = revoke(restored, file_of(restored, "late", encoding), "--reason", reason)
    assert done.returncode == 0, done.stderr
    assert f"revoked: {serial} ({reason})" in done.stdout
    assert ("key blocked: " in done.stdout) == (reason != "unspecified")
    assert ("cannot be released" in done.stdout) == (reason == "certificateHold")
    with open_agent(restored.restored, restored.time) as agent:
        agent.publishing.refresh()
        entry = read_crl(agent).get_revoked_certificate_by_serial_number(leaf.serial_number)
        assert entry is not None
        status = ask(agent, question(leaf, agent.generations.current.root)).certificate_status
        assert status is ocsp.OCSPCertStatus.REVOKED
        answer = agent.sign(request(csr, user="again"), sha256(csr).digest(), always).answer
        assert isinstance(answer, Error) == (reason != "unspecified")
    with reading(restored.restored) as connection:
        verify(connection)
        rows = connection.exec_driver_sql("SELECT fields FROM audit WHERE event = 'revocation carried over'").scalars()
        (fields,) = map(json.loads, rows)
    assert fields["serial"] == serial
    assert "uid" in fields["source"]


def test_hold_that_becomes_final(restored: Story) -> None:
    """A hold may be followed by another reason, once; it counts as revoked from the beginning of the hold."""
    path = file_of(restored, "late")
    assert revoke(restored, path, "--reason", "certificateHold").returncode == 0
    again = revoke(restored, path, "--reason", "certificateHold")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "revoked already (certificateHold)" in again.stderr
    ended = revoke(restored, path, "--reason", "superseded")
    assert ended.returncode == 0
    assert "key blocked" not in ended.stdout
    assert revoke(restored, path, "--reason", "keyCompromise").returncode == 1

    with reading(restored.restored) as connection:
        verify(connection)
        rows = connection.exec_driver_sql("SELECT fields FROM audit WHERE event = 'revocation carried over'").scalars()
        held, final = map(json.loads, rows)
    assert held["revoked_ms"] == final["revoked_ms"]
    with open_agent(restored.restored, restored.time) as agent:
        agent.publishing.refresh()
        entry = read_crl(agent).get_revoked_certificate_by_serial_number(restored.leaves["late"].serial_number)
        assert entry is not None
        assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.superseded


def test_certificate_that_the_ledger_holds(restored: Story) -> None:
    """Its file does what its serial number does: it is revoked in the ledger, and nothing is carried over."""
    done = revoke(restored, file_of(restored, GOOD), "--reason", "superseded")

    assert done.returncode == 0, done.stderr
    with reading(restored.restored) as connection:
        verify(connection)
        held = connection.exec_driver_sql(
            "SELECT reason FROM issuance WHERE serial = ?", (serial_of(restored.leaves[GOOD]),)
        ).scalar()
        assert held == 4
        assert connection.exec_driver_sql("SELECT count(*) FROM carried_revocation").scalar() == 0


def test_other_certificates_of_its_key(story: Story) -> None:
    """Those that the ledger holds are named, and revoked with --all-of-key."""
    csr = csr_of_new_key("shared")
    with open_agent(story.state, story.time) as agent:
        late = x509.load_der_x509_certificate(agent.issuing.issue(request(csr, user="late"), always).chain[0])
    story.leaves["late"] = late
    story.restore(forget=True)
    with open_agent(story.restored, story.time) as agent:
        held = x509.load_der_x509_certificate(agent.issuing.issue(request(csr, user="held"), always).chain[0])
    path, other = file_of(story, "late"), serial_of(held).hex()

    first = revoke(story, path, "--reason", "superseded")
    assert f"valid, of the same key: {other}" in first.stdout
    both = revoke(story, path, "--reason", "superseded", "--all-of-key")
    assert both.returncode == 0, both.stderr
    assert f"revoked: {other} (superseded)" in both.stdout
    with reading(story.restored) as connection:
        verify(connection)


def test_files_that_are_refused(restored: Story) -> None:
    """A certificate of another CA, one of a CA, several, and no certificate: one line each, and nothing revoked."""
    other = restored.directory / "other"
    with open_agent(other, restored.time) as agent:
        foreign = Path(write_pem(restored.directory / "foreign.pem", issue(agent)))
    with open_agent(restored.restored, restored.time) as agent:
        root = Path(write_pem(restored.directory / "root.pem", agent.generations.current.root))
    several, nothing = restored.directory / "several.pem", restored.directory / "nothing.pem"
    several.write_bytes(file_of(restored, SINCE).read_bytes() + file_of(restored, AFTER).read_bytes())
    nothing.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    texts = {
        foreign: "no generation of this CA",
        root: "it is a CA's",
        several: "several",
        nothing: "not a certificate",
    }
    for path, text in texts.items():
        done = revoke(restored, path)
        assert done.returncode == 2
        error = done.stderr.splitlines()[-1]
        assert error.startswith(f"Error: {path} ")
        assert text in error
        assert "Nothing was revoked" in error
    assert "hexadecimal" in revoke(restored, restored.directory / "missing.pem").stderr
    with reading(restored.restored) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM carried_revocation").scalar() == 0
