"""The OCSP responder: what openssl and GnuTLS read in its answers, what is kept, and what hostile requests get."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from support.agents import START, Agent, Time, create_ca, open_agent
from support.ocsp_questions import about, assert_pkilint_accepts, cert_id, gnutls, openssl_ocsp
from support.revoking import (
    FLAGS,
    HASHES,
    ask,
    by_serial,
    issue,
    question,
    revoke,
    time_of_day,
    write_pem,
)

from protocol.records import GetOcsp, OcspAnswer
from runtime.clock import BACK_DATE
from vmi_agent.keys.algorithms import key_type_of
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import PENDING, issuance
from vmi_agent.revocation import ocsp as responder


@pytest.fixture
def time() -> Time:
    """Return a clock that stands at START."""
    return Time()


@pytest.mark.parametrize("hash_name", HASHES)
@pytest.mark.parametrize("nonce", ["-nonce", "-no_nonce"])
@pytest.mark.parametrize("ca_key", ["p256", "p384", "rsa2048", "ed25519"])
def test_answer_as_openssl_judges_it(ca_key: str, nonce: str, hash_name: str, tmp_path: Path) -> None:
    """Good, revoked with the reason, and unknown: each verifies under the root, with the nonce if there was one."""
    time = time_of_day()
    with open_agent(tmp_path, time, key_type=ca_key) as agent:
        leaf, gone = issue(agent), issue(agent, "gone")
        revoke(agent, gone, time, Reason.superseded)
        root = write_pem(tmp_path / "root.pem", agent.generations.current.root)
        about = ["-issuer", root, f"-{hash_name}", "-cert", write_pem(tmp_path / "leaf.pem", leaf)]
        about += ["-cert", write_pem(tmp_path / "gone.pem", gone)]
        told = [
            openssl_ocsp(agent.responder.answer, tmp_path, root, [f"-{hash_name}", "-issuer", root, *one, nonce])
            for one in (["-cert", about[4]], ["-cert", about[6]], ["-serial", "0x" + "01" * 17])
        ]

    assert told[0].startswith(f"{about[4]}: good\n")
    assert told[1].startswith(f"{about[6]}: revoked\n")
    assert "Reason: superseded\n" in told[1]
    assert told[2].startswith(f"0x{'01' * 17}: unknown\n")


@pytest.mark.parametrize("ca_key", ["p256", "p384", "rsa2048", "ed25519"])
def test_answer_as_gnutls_judges_it(ca_key: str, tmp_path: Path) -> None:
    """GnuTLS makes a request and verifies the answer with the delegate's certificate in it."""
    time = time_of_day()
    request, response = tmp_path / "request.der", tmp_path / "response.der"
    with open_agent(tmp_path, time, key_type=ca_key) as agent:
        root = write_pem(tmp_path / "root.pem", agent.generations.current.root)
        leaf = write_pem(tmp_path / "leaf.pem", issue(agent))
        named = ["--load-issuer", root, "--load-cert", leaf]
        gnutls("--generate-request", *named, "--outfile", str(request))
        response.write_bytes(agent.responder.answer(request.read_bytes()).der)

    verified = gnutls("--verify-response", "--load-trust", root, "--load-response", str(response))
    assert "Verifying OCSP Response: Success." in verified
    info = gnutls("--response-info", "--load-response", str(response))
    assert "Certificate Status: good" in info


@pytest.mark.parametrize("ca_key", ["p256", "p384", "rsa2048", "rsa4096", "ed25519", "mldsa44", "mldsa65", "mldsa87"])
def test_answer_as_pkilint_judges_it(ca_key: str, tmp_path: Path) -> None:
    """pkilint has nothing to say of the answers, whatever they say."""
    time = time_of_day()
    with open_agent(tmp_path, time, key_type=ca_key) as agent:
        root, leaf, gone = agent.generations.current.root, issue(agent), issue(agent, "gone")
        revoke(agent, gone, time)
        requests = [question(leaf, root), question(gone, root, b"nonce"), by_serial(7, root)]
        answers = [agent.responder.answer(request).der for request in requests]

    for answer in answers:
        assert_pkilint_accepts(answer, tmp_path)


@pytest.mark.parametrize("ca_key", ["p256", "mldsa44", "mldsa65", "mldsa87"])
def test_answer_is_signed_by_the_delegate(ca_key: str, tmp_path: Path, time: Time) -> None:
    """The delegate is in the answer, issued by the CA, and as strong as it: its key verifies the signature."""
    with open_agent(tmp_path, time, key_type=ca_key) as agent:
        root = agent.generations.current.root
        answer = ask(agent, question(issue(agent), root))

    (delegate,) = answer.certificates
    delegate.verify_directly_issued_by(root)
    key = delegate.public_key()
    assert key_type_of(key) == ca_key
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(key, mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey)
        key.verify(answer.signature, answer.tbs_response_bytes)
    assert (answer.this_update_utc, answer.next_update_utc) == (START - BACK_DATE, START + responder.VALIDITY)


@pytest.mark.parametrize("reason", Reason)
def test_answer_for_each_reason(reason: Reason, tmp_path: Path, time: Time) -> None:
    """A revoked certificate's answer has time and reason; unspecified is left out."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        revoke(agent, leaf, time, reason)
        time.advance(minutes=5)
        answer = ask(agent, question(leaf, agent.generations.current.root))

    assert answer.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert (answer.revocation_time_utc, answer.revocation_reason) == (START, FLAGS.get(reason))


@pytest.mark.parametrize("hash_name", HASHES)
@pytest.mark.parametrize("nonce", [None, b"n"], ids=["without nonce", "with nonce"])
def test_answer_is_to_what_was_asked(nonce: bytes | None, hash_name: str, tmp_path: Path, time: Time) -> None:
    """The certificate is named as the request named it, and the nonce comes back."""
    with open_agent(tmp_path, time) as agent:
        request = question(issue(agent), agent.generations.current.root, nonce, hash_name)
        answer = ask(agent, request)

    asked = ocsp.load_der_ocsp_request(request)
    for name in ("issuer_name_hash", "issuer_key_hash", "serial_number"):
        assert getattr(answer, name) == getattr(asked, name)
    assert answer.hash_algorithm.name == asked.hash_algorithm.name
    assert [each.value for each in answer.extensions] == ([] if nonce is None else [x509.OCSPNonce(nonce)])


@pytest.mark.parametrize("octets", [0, 1, 32, 128, 129, 1024])
def test_nonce_limits(octets: int, tmp_path: Path, time: Time) -> None:
    """Nonces of 1 to 128 octets are given back, others refused (RFC 9654, 2.1)."""
    nonce = bytes(octets)
    with open_agent(tmp_path, time) as agent:
        answer = ask(agent, question(issue(agent), agent.generations.current.root, nonce))

    if 1 <= octets <= 128:
        assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
    else:
        assert answer.response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


@pytest.mark.parametrize("serial", [0, 1, 2**136 - 1, 2**136, 2**2000], ids=lambda serial: str(serial.bit_length()))
def test_answer_for_serials_that_nobody_has(serial: int, tmp_path: Path, time: Time) -> None:
    """They are unknown, however long, and nothing is kept of them."""
    with open_agent(tmp_path, time) as agent:
        answered = agent.responder.answer(naming(serial, agent))

    answer = ocsp.load_der_ocsp_response(answered.der)
    assert answer.serial_number == serial
    assert answer.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    assert answered.expires_ms == 0


def test_answer_for_a_negative_serial(tmp_path: Path, time: Time) -> None:
    """No certificate has one: malformed, and no failure of the agent's own."""
    with open_agent(tmp_path, time) as agent:
        answer = agent.dispatch.ocsp(GetOcsp(1000, naming(-5, agent)))

        assert isinstance(answer, OcspAnswer)
        status = ocsp.load_der_ocsp_response(answer.response).response_status
        assert status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST
        assert agent.failures == []


def naming(serial: int, agent: Agent) -> bytes:
    """Return an OCSP request for any number at all."""
    return about(cert_id(serial, by_serial(1, agent.generations.current.root)))


def test_answer_while_a_certificate_is_pending(tmp_path: Path, time: Time) -> None:
    """An intent is not a certificate: unknown."""
    with open_agent(tmp_path, time) as agent:
        leaf = issue(agent)
        agent.ledger.change(lambda connection: connection.execute(update(issuance).values(status=PENDING)))
        answer = ask(agent, question(leaf, agent.generations.current.root))

    assert answer.certificate_status is ocsp.OCSPCertStatus.UNKNOWN


def test_answer_for_another_issuer(tmp_path: Path, time: Time) -> None:
    """Of another CA's certificates, and with a hash that nobody uses, there is nothing to say: unauthorized."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir(mode=0o700)
    with open_agent(tmp_path / "there", time) as other:
        stranger, its_root = issue(other), other.generations.current.root
    with open_agent(tmp_path / "here", time) as agent:
        leaf, root = issue(agent), agent.generations.current.root
        odd = ocsp.OCSPRequestBuilder().add_certificate(leaf, root, hashes.SHA224()).build().public_bytes(Encoding.DER)
        answers = [ask(agent, each).response_status for each in (question(stranger, its_root), odd)]

    assert answers == [ocsp.OCSPResponseStatus.UNAUTHORIZED] * 2


def test_answer_of_each_generation(tmp_path: Path, time: Time) -> None:
    """After a rotation each generation answers for its own leaves, and for no other's; at its end it stops."""
    with open_agent(tmp_path, time) as agent:
        first, old_root = issue(agent), agent.generations.current.root
        assert status_of(agent, first, old_root) is ocsp.OCSPCertStatus.GOOD
        time.advance(days=1)
        create_ca(tmp_path, "p384", time())
        agent.generations.look_for_newer()
        second, new_root = issue(agent, "hmc2"), agent.generations.current.root

        assert status_of(agent, first, old_root) is ocsp.OCSPCertStatus.GOOD
        assert status_of(agent, second, new_root) is ocsp.OCSPCertStatus.GOOD
        crossed = ask(agent, by_serial(first.serial_number, new_root))
        assert crossed.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
        time.now = old_root.not_valid_after_utc
        ended = ask(agent, question(first, old_root)).response_status
        assert ended is ocsp.OCSPResponseStatus.UNAUTHORIZED
        assert status_of(agent, second, new_root) is ocsp.OCSPCertStatus.GOOD


def status_of(agent: Agent, leaf: x509.Certificate, issuer: x509.Certificate) -> ocsp.OCSPCertStatus:
    """Return what the responder says of a certificate."""
    return ask(agent, question(leaf, issuer)).certificate_status


_places = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.sampled_from("=+-")), min_size=1, max_size=4
)


def mutated(request: bytes, places: list[tuple[int, int, str]]) -> bytes:
    """Return a request with octets changed, added or left out."""
    octets = bytearray(request)
    for place, value, how in places:
        at = place % max(1, len(octets))
        octets[at : at + (how != "+")] = b"" if how == "-" else bytes((value,))
    return bytes(octets)


@pytest.mark.parametrize("nonce", [None, bytes(16)], ids=["without nonce", "with nonce"])
def test_answer_to_mutated_requests(nonce: bytes | None, tmp_path: Path, time: Time) -> None:
    """Whatever octets come, an OCSPResponse goes back, and nothing is reported as a failure of the agent's own."""
    with open_agent(tmp_path, time) as agent:
        request = question(issue(agent), agent.generations.current.root, nonce)

        @settings(max_examples=400, deadline=None)
        @given(st.one_of(_places.map(lambda places: mutated(request, places)), st.binary(max_size=100)))
        def answered(odd: bytes) -> None:
            answer = agent.dispatch.ocsp(GetOcsp(1000, odd or b"\0"))
            assert isinstance(answer, OcspAnswer)
            ocsp.load_der_ocsp_response(answer.response)

        answered()
        assert agent.failures == []
