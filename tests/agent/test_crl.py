"""CRLs: what others read in them, when they are made anew, how their numbers rise, and who leaves them."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st
from support import backups
from support.agents import START, Agent, Time, create_ca, open_agent
from support.judges import openssl
from support.needs import need
from support.processes import BIN
from support.revoking import (
    FLAGS,
    KeyAway,
    crl_der,
    issue,
    read_crl,
    release,
    revoke,
    serial_of,
    time_of_day,
    write_pem,
)

from runtime.clock import BACK_DATE, milliseconds
from runtime.state_dir import make as make_state_dir
from vmi_agent.backup import backup
from vmi_agent.ca.authority import Generations, issuer_of
from vmi_agent.ca.certificates import self_signed_root
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import KEY_TYPES, CustodyError
from vmi_agent.keys.file_key import FileCustody, make_key
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.audit.trusted_time import CLOCK_ACCEPTED
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import FILE_NAME, writing
from vmi_agent.revocation import crl
from vmi_agent.revocation.publisher import Publishing


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


def number_of(agent: Agent, generation: int = 1) -> int:
    """Return a CRL's number."""
    return read_crl(agent, generation).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def serials_of(agent: Agent, generation: int = 1) -> set[int]:
    """Return whom a CRL lists."""
    return {entry.serial_number for entry in read_crl(agent, generation)}


@pytest.mark.parametrize("revoked", [0, 3])
@pytest.mark.parametrize("ca_key", KEY_TYPES)
def test_crl_as_others_judge_it(ca_key: str, revoked: int, tmp_path: Path) -> None:
    """Under each kind of CA key it verifies and pkilint has nothing to say; openssl and GnuTLS agree where they can."""
    time = time_of_day()
    with open_agent(tmp_path, time, key_type=ca_key) as agent:
        for name, reason in zip(("a", "b", "c")[:revoked], Reason, strict=False):
            revoke(agent, issue(agent, name), time, reason)
        agent.publishing.refresh()
        root, der = agent.generations.current.root, crl_der(agent)
        parsed = read_crl(agent)

    assert parsed.is_signature_valid(root.public_key())  # type: ignore[arg-type]  # cryptography's stubs lack ML-DSA here
    path = tmp_path / "1.crl"
    path.write_bytes(der)
    lint = [str(BIN / "lint_crl"), "lint", "-t", "CRL", "-p", "PKIX", "-s", "WARNING", "--document-format", "DER"]
    linted = subprocess.run([*lint, str(path)], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout.strip(), linted.stderr) == (0, "", "")
    if ca_key.startswith("mldsa"):
        return  # which the openssl and the GnuTLS of Debian 12 do not know
    root_path = write_pem(tmp_path / "root.pem", root)
    (tmp_path / "crl.pem").write_bytes(parsed.public_bytes(Encoding.PEM))
    text = openssl("crl", "-in", str(tmp_path / "crl.pem"), "-CAfile", root_path, "-noout", "-text")
    assert "Version 2 (0x1)" in text
    assert text.count("Serial Number:") == revoked
    assert ("No Revoked Certificates." in text) == (revoked == 0)
    verify = [need("certtool"), "--verify-crl", "--load-ca-certificate", root_path]
    verified = subprocess.run([*verify, "--infile", str(tmp_path / "crl.pem")], capture_output=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert b"Verified." in verified.stdout
    info = [need("certtool"), "--crl-info", "--infile", str(tmp_path / "crl.pem")]
    told = subprocess.run(info, capture_output=True, text=True, check=True)
    assert told.stdout.count("Serial Number (hex):") == revoked


def test_crl_fields(tmp_path: Path, time: Time) -> None:
    """Issuer, dates, authority key identifier and number are there, and no extension is critical."""
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        parsed, ca = read_crl(agent), agent.generations.current
        found = agent.publishing.crl(1)

    extensions = {each.oid: each for each in parsed.extensions}
    assert parsed.issuer == ca.root.subject
    assert parsed.last_update_utc == START - BACK_DATE
    assert parsed.next_update_utc == START + timedelta(days=7)
    assert set(extensions) == {ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER}
    assert not any(each.critical for each in extensions.values())
    identifier = extensions[ExtensionOID.AUTHORITY_KEY_IDENTIFIER].value
    assert identifier == x509.AuthorityKeyIdentifier(ca.issuer.key_identifier, None, None)
    assert found is not None
    assert found.next_update_ms == int((START + timedelta(days=7)).timestamp() * 1000)
    assert found.version == parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


@pytest.mark.parametrize("reason", Reason)
def test_crl_entry_for_each_reason(reason: Reason, tmp_path: Path, time: Time) -> None:
    """An entry has serial, time and reason; unspecified is left out, and nothing is critical."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        time.advance(seconds=5.75)
        revoke(agent, leaf, time, reason)
        agent.publishing.refresh()
        entry = read_crl(agent).get_revoked_certificate_by_serial_number(leaf.serial_number)

    assert entry is not None
    assert entry.revocation_date_utc == START + timedelta(seconds=5)
    told = [(each.value, each.critical) for each in entry.extensions]
    assert told == ([] if reason is Reason.unspecified else [(x509.CRLReason(FLAGS[reason]), False)])


def test_crl_when_nothing_is_revoked_any_more(tmp_path: Path, time: Time) -> None:
    """Once the only one is off hold again there is no list at all, not an empty one (RFC 5280, 5.1.2.6)."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        agent.publishing.refresh()
        without_list = crl_der(agent)
        revoke(agent, leaf, time, Reason.certificateHold)
        agent.publishing.refresh()
        assert serials_of(agent) == {leaf.serial_number}
        release(agent, leaf, time)
        agent.publishing.refresh()

        assert serials_of(agent) == set()
        assert abs(len(crl_der(agent)) - len(without_list)) <= 3  # an ECDSA signature's length varies


def test_crl_is_made_once_and_on_its_period(tmp_path: Path, time: Time) -> None:
    """Without a change the same octets are served until the period is over."""
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        first = crl_der(agent)
        time.advance(days=1, seconds=-1)
        agent.publishing.refresh()
        assert crl_der(agent) == first
        time.advance(seconds=1)
        agent.publishing.refresh()

        assert crl_der(agent) != first
        assert read_crl(agent).last_update_utc == START + timedelta(days=1) - BACK_DATE


def test_crl_number_rises_within_a_millisecond(tmp_path: Path, time: Time) -> None:
    """Two CRLs that are made while the clock stands still have different numbers."""
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        first = number_of(agent)
        revoke(agent, issue(agent), time)
        agent.publishing.refresh()

        assert number_of(agent) == first + 1


def test_crl_number_rises_where_the_clock_was_set_back(tmp_path: Path, time: Time) -> None:
    """The next number is above the last one, under the running agent and after a start with the new time."""
    numbers = []
    with open_agent(tmp_path, time) as agent:
        time.advance(days=4)
        for _ in range(2):
            agent.publishing.refresh()
            numbers.append(number_of(agent))
            time.advance(days=-2)
    time.advance(days=3)
    with writing(tmp_path) as connection:
        audit_chain.append(connection, [Event(CLOCK_ACCEPTED, milliseconds(time()), {})])
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        numbers.append(number_of(agent))

        assert read_crl(agent).last_update_utc == time() - BACK_DATE
    assert numbers == sorted(set(numbers))


def test_crl_number_rises_over_all_generations(tmp_path: Path, time: Time) -> None:
    """Proxies learn of a new CRL by its number, so the next one made is above every other, whatever the clock does."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        agent.publishing.refresh()
        create_ca(tmp_path, now=time())
        agent.generations.look_for_newer()
        time.advance(days=2)
        agent.publishing.refresh()
        newest = agent.publishing.newest_number
        time.advance(days=-2)
        revoke(agent, leaf, time)
        agent.publishing.refresh()

        assert newest < number_of(agent, 1) <= agent.publishing.newest_number


def test_crl_number_rises_over_a_restored_backup(tmp_path: Path, time: Time) -> None:
    """An agent on a backup made before the last CRLs numbers its own above them."""
    make_state_dir(tmp_path / "agent")
    with open_agent(tmp_path / "agent", time) as agent:
        agent.publishing.refresh()
        backup.back_up(tmp_path / "agent", tmp_path / "backup.tar", time())
        for name in ("a", "b", "c"):
            revoke(agent, issue(agent, name), time)
            agent.publishing.refresh()
        last = number_of(agent)
    time.advance(minutes=1)
    backups.restore(tmp_path / "backup.tar", tmp_path / "restored", time())
    with open_agent(tmp_path / "restored", time) as agent:
        agent.publishing.refresh()

        assert number_of(agent) > last


def test_crl_keeps_the_expired_for_one_more(tmp_path: Path, time: Time) -> None:
    """A certificate leaves only after one CRL was made behind its end (RFC 5280, 3.3), also over a hold and others."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        revoke(agent, leaf, time)
        agent.publishing.refresh()
        time.now = leaf.not_valid_after_utc - timedelta(seconds=1)
        agent.publishing.refresh()
        time.advance(days=1)
        agent.publishing.refresh()
        behind_its_end = serials_of(agent)
        other = issue(agent, "other")
        time.advance(seconds=1)
        revoke(agent, other, time)
        agent.publishing.refresh()

        assert behind_its_end == {leaf.serial_number}
        assert serials_of(agent) == {other.serial_number}


def test_crl_lists_one_revoked_behind_its_end_once(tmp_path: Path, time: Time) -> None:
    """A certificate that is revoked after it ended is on the CRL that follows, though one was made behind its end."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        time.now = leaf.not_valid_after_utc + timedelta(days=2)
        agent.publishing.refresh()
        time.advance(seconds=1)
        revoke(agent, leaf, time)
        agent.publishing.refresh()

        assert serials_of(agent) == {leaf.serial_number}


def test_crl_of_each_generation(tmp_path: Path, time: Time) -> None:
    """Each generation's CRL lists its own leaves, is signed by its own key, and goes on after a rotation."""
    with open_agent(tmp_path, time) as agent:
        first = issue(agent)
        create_ca(tmp_path, "p384", time())
        agent.generations.look_for_newer()
        second = issue(agent, "hmc2")
        for leaf in (first, second):
            revoke(agent, leaf, time)
        agent.publishing.refresh()

        assert serials_of(agent, 1) == {first.serial_number}
        assert serials_of(agent, 2) == {second.serial_number}
        for authority in agent.generations.all():
            crl_of_it = read_crl(agent, authority.generation)
            assert crl_of_it.is_signature_valid(authority.root.public_key())  # type: ignore[arg-type]  # an EC key


def test_crl_of_a_root_that_ended(tmp_path: Path, time: Time) -> None:
    """No CRL is made under a root that has ended; the newest generation's goes on."""
    with open_agent(tmp_path, time) as agent:
        agent.publishing.refresh()
        old = crl_der(agent, 1)
        time.advance(days=30)
        create_ca(tmp_path, now=time())
        agent.generations.look_for_newer()
        time.now = agent.generations.all()[0].root.not_valid_after_utc
        agent.publishing.refresh()

        assert crl_der(agent, 1) == old
        assert read_crl(agent, 2).last_update_utc == time() - BACK_DATE


def test_refresh_while_an_older_key_is_away(tmp_path: Path, time: Time) -> None:
    """Who was revoked is told at once, the other generation's CRL is made, and the missing one when the key is back."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        create_ca(tmp_path, now=time())
        away = KeyAway(agent.generations.current.custody)
        first = replace(agent.generations.current, custody=away)
        generations = Generations(tmp_path, Access(), None, time(), lambda *_: None, first)
        publishing = Publishing(generations, agent.ledger, timedelta(days=7), timedelta(days=1), time)
        revoke(agent, leaf, time)
        told: list[frozenset[bytes]] = []
        with pytest.raises(CustodyError):
            publishing.refresh(told.append)

        assert told == [{serial_of(leaf)}]
        assert publishing.crl(1) is None
        second = publishing.crl(2)
        assert second is not None
        away.is_away = False
        publishing.refresh(told.append)
        first_crl = publishing.crl(1)
        assert first_crl is not None
        assert [each.serial_number for each in x509.load_der_x509_crl(first_crl.der)] == [leaf.serial_number]
        assert publishing.crl(2) == second
        assert len(told) == 1


def test_refresh_while_the_ledger_cannot_be_written(tmp_path: Path, time: Time) -> None:
    """A CRL that the audit cannot tell of is not published, the old one stays; it is made when the ledger is back."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        agent.publishing.refresh()
        before = crl_der(agent)
        revoke(agent, leaf, time)
        ledger, elsewhere = tmp_path / FILE_NAME, tmp_path / "elsewhere"
        ledger.rename(elsewhere)
        ledger.touch()
        told: list[frozenset[bytes]] = []
        with pytest.raises(LedgerUnavailable):
            agent.publishing.refresh(told.append)

        assert told == [{serial_of(leaf)}]
        assert crl_der(agent) == before
        elsewhere.rename(ledger)
        agent.publishing.refresh()
        assert serials_of(agent) == {leaf.serial_number}


_ROOT_CUSTODY = FileCustody(make_key("ed25519"))
_ISSUER = issuer_of(self_signed_root(_ROOT_CUSTODY, 1, START))
_serials = st.binary(min_size=17, max_size=17).filter(lambda serial: 0x01 <= serial[0] <= 0x7F)
_moments = st.integers(0, 2**42)  # to the year 2109
_entries = st.dictionaries(_serials, st.tuples(_moments, st.sampled_from(Reason)), max_size=40)


@given(_entries, st.integers(1, 2**60))
def test_crl_entries_are_what_a_reader_finds(entries: dict[bytes, tuple[int, Reason]], number: int) -> None:
    """Whatever serials, times (before and after 2050) and reasons go in, the same come out, in order."""
    der = crl.make(
        _ISSUER,
        _ROOT_CUSTODY,
        number,
        START,
        START + timedelta(days=1),
        [crl.entry(serial, revoked_ms, reason) for serial, (revoked_ms, reason) in entries.items()],
    )

    parsed = x509.load_der_x509_crl(der)
    expected = [
        (int.from_bytes(serial), datetime.fromtimestamp(revoked_ms // 1000, UTC), FLAGS.get(reason))
        for serial, (revoked_ms, reason) in entries.items()
    ]
    found = [(each.serial_number, each.revocation_date_utc, _reason_of(each)) for each in parsed]
    assert found == expected
    assert parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number
    assert parsed.public_bytes(Encoding.DER) == der


def _reason_of(entry: x509.RevokedCertificate) -> x509.ReasonFlags | None:
    found = [each.value.reason for each in entry.extensions if isinstance(each.value, x509.CRLReason)]
    return found[0] if found else None
