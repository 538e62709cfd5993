"""Looking up what was issued: filters, pages, export and pruning, in the ledger and through the command line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from support.agents import START, Agent, Time, always, open_agent, request
from support.csrs import make_csr
from support.judges import split_chain
from support.processes import run

from runtime.asn1.der import csr_subject_and_key
from runtime.clock import milliseconds
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import queries, revocation
from vmi_agent.ledger.audit import verify as audit_check
from vmi_agent.ledger.queries import PRUNE_BATCH, STATUSES, Filter, NoSuchCertificate, list_certificates, prune
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import reading, writing
from vmi_agent.policy.profile import Profile

YEAR = timedelta(days=365)


def name(common_name: str) -> x509.Name:
    """Return a subject."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def issue(agent: Agent, common_name: str, *, user: str = "hmc1", key: str = "p256") -> bytes:
    """Issue a certificate; return its serial number."""
    return agent.issuing.issue(request(make_csr(key=key, subject=name(common_name)), user=user), always).serial


@pytest.fixture
def time() -> Time:
    """Return a clock that the test moves."""
    return Time()


@pytest.fixture
def agent(tmp_path: Path, time: Time) -> Iterator[Agent]:
    """Yield an agent with an empty ledger."""
    with open_agent(tmp_path, time) as opened:
        yield opened


@pytest.fixture
def issued(agent: Agent) -> dict[str, bytes]:
    """Issue six certificates; return their serial numbers by common name."""
    return {
        "hmc-a": issue(agent, "hmc-a"),
        "hmc-b": issue(agent, "hmc-b", user="hmc2"),
        "HMC-c": issue(agent, "HMC-c", key="ed25519"),
        "100%": issue(agent, "100%"),
        "1000": issue(agent, "1000"),
        "last": issue(agent, "last"),
    }


def found(state_dir: Path, time: Time, wanted: Filter) -> list[str]:
    """Return the common names of what is found, in order."""
    return [row.subject.removeprefix("CN=") for row in list_certificates(state_dir, wanted, time())]


def test_list_is_in_the_order_of_issuing(tmp_path: Path, time: Time, issued: dict[str, bytes]) -> None:
    """Without a filter all are there, oldest first."""
    assert found(tmp_path, time, Filter()) == list(issued)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(subject="HMC"), ["hmc-a", "hmc-b", "HMC-c"]),
        (Filter(subject="100%"), ["100%"]),
        (Filter(subject="_"), []),
        (Filter(requester="hmc2"), ["hmc-b"]),
        (Filter(requester="hmc"), []),
        (Filter(requester="hmc1", subject="hmc-"), ["hmc-a", "HMC-c"]),
        (Filter(key_sha256=bytes(32)), []),
        (Filter(limit=2), ["hmc-a", "hmc-b"]),
    ],
    ids=repr,
)
def test_list_filters(
    tmp_path: Path, time: Time, issued: dict[str, bytes], wanted: Filter, expected: list[str]
) -> None:
    """Each filter keeps what it says, several keep what all say, and none reads its text as a pattern."""
    assert found(tmp_path, time, wanted) == expected


def test_list_by_key(tmp_path: Path, time: Time, issued: dict[str, bytes]) -> None:
    """The hash of a CSR's SubjectPublicKeyInfo finds the certificates with that key."""
    _, key_info = csr_subject_and_key(make_csr(key="ed25519"))

    assert found(tmp_path, time, Filter(key_sha256=sha256(key_info).digest())) == ["HMC-c"]


@pytest.mark.parametrize("digits", [1, 2, 3, 33, 34])
def test_list_by_the_beginning_of_a_serial_number(
    tmp_path: Path, time: Time, issued: dict[str, bytes], digits: int
) -> None:
    """Any number of digits, odd ones too, up to the whole."""
    prefix = issued["HMC-c"].hex()[:digits]

    expected = [each for each, serial in issued.items() if serial.hex().startswith(prefix)]
    assert found(tmp_path, time, Filter(serial_prefix=prefix)) == expected


def test_list_pages_are_the_whole(tmp_path: Path, time: Time, agent: Agent, issued: dict[str, bytes]) -> None:
    """Page after page, each after the last serial number of the one before, gives each certificate once.

    What is issued meanwhile comes at the end.
    """
    seen: list[str] = []
    after = None
    while page := list(list_certificates(tmp_path, Filter(limit=2, after=after), time())):
        seen += [row.subject.removeprefix("CN=") for row in page]
        after = page[-1].serial.hex()
        if len(seen) == 2:
            issue(agent, "meanwhile")

    assert seen == [*issued, "meanwhile"]


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 5, 6, 7])
def test_list_is_read_in_pages(
    tmp_path: Path, time: Time, issued: dict[str, bytes], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are read at once, what is listed is the same."""
    monkeypatch.setattr(queries, "PAGE", 2)

    assert found(tmp_path, time, Filter(limit=limit)) == list(issued)[:limit]


def test_list_after_a_stranger(tmp_path: Path, time: Time, issued: dict[str, bytes]) -> None:
    """A page after a certificate that was not issued here is an error, not an empty page."""
    with pytest.raises(NoSuchCertificate, match="00ff"):
        found(tmp_path, time, Filter(after="00ff"))


def test_list_by_status(tmp_path: Path, time: Time, agent: Agent, issued: dict[str, bytes]) -> None:
    """Each certificate has exactly one status at any time."""
    with writing(tmp_path) as connection:
        revocation.revoke(connection, issued["hmc-a"], Reason.keyCompromise, milliseconds(time()), "test")
        revocation.revoke(connection, issued["hmc-b"], Reason.certificateHold, milliseconds(time()), "test")
    time.advance(days=360)
    young = issue(agent, "young", key="p256/young")
    time.advance(days=6)

    by_status = {status: found(tmp_path, time, Filter(status=status)) for status in STATUSES}

    assert by_status == {
        "valid": ["young"],
        "expired": ["HMC-c", "100%", "1000", "last"],
        "revoked": ["hmc-a"],
        "on-hold": ["hmc-b"],
        "not-yet-valid": [],
    }
    rows = list(list_certificates(tmp_path, Filter(), time()))
    assert {row.serial: queries.status_of(row, time()) for row in rows}[young] == "valid"


def test_list_before_the_first_second(tmp_path: Path, time: Time, agent: Agent, issued: dict[str, bytes]) -> None:
    """A certificate that was made while the clock was ahead is not valid before its notBefore."""
    [row] = list_certificates(tmp_path, Filter(subject="last"), time())
    for now_s, status in ((row.not_before, "valid"), (row.not_before - 1, "not-yet-valid")):
        time.advance(seconds=now_s - time().timestamp())
        assert queries.status_of(row, time()) == status
        for each in STATUSES:
            assert ("last" in found(tmp_path, time, Filter(status=each))) is (each == status)


def test_list_at_the_last_second(tmp_path: Path, time: Time, agent: Agent, issued: dict[str, bytes]) -> None:
    """A certificate is valid through its notAfter, and expired from the next second on."""
    [row] = list_certificates(tmp_path, Filter(subject="last"), time())
    time.advance(seconds=row.not_after - START.timestamp())
    assert found(tmp_path, time, Filter(subject="last", status="valid")) == ["last"]

    time.advance(seconds=1)
    assert found(tmp_path, time, Filter(subject="last", status="valid")) == []
    assert found(tmp_path, time, Filter(subject="last", status="expired")) == ["last"]


def test_list_of_what_expires_soon(tmp_path: Path, time: Time) -> None:
    """Valid now, and not at the given time: neither what lives longer nor what has ended or is revoked already."""
    short = replace(Profile(), validity=timedelta(days=10))
    with open_agent(tmp_path, time, profile=short) as opened:
        issue(opened, "ended")
        time.advance(days=10)
        issue(opened, "soon")
        revoked = issue(opened, "revoked")
        opened.ledger.change(lambda it: revocation.revoke(it, revoked, Reason.superseded, milliseconds(time()), "test"))
        time.advance(days=5)
        issue(opened, "later")

    assert found(tmp_path, time, Filter(expiring_before=time() + timedelta(days=5))) == ["soon"]


def test_list_leaves_out_what_was_not_issued(tmp_path: Path, time: Time, agent: Agent) -> None:
    """An intent without a signature is no certificate."""
    serial = issue(agent, "hmc-a")
    with writing(tmp_path) as connection:
        connection.exec_driver_sql("UPDATE issuance SET status = 'abandoned'")

    assert found(tmp_path, time, Filter()) == []
    with pytest.raises(NoSuchCertificate):
        queries.find_certificate(tmp_path, serial.hex())


def test_prune_forgets_what_ended_before(tmp_path: Path, time: Time, agent: Agent) -> None:
    """Only what ended before the given time goes; the rest stays, and so does the audit's word of what is gone."""
    issue(agent, "old")
    time.advance(days=300)
    issue(agent, "young", key="p256/young")
    time.advance(days=100)

    with writing(tmp_path) as connection:
        assert prune(connection, time() - timedelta(days=40), milliseconds(time())) == 0
        assert prune(connection, time() - timedelta(days=30), milliseconds(time())) == 1

    assert found(tmp_path, time, Filter()) == ["young"]
    with reading(tmp_path) as connection:
        audit_check.verify(connection)


def test_prune_goes_on_where_it_stopped(tmp_path: Path, time: Time, agent: Agent) -> None:
    """One call takes so many at most, so that signing gets its turns."""
    first = issue(agent, "many").hex()
    with writing(tmp_path) as connection:
        columns = ["status", "root_generation", "profile", "user", "method", "address"]
        columns += ["request_digest", "csr_sha256", "key_sha256", "subject", "not_before", "not_after", "recorded_ms"]
        names = ", ".join([*columns, "tbs"])
        # Abandoned ones, of which the audit says nothing.
        connection.exec_driver_sql(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {PRUNE_BATCH})"  # noqa: S608
            f" INSERT INTO issuance (serial, {names}) SELECT CAST(i AS BLOB), {names} FROM n, issuance"
        )
        connection.exec_driver_sql(f"UPDATE issuance SET status = 'abandoned' WHERE serial != x'{first}'")  # noqa: S608
    time.advance(days=400)

    with writing(tmp_path) as connection:
        counts = [prune(connection, time(), milliseconds(time())) for _ in range(3)]

    assert counts == [PRUNE_BATCH, 1, 0]


def test_prune_never_takes_what_has_not_ended(tmp_path: Path, time: Time, agent: Agent) -> None:
    """A time to come is refused: what it would take is still valid."""
    issue(agent, "valid")
    with pytest.raises(ValueError, match="never pruned"), writing(tmp_path) as connection:
        prune(connection, time() + timedelta(seconds=1), milliseconds(time()))

    assert found(tmp_path, time, Filter()) == ["valid"]


def test_prune_forgets_idempotency_keys_with_their_certificates(tmp_path: Path, time: Time, agent: Agent) -> None:
    """What a pruned certificate was asked for with may be used again, as if for the first time."""
    agent.issuing.issue(request(make_csr(), key=b"k" * 16), always)
    time.advance(days=400)
    with writing(tmp_path) as connection:
        assert prune(connection, time(), milliseconds(time())) == 1
        assert connection.exec_driver_sql("SELECT count(*) FROM idempotency").scalar() == 0

    assert agent.issuing.issue(request(make_csr(), key=b"k" * 16), always).is_new


def test_listing_without_a_ledger(tmp_path: Path, time: Time) -> None:
    """Where there is no ledger, that is said; none is made."""
    with pytest.raises(LedgerUnavailable, match="no ledger"):
        found(tmp_path, time, Filter())
    assert list(tmp_path.iterdir()) == []


# The command line


def agent_command(state_dir: Path, *arguments: str) -> Any:
    """Run a vmi-agent command."""
    return run("vmi-agent", *arguments, "--state-dir", str(state_dir))


def test_certs_list_on_the_command_line(tmp_path: Path, issued: dict[str, bytes]) -> None:
    """Options are filters; JSON and text tell of the same certificates."""
    options = ["certs", "list", "--subject", "hmc", "--requester", "hmc1", "--limit", "5"]
    as_json = json.loads(agent_command(tmp_path, *options, "--json").stdout)
    as_text = agent_command(tmp_path, *options).stdout.splitlines()

    assert [record["serial"] for record in as_json] == [issued["hmc-a"].hex(), issued["HMC-c"].hex()]
    assert [line.split()[0] for line in as_text] == [record["serial"] for record in as_json]
    rest = json.loads(agent_command(tmp_path, "certs", "list", "--json", "--after", issued["1000"].hex()).stdout)
    assert [record["subject"] for record in rest] == ["CN=last"]


def test_certs_export_on_the_command_line(tmp_path: Path, issued: dict[str, bytes]) -> None:
    """JSON lines and PEM hold the same whole certificates."""
    lines = agent_command(tmp_path, "certs", "export").stdout.splitlines()
    pem = agent_command(tmp_path, "certs", "export", "--format", "pem").stdout

    records = [json.loads(line) for line in lines]
    assert [record["certificate"] for record in records] == split_chain(pem)
    numbers = [x509.load_pem_x509_certificate(each.encode()).serial_number for each in split_chain(pem)]
    assert numbers == [int.from_bytes(serial) for serial in issued.values()]
    assert all(before["issued_at"] <= after["issued_at"] for before, after in pairwise(records))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--key-sha256", "ab" * 31], "64 hexadecimal digits"),
        (["--key-sha256", "ab" * 33], "64 hexadecimal digits"),
        (["--serial-prefix", "xyz"], "1 to 34 hexadecimal digits"),
        (["--serial-prefix", "a" * 35], "1 to 34 hexadecimal digits"),
        (["--status", "lost"], "valid"),
        (["--limit", "0"], "x>=1"),
        (["--expiring-within-days", "-1"], "0<=x<=36500"),
    ],
    ids=repr,
)
def test_certs_list_with_a_bad_option(tmp_path: Path, options: list[str], words: str) -> None:
    """What is refused is named, with what is accepted."""
    done = agent_command(tmp_path, "certs", "list", *options)

    assert done.returncode == 2
    assert words in done.stderr


def test_certs_prune_on_the_command_line(tmp_path: Path, issued: dict[str, bytes]) -> None:
    """Nothing that is valid goes, and the command says how many went."""
    assert agent_command(tmp_path, "certs", "prune", "--ended-days", "1").stdout == "pruned: 0\n"
    assert agent_command(tmp_path, "certs", "prune", "--ended-days", "0").returncode == 2
