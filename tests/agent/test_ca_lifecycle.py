"""Rotation: the next root, cross-certificates both ways, and what happens to a rotation that fails."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from support.agents import START, always, create_ca, load_ca, open_agent, request
from support.ca_life_parts import (
    NO_ACCESS,
    assert_directly_issued,
    audit_events,
    delegate_of,
    issue,
    now,
    rotate,
    stored,
    verifies,
)
from support.csrs import make_csr
from support.judges import assert_is_root
from support.lint import findings
from support.offline_root import OfflineRoot

from runtime.errors import StartError
from vmi_agent.ca import authority
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Generations
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.keys import KEY_TYPES, CustodyError
from vmi_agent.keys.algorithms import key_type_of
from vmi_agent.keys.open import Access
from vmi_agent.ledger.audit.chain import Event

CROSSES = (ca_store.NEW_WITH_OLD_FILE, ca_store.OLD_WITH_NEW_FILE)
PASSPHRASE = Access(b"first passphrase")


def create_encrypted_ca(state_dir: Path) -> None:
    """Make a CA whose key is encrypted."""
    with open_agent(state_dir, now, access=PASSPHRASE):
        pass


@pytest.mark.parametrize(
    ("before", "after"), [("p256", "rsa2048"), ("rsa2048", "ed25519"), ("ed25519", "p384"), ("p384", "p384")]
)
def test_rotate_with_cross_certificates(tmp_path: Path, before: str, after: str) -> None:
    """Who trusts only the old root accepts new leaves, and who trusts only the new one old leaves; without, neither."""
    state_dir = tmp_path / "agent"
    create_ca(state_dir, before, now())
    old_leaf, old_root = issue(state_dir)
    rotate(state_dir, after)
    new_leaf, new_root = issue(state_dir)
    new_with_old, old_with_new = (stored(state_dir, 2, name) for name in CROSSES)

    agreed, refused = {"openssl": True, "gnutls": True}, {"openssl": False, "gnutls": False}
    assert verifies(tmp_path, [new_leaf, new_with_old], old_root) == agreed
    assert verifies(tmp_path, [old_leaf, old_with_new], new_root) == agreed
    assert verifies(tmp_path, [new_leaf], new_root) == agreed
    assert verifies(tmp_path, [new_leaf], old_root) == refused
    assert verifies(tmp_path, [old_leaf], new_root) == refused
    assert key_type_of(new_root.public_key()) == after
    assert_is_root(new_root)
    assert audit_events(state_dir) == ["ca made", "signing", "signed", "ca rotated", "signing", "signed"]


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_ca_certificates_satisfy_lint(tmp_path: Path, key_type: str) -> None:
    """Root, both cross-certificates and the OCSP responder's certificate: no warning, no error."""
    create_ca(tmp_path, key_type, now())
    rotate(tmp_path)
    with open_agent(tmp_path, now) as agent:
        delegates = [delegate_of(agent, each) for each in agent.generations.all()]
    made = [stored(tmp_path, generation, ca_store.ROOT_FILE) for generation in (1, 2)]
    made += [stored(tmp_path, 2, name) for name in CROSSES]

    assert {each.serial_number: findings(each) for each in (*made, *delegates)} == {
        each.serial_number: [] for each in (*made, *delegates)
    }
    assert len(delegates) == 2


def test_rotate_makes_the_same_kind_of_key(tmp_path: Path) -> None:
    """Without a kind of key, the new root's is the old one's; a name and a key of its own it has all the same."""
    old = create_ca(tmp_path, "ed25519", now()).root
    new = rotate(tmp_path)

    assert key_type_of(new.public_key()) == "ed25519"
    assert new.public_key() != old.public_key()
    assert new.subject != old.subject
    assert load_ca(tmp_path).root == new


def test_rotate_to_post_quantum_and_back(tmp_path: Path) -> None:
    """P-384, ML-DSA-65, P-384: each leaf's way to each neighbouring root verifies."""
    create_ca(tmp_path, "p384", now())
    leaves = [issue(tmp_path)]
    for key_type in ("mldsa65", "p384"):
        rotate(tmp_path, key_type)
        leaves.append(issue(tmp_path))

    for generation, (before, after) in enumerate(pairwise(leaves), start=2):
        new_with_old, old_with_new = (stored(tmp_path, generation, name) for name in CROSSES)
        assert_directly_issued([after[0], new_with_old, before[1]])
        assert_directly_issued([before[0], old_with_new, after[1]])


def test_cross_certificate_is_no_wider_than_its_root(tmp_path: Path) -> None:
    """A cross-certificate ends with the sooner of the two roots, lets no CA below it, and has the other root's key."""
    old = create_ca(tmp_path, "p256", now()).root
    new = rotate(tmp_path, "p384")
    new_with_old, old_with_new = (stored(tmp_path, 2, name) for name in CROSSES)

    for cross, subject, issuer in ((new_with_old, new, old), (old_with_new, old, new)):
        assert cross.subject == subject.subject
        assert cross.issuer == issuer.subject
        assert cross.public_key() == subject.public_key()
        assert cross.not_valid_after_utc == min(subject.not_valid_after_utc, issuer.not_valid_after_utc)
        assert cross.not_valid_before_utc >= subject.not_valid_before_utc
        constraints = cross.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
        assert constraints.critical
        identifier = x509.SubjectKeyIdentifier
        assert (
            cross.extensions.get_extension_for_class(identifier).value
            == subject.extensions.get_extension_for_class(identifier).value
        )


def test_running_agent_takes_every_new_generation(tmp_path: Path) -> None:
    """Two rotations between two looks: the newest issues, and the one in between has its CRL and certificates, too."""
    create_ca(tmp_path, "p256", now())
    with open_agent(tmp_path, now) as agent:
        rotate(tmp_path)
        rotate(tmp_path)
        assert agent.generations.look_for_newer()
        assert not agent.generations.look_for_newer()
        agent.publishing.refresh()

        assert [each.generation for each in agent.generations.all()] == [1, 2, 3]
        assert agent.generations.current.generation == 3
        assert all(agent.publishing.crl(generation) for generation in (1, 2, 3))
        assert agent.issuing.issue(request(make_csr()), always).root_generation == 3


def test_rotate_under_an_offline_root(tmp_path: Path) -> None:
    """What is under an offline root is not rotated here, and the way that there is is told."""
    OfflineRoot(tmp_path / "root").install(tmp_path / "agent")
    with pytest.raises(StartError, match="vmi-agent ca csr"):
        rotate(tmp_path / "agent")

    assert ca_store.generations(tmp_path / "agent") == [1]


def test_rotate_of_an_imported_root_that_allows_no_ca_below(tmp_path: Path) -> None:
    """No cross-certificate is made that the old root's own path length forbids."""
    root = OfflineRoot(tmp_path / "root", path_length=0)
    state_dir = tmp_path / "agent"
    create_ca(state_dir, "p256", now())
    root.import_into(state_dir)
    rotate(state_dir)
    new_leaf, new_root = issue(state_dir)

    assert not (ca_store.directory_of(state_dir, 3) / ca_store.NEW_WITH_OLD_FILE).exists()
    assert verifies(tmp_path, [new_leaf], new_root)["openssl"]


def test_rotate_with_encrypted_keys(tmp_path: Path) -> None:
    """The old key is opened and the new one encrypted with the same passphrase; no file has a key in the clear."""
    create_encrypted_ca(tmp_path)
    rotate(tmp_path, None, PASSPHRASE)

    for generation in (1, 2):
        text = (ca_store.directory_of(tmp_path, generation) / "key.pem").read_bytes()
        assert text.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert len(issue(tmp_path, PASSPHRASE)) == 2


@pytest.mark.parametrize("passphrase", [None, b"another passphrase"])
def test_rotate_with_a_wrong_passphrase(tmp_path: Path, passphrase: bytes | None) -> None:
    """Where the old key does not open, nothing changes: no file, no row in the audit."""
    create_encrypted_ca(tmp_path)
    events = audit_events(tmp_path)
    with pytest.raises(CustodyError, match="passphrase"):
        rotate(tmp_path, None, Access(passphrase))

    assert [each.name for each in (tmp_path / "ca").iterdir()] == ["1"]
    assert audit_events(tmp_path) == events


def test_rotate_that_the_audit_cannot_tell_of(tmp_path: Path) -> None:
    """No audit, no rotation; and no key is left lying about."""
    create_ca(tmp_path, "p256", now())

    def refuse(_: Event) -> None:
        raise LedgerUnavailable("disk full")

    with pytest.raises(LedgerUnavailable):
        ca_lifecycle.rotate(tmp_path, None, NO_ACCESS, now(), refuse)

    assert [each.name for each in (tmp_path / "ca").iterdir()] == ["1"]


def test_rotate_is_told_when_nothing_can_fail_any_more(tmp_path: Path) -> None:
    """The audit is told of a rotation after both keys have signed: it tells of none that failed."""
    create_ca(tmp_path, "p256", now())
    there: list[str] = []

    def note(_: Event) -> None:
        there.extend(sorted(each.name for each in (tmp_path / "ca" / ".2.new").iterdir()))

    ca_lifecycle.rotate(tmp_path, None, NO_ACCESS, now(), note)

    assert there == ["key.pem", "new-with-old.pem", "old-with-new.pem", "root.pem"]


def test_two_rotations_at_once(tmp_path: Path) -> None:
    """Whoever comes second is told so or rotates again; every generation is whole and cross-certified with the last."""
    create_ca(tmp_path, "p256", now())
    barrier = threading.Barrier(4)

    def rotate_with_others() -> str:
        barrier.wait()
        try:
            rotate(tmp_path)
        except StartError as error:
            return str(error)
        return "rotated"

    with ThreadPoolExecutor(4) as pool:
        outcomes = [each.result() for each in [pool.submit(rotate_with_others) for _ in range(4)]]

    assert set(outcomes) <= {"rotated", "somebody else has just changed the CA. Nothing was changed here."}
    made = outcomes.count("rotated")
    assert ca_store.generations(tmp_path) == list(range(1, made + 2))
    assert audit_events(tmp_path).count("ca rotated") == made
    for generation in range(2, made + 2):
        new_with_old = stored(tmp_path, generation, ca_store.NEW_WITH_OLD_FILE)
        assert_directly_issued([new_with_old, stored(tmp_path, generation - 1, ca_store.ROOT_FILE)])


@pytest.mark.parametrize("killed_at", ["before the audit", "after the audit", "before the rename"])
def test_rotate_that_is_killed(tmp_path: Path, killed_at: str) -> None:
    """Killed anywhere, the old generation serves, and the next rotation is the next generation."""
    create_ca(tmp_path, "p256", now())
    script = """if True:
        import os, signal, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from vmi_agent.ca import lifecycle as ca_life
        from vmi_agent.cli.groups import noting
        from vmi_agent.keys.open import Access
        state_dir, killed_at = Path(sys.argv[1]), sys.argv[2]
        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        def note(event):
            if killed_at == "before the audit":
                die()
            noting(state_dir)(event)
            if killed_at == "after the audit":
                die()
        Path.rename = die
        ca_life.rotate(state_dir, None, Access(), datetime.now(UTC), note)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), killed_at], check=False)
    assert done.returncode == -signal.SIGKILL

    old_leaf, old_root = issue(tmp_path)
    assert ca_store.generations(tmp_path) == [1]
    assert_directly_issued([old_leaf, old_root])
    rotate(tmp_path)
    assert ca_store.generations(tmp_path) == [1, 2]
    assert [each.name for each in (tmp_path / "ca").iterdir() if each.name.startswith(".")] == []
    assert issue(tmp_path)[1] != old_root


def test_look_for_newer_that_cannot_be_opened(tmp_path: Path) -> None:
    """A new generation whose key the agent cannot open is told of; the one before goes on, until it can be opened."""
    create_ca(tmp_path, "p256", now())
    with open_agent(tmp_path, now) as agent:
        rotate(tmp_path)
        key = ca_store.directory_of(tmp_path, 2) / "key.pem"
        kept = key.read_bytes()
        key.write_bytes(b"")
        for _ in range(2):
            with pytest.raises(CustodyError, match="not a private key"):
                agent.generations.look_for_newer()
        assert agent.issuing.issue(request(make_csr()), always).root_generation == 1
        key.write_bytes(kept)

        assert agent.generations.look_for_newer()
        assert agent.issuing.issue(request(make_csr()), always).root_generation == 2


def test_generations_with_an_older_one_that_cannot_be_opened(tmp_path: Path) -> None:
    """An older generation whose key is gone is told of, and the newest one serves all the same."""
    create_ca(tmp_path, "p256", now())
    rotate(tmp_path)
    (ca_store.directory_of(tmp_path, 1) / "key.pem").unlink()
    told: list[tuple[int, str]] = []
    generations = Generations(tmp_path, NO_ACCESS, None, now(), lambda *each: told.append(each))

    assert [each.generation for each in generations.all()] == [2]
    assert [generation for generation, _ in told] == [1]
    assert authority.exists(tmp_path)


def test_cross_certificate_of_roots_that_do_not_overlap(tmp_path: Path) -> None:
    """An old root that has ended gets no cross-certificates, and the new one is there all the same."""
    create_ca(tmp_path, "p256", START)
    later = START.replace(year=START.year + 21)
    ca_lifecycle.rotate(tmp_path, None, NO_ACCESS, later, lambda _: None)

    assert sorted(each.name for each in (tmp_path / "ca" / "2").iterdir()) == ["key.pem", "root.pem"]
