"""A disk that is full, or that takes nothing any more, under the real agent: nothing is issued, and then it goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import request
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from csrs import make_csr, pem
from disks import small_disk, ways_to_a_small_disk
from processes import SIGN_CSR, Process, port_of, post, start_proxy
from raw_asker import RawAsker

from protocol.errors import ErrorCode
from protocol.records import Answer, Error, Signed

CSR = make_csr()
TEXT = "The agent's ledger cannot be written. Nothing was issued."
# More than a disk of 2 MB holds.
MANY = 400
LISTEN = ("--listen", "tcp:0:interface=127.0.0.1", "--key-type", "p256")


class Askers:
    """Asks as ever new users, and keeps what was answered."""

    def __init__(self, asker: RawAsker) -> None:
        self._asker = asker
        self._count = 0
        self.signed: set[str] = set()

    def ask(self, count: int = 1) -> list[Answer]:
        """Return the answers to requests that are sent together."""
        records = [request(CSR, user=f"hmc{self._count + n}") for n in range(count)]
        self._count += count
        ids = self._asker.ask(*records)
        found = self._asker.answers(self._count)
        answers = [found[each] for each in ids]
        for answer in answers:
            if isinstance(answer, Signed):
                self.signed.add(answer.chain[0].hex())
            else:
                assert answer == Error(ErrorCode.FAILED, True, 5_000, TEXT)
        return answers


def failed(answers: list[Answer]) -> int:
    """Return how many were not signed."""
    return sum(isinstance(answer, Error) for answer in answers)


def assert_all_told(state: Path, askers: Askers, run_there: Callable[..., Any]) -> None:
    """What was handed out, what the ledger has, and what the audit tells of, are the same; the audit verifies."""
    assert run_there("vmi-agent", "audit", "verify", "--state-dir", str(state)).returncode == 0
    exported = run_there("vmi-agent", "certs", "export", "--state-dir", str(state)).stdout
    certificates = [json.loads(line)["certificate"] for line in exported.splitlines()]
    audited = run_there("vmi-agent", "audit", "export", "--state-dir", str(state)).stdout
    rows = [json.loads(line) for line in audited.splitlines()]
    signed = [row["fields"]["serial"] for row in rows if row["event"] == "signed"]

    ders = {der_of(each) for each in certificates}
    assert ders == askers.signed
    assert sorted(signed) == sorted(json.loads(line)["serial"] for line in exported.splitlines())
    assert len(certificates) == len(askers.signed)


def der_of(text: str) -> str:
    """Return a certificate's DER in hexadecimal."""
    return x509.load_pem_x509_certificate(text.encode()).public_bytes(Encoding.DER).hex()


def told_by(agent: Process, event: str) -> list[str]:
    """Return what an agent logged of an event."""
    return [line for line in agent.lines if f'"event": "{event}' in line]


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
