"""The agent's side of the channel, on a real process and real sockets."""

import json
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LogWatch
from cryptography import x509
from support.agent_connections import code_of, connected, server_of
from support.agents import Time, open_agent, request
from support.csrs import make_csr
from support.edges import NarrowTransport
from support.octets import AGENT_HELLO, ASKER_HELLO, VECTORS, encode, frame, hello_for, sent_records
from support.processes import Process, port_of, run, start_agent
from support.raw_asker import PATIENCE_S, RawAsker
from support.vector_runner import octets_of
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from protocol.errors import ErrorCode
from protocol.events import LateAnswer, PeerDraining
from protocol.records import Cancel, Chain, Error, GetChain, GetOcsp, OcspAnswer, Role, SignCsr, Signed, Status
from runtime.asn1.der import csr_subject_and_key, leaf_subject_and_key
from vmi_agent.handlers import Outcome, failed
from vmi_agent.ledger.schema import FILE_NAME
from vmi_agent.server import OCSP_AT_ONCE, OCSP_WAITING, AgentServer

WINDOW = 64


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, int, Path]]:
    """Yield an agent, its port and its state directory."""
    state_dir = tmp_path_factory.mktemp("agent")
    with start_agent(state_dir, 0, "--window", str(WINDOW)) as process:
        yield process, port_of(process.wait_for("ready")["listen"][0]), state_dir


def talk(port: int, octets: bytes) -> list[object]:
    """Write octets to the agent; return the records it sends until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as stream:
        stream.sendall(octets)
        received = b""
        while data := stream.recv(65_536):
            received += data
    return [record for _, record in sent_records(received)]


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(vector, id=vector["description"])
        for vector in VECTORS["refused"]
        # A peer alone can say all that comes before, and the agent's HELLO is its own.
        if (vector["role"], vector["about"]) == ("agent", "connection")
        and "hello" not in vector
        and all("peer" in step for step in vector["before"])
    ],
)
def test_agent_refuses_a_vector(agent: tuple[Process, int, Path], vector: dict[str, Any]) -> None:
    """Each fault of the vectors gets its ERROR as the last record, and then the end of the stream."""
    before = b"".join(octets_of(step["peer"]) for step in vector["before"])
    records = talk(agent[1], before + octets_of(vector["octets"]))

    assert isinstance(records[-1], Error)
    assert records[-1].code is ErrorCode(vector["code"])


def test_agent_answers_many_at_once(agent: tuple[Process, int, Path]) -> None:
    """A window full of requests on one connection: each gets the certificate for its own key."""
    csrs = [make_csr() for _ in range(WINDOW)]
    with RawAsker(agent[1]) as asker:
        request_ids = asker.ask(*(request(csr) for csr in csrs))
        answers = asker.answers(WINDOW)

    for request_id, csr in zip(request_ids, csrs, strict=True):
        answer = answers[request_id]
        assert isinstance(answer, Signed)
        assert leaf_subject_and_key(answer.chain[0]) == csr_subject_and_key(csr)


def test_agent_over_its_window(agent: tuple[Process, int, Path]) -> None:
    """Requests over the window are answered with BUSY, and the others are not harmed."""
    csrs = [make_csr() for _ in range(WINDOW + 5)]
    octets = b"".join(encode(request(csr), number) for number, csr in enumerate(csrs, 1))
    with socket.create_connection(("127.0.0.1", agent[1]), timeout=PATIENCE_S) as stream:
        stream.sendall(encode(hello_for(Role.ASKER)) + octets)
        received = b""
        while len(sent_records(received[: whole_frames(received)])) < 1 + len(csrs):
            data = stream.recv(65_536)
            assert data
            received += data

    codes = [code_of(record) for _, record in sent_records(received)][1:]
    assert sorted(set(codes)) == ["BUSY", "SIGNED"]
    assert codes.count("BUSY") == 5


def whole_frames(octets: bytes) -> int:
    """Return how many octets of a stream are whole frames."""
    at = 0
    while at + 4 <= len(octets):
        end = at + 4 + int.from_bytes(octets[at : at + 4])
        if end > len(octets):
            break
        at = end
    return at


def test_agent_gives_the_chain(agent: tuple[Process, int, Path]) -> None:
    """GET_CHAIN is answered with the root."""
    with RawAsker(agent[1]) as asker:
        [request_id] = asker.ask(GetChain(1000))
        answer = asker.answers(1)[request_id]

    ca = json.loads(run("vmi-agent", "ca", "show", "--state-dir", str(agent[2]), "--json").stdout)
    assert isinstance(answer, Chain)
    [root] = answer.chain
    assert x509.load_der_x509_certificate(root) == x509.load_pem_x509_certificate(ca["certificate"].encode())


def test_agent_gets_the_same_key_for_two_csrs_at_once(agent: tuple[Process, int, Path]) -> None:
    """Two CSRs with one idempotency key in one write: one certificate, one conflict, whichever comes first."""
    for number in range(10):
        key = b"race" + number.to_bytes(12)
        with RawAsker(agent[1]) as asker:
            asker.ask(request(make_csr(), user="race", key=key), request(make_csr(), user="race", key=key))
            codes = sorted(code_of(answer) for answer in asker.answers(2).values())
        assert codes == ["REQUEST_CONFLICT", "SIGNED"]


def test_agent_gets_the_same_csr_many_times_at_once(agent: tuple[Process, int, Path]) -> None:
    """A CSR that is asked again while it is under way, on two connections, makes one certificate."""
    again = request(make_csr(), user="impatient")
    with RawAsker(agent[1]) as one, RawAsker(agent[1]) as two:
        one.ask(*[again] * 20)
        two.ask(*[again] * 20)
        answers = [*one.answers(20).values(), *two.answers(20).values()]

    assert len(answers) == 40
    assert len({answer.chain for answer in answers if isinstance(answer, Signed)}) == 1


def test_agent_cancels_what_has_not_begun(agent: tuple[Process, int, Path]) -> None:
    """Cancelled requests are still answered, once each; those that had not begun leave nothing in the ledger."""
    with RawAsker(agent[1]) as asker:
        request_ids = [asker.connection.ask(request(make_csr(), user="fickle")) for _ in range(40)]
        for request_id in request_ids:
            asker.connection.cancel(request_id)
        asker.send()
        while sum(isinstance(event, LateAnswer) for event in asker.events) < 40:
            assert asker.receive()

    with closing(sqlite3.connect(agent[2] / FILE_NAME)) as ledger, ledger:
        states = ledger.execute("SELECT status FROM issuance WHERE user = 'fickle'").fetchall()
    assert len(states) < 40
    assert set(states) <= {("issued",)}


def test_agent_after_the_deadline(agent: tuple[Process, int, Path]) -> None:
    """Requests that wait behind the same question past their deadline, or would, are not signed, and told so."""
    slow = [request(make_csr(key="rsa2048"), user="hasty", deadline_ms=1) for _ in range(60)]
    with RawAsker(agent[1]) as asker:
        asker.ask(*slow)
        codes = {code_of(answer) for answer in asker.answers(60).values()}

    assert "DEADLINE" in codes
    assert codes <= {"BUSY", "DEADLINE", "SIGNED"}


def test_agent_answers_the_largest_csr_to_the_smallest_asker(agent: tuple[Process, int, Path]) -> None:
    """A leaf with as many names as a CSR can hold fits the smallest max_record that an asker may say."""
    names = [x509.DNSName(f"host-{number:04}.example.com") for number in range(690)]
    csr = make_csr(x509.SubjectAlternativeName(names))
    assert 15_000 < len(csr) <= 16_384
    with RawAsker(agent[1], replace(ASKER_HELLO, max_record=65_536)) as asker:
        [request_id] = asker.ask(request(csr))

        assert code_of(asker.answers(1)[request_id]) == "SIGNED"


def test_agent_passes_over_a_late_cancel(agent: tuple[Process, int, Path]) -> None:
    """A CANCEL that crosses its answer changes nothing."""
    with RawAsker(agent[1]) as asker:
        [request_id] = asker.ask(GetChain(1000))
        asker.answers(1)
        asker._socket.sendall(frame(0x14, request_id))
        asker.ask(GetChain(1000))
        assert len(asker.answers(2)) == 2


def test_agent_drains(tmp_path: Path) -> None:
    """On SIGTERM every request that was sent before the DRAIN arrived is answered; then the agent ends, status 0."""
    with start_agent(tmp_path) as process:
        port = port_of(process.wait_for("ready")["listen"][0])
        with RawAsker(port) as asker:
            asker.ask(*(request(make_csr(key="rsa2048"), user=f"hmc{number}") for number in range(60)))
            process._process.send_signal(signal.SIGTERM)
            asker.ask(*(request(make_csr(), user=f"late{number}") for number in range(10)))
            answers = asker.answers(70)
            assert asker.wait_for(PeerDraining)
        assert [code_of(answer) for answer in answers.values()] == ["SIGNED"] * 70
        assert process.wait() == 0


def test_agent_refuses_connections_over_its_limit(tmp_path: Path) -> None:
    """The sixty-fifth connection is closed at once; one that ends makes room."""
    with start_agent(tmp_path) as process:
        port = port_of(process.wait_for("ready")["listen"][0])
        askers = [RawAsker(port) for _ in range(64)]
        with pytest.raises((AssertionError, OSError)):
            RawAsker(port)
        process.wait_for("connection refused")
        with askers.pop():
            pass
        process.wait_for("proxy disconnected")
        with RawAsker(port) as asker:
            asker.ask(GetChain(1000))
            assert len(asker.answers(1)) == 1
        for each in askers:
            each.__exit__()


def test_agent_with_an_answer_that_does_not_fit(tmp_path: Path, log_watch: LogWatch) -> None:
    """An answer over the asker's max_record becomes FAILED, and the request is over."""
    log_watch.expect_error("answer does not fit")
    with open_agent(tmp_path, Time()) as agent:
        generations = agent.generations
        generations.current = replace(generations.current, chain=(bytes(70_000),))
        channel, transport = connected(server_of(agent.dispatch, AGENT_HELLO))

        channel.dataReceived(encode(GetChain(1000), 1))

        [(request_id, answer)] = sent_records(transport.value())
        assert (request_id, code_of(answer)) == (1, "FAILED")
        assert channel.connection.unanswered == 0
        channel.connectionLost()


def test_agent_tells_its_status(tmp_path: Path) -> None:
    """STATUS goes to every proxy that has said HELLO, at once, and to nobody else."""
    with open_agent(tmp_path, Time()) as agent:
        server = server_of(agent.dispatch, AGENT_HELLO)
        channels = [connected(server), connected(server)]
        stranger, unheard = server.buildProtocol(StringTransport().getPeer()), StringTransport()
        assert stranger is not None
        stranger.makeConnection(unheard)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        unheard.clear()

        server.tell_status(2, 9)

        assert [sent_records(transport.value()) for _, transport in channels] == [[(0, Status(2, 9))]] * 2
        assert unheard.value() == b""
        for channel in (*(channel for channel, _ in channels), stranger):
            channel.connectionLost()


def test_agent_at_its_limit_of_ocsp(tmp_path: Path) -> None:
    """Sixteen OCSP requests are worked on at once and 64 wait; one more gets BUSY at once."""
    working: list[Deferred[Any]] = []

    def in_thread(*_: object) -> Deferred[Any]:
        working.append(Deferred())
        return working[-1]

    count = OCSP_AT_ONCE + OCSP_WAITING + 1
    with open_agent(tmp_path, Time()) as agent:
        channel, transport = connected(server_of(agent.dispatch, replace(AGENT_HELLO, window=count), in_thread))
        for number in range(1, count + 1):
            channel.dataReceived(encode(GetOcsp(1000, b"%d" % number), number))
        [(request_id, answer)] = sent_records(transport.value())
        assert (request_id, code_of(answer)) == (count, "BUSY")
        assert len(working) == OCSP_AT_ONCE
        transport.clear()

        response = OcspAnswer(0, b"response")
        working[0].callback(response)
        channel.dataReceived(encode(Cancel(), count - 1))

        assert [(number, code_of(each)) for number, each in sent_records(transport.value())[1:]] == [
            (count - 1, "CANCELLED")
        ]
        assert len(working) == OCSP_AT_ONCE + 1
        channel.connectionLost()
        working[1].callback(response)  # nobody is there to be told, and nothing that waited is begun for nobody
        assert len(working) == OCSP_AT_ONCE + 1


def test_agent_is_fair_between_connections(tmp_path: Path) -> None:
    """Where one proxy has filled all places, another one's request takes the last of them, and the next turn."""
    working: list[tuple[Any, Deferred[Any]]] = []

    def in_thread(_work: object, record: SignCsr, *_: object) -> Deferred[Any]:
        working.append((record.user, Deferred()))
        return working[-1][1]

    with open_agent(tmp_path, Time()) as agent:
        hello = replace(AGENT_HELLO, window=9)
        server = AgentServer(Clock(), agent.dispatch, lambda: hello, in_thread, in_thread, at_once=1, max_requests=4)
        (flooding, flood), (asking, quiet) = connected(server), connected(server)
        for number in range(1, 7):
            flooding.dataReceived(encode(request(make_csr(), user=f"flood{number}"), number))
        assert [(number, code_of(each)) for number, each in sent_records(flood.value())] == [(5, "BUSY"), (6, "BUSY")]
        flood.clear()

        asking.dataReceived(encode(request(make_csr(), user="quiet"), 1))
        assert [(number, code_of(each)) for number, each in sent_records(flood.value())] == [(4, "BUSY")]
        for _ in range(2):
            working[-1][1].callback(Outcome(failed("test"), "not signed", {}))

        assert [user for user, _ in working] == ["flood1", "flood2", "quiet"]
        assert quiet.value() == b""
        for channel in (flooding, asking):
            channel.connectionLost()


def test_agent_answers_at_the_pace_of_the_reader(tmp_path: Path) -> None:
    """Requests that one read brings are answered as far as the peer takes answers, the rest once it takes more."""
    count = 3_000
    with open_agent(tmp_path, Time()) as agent:
        server = server_of(agent.dispatch, replace(AGENT_HELLO, window=10))
        transport: StringTransport = NarrowTransport()
        channel = server.buildProtocol(transport.getPeer())
        assert channel is not None
        channel.makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        channel.dataReceived(encode(ASKER_HELLO))
        transport.clear()

        channel.dataReceived(b"".join(encode(GetChain(1000), number) for number in range(1, count + 1)))
        looks, answered = 0, 0
        while answered < count:
            octets = transport.value()
            assert 0 < len(octets) < 512 * 1024
            answered += len(sent_records(octets))
            transport.clear()
            channel.resumeProducing()
            looks += 1

        assert looks > 3
        channel.connectionLost()


def test_agent_whose_root_changes_before_the_peers_hello(tmp_path: Path) -> None:
    """A proxy that was told the old generation in HELLO is told the new one as soon as it can be."""
    with open_agent(tmp_path, Time()) as agent:
        hellos = [AGENT_HELLO, replace(AGENT_HELLO, root_generation=AGENT_HELLO.root_generation + 1)]
        server = AgentServer(Clock(), agent.dispatch, lambda: hellos[0], Deferred, Deferred, at_once=1, max_requests=1)
        transport = StringTransport()
        channel = server.buildProtocol(transport.getPeer())
        assert channel is not None
        channel.makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted has not typed it
        hellos.pop(0)
        transport.clear()
        channel.dataReceived(encode(ASKER_HELLO))

        assert sent_records(transport.value()) == [(0, Status(AGENT_HELLO.root_generation + 1, 0))]
        channel.connectionLost()


def test_agent_whose_worker_ends_by_a_panic(tmp_path: Path, log_watch: LogWatch) -> None:
    """Whatever ends a worker, the request is answered, and its place is free for the next one."""
    log_watch.expect_error("answering failed")
    with open_agent(tmp_path, Time()) as agent:
        server = server_of(agent.dispatch, AGENT_HELLO, lambda *_: fail(KeyboardInterrupt()))
        channel, transport = connected(server)
        for number in (1, 2):
            channel.dataReceived(encode(request(make_csr()), number))
        channel.dataReceived(encode(GetOcsp(1000, b"0"), 3))

        assert [(number, code_of(answer)) for number, answer in sent_records(transport.value())] == [
            (1, "FAILED"),
            (2, "FAILED"),
            (3, "FAILED"),
        ]
        assert (server.admission.under_way, server.ocsp_admission.under_way) == (0, 0)
        channel.connectionLost()
