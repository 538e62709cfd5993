"""What may tell a restore of later revocations is judged itself: whose it is, how new, and of which generation."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from support.agents import always, open_agent, request
from support.restore_story import AFTER, AFTER_HELD, SINCE, Story, story
from support.revoking import crl_der, revoke, serial_of

from protocol.records import Error
from runtime.errors import StartError
from vmi_agent.backup import revocation_list
from vmi_agent.backup.backup import back_up
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting
from vmi_agent.keys.open import Access
from vmi_agent.ledger.revocation import Reason

__all__ = ["story"]  # a fixture


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
        ca_lifecycle.rotate(story.state, None, Access(), story.time(), agent.ledger.note)
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
    ca_lifecycle.rotate(story.state, None, Access(), story.time(), noting(story.state))
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
