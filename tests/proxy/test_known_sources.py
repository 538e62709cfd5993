"""Known sources: kept on disk, written seldom, read with judgement, and forgotten with their account."""

import base64
import json
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from support.processes import PASSWORDS, account, add_account, port_of, run, start_proxy
from support.run_log import secret
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from bmc_proxy.auth.accounts import AccountStore
from bmc_proxy.auth.known_sources import (
    FILE_LIMIT,
    FILE_NAME,
    FIRST_WRITE_S,
    SOURCES_PER_ACCOUNT,
    WRITE_EVERY_S,
    KnownSources,
    KnownSourcesFile,
    forget_on_disk,
)

NAMES = ("root", "oper")
SOURCE = "192.0.2.1"


class Disk:
    """The file of one directory, and a proxy that starts and ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / FILE_NAME
        self.clock = Clock()
        self.reports: list[str] = []
        self.writes = 0

    def start(self) -> KnownSourcesFile:
        """Return what a proxy that starts has read."""

        def in_thread(work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            self.writes += 1
            return maybeDeferred(work, *arguments)

        file = KnownSourcesFile(self.clock, self.directory, in_thread, self.reports.append)
        file.load(NAMES)
        return file


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Return an empty directory."""
    return Disk(tmp_path)


def test_sources_survive_a_restart(disk: Disk) -> None:
    """What was known when the proxy ended is known when it starts, and the file is private and holds nothing else."""
    file = disk.start()
    for source in (SOURCE, "2001:db8::/64", "unix"):
        file.sources.add("root", source)
    file.close()
    again = disk.start()

    assert all(again.sources.has("root", source) for source in (SOURCE, "2001:db8::/64", "unix"))
    assert not again.sources.has("oper", SOURCE)
    assert disk.path.stat().st_mode & 0o777 == 0o600
    stored = json.loads(disk.path.read_bytes())
    assert stored == {"version": 1, "sources": {"root": [SOURCE, "2001:db8::/64", "unix"]}}
    assert disk.reports == []


def test_file_is_written_seldom(disk: Disk) -> None:
    """A second after a new source, then once a minute at most; a login from a known source writes nothing."""
    file = disk.start()
    for number in range(10):
        file.sources.add("root", f"192.0.2.{number}")
    assert disk.writes == 0
    disk.clock.advance(FIRST_WRITE_S)
    assert disk.writes == 1
    file.sources.add("root", "192.0.2.1")
    assert disk.clock.getDelayedCalls() == []
    for number in range(100):
        file.sources.add("oper", f"198.51.100.{number}")
        disk.clock.advance(0.1)
    assert disk.writes == 1
    disk.clock.advance(WRITE_EVERY_S - 9.9)
    assert disk.writes == 2
    file.close()
    assert len(json.loads(disk.path.read_bytes())["sources"]["oper"]) == SOURCES_PER_ACCOUNT


def test_sources_of_an_account_are_bounded() -> None:
    """Thirty-two are known, the latest to log in."""
    known = KnownSources()
    for number in range(SOURCES_PER_ACCOUNT):
        known.add("root", f"192.0.2.{number}")
    known.add("root", "192.0.2.0")
    known.add("root", "198.51.100.1")

    assert known.has("root", "192.0.2.0")
    assert not known.has("root", "192.0.2.1")
    assert known.has("root", "192.0.2.2")


def content(sources: object, version: object = 1) -> bytes:
    """Return a file's content."""
    return json.dumps({"version": version, "sources": sources}).encode()


BROKEN = {
    "empty": b"",
    "half": content({"root": [SOURCE]})[:20],
    "not UTF-8": b"\xff",
    "another version": content({"root": [SOURCE]}, 2),
    "a list": b"[]",
    "no lists": content({"root": SOURCE}),
    "no sources": content([]),
    "numbers": content({"root": [1]}),
    "a network": content({"root": ["192.0.2.0/24"]}),
    "everything": content({"root": ["::/0"]}),
    "a name": content({"root": ["bmc.example"]}),
    "too many": content({"root": [f"192.0.2.{number}" for number in range(SOURCES_PER_ACCOUNT + 1)]}),
    "too long": content({"root": [SOURCE], "x" * FILE_LIMIT: []}),
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_a_line_in_the_log(disk: Disk, broken: bytes) -> None:
    """A file that cannot be what was written is reported once, nothing is known, and the next login replaces it."""
    disk.path.write_bytes(broken)
    disk.path.chmod(0o600)
    file = disk.start()

    [report] = disk.reports
    assert str(disk.path) in report
    assert SOURCE not in report
    assert not file.sources.has("root", SOURCE)
    file.sources.add("root", SOURCE)
    file.close()
    assert disk.start().sources.has("root", SOURCE)
    assert len(disk.reports) == 1


def test_largest_file_is_read(disk: Disk) -> None:
    """As many sources of as many accounts as there may be are far below the limit."""
    sources = [f"2001:db8:1234:{number:x}::/64" for number in range(0xFF00, 0xFF00 + SOURCES_PER_ACCOUNT)]
    full = content({f"{'n' * 62}{number:02}": sources for number in range(64)} | {"root": sources})
    assert len(full) < FILE_LIMIT / 2
    disk.path.write_bytes(full)
    disk.path.chmod(0o600)
    assert disk.start().sources.has("root", sources[-1])
    assert disk.reports == []


def test_file_that_others_may_write_is_not_used(disk: Disk) -> None:
    """Whoever could write it could make its own address known."""
    disk.path.write_bytes(content({"root": [SOURCE]}))
    disk.path.chmod(0o666)
    assert not disk.start().sources.has("root", SOURCE)
    assert "chmod 600" in disk.reports[0]


def test_disk_that_cannot_be_written_is_reported_once(disk: Disk) -> None:
    """The sources are known all the same, and are written once the disk can be."""
    file = disk.start()
    disk.path.mkdir()
    file.sources.add("root", SOURCE)
    for _ in range(5):
        disk.clock.advance(WRITE_EVERY_S)
    assert len(disk.reports) == 1
    assert file.sources.has("root", SOURCE)
    disk.path.rmdir()
    disk.clock.advance(WRITE_EVERY_S)
    assert disk.clock.getDelayedCalls() == []
    assert disk.start().sources.has("root", SOURCE)


def test_sources_of_accounts_that_are_gone_are_forgotten(disk: Disk) -> None:
    """At the start, when one is removed while the proxy runs, and by the command while it does not."""
    disk.path.write_bytes(content({"root": [SOURCE], "oper": [SOURCE], "removed": [SOURCE]}))
    disk.path.chmod(0o600)
    file = disk.start()
    assert not file.sources.has("removed", SOURCE)
    file.sources.keep(["root"])
    disk.clock.advance(FIRST_WRITE_S)
    assert json.loads(disk.path.read_bytes())["sources"] == {"root": [SOURCE]}
    forget_on_disk(disk.directory, "root")
    assert json.loads(disk.path.read_bytes())["sources"] == {}


def test_removal_by_the_command_forgets_the_sources(tmp_path: Path) -> None:
    """The next account of that name does not inherit them, whether or not a proxy ran when it was removed."""
    path = tmp_path / FILE_NAME
    add_account(tmp_path, "oper", "Operator", secret("a-password-of-oper"))
    path.write_bytes(content({"oper": [SOURCE]}))
    path.chmod(0o600)
    assert run("bmc-proxy", "account", "remove", "oper", "--state-dir", str(tmp_path)).returncode == 0
    assert json.loads(path.read_bytes())["sources"] == {}


def ask(port: int, source: str, password: str) -> int:
    """Ask for the accounts with root's name and a password, from an address; return the status."""
    credentials = base64.b64encode(f"root:{password}".encode()).decode()
    with closing(HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))) as connection:
        connection.request(
            "GET", "/redfish/v1/AccountService/Accounts", headers={"Authorization": f"Basic {credentials}"}
        )
        return connection.getresponse().status


def test_known_source_survives_a_restart_and_a_lock_by_strangers(tmp_path: Path) -> None:
    """Sixteen networks that fail after a restart shut out strangers, and not the address that logged in before it."""
    right = PASSWORDS["root"]
    AccountStore(tmp_path).add(account("root"))
    nobody = ["tcp:127.0.0.1:1"]
    with start_proxy(tmp_path, nobody) as proxy:
        assert ask(port_of(proxy.wait_for("ready")["http"]), "127.0.0.4", right) == 200
        assert proxy.stop() == 0
    with start_proxy(tmp_path, nobody) as proxy:
        port = port_of(proxy.wait_for("ready")["http"])
        assert [ask(port, f"127.0.{number}.1", "wrong-password") for number in range(100, 116)] == [401] * 16
        assert ask(port, "127.0.200.1", right) == 401
        assert ask(port, "127.0.0.4", right) == 200
        assert proxy.stop() == 0


def test_removed_account_leaves_no_known_source_in_a_running_proxy(tmp_path: Path) -> None:
    """The command removes and adds the account beside the proxy, which then knows nothing of its sources."""
    right = PASSWORDS["root"]
    for name in ("root", "oper"):
        AccountStore(tmp_path).add(account(name))
    with start_proxy(tmp_path, ["tcp:127.0.0.1:1"]) as proxy:
        port = port_of(proxy.wait_for("ready")["http"])
        assert ask(port, "127.0.0.4", right) == 200
        AccountStore(tmp_path).remove("root")
        assert ask(port, "127.0.0.5", right) == 401
        AccountStore(tmp_path).add(account("root"))
        assert ask(port, "127.0.0.5", right) == 200
        assert proxy.stop() == 0
    assert json.loads((tmp_path / FILE_NAME).read_bytes())["sources"] == {"root": ["127.0.0.5"]}
