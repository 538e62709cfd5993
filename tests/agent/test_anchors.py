"""Anchors: what the audit's end was is written down elsewhere, and a chain that was made anew does not hold it."""

import json
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection
from support.agents import START, Time, open_agent, request
from support.audits import sign
from support.csrs import make_csr
from support.processes import port_of, run, start_agent
from support.raw_asker import RawAsker

from vmi_agent.ledger.audit import anchors as audit_anchors
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Head
from vmi_agent.ledger.schema import writing
from vmi_agent.maintenance import AnchorTo, Upkeep


def make_anew(connection: Connection) -> None:
    """Do what somebody does who can write the ledger: change a row and make the chain anew from there."""
    connection.exec_driver_sql("UPDATE audit SET fields = replace(fields, 'test', 'nobody') WHERE id > 1")
    head = audit_chain.START
    for row in list(audit_chain.rows(connection)):
        digest = audit_chain.link_of(row, head.hash)
        assert digest is not None
        connection.exec_driver_sql("UPDATE audit SET hash = ? WHERE id = ?", (digest, row.id))
        head = Head(row.id, digest)
    connection.exec_driver_sql("UPDATE audit_head SET hash = ?", (head.hash,))


def verified(state: Path, *options: str) -> tuple[int, str]:
    """Run `audit verify`; return its status and what it complains of."""
    done = run("vmi-agent", "audit", "verify", "--state-dir", str(state), *options)
    assert done.stderr.count("\n") == (1 if done.returncode else 0)
    return done.returncode, done.stderr


def test_anchor_finds_a_chain_made_anew(tmp_path: Path) -> None:
    """A running agent writes anchors on its period and at its end; a chain that is made anew does not fit them."""
    state, anchors = tmp_path / "state", tmp_path / "anchors"
    options = ("--anchor-file", str(anchors), "--anchor-period-s", "1", "--key-type", "p256")
    with start_agent(state, 0, *options) as agent:
        with RawAsker(port_of(agent.wait_for("ready")["listen"][0])):
            agent.wait_for("proxy connected")
        agent.wait_for("proxy disconnected")
        while len(anchors.read_text().splitlines()) < 3:  # as the process goes on
            os.sched_yield()
        assert agent.stop() == 0
    lines = [json.loads(line) for line in anchors.read_text().splitlines()]
    assert anchors.stat().st_mode & 0o777 == 0o600
    assert [set(line) for line in lines] == [{"at", "last_id", "hash"}] * len(lines)
    assert verified(state, "--anchor", str(anchors)) == (0, "")

    with writing(state) as connection:
        rows = list(audit_chain.rows(connection))
        assert (lines[-1]["last_id"], lines[-1]["hash"]) == (len(rows), rows[-1].hash.hex())
        assert rows[-1].event == b"stopped"
        connection.exec_driver_sql("UPDATE audit SET event = 'startled' WHERE event = 'started'")
        make_anew(connection)

    assert verified(state) == (0, "")
    status, told = verified(state, "--anchor", str(anchors))
    assert (status, "is not the one that the anchor names: the chain was made anew" in told) == (1, True)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "7",
        "null",
        "{}",
        '{"last_id": 1}',
        '{"last_id": 1, "hash": "zz"}',
        '{"last_id": 1, "hash": 7}',
        '{"last_id": "x", "hash": ""}',
        '{"last_id": 1e999, "hash": ""}',
        '{"last_id": -3, "hash": ""}',
        '{"last_id": 1, "hash": "00"}',
        "",
        "[" * 100_000,
        "\udcff",
    ],
    ids=lambda line: line[:40].encode("ascii", "replace").decode(),
)
def test_anchor_file_that_is_broken(tmp_path: Path, line: str) -> None:
    """A file that does not hold anchors is told of in one line, and which line of it; it is never taken for empty."""
    with open_agent(tmp_path, Time()):
        pass
    anchors = tmp_path / "anchors"
    head = Head(1, bytes(32))
    anchors.write_bytes(f"{audit_anchors.line_of(head, START)}\n{line}\n".encode(errors="surrogateescape"))

    with pytest.raises(audit_anchors.AnchorRefused, match="line 2, is no anchor"):
        audit_anchors.read_file(anchors)
    status, told = verified(tmp_path, "--anchor", str(anchors))

    assert (status, told) == (1, f"Error: {anchors}, line 2, is no anchor\n")


def test_anchor_file_with_nothing_in_it(tmp_path: Path) -> None:
    """An empty anchor file anchors nothing, which is said: it may have been emptied."""
    with open_agent(tmp_path, Time()):
        pass
    (tmp_path / "anchors").touch()

    assert verified(tmp_path, "--anchor", str(tmp_path / "anchors"))[0] == 1


def test_anchors_that_contradict_each_other(tmp_path: Path) -> None:
    """Two anchors of one row that differ are told of: the chain was made anew between them."""
    with open_agent(tmp_path, Time()) as agent:
        line = audit_anchors.line_of(agent.ledger.read(audit_chain.read_head), START)
    anchors = tmp_path / "anchors"
    other = json.dumps(json.loads(line) | {"hash": "00" * 32})
    for lines in ([other, line], [line, other]):
        anchors.write_text("".join(f"{each}\n" for each in lines))
        assert verified(tmp_path, "--anchor", str(anchors))[0] == 1


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_anchor_goes_to_syslog(tmp_path: Path, kind: str) -> None:
    """A running agent sends its anchors to a syslog daemon: authpriv, informational, with its name."""
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as daemon:
        daemon.settimeout(30)
        daemon.bind(str(tmp_path / "log") if kind == "unix" else ("127.0.0.1", 0))
        address = daemon.getsockname()
        named = address if isinstance(address, str) else f"127.0.0.1:{address[1]}"
        with start_agent(tmp_path / "state", 0, "--anchor-syslog", named, "--key-type", "p256") as agent:
            agent.wait_for("ready")
            first = daemon.recv(65_536)
            assert agent.stop() == 0
        last = daemon.recv(65_536)

    for message in (first, last):
        assert message.startswith(b"<86>vmi-agent: audit anchor {")
    line = json.loads(last.rstrip(b"\0").partition(b"anchor ")[2])
    with writing(tmp_path / "state") as connection:
        head = audit_chain.read_head(connection)
    assert (line["last_id"], line["hash"]) == (head.last_id, head.hash.hex())


def test_anchor_that_cannot_be_written(tmp_path: Path) -> None:
    """An agent whose anchors go nowhere serves, and says so once, and once more when it stops."""
    nowhere = ("--anchor-file", str(tmp_path), "--anchor-period-s", "1", "--key-type", "p256")
    done = run("vmi-agent", "serve", "--listen", "tcp:0:interface=127.0.0.1", "--state-dir", str(tmp_path), *nowhere)
    assert done.returncode == 2
    absent = ("--anchor-syslog", str(tmp_path / "absent"), "--anchor-period-s", "1", "--key-type", "p256")
    with start_agent(tmp_path / "state", 0, *absent) as agent:
        agent.wait_for("audit not anchored")
        with RawAsker(port_of(agent.wait_for("ready")["listen"][0])) as asker:
            asker.ask(request(make_csr()))
            assert len(asker.answers(1)) == 1
        assert agent.stop() == 0
    assert sum("audit not anchored" in line for line in agent.lines) == 2
    assert not any("does not tell of this stop" in line for line in agent.lines)


def send_many(address: str) -> None:
    """Send more anchors than any queue holds."""
    for _ in range(100_000):
        audit_anchors.send_to_syslog(address, "line")


def test_syslog_daemon_that_does_not_read(tmp_path: Path) -> None:
    """Once its queue is full an anchor is an error after a moment, and holds up nothing else for long."""
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        with pytest.raises(OSError, match=f"--anchor-syslog {path}"):
            send_many(path)


@pytest.mark.parametrize("address", ["", "log", "host", ":514", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000"])
def test_anchor_syslog_address_that_is_none(tmp_path: Path, address: str) -> None:
    """An address that is none ends the start with status 2 and says what is accepted."""
    state = ("--state-dir", str(tmp_path), "--listen", "tcp:0:interface=127.0.0.1")
    done = run("vmi-agent", "serve", *state, "--anchor-syslog", address)

    assert done.returncode == 2, done.stderr
    assert "anchor-syslog" in done.stderr
    assert "Traceback" not in done.stderr


def test_anchor_period(tmp_path: Path) -> None:
    """Anchors are written when the period is over, not sooner, and each names the end as it is then."""
    time, anchors = Time(), tmp_path / "anchors"
    with open_agent(tmp_path, time) as agent:
        to = AnchorTo(anchors, None, timedelta(minutes=5))
        upkeep = Upkeep(agent.generations, agent.publishing, agent.responder, agent.ledger, to, None, time)
        for minutes, expected in ((0, 1), (4.9, 1), (0.2, 2), (5, 3)):
            time.advance(minutes=minutes)
            sign(agent, make_csr(), user=f"hmc{minutes}")
            upkeep.round()
            found = audit_anchors.read_file(anchors)
            assert len(found) == expected
        head = agent.ledger.read(audit_chain.read_head)
        assert found[head.last_id] == head.hash
    assert verified(tmp_path, "--anchor", str(anchors)) == (0, "")
