"""What `restore` refuses, warns of and prints about later revocations, also where clocks were wrong."""

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from support.agents import open_agent
from support.backups import UNVERIFIED, names
from support.processes import run
from support.restore_story import AFTER, SINCE, Story, story
from support.revoking import read_crl

from runtime.errors import StartError
from vmi_agent.backup import restore as restoring
from vmi_agent.backup import revocation_list
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting
from vmi_agent.keys.open import Access

__all__ = ["story"]  # a fixture

BLOCKED = "nothing given tells of keys that were blocked after"


@pytest.mark.parametrize("ahead", [timedelta(days=1), timedelta(days=9500)])
def test_clock_ahead_forgets_no_revocation(tmp_path: Path, story: Story, ahead: timedelta) -> None:
    """A generation that has ended only by a clock far ahead needs a source all the same."""
    backup, at = tmp_path / "backup.tar", story.time() + ahead
    with pytest.raises(StartError, match="generation 1 of the CA"):
        restoring.restore(backup, story.restored, at, UNVERIFIED, Later())
    assert not story.restored.exists()
    restoring.restore(backup, story.restored, at, UNVERIFIED, Later(lists=[tmp_path / "list"]))


def test_generation_that_had_ended_before_the_backup(tmp_path: Path, story: Story) -> None:
    """It needs no source: nothing that it issued is valid again."""
    story.time.advance(days=9500)
    (tmp_path / "backup.tar").unlink()
    back_up(story.state, tmp_path / "backup.tar", story.time())
    story.restore()


def test_list_after_a_backup_from_a_clock_ahead(tmp_path: Path, story: Story) -> None:
    """What is newer is told by the audit's rows: the list is taken although the backup's time is later than its own."""
    (tmp_path / "backup.tar").unlink()
    back_up(story.state, tmp_path / "backup.tar", story.time() + timedelta(days=40))
    with pytest.raises(StartError, match="does not know"):
        story.restore(lists=[tmp_path / "list"])
    revocation_list.write(story.state, tmp_path / "list", Access(), story.time())
    story.restore(lists=[tmp_path / "list"])


@pytest.mark.parametrize("source", ["CRL", "nothing", "list", "old state directory"])
def test_warning_about_keys_that_were_blocked_since(tmp_path: Path, story: Story, source: str) -> None:
    """It comes whenever neither a list nor the old state directory was given."""
    options = {
        "CRL": ["--crl", str(tmp_path / "crl")],
        "nothing": ["--forget-revocations"],
        "list": ["--revocations", str(tmp_path / "list")],
        "old state directory": ["--old-state-dir", str(story.state)],
    }
    command = ["vmi-agent", "restore", "--unverified", "--state-dir", str(story.restored)]
    done = run(*command, *options[source], str(tmp_path / "backup.tar"))

    assert done.returncode == 0, done.stderr
    assert (BLOCKED in done.stderr) == (source in ("CRL", "nothing"))


def test_refusal_of_an_old_crl_promises_nothing(tmp_path: Path, story: Story) -> None:
    """It says that keys may have been blocked all the same, and what else to give."""
    with pytest.raises(StartError, match=r"keys may have been blocked.*--old-state-dir or --revocations"):
        story.restore(crls=[tmp_path / "old.crl"])


def test_times_of_a_crl(tmp_path: Path, story: Story) -> None:
    """Revocations are known until the CRL was made, which is later than its thisUpdate says."""
    with open_agent(story.state, story.time) as agent:
        story.time.advance(days=2)
        agent.publishing.refresh()
        made_at = story.time().replace(microsecond=0)
        (tmp_path / "crl").write_bytes(read_crl(agent).public_bytes(Encoding.DER))
    restored = story.restore(crls=[tmp_path / "crl"])

    assert restored.later.sources[0].known.at == made_at
    assert restored.later.unknown_since == {1: made_at}


def test_generation_that_only_the_old_state_directory_has(tmp_path: Path, story: Story) -> None:
    """It is named as lost, with what that means."""
    ca_lifecycle.rotate(story.state, None, Access(), story.time(), noting(story.state))
    command = ["vmi-agent", "restore", "--unverified", "--state-dir", str(story.restored)]
    done = run(*command, "--old-state-dir", str(story.state), str(tmp_path / "backup.tar"))

    assert done.returncode == 0, done.stderr
    assert "generation 2 of the CA is in the old state directory and not in this backup: it is lost" in done.stderr
    assert names(story.restored / "ca") == {"1"}
    assert story.leaves.keys() >= {SINCE, AFTER}


def test_places_that_are_not_there(tmp_path: Path, story: Story) -> None:
    """A missing directory or a symbolic link is named in one line, without a temporary name."""
    nowhere = tmp_path / "nowhere" / "list"
    state = ["--state-dir", str(story.state)]
    exported = run("vmi-agent", "certs", "export-revocations", *state, str(nowhere))
    assert (exported.returncode, exported.stderr.count("\n")) == (1, 1)
    assert f"no directory {nowhere.parent}" in exported.stderr

    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    texts = {
        "dangling": f"is a symbolic link to {tmp_path / 'missing'}, which does not exist",
        "link": f"is a symbolic link to {tmp_path / 'empty'}. Give",
    }
    for name, text in texts.items():
        command = ["vmi-agent", "restore", "--unverified", "--forget-revocations", "--state-dir", str(tmp_path / name)]
        done = run(*command, str(tmp_path / "backup.tar"))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert f"{tmp_path / name} {text}" in done.stderr
        assert "restoring" not in done.stderr
        assert "Errno" not in done.stderr
