"""OCSP requests about several certificates: one answer for all of them, under one signature."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agents import START, Agent, Time, create_ca, open_agent
from support.chains import KEYS, Link
from support.ocsp_questions import about, assert_pkilint_accepts, cert_id, cert_id_in, gnutls, openssl_ocsp
from support.revoking import FLAGS, HASHES, ask, by_serial, issue, question, revoke, time_of_day, write_pem

from protocol.records import MAX_OCSP_REQUEST, GetOcsp, OcspAnswer
from runtime.asn1 import der
from runtime.asn1.der import DerError
from vmi_agent.ledger.revocation import Reason
from vmi_agent.revocation import ocsp as responder
from vmi_agent.revocation import ocsp_der
from vmi_agent.revocation.ocsp_der import MAX_CERTIFICATES

NONCE = bytes(range(16))
MALFORMED, UNAUTHORIZED = ocsp.OCSPResponseStatus.MALFORMED_REQUEST, ocsp.OCSPResponseStatus.UNAUTHORIZED
SUCCESSFUL = ocsp.OCSPResponseStatus.SUCCESSFUL


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


@pytest.fixture
def agent(tmp_path: Path, time: Time) -> Iterator[Agent]:
    """Yield an agent with a P-256 CA."""
    with open_agent(tmp_path, time) as opened:
        yield opened


def unknown(agent: Agent, serial: int = 7) -> bytes:
    """Return the CertID of a certificate that nobody has."""
    return cert_id_in(by_serial(serial, agent.generations.current.root))


@pytest.mark.parametrize("nonce", ["-nonce", "-no_nonce"])
@pytest.mark.parametrize("ca_key", ["p256", "p384", "rsa2048", "ed25519"])
def test_answer_as_openssl_judges_it(ca_key: str, nonce: str, tmp_path: Path) -> None:
    """Good, revoked and unknown in one answer that verifies under the root, each for the certificate it is about."""
    time = time_of_day()
    with open_agent(tmp_path, time, key_type=ca_key) as agent:
        leaf, gone = issue(agent), issue(agent, "gone")
        revoke(agent, gone, time, Reason.superseded)
        root = write_pem(tmp_path / "root.pem", agent.generations.current.root)
        paths = [write_pem(tmp_path / "leaf.pem", leaf), write_pem(tmp_path / "gone.pem", gone)]
        options = ["-issuer", root, "-cert", paths[0], "-cert", paths[1], "-sha256", "-serial", "0x" + "01" * 17, nonce]
        told = openssl_ocsp(agent.responder.answer, tmp_path, root, options)

    for line in (f"{paths[0]}: good\n", f"{paths[1]}: revoked\n", "Reason: superseded\n", f"0x{'01' * 17}: unknown\n"):
        assert line in told


def test_answer_as_gnutls_and_pkilint_read_it(tmp_path: Path) -> None:
    """GnuTLS finds each certificate's status in it and verifies it, and pkilint has nothing to say of it."""
    time = time_of_day()
    with open_agent(tmp_path, time) as agent:
        root = agent.generations.current.root
        leaf, gone = issue(agent), issue(agent, "gone")
        revoke(agent, gone, time)
        asked = about(*(cert_id_in(question(each, root)) for each in (leaf, gone)), nonce=NONCE)
        answer = agent.responder.answer(asked).der
        trusted = write_pem(tmp_path / "root.pem", root)

    assert_pkilint_accepts(answer, tmp_path)  # writes it
    path = str(tmp_path / "response.der")
    assert "Success." in gnutls("--verify-response", "--load-trust", trusted, "--load-response", path)
    info = gnutls("--response-info", "--load-response", path)
    assert info.index("Certificate Status: good") < info.index("Certificate Status: revoked")


@pytest.mark.parametrize("count", [1, 2, MAX_CERTIFICATES, MAX_CERTIFICATES + 1, 40])
def test_number_of_certificates(count: int, agent: Agent) -> None:
    """Up to sixteen are answered, in the order of the request, also where one stands twice; more are malformed."""
    leaf = cert_id_in(question(issue(agent), agent.generations.current.root))
    asked = about(*[leaf] * (count - 1), unknown(agent))
    answer = agent.responder.answer(asked)

    read = ocsp.load_der_ocsp_response(answer.der)
    if count > MAX_CERTIFICATES:
        assert read.response_status is MALFORMED
        return
    found = [(each.serial_number, each.certificate_status) for each in read.responses]
    leaf_number = ocsp.load_der_ocsp_request(about(leaf)).serial_number
    assert found == [(leaf_number, ocsp.OCSPCertStatus.GOOD)] * (count - 1) + [(7, ocsp.OCSPCertStatus.UNKNOWN)]
    assert answer.expires_ms == 0


def test_largest_request_that_is_answered() -> None:
    """A request about as many as are answered, each named with the longest hash, fits the channel's record."""
    name, key = der.wrap(der.OCTET_STRING, bytes(64)), der.wrap(der.OCTET_STRING, bytes(64))
    algorithm = bytes.fromhex("300d06096086480165030402030500")
    longest = der.wrap(der.SEQUENCE, algorithm, name, key, der.wrap(der.INTEGER, b"\x7f" * 20))

    assert len(about(*[longest] * MAX_CERTIFICATES, nonce=bytes(128))) <= MAX_OCSP_REQUEST


def test_answer_about_several_is_not_kept(agent: Agent, time: Time) -> None:
    """Who asks about several gets what holds now; who asks about one of them gets the answer that is kept."""
    root = agent.generations.current.root
    leaf = question(issue(agent), root)
    alone = agent.responder.answer(leaf)
    several = about(cert_id_in(leaf), cert_id_in(leaf))
    first = agent.responder.answer(several)
    time.advance(seconds=1)

    assert agent.responder.answer(several).der != first.der
    assert agent.responder.answer(leaf) == alone
    assert (first.expires_ms, alone.expires_ms > 0) == (0, True)


def test_certificates_of_two_issuers(agent: Agent, tmp_path: Path, time: Time) -> None:
    """No delegate may answer for certificates of two generations, nor for those of a stranger: unauthorized."""
    old = cert_id_in(question(issue(agent), agent.generations.current.root))
    time.advance(days=1)
    create_ca(tmp_path, "p384", time())
    agent.generations.look_for_newer()
    new = cert_id_in(question(issue(agent, "hmc2"), agent.generations.current.root))
    (tmp_path / "there").mkdir(mode=0o700)
    with open_agent(tmp_path / "there", time) as other:
        stranger = cert_id_in(question(issue(other), other.generations.current.root))

    for several in ((old, new), (new, old), (old, stranger), (stranger, old), (stranger, stranger)):
        assert ask(agent, about(*several)).response_status is UNAUTHORIZED
    for same in ((old, old), (new, new)):
        assert ask(agent, about(*same)).response_status is SUCCESSFUL


def test_one_of_several_that_nobody_could_have(agent: Agent) -> None:
    """A negative serial number among them makes the whole request malformed."""
    like = by_serial(1, agent.generations.current.root)
    answers = [ask(agent, about(cert_id(5, like), cert_id(number, like))).response_status for number in (-5, 0)]

    assert answers == [MALFORMED, SUCCESSFUL]


STATUSES = {
    ocsp_der.GOOD: (ocsp.OCSPCertStatus.GOOD, None, None),
    ocsp_der.UNKNOWN: (ocsp.OCSPCertStatus.UNKNOWN, None, None),
    **{ocsp_der.revoked(START, reason): (ocsp.OCSPCertStatus.REVOKED, START, FLAGS.get(reason)) for reason in Reason},
}


@pytest.mark.parametrize("hash_name", HASHES)
@pytest.mark.parametrize("nonce", [None, NONCE], ids=["without nonce", "with nonce"])
@pytest.mark.parametrize("status", STATUSES, ids=lambda status: status.hex())
def test_layout_is_that_of_the_cryptography_package(
    status: bytes, nonce: bytes | None, hash_name: str, agent: Agent
) -> None:
    """About one certificate it is octet for octet what that package builds, but for the signature."""
    root = agent.generations.current.root
    asked = question(issue(agent), root, nonce, hash_name)
    request = ocsp.load_der_ocsp_request(asked)
    delegate = x509.load_der_x509_certificate(Link("delegate", "delegate", key=0, issuer_key=0).der())
    told, revoked_at, reason = STATUSES[status]
    builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
        request.issuer_name_hash,
        request.issuer_key_hash,
        request.serial_number,
        request.hash_algorithm,
        told,
        START,
        START + responder.VALIDITY,
        revoked_at,
        reason,
    )
    extension = None if nonce is None else x509.OCSPNonce(nonce)
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, delegate).certificates([delegate])
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    built = builder.sign(KEYS[0], hashes.SHA256())

    single = ocsp_der.single_response(cert_id_in(asked), status, START, START + responder.VALIDITY)
    data = ocsp_der.response_data(delegate, built.produced_at_utc, [single], extension)
    whole = ocsp_der.response(data, bytes.fromhex("300a06082a8648ce3d040302"), built.signature, delegate)

    assert data == built.tbs_response_bytes
    assert whole == built.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "request_der",
    [
        b"",
        b"\x30\x00",
        der.wrap(der.SEQUENCE, b"\x30\x00"),
        der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, b"\x30\x00")),
        der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, b"\x30\x02\x30\x00")),
        der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, b"\x30\x00", b"\x30\x00")),
        der.wrap(der.SEQUENCE, der.wrap(der.SEQUENCE, b"\xa0\x03\x02\x01\x00")),
    ],
    ids=["nothing", "no tbs", "empty tbs", "empty list", "empty request", "two lists", "a version alone"],
)
def test_take_apart_what_is_no_request(request_der: bytes, agent: Agent) -> None:
    """What does not have the shape of a request is malformed."""
    with pytest.raises(DerError):
        ocsp_der.take_apart(request_der)
    assert ask(agent, request_der).response_status is MALFORMED


def test_take_apart_keeps_what_stands_around_the_list() -> None:
    """Version, requestor's name and extensions go into each request, a signature into none."""
    single, version, name, extensions = b"\x30\x02\x30\x00", b"\xa0\x03\x02\x01\x00", b"\xa1\x02\x82\x00", b"\xa2\x00"
    tbs = der.wrap(der.SEQUENCE, version, name, der.wrap(der.SEQUENCE, single, single), extensions)
    alone = der.wrap(der.SEQUENCE, version, name, der.wrap(der.SEQUENCE, single), extensions)

    parts = ocsp_der.take_apart(der.wrap(der.SEQUENCE, tbs, b"\xa0\x00"))

    assert [each.request for each in parts] == [der.wrap(der.SEQUENCE, alone)] * 2
    assert [each.cert_id for each in parts] == [b"\x30\x00"] * 2


_places = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.sampled_from("=+-")), min_size=1, max_size=4
)


def test_mutated_requests(agent: Agent) -> None:
    """Whatever octets come, an OCSPResponse goes back, and nothing is reported as a failure of the agent's own."""
    leaf = cert_id_in(question(issue(agent), agent.generations.current.root))
    sound = about(leaf, unknown(agent), nonce=NONCE)

    @settings(max_examples=300, deadline=None)
    @given(_places)
    def answered(places: list[tuple[int, int, str]]) -> None:
        octets = bytearray(sound)
        for place, value, how in places:
            at = place % max(1, len(octets))
            octets[at : at + (how != "+")] = b"" if how == "-" else bytes((value,))
        answer = agent.dispatch.ocsp(GetOcsp(1000, bytes(octets) or b"\0"))
        assert isinstance(answer, OcspAnswer)
        ocsp.load_der_ocsp_response(answer.response)

    answered()
    assert agent.failures == []
