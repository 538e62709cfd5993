"""What the proxy takes for a chain out of an agent's answer, and what it says of an answer that is none."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import LogWatch
from support.agents import Time, always, issuing, request
from support.chains import ISSUING, ROOT, Link, ders
from support.csrs import make_csr
from support.steered_agents import Asked, World

from bmc_proxy.agents.chain import Certificate, NoChain, read_authorities
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.errors import AgentFailed
from protocol.records import Chain, Signed
from runtime.asn1 import der
from runtime.asn1.der import DerError

CSR = make_csr()
CONSTRAINTS = b"\x06\x03\x55\x1d\x13"
SOUND: dict[str, list[Link]] = {
    "a root alone": [ROOT],
    "an issuing CA and its root": [ISSUING, ROOT],
    "three levels": [Link("lower", "issuing", key=2, issuer_key=1), ISSUING, ROOT],
    "no key identifiers": [replace(ISSUING, identifies=False), replace(ROOT, identifies=False)],
    "a root without key identifiers": [ISSUING, replace(ROOT, identifies=False)],
}
UNSOUND: dict[str, list[Link]] = {
    "the wrong way round": [ROOT, ISSUING],
    "without the root": [ISSUING],
    "another root": [ISSUING, Link("other", "other", key=0, issuer_key=0)],
    "another root of the same name": [ISSUING, Link("root", "root", key=3, issuer_key=3)],
    "another name in capitals": [ISSUING, Link("ROOT", "ROOT", key=0, issuer_key=0)],
    "an issuing CA that is none": [replace(ISSUING, ca=False), ROOT],
    "a root that is no CA": [ISSUING, replace(ROOT, ca=False)],
    "a root without basic constraints": [ISSUING, replace(ROOT, ca=None)],
    "another key named": [replace(ISSUING, named_key=3), ROOT],
    "a root that names another key as its own": [ISSUING, replace(ROOT, named_key=3)],
    "one too many": [ISSUING, ROOT, ROOT, ISSUING],
}


@pytest.mark.parametrize("links", SOUND.values(), ids=SOUND.keys())
def test_authorities_that_are_a_chain(links: list[Link]) -> None:
    """Each names the next as its issuer, and the last one itself: the first is what issues leaves."""
    chain = ders(links)

    assert read_authorities(chain) == Certificate.read(chain[0]).as_issuer


@pytest.mark.parametrize("links", UNSOUND.values(), ids=UNSOUND.keys())
def test_authorities_that_are_no_chain(links: list[Link]) -> None:
    """Names, key identifiers and basic constraints must fit, octet for octet."""
    with pytest.raises(NoChain):
        read_authorities(ders(links))


@pytest.mark.parametrize("cut", [0, 1, 2, 100, 300])
def test_authorities_that_are_no_certificates(cut: int) -> None:
    """What is no X.509 v3 certificate is refused."""
    with pytest.raises(DerError):
        read_authorities((ROOT.der()[:cut],))


def with_extensions(*extensions: bytes) -> bytes:
    """Return the root's certificate with these extensions in place of its own; of none, without the field."""
    tbs, *others = der.children(ROOT.der())
    *fields, _ = der.children(tbs)
    if extensions:
        fields.append(der.wrap(0xA3, der.wrap(der.SEQUENCE, *extensions)))
    return der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, *fields), *others)


@pytest.mark.parametrize(
    "extensions",
    [(), (der.wrap(der.SEQUENCE, CONSTRAINTS),), (der.wrap(der.SEQUENCE, CONSTRAINTS, b"\x05\x00"),)],
    ids=["no extensions", "an extension without a value", "an extension whose value is no OCTET STRING"],
)
def test_certificate_with_extensions_of_another_shape(extensions: tuple[bytes, ...]) -> None:
    """A certificate without extensions is no CA's, and one with half an extension no certificate."""
    with pytest.raises(DerError):
        read_authorities((with_extensions(*extensions),))


def test_certificate_with_an_identifier_inside_another_extension() -> None:
    """What looks like an extension's identifier and is another one's value, or follows its identifier, is neither."""
    unrelated = der.wrap(
        der.SEQUENCE, b"\x06\x01\x2a", CONSTRAINTS, der.wrap(der.OCTET_STRING, b"\x30\x03\x01\x01\xff")
    )

    with pytest.raises(NoChain):
        read_authorities((with_extensions(unrelated),))


def test_certificate_that_names_its_issuer_by_serial_alone() -> None:
    """An authority key identifier without a key identifier says nothing that is compared (RFC 5280, 4.2.1.1)."""
    serial_only = der.wrap(der.SEQUENCE, b"\x06\x03\x55\x1d\x23", der.wrap(der.OCTET_STRING, b"\x30\x03\x82\x01\x07"))

    assert Certificate.read(with_extensions(serial_only)).named_issuer.key_identifier is None


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """Return an agent's answer to `CSR`."""
    with issuing(tmp_path_factory.mktemp("ca"), Time()) as (opened, _):
        chain = opened.issue(request(CSR), always).chain
    return Signed(hashlib.sha256(CSR).digest(), 1, chain)


@pytest.fixture
def world() -> Iterator[World]:
    """Return two agents; nothing goes on at the end."""
    made = World()
    yield made
    made.end()


@pytest.mark.parametrize("others", [[ROOT], [ISSUING, ROOT], [ISSUING]], ids=["root", "issuing and root", "no root"])
def test_signed_that_is_no_chain(others: list[Link], world: World, signed: Signed, log_watch: LogWatch) -> None:
    """A right leaf under another CA is not handed out: the agent has failed, and the other one is asked."""
    log_watch.expect_error("agent's certificates are no chain")
    asked = world.sign(CSR)
    world.steered[0].answer(replace(signed, chain=(signed.chain[0], *ders(others))))
    world.steered[1].answer(signed)

    assert asked.value == signed
    assert world.steered[0].link.is_ailing


def test_chain_that_is_none(log_watch: LogWatch) -> None:
    """Nor is a root handed out, or kept, from a CHAIN that is none."""
    log_watch.expect_error("agent's certificates are no chain")
    world = World(count=1)
    asked = Asked(world.agents.chain(Deadline.after(world.clock, 30.0)))
    world.steered[0].answer(Chain(1, (b"\x30\x03root",)))

    assert type(asked.failure) is AgentFailed
    world.end()
