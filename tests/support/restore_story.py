"""A CA whose backup knows less than it did in the end: what it revoked, held and released since."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from support.agents import Agent, Time, always, open_agent, request
from support.backups import UNVERIFIED
from support.revoking import crl_der, release, revoke, serial_of, time_of_day
from vmi_agent.backup import restore as restoring
from vmi_agent.backup import revocation_list
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.backup.restore import Restored
from vmi_agent.keys.open import Access
from vmi_agent.ledger.revocation import Reason

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
        self.csrs[name] = csr_of_new_key(name)
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


def csr_of_new_key(name: str) -> bytes:
    """Return a CSR whose key no other has."""
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
