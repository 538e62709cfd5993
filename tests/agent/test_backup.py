"""Backups: made while the agent serves, restored whole or not at all, and never more than a backup has."""

import errno
import json
import os
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.agents import always, create_ca, open_agent, request
from support.backups import make_backup, member, members, names, restore, write_tar
from support.ca_life_parts import NO_ACCESS, assert_private, audit_events, issue, now
from support.csrs import make_csr, openssl_csr, pem
from support.judges import assert_openssl_accepts
from support.processes import SIGN_CSR, port_of, post, run, running_pair, start_agent, start_proxy

from runtime.errors import StartError
from vmi_agent.backup.backup import back_up
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting
from vmi_agent.ledger.schema import FILE_NAME


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Return the backup of a small CA, two generations, one certificate."""
    return make_backup(tmp_path)


def test_backup_under_load(tmp_path: Path) -> None:
    """Made while certificates are issued, restored elsewhere: it verifies, serves, and has what was issued before."""
    state = ["--state-dir", str(tmp_path / "restored")]
    csr = openssl_csr(tmp_path, "rsa2048").read_text()
    with running_pair(tmp_path) as pair, ThreadPoolExecutor(4) as pool:
        before = post(pair.url + SIGN_CSR, json.dumps({"data": [csr]}))
        load = [pool.submit(sign_another, pair.url, number) for number in range(120)]
        target = tmp_path / "backup.tar"
        load[10].result()
        made = run("vmi-agent", "backup", "--state-dir", str(pair.agent_state), str(target))
        assert (made.returncode, made.stderr) == (0, "")
        assert {each.result() for each in load} == {200}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600

    restored = run(
        "vmi-agent", "restore", *state, "--sha256", made.stdout.split()[3], "--forget-revocations", str(target)
    )
    assert (restored.returncode, restored.stderr.count("\n")) == (0, 1)
    assert "keys that were blocked" in restored.stderr
    assert_private(tmp_path / "restored")
    verified = run("vmi-agent", "audit", "verify", *state)
    assert (verified.returncode, verified.stderr) == (0, "")
    listed = json.loads(run("vmi-agent", "certs", "list", *state, "--json").stdout)
    assert 11 <= len(listed) <= 121
    with start_agent(tmp_path / "restored") as agent:
        agent_at = f"tcp:127.0.0.1:{port_of(agent.wait_for('ready')['listen'][0])}"
        with start_proxy(tmp_path / "another", [agent_at]) as proxy:
            url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}"
            proxy.wait_for("agent connected")
            again = post(url + SIGN_CSR, json.dumps({"data": [csr]}))
            assert again.json == before.json  # the same certificate: the ledger knows the request
            assert sign_another(url, 1000) == 200
    assert_openssl_accepts(again.json["data"][0], tmp_path)


def sign_another(url: str, number: int) -> int:
    """Have a CSR signed whose name no other has; return the status."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{number}")])
    return post(url + SIGN_CSR, json.dumps({"data": [pem(make_csr(subject=name))]})).status


def test_restore(tmp_path: Path, backup: Path) -> None:
    """All keys, certificates and rows are there again; the audit tells of both."""
    restore(backup, tmp_path / "restored", now())

    for path in sorted((tmp_path / "agent" / "ca").rglob("*.pem")):
        copy = tmp_path / "restored" / path.relative_to(tmp_path / "agent")
        assert copy.read_bytes() == path.read_bytes()
    assert audit_events(tmp_path / "restored")[-2:] == ["backup made", "restored"]
    assert issue(tmp_path / "restored")[1] == issue(tmp_path / "agent")[1]
    assert names(tmp_path) == {"agent", "backup.tar", "restored"}


def test_restore_of_all_kinds_of_generations(tmp_path: Path) -> None:
    """An ephemeral generation is one again, and a key that awaits its certificate is not lost."""
    state_dir = tmp_path / "agent"
    create_ca(state_dir, "p256", now())
    ca_lifecycle.create_ephemeral(state_dir, "p256", now(), noting(state_dir))
    ca_lifecycle.request_issuing_ca(state_dir, "p256", NO_ACCESS, "VMI Issuing CA")
    back_up(state_dir, tmp_path / "backup.tar", now())
    restore(tmp_path / "backup.tar", tmp_path / "restored", now())

    there = {path.relative_to(tmp_path / "restored" / "ca").as_posix() for path in tmp_path.glob("restored/ca/*/*")}
    assert there == {"1/key.pem", "1/root.pem", "2/ephemeral", "2/root.pem", "requested/key.pem"}


def test_backup_to_a_file_that_exists(tmp_path: Path, backup: Path) -> None:
    """An older backup is never replaced, and nothing is left beside it."""
    content = backup.read_bytes()
    with pytest.raises(StartError, match="exists already"):
        back_up(tmp_path / "agent", backup, now())

    assert backup.read_bytes() == content
    assert names(tmp_path) == {"agent", "backup.tar"}


def test_backup_on_a_file_system_without_links(tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files cannot be linked, as on many a USB stick, the backup is written all the same, and replaces none."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    back_up(tmp_path / "agent", tmp_path / "another.tar", now())
    assert stat.S_IMODE((tmp_path / "another.tar").stat().st_mode) == 0o600
    restore(tmp_path / "another.tar", tmp_path / "restored", now())
    with pytest.raises(StartError, match="exists already"):
        back_up(tmp_path / "agent", backup, now())


@pytest.mark.parametrize("command", [["backup"], ["restore"]])
def test_backup_without_its_source(tmp_path: Path, command: list[str]) -> None:
    """A state directory or an archive that is not there is named."""
    done = run("vmi-agent", *command, "--state-dir", str(tmp_path / "absent"), str(tmp_path / "backup.tar"))

    assert done.returncode in (1, 2)
    assert str(tmp_path / "absent") in done.stderr or "backup.tar" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == set()


def test_backup_after_one_that_was_killed(tmp_path: Path, backup: Path) -> None:
    """What a killed backup left, keys among it, is gone with the next one to the same place."""
    target = tmp_path / "next.tar"
    left = tmp_path / ".next.tar.partial"
    left.mkdir()
    (left / "backup.tar").write_text("a key")
    done = run("vmi-agent", "backup", "--state-dir", str(tmp_path / "agent"), str(target))

    assert (done.returncode, done.stderr) == (0, "")
    assert not left.exists()


def test_backup_into_no_directory(tmp_path: Path, backup: Path) -> None:
    """Where the target's directory is not there, that is told in a line."""
    target = tmp_path / "absent" / "backup.tar"
    done = run("vmi-agent", "backup", "--state-dir", str(tmp_path / "agent"), str(target))

    assert done.returncode == 1
    assert "there is no directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert backup.exists()


def test_restore_into_a_directory_that_is_not_empty(tmp_path: Path, backup: Path) -> None:
    """What is there is not touched."""
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "something").touch()
    with pytest.raises(StartError, match="is not empty"):
        restore(backup, tmp_path / "restored", now())

    assert names(tmp_path / "restored") == {"something"}


HOSTILE: dict[str, tarfile.TarInfo] = {
    "above": member("../escaped", size=5),
    "above in the middle": member("ca/1/../../../escaped", size=5),
    "absolute": member("/escaped", size=5),
    "symlink": member("ca/9/root.pem", tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": member("ca/9/root.pem", tarfile.LNKTYPE, link="ledger.sqlite"),
    "symlink for a directory": member("ca", tarfile.SYMTYPE, link="/"),
    "directory": member("ca/9", tarfile.DIRTYPE),
    "fifo": member("ca/9/key.pem", tarfile.FIFOTYPE),
    "character device": member("ca/9/key.pem", tarfile.CHRTYPE),
    "block device": member("ca/9/key.pem", tarfile.BLKTYPE),
    "twice": member("ca/1/root.pem", size=5),
    "lock": member("lock", size=5),
    "another name": member("ca/9/authorized_keys", size=5),
    "another directory": member("ca/09/root.pem", size=5),
    "hidden": member("ca/.9.new/key.pem", size=5),
    "line feed": member("ca/9/root.pem\n", size=5),
    "not listed": member("ca/9/root.pem", size=5),
}


@pytest.mark.parametrize("entry", HOSTILE.values(), ids=HOSTILE)
def test_restore_of_a_hostile_archive(tmp_path: Path, backup: Path, entry: tarfile.TarInfo) -> None:
    """A member that no backup has: nothing of the archive stays, inside or outside."""
    hostile = write_tar(tmp_path / "hostile.tar", members(backup), entry)
    with pytest.raises(StartError, match="is not a sound backup"):
        restore(hostile, tmp_path / "restored", now())

    assert names(tmp_path) == {"agent", "backup.tar", "hostile.tar"}


def test_restore_of_a_sparse_member(tmp_path: Path, backup: Path) -> None:
    """A terabyte of holes in an archive of some kilobytes is not written out."""
    header = bytearray(member("ca/9/root.pem", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o " % (1 << 32)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    whole = backup.read_bytes().rstrip(b"\0")
    end = -(-len(whole) // 512) * 512
    (tmp_path / "hostile.tar").write_bytes(whole.ljust(end, b"\0") + header + bytes(1024))
    with pytest.raises(StartError, match="is not a sound backup"):
        restore(tmp_path / "hostile.tar", tmp_path / "restored", now())

    assert names(tmp_path) == {"agent", "backup.tar", "hostile.tar"}


def test_restore_of_an_archive_cut_off_anywhere(tmp_path: Path, backup: Path) -> None:
    """An archive that ends too soon, even between two members, is refused: no CA is restored without its keys."""
    octets = backup.read_bytes()
    cut = tmp_path / "cut.tar"
    with tarfile.open(backup, "r:") as tar:
        ends = [each.offset for each in tar] + [each.offset_data + 1 for each in tar]
    for end in ends:
        cut.write_bytes(octets[:end])
        with pytest.raises(StartError, match="is not a sound backup"):
            restore(cut, tmp_path / "restored", now())

    assert names(tmp_path) == {"agent", "backup.tar", "cut.tar"}


def without_key(contents: dict[str, bytes]) -> None:
    """Leave a key out."""
    del contents["ca/2/key.pem"]


def another_key(contents: dict[str, bytes]) -> None:
    """Exchange a key."""
    contents["ca/2/key.pem"] = contents["ca/1/key.pem"]


def no_ledger(contents: dict[str, bytes]) -> None:
    """Leave the ledger out."""
    del contents[FILE_NAME]


def no_database(contents: dict[str, bytes]) -> None:
    """Put something else in the ledger's place."""
    contents[FILE_NAME] = b"not a database" * 1000


@pytest.mark.parametrize("tamper", [without_key, another_key, no_ledger, no_database])
def test_restore_of_other_contents(tmp_path: Path, backup: Path, tamper: Callable[[dict[str, bytes]], None]) -> None:
    """What is not, octet for octet, what was backed up is refused."""
    contents = members(backup)
    tamper(contents)
    hostile = write_tar(tmp_path / "hostile.tar", contents)
    done = run("vmi-agent", "restore", "--unverified", "--state-dir", str(tmp_path / "restored"), str(hostile))

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == {"agent", "backup.tar", "hostile.tar"}


def test_restore_of_a_tampered_ledger(tmp_path: Path, backup: Path) -> None:
    """A ledger whose audit does not verify is not restored."""
    contents = members(backup)
    del contents["manifest"]
    (tmp_path / "ledger").write_bytes(contents[FILE_NAME])
    with closing(sqlite3.connect(tmp_path / "ledger")) as connection, connection:
        connection.execute("UPDATE audit SET fields = replace(fields, 'hmc1', 'hmc2')")
    contents[FILE_NAME] = (tmp_path / "ledger").read_bytes()
    (tmp_path / "ledger").unlink()
    with pytest.raises(StartError, match=r"audit row \d+ was changed"):
        restore(write_tar(tmp_path / "hostile.tar", contents), tmp_path / "restored", now())

    assert names(tmp_path) == {"agent", "backup.tar", "hostile.tar"}


def test_restore_of_no_archive(tmp_path: Path) -> None:
    """A file that is no tar is refused."""
    (tmp_path / "text").write_text("no archive" * 1000)
    with pytest.raises(StartError, match="is not a sound backup"):
        restore(tmp_path / "text", tmp_path / "restored", now())


def test_start_with_a_ledger_whose_ca_is_gone(tmp_path: Path) -> None:
    """Certificates were issued, and the CA is not there: the agent does not begin another generation 1."""
    with open_agent(tmp_path, now) as agent:
        agent.issuing.issue(request(make_csr()), always)
    (tmp_path / "ca").rename(tmp_path / "elsewhere")
    with start_agent(tmp_path) as started:
        assert started.wait() == 1

    assert "Restore" in "".join(started.lines)
    assert not (tmp_path / "ca").exists()
