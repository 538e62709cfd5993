"""Audits for the tests: one with every kind of event, made by the real parts, and how to tamper with one."""

import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection

from protocol.records import Signed
from runtime.clock import milliseconds, utc_now
from support.agents import Agent, Time, always, open_agent, request
from support.backups import restore
from support.csrs import make_csr
from support.intents import make_intent
from support.processes import port_of, run, start_agent
from support.raw_asker import RawAsker
from vmi_agent.backup import revocation_list
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.later_revocations import Later
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.reconcile import AuditBroken
from vmi_agent.ledger.audit.verify import NO_ANCHORS, verify_rows
from vmi_agent.ledger.blocked_keys import KEY_OCTETS, block_by_hand, unblock
from vmi_agent.ledger.queries import prune
from vmi_agent.ledger.revocation import Reason, release, revoke
from vmi_agent.ledger.schema import FILE_NAME, open_ledger

EVENTS = {
    "backup made",
    "ca keys encrypted anew",
    "ca made",
    "ca rotated",
    "channel peer refused",
    "clock accepted",
    "clock noted",
    "crl issued",
    "intents abandoned",
    "key unblocked",
    "keys blocked",
    "proxy connected",
    "proxy disconnected",
    "pruned",
    "refused",
    "released",
    "restored",
    "revocation carried over",
    "revocations exported",
    "revoked",
    "signed",
    "signed before",
    "signing",
    "started",
    "stopped",
}
# What a stranger says first.
NO_HELLO = b"GET / HTTP/1.1\r\nHost: stranger\r\n\r\n"


def sign(agent: Agent, csr: bytes, user: str = "hmc1", key: bytes = bytes(16)) -> bytes:
    """Have a certificate signed by the parts of an agent; return its serial."""
    outcome = agent.sign(request(csr, user=user, key=key), sha256(csr).digest(), always)
    assert isinstance(outcome.answer, Signed), outcome
    return bytes.fromhex(outcome.fields["serial"])


def make_full_audit(directory: Path) -> Path:
    """Make a state directory whose audit has each of `EVENTS`; return it."""
    state = directory / "state"
    with start_agent(state, 0, "--key-type", "p256") as process:
        port = port_of(process.wait_for("ready")["listen"][0])
        with RawAsker(port) as asker:
            asker.ask(request(make_csr(), user="räuber"))
            assert len(asker.answers(1)) == 1
        process.wait_for("proxy disconnected")
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(NO_HELLO)
            process.wait_for("channel peer refused")
        assert process.stop() == 0
    tomorrow_ms = milliseconds(utc_now() + timedelta(days=1))
    noting(state)(Event("clock noted", tomorrow_ms, {"trusted_ms": tomorrow_ms, "latest_ms": tomorrow_ms}))
    assert run("vmi-agent", "audit", "accept-clock", "--state-dir", str(state)).returncode == 0
    time = Time()
    time.now = utc_now()
    with open_agent(state, time) as agent:
        _live(agent, state, time)
    with open_agent(state, time) as agent:  # which closes off the intent
        sign(agent, make_csr())
    ca_lifecycle.encrypt_keys(state, None, b"secret phrase", time(), lambda _: None)
    access = Access(passphrase=b"secret phrase")
    with open_agent(state, time, access=access) as agent:
        ca_lifecycle.encrypt_keys(state, b"secret phrase", b"secret phrase", time(), agent.ledger.note)
    revocation_list.write(state, directory / "revocations", access, time())
    back_up(state, directory / "backup.tar", time(), access)
    with open_agent(state, time, access=access) as agent:
        later, now_ms = sign(agent, make_csr(), user="later"), milliseconds(time())
        agent.ledger.change(lambda connection: revoke(connection, later, Reason.superseded, now_ms, "tester"))
    restore(directory / "backup.tar", directory / "restored", time(), Later(old_state_dir=state))
    return directory / "restored"


def _live(agent: Agent, state: Path, time: Time) -> None:
    agent.publishing.refresh()
    csr = make_csr(key="p384")
    serial = sign(agent, csr)
    assert sign(agent, csr) == serial
    broken = csr[:-1] + bytes((csr[-1] ^ 1,))
    agent.sign(request(broken, user="mallory"), sha256(broken).digest(), always)
    now_ms = milliseconds(time())
    agent.ledger.change(lambda connection: revoke(connection, serial, Reason.certificateHold, now_ms, "tester"))
    agent.ledger.change(lambda connection: release(connection, serial, now_ms, "tester"))
    agent.ledger.change(lambda connection: revoke(connection, serial, Reason.keyCompromise, now_ms, "tester"))
    keys = [bytes((number,)) * KEY_OCTETS for number in range(50)]
    agent.ledger.change(lambda connection: block_by_hand(connection, keys, "leaked", now_ms, "tester"))
    agent.ledger.change(lambda connection: unblock(connection, keys[7], now_ms, "tester"))
    time.advance(days=4000)
    agent.ledger.change(lambda connection: prune(connection, time() - timedelta(days=1), milliseconds(time())))
    ca_lifecycle.rotate(state, None, Access(), time(), agent.ledger.note)
    agent.generations.look_for_newer()
    for number in range(3):  # as an agent could record it before such characters were refused
        sign(agent, make_csr(), user=f"hmc{number}\u2028", key=bytes(15) + bytes((number,)))
    held = sign(agent, make_csr(key="rsa2048"))
    now_ms = milliseconds(time())
    agent.ledger.change(lambda connection: revoke(connection, held, Reason.certificateHold, now_ms, "tester"))
    agent.ledger.record_intent(make_intent(1))


@contextmanager
def tampering(ledger: Path) -> Iterator[Connection]:
    """Give a transaction on a ledger's file, which is undone at the end."""
    engine = open_ledger(ledger, for_writing=True)
    try:
        with engine.connect() as connection, closing(connection.begin()):
            yield connection
    finally:
        engine.dispose()


def drop_constraints(ledger: Path) -> None:
    """Let every column hold anything, as somebody with an editor can."""
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for constraint in (" NOT NULL", " VARCHAR", " BIGINT", " BLOB"):
            statement = "UPDATE sqlite_master SET sql = replace(sql, ?, '') WHERE type = 'table'"
            connection.execute(statement, (constraint,))
        connection.execute("PRAGMA writable_schema = RESET")


def complaint(connection: Connection, anchors: Mapping[int, bytes] = NO_ANCHORS) -> str:
    """Return what `verify` complains of, but for the schema, which some tests change; "" for nothing."""
    try:
        verify_rows(connection, anchors)
    except AuditBroken as broken:
        return str(broken)
    return ""


def flipped(value: bytes, bit: int) -> bytes:
    """Return the octets with one bit flipped."""
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def ledger_of(state_dir: Path) -> Path:
    """Return the path of a ledger."""
    return state_dir / FILE_NAME
