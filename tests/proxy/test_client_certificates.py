"""Whether a client certificate still lets in: each cause, both sides of each limit, by a clock that the test moves."""

import queue
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import LogWatch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from support.client_cas import ClientCa
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bmc_proxy.auth import client_crls
from bmc_proxy.auth.client_certificates import (
    CA_GONE,
    CRL_ENDED,
    CRL_NOT_YET_VALID,
    CRL_UNREAD,
    ENDED,
    NO_CRL,
    NOT_KNOWN_YET,
    NOT_YET_VALID,
    PATH_NOT_COVERED,
    REVOKED,
    SKEW_S,
    ClientCertificate,
    ClientCertificates,
    Crl,
)
from bmc_proxy.auth.client_crls import MAX_ENTRIES, CrlRefused
from bmc_proxy.auth.client_status import RELOAD_EVERY_S, ClientStatus
from bmc_proxy.config import Config

ROOT, ISSUER, OTHER = b"root", b"issuer", b"other"
NOW = 1_000_000.0
DAY_S = 86_400.0
SERIAL = 7


def certificate(*path: tuple[bytes, int], anchor: bytes = ROOT) -> ClientCertificate:
    """Return a certificate that is valid for a day on both sides of now."""
    return ClientCertificate("root", "CN=root", SERIAL, NOW - DAY_S, NOW + DAY_S, path, anchor)


DIRECT = certificate((ROOT, SERIAL))
BELOW = certificate((ISSUER, SERIAL), (ROOT, 1))


# What is known where the agents issue below an offline root, under which others issue as well.
BELOW_OFFLINE_ROOT = {"own": frozenset({ISSUER}), "own_roots": frozenset({ROOT}), "others": frozenset[bytes]()}


def crl(*serials: int, ends_in_s: float = DAY_S, made_s_ago: float = DAY_S, number: int = 1) -> Crl:
    """Return a CRL with these serials."""
    return Crl(frozenset(serials), NOW - made_s_ago, NOW + ends_in_s, number)


def judge(now: float = NOW, grace_s: float = 0.0, **known: Any) -> ClientCertificates:
    """Return a judge that lets the root's certificates in, and knows this beside it."""
    made = ClientCertificates(lambda: now, grace_s, lambda *_words, **_fields: None)
    made.authorities, made.others, made.is_settled = {ROOT: "CN=Root"}, frozenset({ROOT}), True
    for name, value in known.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (NOW - DAY_S - 1, NOT_YET_VALID),
        (NOW - DAY_S, None),
        (NOW + DAY_S, None),
        (NOW + DAY_S + 1, ENDED),
    ],
)
def test_validity_counts_at_each_request(now: float, expected: str | None) -> None:
    """A connection that outlives its certificate lets nobody in from the second after notAfter on."""
    assert judge(now).refusal_of(DIRECT) == expected


@pytest.mark.parametrize(
    ("known", "shown", "expected"),
    [
        # A CA that is not the agents', without CRL.
        ({}, DIRECT, None),
        ({"is_settled": False}, DIRECT, None),
        ({"others": frozenset({OTHER})}, DIRECT, NOT_KNOWN_YET),
        ({"authorities": {OTHER: "CN=Other"}}, DIRECT, CA_GONE),
        # With a file that may have been its CRL.
        ({"is_crl_unread": True}, DIRECT, CRL_UNREAD),
        ({"is_crl_unread": True, "given": {ROOT: crl()}}, DIRECT, None),
        ({"is_crl_unread": True, "own": frozenset({ROOT}), "own_crls": {ROOT: crl()}}, DIRECT, None),
        # With a CRL.
        ({"given": {ROOT: crl()}}, DIRECT, None),
        ({"given": {ROOT: crl()}, "others": frozenset()}, DIRECT, None),
        ({"given": {ROOT: crl(SERIAL)}}, DIRECT, REVOKED),
        ({"given": {ROOT: crl(SERIAL, ends_in_s=-1)}}, DIRECT, REVOKED),
        ({"given": {OTHER: crl(SERIAL)}}, DIRECT, None),
        ({"given": {ROOT: crl(ends_in_s=0)}}, DIRECT, None),
        ({"given": {ROOT: crl(ends_in_s=-1)}}, DIRECT, CRL_ENDED),
        ({"given": {ROOT: crl(ends_in_s=-60)}, "grace_s": 60.0}, DIRECT, None),
        ({"given": {ROOT: crl(ends_in_s=-61)}, "grace_s": 60.0}, DIRECT, CRL_ENDED),
        ({"given": {ROOT: crl(made_s_ago=-SKEW_S)}}, DIRECT, None),
        ({"given": {ROOT: crl(made_s_ago=-SKEW_S - 1)}}, DIRECT, CRL_NOT_YET_VALID),
        # With an issuing CA in between: all of the path is covered, or none.
        ({"given": {ROOT: crl()}}, BELOW, PATH_NOT_COVERED),
        ({"given": {ISSUER: crl()}}, BELOW, PATH_NOT_COVERED),
        ({"given": {ISSUER: crl(), ROOT: crl()}}, BELOW, None),
        ({"given": {ISSUER: crl(), ROOT: crl(1)}}, BELOW, REVOKED),
        ({"given": {ISSUER: crl(), ROOT: crl(SERIAL)}}, BELOW, None),
        # The agents' own.
        ({"own": frozenset({ROOT})}, DIRECT, NO_CRL),
        ({"own": frozenset({ROOT}), "is_settled": False}, DIRECT, NO_CRL),
        ({"own": frozenset({ROOT}), "others": frozenset()}, BELOW, NOT_KNOWN_YET),
        ({"own": frozenset({ROOT}), "own_crls": {ROOT: crl()}}, DIRECT, None),
        ({"own": frozenset({ROOT}), "own_crls": {ROOT: crl(SERIAL)}}, DIRECT, REVOKED),
        ({"own": frozenset({ROOT}), "own_crls": {ROOT: crl(ends_in_s=-1)}}, DIRECT, CRL_ENDED),
        ({"own": frozenset({ROOT}), "own_crls": {ROOT: crl(ends_in_s=-1)}, "given": {ROOT: crl()}}, DIRECT, None),
        ({"own": frozenset({ROOT}), "own_crls": {ROOT: crl()}, "given": {ROOT: crl(SERIAL)}}, DIRECT, REVOKED),
        # The agents' own below an offline root, whose CRL is optional, and another CA below the same.
        ({"own": frozenset({ISSUER}), "own_roots": frozenset({ROOT})}, BELOW, NO_CRL),
        ({"own": frozenset({ISSUER}), "own_roots": frozenset({ROOT}), "own_crls": {ISSUER: crl()}}, BELOW, None),
        (BELOW_OFFLINE_ROOT, certificate((OTHER, 3), (ROOT, 4)), None),
        (BELOW_OFFLINE_ROOT | {"is_settled": False}, certificate((OTHER, 3), (ROOT, 4)), NOT_KNOWN_YET),
        # A certificate that is itself in --client-ca.
        ({}, certificate(), None),
        ({"others": frozenset()}, certificate(), NOT_KNOWN_YET),
    ],
)
def test_status_by_what_is_known(known: dict[str, Any], shown: ClientCertificate, expected: str | None) -> None:
    """Revoked wins; a status that should be known and is not refuses; a CA that nothing covers lets in."""
    assert judge(**known).refusal_of(shown) == expected


def test_crl_of_an_agent_that_lags_behind_takes_nothing_back() -> None:
    """Of two CRLs the one with the higher number stays, unless it has ended or is one of the future."""
    judging = judge(own=frozenset({ROOT}))
    assert judging.take_own_crl(ROOT, crl(SERIAL, number=5))
    assert not judging.take_own_crl(ROOT, crl(number=4))
    assert judging.refusal_of(DIRECT) == REVOKED
    assert judging.take_own_crl(ROOT, crl(number=5))
    assert judging.refusal_of(DIRECT) is None

    for held in (crl(SERIAL, number=9, ends_in_s=-1), crl(SERIAL, number=9, made_s_ago=-SKEW_S - 1)):
        judging.own_crls[ROOT] = held
        assert judging.take_own_crl(ROOT, crl(number=6))


def test_crl_of_an_agent_whose_numbers_start_lower() -> None:
    """A lower number counts where the CRL was made later; what was revoked stays so until the CRL after that."""
    judging = judge(own=frozenset({ROOT}))
    judging.own_crls[ROOT] = crl(SERIAL, number=900, made_s_ago=60)
    assert not judging.take_own_crl(ROOT, crl(9, number=5, made_s_ago=60))
    assert judging.take_own_crl(ROOT, crl(9, number=5, made_s_ago=59))
    assert judging.own_crls[ROOT].serials == {SERIAL, 9}
    assert not judging.take_own_crl(ROOT, crl(number=4, made_s_ago=59))
    assert judging.take_own_crl(ROOT, crl(9, number=6, made_s_ago=59))
    assert judging.own_crls[ROOT].serials == {9}


def test_earlier_crl_of_a_file_replaces_no_later_one() -> None:
    """By cRLNumber, then thisUpdate, the later one stays, ended or not, unless it is one of the future."""
    for held, earlier in (
        (crl(SERIAL, number=2), crl(number=1, made_s_ago=0)),
        (crl(SERIAL, number=2), crl(number=2, made_s_ago=DAY_S + 1)),
        (crl(SERIAL, number=2, ends_in_s=-1), crl(number=1)),
        (crl(SERIAL, number=2, made_s_ago=-SKEW_S), crl(number=1)),
    ):
        judging = judge()
        assert judging.take_given({ROOT: held}) == []
        assert judging.take_given({ROOT: earlier}) == [ROOT]
        assert judging.refusal_of(DIRECT) == REVOKED
        judging = judge(given={ROOT: earlier})
        assert judging.take_given({ROOT: held}) == []
        assert judging.given == {ROOT: held}
    judging = judge(given={ROOT: crl(SERIAL, number=2)})
    assert judging.take_given({ROOT: crl(number=3)}) == []
    assert judging.refusal_of(DIRECT) is None
    judging = judge(given={ROOT: crl(number=9, made_s_ago=-SKEW_S - 1)})
    assert judging.take_given({ROOT: crl(number=1)}) == []
    assert judging.take_given({}) == []
    assert judging.given == {}


# Large CRLs


@pytest.fixture
def ca(tmp_path: Path) -> ClientCa:
    """Return a CA for client certificates."""
    return ClientCa(tmp_path / "ca")


def large_crl(ca: ClientCa, entries: int, spoil: Callable[[Any], Any] = lambda entry: entry) -> bytes:
    """Return a CRL with so many entries, the serials from 1 on, in DER."""
    issuer = x509.load_pem_x509_certificate(ca.certificate.read_bytes()).subject
    now = datetime.now(UTC).replace(microsecond=0)
    revoked = x509.RevokedCertificateBuilder().revocation_date(now)
    made = [spoil(revoked.serial_number(serial)).build() for serial in range(1, entries + 1)]
    builder = x509.CertificateRevocationListBuilder(issuer, now, now + timedelta(days=1), [], made)
    key = load_pem_private_key(ca.key.read_bytes(), None)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)  # type: ignore[arg-type]  # it is a P-256 key


def test_number_of_entries_is_bounded(ca: ClientCa) -> None:
    """As many entries as there may be are read, and one more is refused."""
    authorities = client_crls.load_authorities(ca.certificate)
    at_limit = large_crl(ca, MAX_ENTRIES)
    _, read = client_crls.read_crl(at_limit, authorities)
    assert len(at_limit) < client_crls.MAX_OCTETS
    assert read.serials == frozenset(range(1, MAX_ENTRIES + 1))

    with pytest.raises(CrlRefused, match=f"more than {MAX_ENTRIES} certificates"):
        client_crls.read_crl(large_crl(ca, MAX_ENTRIES + 1), authorities)


def test_critical_extension_of_an_entry(ca: ClientCa) -> None:
    """An entry of another issuer (RFC 5280, 5.3.3), or with what is not known here, refuses the whole CRL."""
    authorities = client_crls.load_authorities(ca.certificate)
    issuer = x509.CertificateIssuer([x509.DNSName("other")])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.2.999"), b"\x05\0")
    for extension in (issuer, unknown):
        for is_critical in (False, True):
            add: Callable[..., Any] = x509.RevokedCertificateBuilder.add_extension
            der = large_crl(ca, 3, partial(add, extval=extension, critical=is_critical))
            if is_critical:
                with pytest.raises(CrlRefused, match="an entry has a critical extension"):
                    client_crls.read_crl(der, authorities)
            else:
                assert client_crls.read_crl(der, authorities)[1].serials == frozenset({1, 2, 3})


# Once a day


class ThreadedClock(Clock):
    """A clock whose calls from threads wait until the test takes them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.SimpleQueue()

    def callFromThread(self, call: Callable[..., object], *arguments: Any) -> None:
        """Keep a call for the test's thread."""
        self._calls.put((call, arguments))

    def take_call(self) -> None:
        """Wait for a call from a thread, and make it."""
        call, arguments = self._calls.get(timeout=30)
        call(*arguments)


def test_client_crls_are_read_again_once_a_day(tmp_path: Path, ca: ClientCa, log_watch: LogWatch) -> None:
    """A file that was exchanged counts from the next day on at the latest; one that cannot be read changes nothing."""
    path = ca.crl(tmp_path / "crl.pem")
    clock: Any = ThreadedClock()
    config = Config(
        state_dir=tmp_path,
        agent=("tcp:127.0.0.1:9",),
        peer_uid=(),
        https="tcp:0",
        http=None,
        anonymous_loopback=False,
        https_certificate=None,
        https_key=None,
        client_ca=ca.certificate,
        client_user="cn",
        checker="accounts",
        pam_service="x",
        session_idle_s=60,
        max_connections=2,
        requests_per_s=1,
        max_waiting=1,
        deadline_s=1,
        client_crl=path,
    )
    status = ClientStatus(clock, config, is_alone=True)
    door: Any = None
    status.start(door)

    def numbers() -> list[int | None]:
        return [each.number for each in status.certificates.given.values()]

    assert numbers() == [1]
    for content, expected in ((ca.crl(tmp_path / "next.pem").read_bytes(), [2]), (b"broken", [2])):
        path.write_bytes(content)
        clock.advance(RELOAD_EVERY_S)
        clock.take_call()
        assert numbers() == expected
    log_watch.expect_error("client CRLs not reloaded, the old ones stay")
    stopping = Deferred.fromCoroutine(status.stop())
    clock.take_call()
    assert stopping.called
