"""Issuing: what a leaf is, what the ledger holds at which moment, and what a repetition gets."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.agents import START, Alone, Time, always, create_ca, issuing, open_agent, request
from support.csrs import OPENSSL_KEYS, make_csr, openssl_csr
from support.judges import (
    assert_is_leaf,
    assert_is_root,
    assert_openssl_accepts,
    assert_same_subject_and_key,
    openssl,
    split_chain,
)

from protocol.errors import ErrorCode
from runtime.asn1 import der
from runtime.clock import utc_now
from vmi_agent.errors import NotWanted, Refused, SelfCheckFailed
from vmi_agent.issuance.issue import sign_recorded
from vmi_agent.keys import KEY_TYPES, CustodyError
from vmi_agent.ledger.issuances import Intent
from vmi_agent.ledger.revocation import Reason, revoke
from vmi_agent.ledger.schema import FILE_NAME, writing
from vmi_agent.policy.profile import Profile


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


@pytest.fixture
def open_issuing(tmp_path: Path, time: Time) -> Iterator[Alone]:
    """Yield a P-256 CA with an empty ledger."""
    with issuing(tmp_path, time) as (opened, _):
        yield opened


def to_pem(chain: tuple[bytes, ...]) -> str:
    """Return a chain in PEM, written by the cryptography package."""
    certificates = [x509.load_der_x509_certificate(each) for each in chain]
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def rows(state_dir: Path) -> list[Any]:
    """Read the ledger's table from outside."""
    with closing(sqlite3.connect(state_dir / FILE_NAME)) as connection, connection:
        connection.row_factory = sqlite3.Row
        return connection.execute("SELECT * FROM issuance ORDER BY id").fetchall()


@pytest.mark.parametrize("ca_key", KEY_TYPES)
def test_issue_under_each_ca_key(ca_key: str, tmp_path: Path, time: Time) -> None:
    """A leaf under each kind of CA key verifies, has every field as it should, and so has its root."""
    with issuing(tmp_path, time, key_type=ca_key) as (opened, ca):
        chain = opened.issue(request(make_csr(key="rsa2048")), always).chain

    leaf = x509.load_der_x509_certificate(chain[0])
    assert len(chain) == 2
    assert_is_root(ca.root)
    assert_is_leaf(leaf, ca.root, rsa=True)
    leaf.verify_directly_issued_by(ca.root)
    if not ca_key.startswith("mldsa"):  # which the openssl of Debian 12 does not know
        assert_openssl_accepts(to_pem(chain), tmp_path)


@pytest.mark.parametrize("key", OPENSSL_KEYS)
def test_issue_for_each_csr_key(key: str, tmp_path: Path, time: Time) -> None:
    """A CSR that openssl made with each kind of key comes back with its subject, in order, and its key."""
    csr = openssl_csr(tmp_path, key)
    with issuing(tmp_path, time) as (opened, ca):
        chain = opened.issue(request(der_of(csr)), always).chain

    text = to_pem(chain)
    leaf = split_chain(text)[0]
    assert_openssl_accepts(text, tmp_path)
    assert_same_subject_and_key(csr, leaf)
    assert_is_leaf(x509.load_pem_x509_certificate(leaf.encode()), ca.root, rsa=key.startswith("rsa"))


@pytest.mark.parametrize("ca_key", ["p256", "mldsa65"])
@pytest.mark.parametrize("key", ["mldsa44", "mldsa65", "mldsa87"])
def test_issue_for_post_quantum_keys(key: str, ca_key: str, tmp_path: Path, time: Time) -> None:
    """A CSR with an ML-DSA key gets a leaf like any other, for signatures only."""
    csr = make_csr(key=key)
    with issuing(tmp_path, time, key_type=ca_key) as (opened, ca):
        chain = opened.issue(request(csr), always).chain

    leaf = x509.load_der_x509_certificate(chain[0])
    assert der.leaf_subject_and_key(chain[0]) == der.csr_subject_and_key(csr)
    assert_is_leaf(leaf, ca.root, rsa=False)
    leaf.verify_directly_issued_by(ca.root)


def der_of(csr: Path) -> bytes:
    """Return a PEM CSR's DER."""
    return x509.load_pem_x509_csr(csr.read_bytes()).public_bytes(serialization.Encoding.DER)


def csr_with_strings(string_mask: str, directory: Path) -> bytes:
    """Have openssl write a subject beyond ASCII in the string types that this mask leaves it."""
    config = directory / "req.cnf"
    config.write_text(f"[req]\nstring_mask = {string_mask}\ndistinguished_name = dn\nutf8 = yes\n[dn]\n")
    subject = "/O=Müller & Söhne/CN=hmc1"
    return der_of(openssl_csr(directory, subject=subject, extra=["-utf8", "-config", str(config)]))


@pytest.mark.parametrize("string_mask", ["utf8only", "pkix", "MASK:0x800"], ids=["UTF8", "printable", "BMP"])
def test_issue_keeps_the_subjects_string_types(string_mask: str, tmp_path: Path, open_issuing: Alone) -> None:
    """The subject is the CSR's, octet for octet, whatever string types it is written in."""
    csr = csr_with_strings(string_mask, tmp_path)

    chain = open_issuing.issue(request(csr), always).chain

    assert der.leaf_subject_and_key(chain[0]) == der.csr_subject_and_key(csr)


def test_issue_with_a_subject_that_cannot_be_read(tmp_path: Path, open_issuing: Alone) -> None:
    """A TeletexString beyond ASCII, which every reader reads differently, is refused with advice."""
    with pytest.raises(Refused, match="UTF8String") as caught:
        open_issuing.issue(request(csr_with_strings("nombstr", tmp_path)), always)
    assert caught.value.code is ErrorCode.CSR_POLICY


def test_issue_copies_the_names(open_issuing: Alone) -> None:
    """Alternative names that the profile allows are in the leaf, and not critical."""
    names = x509.SubjectAlternativeName([x509.DNSName("hmc1.example.com"), x509.RFC822Name("hmc@example.com")])

    chain = open_issuing.issue(request(make_csr(names)), always).chain

    leaf, root = (x509.load_der_x509_certificate(each) for each in chain)
    extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert_is_leaf(leaf, root, rsa=False, names=True)
    assert (extension.value, extension.critical) == (names, False)


def test_issue_dates(open_issuing: Alone) -> None:
    """notBefore lies five minutes back; the validity is 365 days, its last second included."""
    chain = open_issuing.issue(request(make_csr()), always).chain

    leaf = x509.load_der_x509_certificate(chain[0])
    assert leaf.not_valid_before_utc == START - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == START - timedelta(minutes=5, seconds=1) + timedelta(days=365)


@pytest.mark.parametrize("year", [2049, 2050])
def test_issue_across_2050(year: int, tmp_path: Path, time: Time) -> None:
    """UTCTime through 2049 and GeneralizedTime from 2050, which openssl -x509_strict insists on."""
    time.now = START.replace(year=year, month=1, day=1)
    with issuing(tmp_path, time) as (opened, _):
        chain = opened.issue(request(make_csr()), always).chain

    leaf = x509.load_der_x509_certificate(chain[0])
    assert leaf.not_valid_before_utc == time.now - timedelta(minutes=5)
    text = to_pem(chain)
    judged = ["-attime", str(int(time.now.timestamp()))]
    (tmp_path / "leaf.pem").write_text(split_chain(text)[0])
    (tmp_path / "root.pem").write_text(split_chain(text)[1])
    openssl("verify", "-x509_strict", *judged, "-CAfile", str(tmp_path / "root.pem"), str(tmp_path / "leaf.pem"))


def test_issue_near_the_end_of_the_root(tmp_path: Path, time: Time) -> None:
    """A leaf never outlives its issuer."""
    with issuing(tmp_path, time) as (opened, ca):
        time.now = ca.root.not_valid_after_utc - timedelta(days=1)
        leaf = x509.load_der_x509_certificate(opened.issue(request(make_csr()), always).chain[0])

    assert leaf.not_valid_after_utc == ca.root.not_valid_after_utc


def test_issue_gives_each_leaf_its_own_serial(open_issuing: Alone) -> None:
    """No two serials are equal."""
    users = [f"hmc{number}" for number in range(50)]
    csr = make_csr()

    leaves = [open_issuing.issue(request(csr, user=user), always).chain[0] for user in users]

    assert len({x509.load_der_x509_certificate(leaf).serial_number for leaf in leaves}) == len(users)


# The ledger's part


def test_issue_records_what_was_signed(tmp_path: Path, open_issuing: Alone) -> None:
    """The row holds requester, CSR hash, the signed TBS octet for octet, and the signature."""
    chain = open_issuing.issue(request(make_csr()), always).chain

    [row] = rows(tmp_path)
    leaf = x509.load_der_x509_certificate(chain[0])
    assert (row["user"], row["method"], row["address"]) == ("hmc1", "test", "192.0.2.1")
    assert (row["status"], row["tbs"], row["signature"]) == ("issued", leaf.tbs_certificate_bytes, leaf.signature)
    assert row["serial"] == leaf.serial_number.to_bytes(17)
    assert row["subject"] == "CN=hmc1"


class WatchingCustody:
    """A custody that looks into the ledger when it is asked to sign, and can sign wrongly."""

    def __init__(self, inner: Any, state_dir: Path) -> None:
        self._inner = inner
        self._state_dir = state_dir
        self.seen: list[tuple[str, bytes]] = []
        self.asked_for: list[bytes] = []
        self.sign_something_else = False
        self.pace = inner.pace

    @property
    def public_key(self) -> Any:
        """The inner custody's."""
        return self._inner.public_key

    def sign(self, tbs: bytes) -> bytes:
        """Sign, after noting what the ledger holds at this moment."""
        self.asked_for.append(tbs)
        self.seen = [(row["status"], row["tbs"]) for row in rows(self._state_dir)]
        signature: bytes = self._inner.sign(b"something else" if self.sign_something_else else tbs)
        return signature

    def close(self) -> None:
        """Nothing to let go of."""


@pytest.fixture
def watched(tmp_path: Path, time: Time) -> Iterator[tuple[Alone, WatchingCustody]]:
    """Yield a CA whose custody is watched."""
    with issuing(tmp_path, time) as (opened, ca):
        custody = WatchingCustody(ca.custody, tmp_path)
        opened.issuing._current = lambda: replace(ca, custody=custody)
        yield opened, custody


def test_issue_records_the_intent_before_the_key_is_used(watched: tuple[Alone, WatchingCustody]) -> None:
    """When the key is asked to sign, the very TBS stands in the ledger as pending, for any process to see."""
    opened, custody = watched

    chain = opened.issue(request(make_csr()), always).chain

    assert custody.seen == [("pending", custody.asked_for[0])]
    assert x509.load_der_x509_certificate(chain[0]).tbs_certificate_bytes == custody.asked_for[0]


def test_issue_checks_what_was_signed(watched: tuple[Alone, WatchingCustody], tmp_path: Path) -> None:
    """A signature that does not verify is not recorded and does not leave; the next request is served."""
    opened, custody = watched
    custody.sign_something_else = True
    with pytest.raises(SelfCheckFailed):
        opened.issue(request(make_csr()), always)
    assert [row["status"] for row in rows(tmp_path)] == ["pending"]

    custody.sign_something_else = False
    opened.issue(request(make_csr()), always)

    assert [row["status"] for row in rows(tmp_path)] == ["pending", "issued"]


def intent_of(leaf: bytes) -> Intent:
    """Return an intent to sign what a leaf was made of once more, under another serial number in the ledger."""
    return Intent(
        serial=bytes(17),
        tbs=der.children(leaf)[0],
        root_generation=1,
        profile="",
        user="",
        method="",
        address="",
        idempotency_key=bytes(16),
        csr_sha256=b"",
        key_sha256=b"",
        subject="",
        not_before=0,
        not_after=0,
        recorded_ms=0,
        public_key_info=b"",
    )


@pytest.mark.parametrize("other", [{"key": "p384"}, {"subject": x509.Name([])}], ids=["key", "subject"])
def test_issue_checks_whom_the_certificate_is_for(tmp_path: Path, time: Time, other: dict[str, Any]) -> None:
    """A certificate with another key or subject than was asked for is neither recorded nor given to anybody."""
    with open_agent(tmp_path, time) as agent:
        leaf = agent.issuing.issue(request(make_csr()), always).chain[0]
        subject, key = der.csr_subject_and_key(make_csr(**other))
        with pytest.raises(SelfCheckFailed, match="not the one that was asked for"):
            agent.go(sign_recorded, intent_of(leaf), agent.generations.current, time, subject, key)
    assert [row["status"] for row in rows(tmp_path)] == ["issued"]


@pytest.mark.parametrize(
    "mistake",
    [{"name": x509.Name([]).public_bytes()}, {"signature_algorithm": bytes.fromhex("300a06082a8648ce3d040303")}],
    ids=["name", "algorithm"],
)
def test_issue_checks_what_the_certificate_says_of_its_issuer(
    tmp_path: Path, time: Time, mistake: dict[str, Any]
) -> None:
    """A certificate that names another issuer, or another algorithm than its CA signs with, is given to nobody."""
    with issuing(tmp_path, time) as (opened, ca):
        opened.issuing._current = lambda: replace(ca, issuer=replace(ca.issuer, **mistake))
        with pytest.raises(SelfCheckFailed, match="does not verify under the CA"):
            opened.issue(request(make_csr()), always)
    assert [row["status"] for row in rows(tmp_path)] == ["pending"]


def test_issue_checks_that_no_leaf_outlives_its_issuer(tmp_path: Path, time: Time) -> None:
    """Where the end of the issuer's validity was got wrong, nothing that ends after it is given to anybody."""
    with issuing(tmp_path, time, profile=Profile(validity=timedelta(days=8000))) as (opened, ca):
        mistaken = replace(ca.issuer, not_after=ca.issuer.not_after + timedelta(days=1))
        opened.issuing._current = lambda: replace(ca, issuer=mistaken)
        with pytest.raises(SelfCheckFailed, match="outlives"):
            opened.issue(request(make_csr()), always)
    assert [row["status"] for row in rows(tmp_path)] == ["pending"]


def test_issue_under_a_ca_that_has_ended(open_issuing: Alone, time: Time, tmp_path: Path) -> None:
    """From the CA's last second on nothing is recorded, and whoever runs it is told what to do."""
    time.advance(days=20 * 365, minutes=-5)
    with pytest.raises(CustodyError, match="vmi-agent ca rotate"):
        open_issuing.issue(request(make_csr()), always)
    assert rows(tmp_path) == []


def test_utc_now_is_aware() -> None:
    """The time of day knows that it is UTC."""
    assert utc_now().tzinfo is UTC


def test_issue_for_nobody(open_issuing: Alone, tmp_path: Path) -> None:
    """Where the asker has given up, nothing is recorded."""

    def gave_up() -> None:
        raise NotWanted(ErrorCode.DEADLINE)

    with pytest.raises(NotWanted):
        open_issuing.issue(request(make_csr()), gave_up)
    assert rows(tmp_path) == []


def test_issue_that_is_refused_records_nothing(open_issuing: Alone, tmp_path: Path) -> None:
    """A refused CSR leaves no intent."""
    with pytest.raises(Refused):
        open_issuing.issue(request(b"no CSR"), always)
    assert rows(tmp_path) == []


# Repetitions


@pytest.mark.parametrize(("minutes", "same"), [(0, True), (9.99, True), (10, False)])
def test_issue_again_within_ten_minutes(open_issuing: Alone, time: Time, minutes: float, same: bool) -> None:
    """The same requester and CSR get the same certificate for ten minutes, and a new one then."""
    csr = make_csr()
    first = open_issuing.issue(request(csr), always).chain
    time.advance(minutes=minutes)

    assert (open_issuing.issue(request(csr), always).chain == first) is same


def test_issue_for_another_requester(open_issuing: Alone) -> None:
    """The same CSR of another requester, or another CSR of the same one, is another question."""
    csr = make_csr()
    first = open_issuing.issue(request(csr), always).chain

    assert open_issuing.issue(request(csr, user="hmc2"), always).chain != first
    assert open_issuing.issue(request(make_csr()), always).chain != first


def test_issue_again_with_the_same_key(open_issuing: Alone, time: Time) -> None:
    """The same idempotency key gets the same certificate at any later time, but only for the same requester."""
    csr, key = make_csr(), b"k" * 16
    first = open_issuing.issue(request(csr, key=key), always).chain
    time.advance(days=30)

    assert open_issuing.issue(request(csr, key=key), always).chain == first
    assert open_issuing.issue(request(csr, key=key, user="hmc2"), always).chain != first


def test_issue_again_learns_a_new_key(open_issuing: Alone, time: Time) -> None:
    """A repetition that brings a key for the first time gets the same certificate, and later gets it by the key."""
    csr, key = make_csr(), b"k" * 16
    first = open_issuing.issue(request(csr), always).chain
    assert open_issuing.issue(request(csr, key=key), always).chain == first
    time.advance(days=30)

    assert open_issuing.issue(request(csr, key=key), always).chain == first


def test_issue_with_a_used_key_for_another_csr(open_issuing: Alone, tmp_path: Path) -> None:
    """A key stands for one CSR: another one is a conflict and issues nothing."""
    key = b"k" * 16
    open_issuing.issue(request(make_csr(), key=key), always)
    with pytest.raises(Refused) as caught:
        open_issuing.issue(request(make_csr(), key=key), always)
    assert caught.value.code is ErrorCode.REQUEST_CONFLICT
    assert len(rows(tmp_path)) == 1


def test_issue_again_after_a_restart(tmp_path: Path, time: Time) -> None:
    """Repetitions are recognised across a restart, by CSR and by key."""
    csr, key = make_csr(), b"k" * 16
    with issuing(tmp_path, time) as (opened, _):
        first = opened.issue(request(csr, key=key), always).chain
    with issuing(tmp_path, time) as (opened, _):
        assert opened.issue(request(csr), always).chain == first
        assert opened.issue(request(csr, key=key), always).chain == first


def test_issue_again_where_a_keys_certificate_is_revoked(open_issuing: Alone, tmp_path: Path) -> None:
    """The certificate that the CSR got since is given again to the key as well: a retry never makes a second one."""
    csr, key = make_csr(), b"k" * 16
    first = open_issuing.issue(request(csr, key=key), always)
    with writing(tmp_path) as connection:
        revoke(connection, first.serial, Reason.superseded, 0, "test")
    second = open_issuing.issue(request(csr), always)

    assert second.serial != first.serial
    assert open_issuing.issue(request(csr, key=key), always).serial == second.serial


def test_issue_again_after_a_rotation_and_a_clock_set_back(tmp_path: Path, time: Time) -> None:
    """What the old root signed at a later time of day hides nothing that the new one signed."""
    csr = make_csr()
    with issuing(tmp_path, time) as (opened, _):
        opened.issue(request(csr), always)
    create_ca(tmp_path, now=time())
    with issuing(tmp_path, time) as (opened, _):
        time.advance(seconds=-60)
        second = opened.issue(request(csr), always)
        assert opened.issue(request(csr), always).serial == second.serial


def test_issue_again_after_the_root_changed(tmp_path: Path, time: Time) -> None:
    """Under a new root a repetition gets a new certificate, which verifies under that root."""
    csr, key = make_csr(), b"k" * 16
    with issuing(tmp_path, time) as (opened, _):
        first = opened.issue(request(csr, key=key), always).chain
    create_ca(tmp_path, now=time())
    with issuing(tmp_path, time) as (opened, ca):
        second = opened.issue(request(csr, key=key), always).chain
        x509.load_der_x509_certificate(second[0]).verify_directly_issued_by(ca.root)
        assert second != first
        assert opened.issue(request(csr, key=key), always).chain == second


def test_ledger_closes_off_what_a_dead_process_left(
    watched: tuple[Alone, WatchingCustody], tmp_path: Path, time: Time
) -> None:
    """An intent without a signature is abandoned at the next start, and the retry gets a certificate of its own."""
    opened, custody = watched
    custody.sign_something_else = True
    with pytest.raises(SelfCheckFailed):
        opened.issue(request(make_csr(), key=b"k" * 16), always)

    with issuing(tmp_path, time) as (again, _):
        assert again.ledger.abandoned_at_start == 1
        again.issue(request(make_csr()), always)
    assert [row["status"] for row in rows(tmp_path)] == ["abandoned", "issued"]


def test_issue_from_many_threads(open_issuing: Alone, tmp_path: Path) -> None:
    """Requests that arrive together are all issued, each for its own CSR."""
    csrs = [make_csr() for _ in range(100)]
    with ThreadPoolExecutor(16) as pool:
        chains = list(pool.map(lambda csr: open_issuing.issue(request(csr), always).chain, csrs))

    expected = [der.csr_subject_and_key(csr) for csr in csrs]
    assert [der.leaf_subject_and_key(chain[0]) for chain in chains] == expected
    assert [row["status"] for row in rows(tmp_path)] == ["issued"] * 100


def test_profile_decides_the_validity(tmp_path: Path, time: Time) -> None:
    """Another profile, another validity."""
    with issuing(tmp_path, time, profile=Profile(validity=timedelta(days=1))) as (opened, _):
        leaf = x509.load_der_x509_certificate(opened.issue(request(make_csr()), always).chain[0])

    assert leaf.not_valid_after_utc == START - timedelta(minutes=5, seconds=1) + timedelta(days=1)
