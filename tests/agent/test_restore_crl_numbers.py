"""CRL numbers go on rising over a restore, also where the clock was far ahead before: proxies take the next CRL."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from support.agents import open_agent
from support.backups import UNVERIFIED
from support.restore_story import AFTER, GOOD, Story, story
from support.revoking import crl_der, read_crl, revoke

from runtime.clock import milliseconds
from vmi_agent.backup import restore as restoring
from vmi_agent.backup import revocation_list, signed_statement
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.schema import reading

__all__ = ["story"]  # a fixture

AHEAD = timedelta(days=40)

SOURCES: dict[str, Callable[[Path], dict[str, object]]] = {
    "old state directory": lambda directory: {"old_state_dir": directory / "agent"},
    "list": lambda directory: {"lists": [directory / "list"]},
    "CRL": lambda directory: {"crls": [directory / "crl"]},
}


def clock_was_ahead(story: Story) -> int:
    """Let the agent issue a CRL while its clock is ahead, and another one after; return the number of that."""
    with open_agent(story.state, story.time) as agent:
        agent.publishing.refresh()
        story.time.now += AHEAD
        agent.publishing.refresh()
        story.time.now -= AHEAD
        story.time.advance(seconds=10)
        agent.publishing.refresh()
        (story.directory / "crl").write_bytes(crl_der(agent))
        number = agent.publishing.newest_number
    revocation_list.write(story.state, story.directory / "list", Access(), story.time())
    return number


@pytest.mark.parametrize("source", SOURCES)
def test_crl_number_is_above_what_the_sources_tell(tmp_path: Path, story: Story, source: str) -> None:
    """The restored agent's first CRL has a higher number than the last one that anything given at restore tells of."""
    last = clock_was_ahead(story)
    assert last > milliseconds(story.time() + AHEAD / 2)
    story.restore(**SOURCES[source](tmp_path))
    with open_agent(story.restored, story.time) as agent:
        revoke(agent, story.leaves[GOOD], story.time)
        agent.publishing.refresh()

        listed = read_crl(agent)
        assert listed.get_revoked_certificate_by_serial_number(story.leaves[GOOD].serial_number) is not None
        assert agent.publishing.newest_number > last
    with reading(story.restored) as connection:
        verify(connection)


def test_crl_number_is_kept_over_a_second_restore(tmp_path: Path, story: Story) -> None:
    """A backup of the restored agent that issued no CRL yet knows the number that the first restore recorded."""
    last = clock_was_ahead(story)
    story.restore(crls=[tmp_path / "crl"])
    back_up(story.restored, tmp_path / "second.tar", story.time())
    restoring.restore(tmp_path / "second.tar", tmp_path / "again", story.time(), UNVERIFIED, Later(forget=True))

    with open_agent(tmp_path / "again", story.time) as agent:
        agent.publishing.refresh()
        assert agent.publishing.newest_number > last
        assert read_crl(agent).get_revoked_certificate_by_serial_number(story.leaves[AFTER].serial_number) is not None


def test_list_of_an_earlier_version(tmp_path: Path, story: Story) -> None:
    """A list of revocations that names no CRL number is taken, and the backup's own number counts."""
    fields = dict(signed_statement.read(signed_statement.REVOCATIONS, (tmp_path / "list").read_bytes()).fields)
    del fields["crl_number"]
    signer = signed_statement.open_signer(story.state, Access())
    earlier = signed_statement.make(signed_statement.REVOCATIONS, fields, story.state, signer)
    (tmp_path / "list").write_bytes(earlier)
    story.restore(lists=[tmp_path / "list"])
    with open_agent(story.restored, story.time) as agent:
        agent.publishing.refresh()
        assert agent.publishing.newest_number >= milliseconds(story.time())
