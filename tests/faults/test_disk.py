"""A disk that is full, or that takes nothing any more, under the real agent: nothing is issued, and then it goes on."""

import json
from pathlib import Path

import pytest
from support.csrs import pem
from support.disk_askers import CSR, Askers, assert_all_told, failed, told_by
from support.disks import small_disk, ways_to_a_small_disk
from support.processes import SIGN_CSR, port_of, post, start_proxy
from support.raw_asker import RawAsker

# More than a disk of 2 MB holds.
MANY = 400
LISTEN = ("--listen", "tcp:0:interface=127.0.0.1", "--key-type", "p256")


@pytest.mark.parametrize("way", ways_to_a_small_disk())
def test_disk_that_is_full(tmp_path: Path, way: str) -> None:
    """On a full disk of 2 MB nothing is issued, which is said in words, logged once, and over once there is room."""
    disk_path = tmp_path / "disk"
    disk_path.mkdir()
    with small_disk(disk_path, way) as disk:
        state = disk.path / "agent"
        with disk.start("vmi-agent", "serve", "--state-dir", str(state), *LISTEN) as agent:
            port = port_of(agent.wait_for("ready")["listen"][0])
            with RawAsker(port) as asker, start_proxy(tmp_path / "proxy", [f"tcp:127.0.0.1:{port}"]) as proxy:
                askers = Askers(asker)
                url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}{SIGN_CSR}"
                proxy.wait_for("agent connected")
                disk.fill(leave=600_000)
                fill_by_asking(askers)
                disk.fill()
                assert failed(askers.ask(60)) == 60
                assert disk.run("vmi-agent", "audit", "verify", "--state-dir", str(state)).returncode == 0
                answer = post(url, json.dumps({"CsrString": pem(CSR)}))
                assert (answer.status, answer.json["data"]["code"]) == (502, "agent.failed")
                assert len(told_by(agent, "ledger cannot be written")) <= 2
                assert any(each in told_by(agent, "ledger cannot be written")[0] for each in disk.full)

                disk.free()
                assert failed(askers.ask(20)) == 0
                agent.wait_for("ledger written again")
            assert_all_told(state, askers, disk.run)
            assert agent.stop() == 0
        assert "Traceback" not in "".join(agent.lines)
        assert len(told_by(agent, "ledger cannot be written")) <= 2


def fill_by_asking(askers: Askers) -> None:
    """Ask until the disk is full."""
    for _ in range(MANY // 20):
        if failed(askers.ask(20)):
            return
    raise AssertionError("the disk did not fill up")


@pytest.mark.parametrize("way", ways_to_a_small_disk())
def test_disk_that_is_full_at_the_stop_and_the_start(tmp_path: Path, way: str) -> None:
    """On a full disk the agent stops with status 0 and does not start, and says why; with room it does."""
    with small_disk(tmp_path, way) as disk:
        command = ("vmi-agent", "serve", "--state-dir", str(disk.path / "agent"), *LISTEN)
        with disk.start(*command) as agent:
            with RawAsker(port_of(agent.wait_for("ready")["listen"][0])) as asker:
                askers = Askers(asker)
                askers.ask(3)
                disk.fill()
                assert failed(askers.ask(40)) > 0
            assert agent.stop() == 0
        assert told_by(agent, "the audit does not tell of this stop")
        disk.fill()
        other = ("vmi-agent", "serve", "--state-dir", str(disk.path / "other"), *LISTEN)
        for refused in (command, other):
            with disk.start(*refused) as agent:
                reason = agent.wait_for("cannot start")["reason"]
                assert any(each in reason for each in disk.full), reason
                assert agent.wait() == 1
            assert "Traceback" not in "".join(agent.lines)
        disk.free()
        with disk.start(*command) as agent:
            agent.wait_for("ready")
            assert_all_told(disk.path / "agent", askers, disk.run)
            assert agent.stop() == 0
        if disk.make_read_only():
            with disk.start(*command) as agent:
                assert agent.wait_for("cannot start")["reason"].endswith(": Read-only file system")
                assert agent.wait() == 1
            # Evidence can be read where it lies.
            for words in (["audit", "verify"], ["certs", "list"], ["certs", "export"]):
                done = disk.run("vmi-agent", *words, "--state-dir", str(disk.path / "agent"))
                assert (done.returncode, done.stderr) == (0, ""), words
                assert done.stdout
            done = disk.run("vmi-agent", "certs", "prune", "--ended-days", "1", "--state-dir", str(disk.path / "agent"))
            assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
